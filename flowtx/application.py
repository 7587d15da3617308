"""The composition root: the parts of a server, in the order in which they start."""

from __future__ import annotations

from collections.abc import Sequence
from socket import gethostname
from typing import Any

from twisted.internet.defer import Deferred

from flowtx.app import App, Services, load_app, router_of
from flowtx.auth import TokenVerifier, key_source
from flowtx.bursts import Bursts
from flowtx.config import CLAIMS, HMAC_ALGORITHMS, Settings
from flowtx.console.console import Console
from flowtx.console.figures import Readings
from flowtx.console.portrait import Sources
from flowtx.data_dir import DataDir
from flowtx.demo import Demo
from flowtx.exposure import warn_of_exposure
from flowtx.groups.service import Groups
from flowtx.interfaces import IPubSub, IUserDirectory
from flowtx.lag import Lag
from flowtx.listening import Listening
from flowtx.metrics import Metrics
from flowtx.notifications.service import NotificationService
from flowtx.notifications.upkeep import InboxUpkeep
from flowtx.open_files import allow_open_files
from flowtx.pauses import PauseWatch
from flowtx.preparation import Keys, Step
from flowtx.presence.online import OnlineUsers
from flowtx.presence.presence import Presence
from flowtx.presence.recorder import PresenceRecorder
from flowtx.presence.tracker import Tracker
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.recorder import FlightRecorder
from flowtx.service import OrderedMultiService
from flowtx.sessions.directory import BatchedRevocations, BatchedUserDirectory
from flowtx.sessions.drainer import Drainer, Entrance
from flowtx.sessions.history import MAX_QUEUED, History
from flowtx.sessions.notes import SessionNotes
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Limits
from flowtx.storage.embedded import EmbeddedPostgres
from flowtx.storage.groups import CHANNEL as GROUPS_CHANNEL
from flowtx.storage.groups import PostgresGroupStore
from flowtx.storage.inspection import Inspection
from flowtx.storage.listener import Listener
from flowtx.storage.measured import MeasuredDatabase
from flowtx.storage.migrations import migrate
from flowtx.storage.notifications import CHANNEL, PostgresNotificationStore
from flowtx.storage.postgres import Database
from flowtx.storage.presence import PostgresPresenceStore
from flowtx.storage.revocations import PostgresRevocations
from flowtx.storage.sessions import PostgresHistoryStore
from flowtx.storage.users import ClaimsUserDirectory, SqlUserDirectory
from flowtx.topics.routes import own_router
from flowtx.transports.admission import Admission
from flowtx.transports.factory import FlowFactory
from flowtx.transports.origin import origin_rule
from flowtx.web.admin import admin_site
from flowtx.web.broadcasts import BroadcastCalls
from flowtx.web.gate import Gate
from flowtx.web.groups import GroupCalls
from flowtx.web.inboxes import InboxCalls
from flowtx.web.keys import ApiKeys
from flowtx.web.operations import OperationCalls
from flowtx.web.presence import PresenceCalls
from flowtx.web.recorder import RecorderCalls
from flowtx.web.sessions import SessionCalls
from flowtx.web.site import pages


class Flow(OrderedMultiService):
    """A whole server.

    Its start fails with `ConfigError`, `StartupError` or `StorageError`, whose text is one line for
    the operator; what had started by then has been stopped again.

    Args:
        settings: the settings.
        app: the application, in the place of what ``settings.app`` names: a Router, or a function of the
            `flowtx.app.Services` that returns one.
        reactor: the reactor.
    """

    def __init__(self, settings: Settings, *, reactor: Any, app: App | None = None) -> None:
        super().__init__()
        self.settings = settings
        self._reactor = reactor
        self._app = app
        self._data_dir: DataDir | None = None
        self._drainer: Drainer | None = None

    @property
    def draining(self) -> bool:
        """Whether it has begun to stop: it takes no new work, and sends its clients away."""
        return self._drainer is not None and self._drainer.draining

    def startService(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> None:
        self._data_dir = DataDir.open(self.settings.data_dir)
        warn_of_exposure(self.settings)
        allow_open_files(self.settings.max_sessions)
        try:
            self._assemble(self._data_dir)
            await super().startService()
        except BaseException:
            self._close()
            raise

    def stopService(self) -> Deferred[None]:
        return super().stopService().addBoth(self._closed)

    def _closed(self, result: None) -> None:
        self._close()
        return result

    def _close(self) -> None:
        for child in list(self):
            self.removeService(child)
        if self._data_dir is not None:
            self._data_dir.close()
            self._data_dir = None

    def _assemble(self, data_dir: DataDir) -> None:
        settings, reactor = self.settings, self._reactor
        app = load_app(settings.app) if self._app is None and settings.app is not None else self._app
        secret = None
        if HMAC_ALGORITHMS.issuperset(settings.jwt_algorithms):
            secret = data_dir.secret(settings.secret_file)
        keys = Keys(key_source(settings, secret, reactor=reactor))
        keys.setServiceParent(self)
        verifier = TokenVerifier(settings, keys.source)
        self.api_keys = ApiKeys(data_dir.api_key, settings.api_keys)

        name = f"flowtx/{gethostname()}"
        metrics = self.metrics = Metrics()
        self._measure(metrics)
        url, database = self._add_database(data_dir, name)
        self.database_url, self.database = url, database
        directory = user_directory(settings, database)
        if isinstance(directory, SqlUserDirectory):
            Step(directory.check, reactor).setServiceParent(self)
            directory = BatchedUserDirectory(directory, clock=reactor)
        self.recorder = FlightRecorder()
        bursts = Bursts(reactor)
        pubsub = MemoryPubSub(gethostname(), bursts=bursts)
        notifications = self._add_notifications(database, pubsub, name)
        history = History(
            PostgresHistoryStore(database),
            node=gethostname(),
            clock=reactor,
            metrics=metrics,
        )
        self.history = history
        history.setServiceParent(self)
        self._add_presence(database, pubsub)
        self.groups = Groups(PostgresGroupStore(database), clock=reactor)
        Listener(
            url, GROUPS_CHANNEL, self.groups.wake, reactor=reactor, application_name=name
        ).setServiceParent(self)
        revocations = PostgresRevocations(database, settings.jwt_max_lifetime)
        sessions = SessionService(
            directory,
            [history, self.online, SessionNotes(self.recorder)],
            pubsub=pubsub,
            clock=reactor,
            limits=Limits(settings.reconnect_window, settings.idle_timeout, settings.max_devices),
            max_sessions=settings.max_sessions,
            refuse_devices=settings.device_policy == "refuse",
            revocations=BatchedRevocations(revocations, clock=reactor),
            metrics=metrics,
        )
        sessions.setServiceParent(self)
        Lag(metrics, clock=reactor).setServiceParent(self)

        admission = Admission(settings.handshake_rate, settings.handshake_concurrency)

        def jitter_ms() -> int:
            return admission.jitter_ms(len(sessions.namedServices))

        router = own_router(sessions, notifications, self.online, self.groups, jitter_ms)
        services = Services(sessions, notifications, self.presence, self.groups, pubsub, reactor)
        if app is not None:
            router.extend(router_of(app, services))
        factory = FlowFactory(
            settings,
            verifier=verifier,
            sessions=sessions,
            router=router,
            pubsub=pubsub,
            origins=origin_rule(settings),
            admission=admission,
            metrics=metrics,
            reactor=reactor,
            recorder=self.recorder,
            bursts=bursts,
        )
        clients = [Listening("listen", endpoint, factory, reactor=reactor) for endpoint in settings.listen]
        self.pubsub, self.sessions, self.notifications = pubsub, sessions, notifications
        self.clients = clients
        console, gate = self._add_admin()
        for listening in (*clients, self.admin):
            listening.setServiceParent(self)
        self.keys, self.verifier, self.factory = keys, verifier, factory
        self.change(settings)
        if settings.demo:
            Demo(self, data_dir.path / "api-key", secret).setServiceParent(self)
        self._add_manhole(data_dir, services, database)
        self._add_drainer([factory, console.entrance], gate)

    def _add_admin(self) -> tuple[Console, Gate]:
        settings, reactor, metrics, pubsub = self.settings, self._reactor, self.metrics, self.pubsub
        sessions, notifications = self.sessions, self.notifications

        def ready() -> bool:
            return bool(self.running and sessions.healthy and self.database.ready)

        routes = (
            *InboxCalls(notifications).routes(),
            *SessionCalls(sessions, notifications, pubsub=pubsub, clock=reactor).routes(),
            *PresenceCalls(self.presence, self.online).routes(),
            *BroadcastCalls(pubsub, sessions).routes(),
            *GroupCalls(self.groups).routes(),
            *RecorderCalls(self.recorder).routes(),
            *OperationCalls(metrics, ready, pages()).routes(),
        )
        site = admin_site(settings, routes, self.api_keys, reactor=reactor, metrics=metrics)
        console = Console(
            settings,
            self.api_keys,
            Sources(sessions, notifications, self.online, self.recorder, reactor),
            pubsub=pubsub,
            readings=Readings(metrics, sessions, self.online, ready),
            reactor=reactor,
        )
        console.setServiceParent(self)
        self.admin = Listening("admin", settings.admin, console.door(site), reactor=reactor)
        return console, site.gate

    def _add_drainer(self, entrances: Sequence[Entrance], requests: Gate) -> None:
        self._drainer = Drainer(
            self.sessions,
            entrances=entrances,
            doors=self.clients,
            back_doors=[self.admin],
            requests=requests,
            clock=self._reactor,
        )
        self._drainer.setServiceParent(self)

    def _add_manhole(self, data_dir: DataDir, services: Services, database: Database) -> None:
        if self.settings.manhole is None:
            return
        # Loaded where it is used: SSH takes a while, and most servers have none.
        from flowtx.manhole.service import open_manhole  # noqa: PLC0415

        open_manhole(
            self.settings,
            data_dir,
            services,
            online=self.online,
            storage=Inspection(database),
            recorder=self.recorder,
        ).setServiceParent(self)

    def change(self, settings: Settings) -> None:
        """Go by other settings; what the parts go by, `flowtx.reload` changes."""
        self.settings = settings
        # All Sessions may end at once, and all users may come and go.
        self.history.max_queued = MAX_QUEUED + settings.max_sessions
        self.presence_recorder.max_queued = 2 * settings.max_sessions

    def _measure(self, metrics: Metrics) -> None:
        PauseWatch(metrics.pauses).setServiceParent(self)
        metrics.sessions.set_function(lambda: len(self.sessions.namedServices))
        metrics.users_online.set_function(lambda: len(self.online))
        metrics.recorder_bytes.set_function(lambda: self.recorder.cost)
        metrics.draining.set_function(lambda: self.draining)
        metrics.describe_build(type(self._reactor).__name__)

    def _add_database(self, data_dir: DataDir, name: str) -> tuple[str, Database]:
        url = self.settings.database
        if url is None:
            embedded = EmbeddedPostgres(data_dir.path, reactor=self._reactor)
            embedded.setServiceParent(self)
            url = embedded.url
        slots = self.settings.database_connections
        database = MeasuredDatabase(
            url, reactor=self._reactor, metrics=self.metrics, slots=slots, application_name=name
        )
        database.setServiceParent(self)
        Step(lambda: migrate(database), self._reactor).setServiceParent(self)
        return url, database

    def _add_notifications(self, database: Database, pubsub: IPubSub, name: str) -> NotificationService:
        settings, reactor, metrics = self.settings, self._reactor, self.metrics
        inboxes = PostgresNotificationStore(database)
        notifications = NotificationService(inboxes, pubsub, clock=reactor, metrics=metrics)
        notifications.setServiceParent(self)
        InboxUpkeep(
            inboxes,
            clock=reactor,
            metrics=metrics,
            undelivered_after=settings.undelivered_after,
            retention_days=settings.retention_days,
            retention_count=settings.retention_count,
        ).setServiceParent(self)
        listener = Listener(
            self.database_url,
            CHANNEL,
            notifications.wake,
            reactor=reactor,
            application_name=name,
            connected=notifications.delivery.lost_track,
        )
        listener.setServiceParent(self)
        return notifications

    def _add_presence(self, database: Database, pubsub: IPubSub) -> None:
        self.presence = Presence(Tracker(pubsub, clock=self._reactor))
        self.presence.setServiceParent(self)
        recorder = PresenceRecorder(
            PostgresPresenceStore(database),
            node=gethostname(),
            clock=self._reactor,
            window=self.settings.reconnect_window,
            retention_days=self.settings.retention_days,
        )
        self.presence_recorder = recorder
        recorder.setServiceParent(self)
        self.online = OnlineUsers(self.presence, recorder, clock=self._reactor)


def make_service(settings: Settings, *, reactor: Any, app: App | None = None) -> Flow:
    """Make a whole server, to be started with ``startService``; see `Flow`."""
    return Flow(settings, reactor=reactor, app=app)


def user_directory(settings: Settings, database: Database) -> IUserDirectory:
    """Make what the settings say knows the users."""
    if settings.users_query == CLAIMS:
        return ClaimsUserDirectory()
    return SqlUserDirectory(database, settings.users_query)
