"""The composition root: the parts of a server, in the order in which they start."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from socket import gethostname
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from flowtx.app import App, Services, load_app, router_of
from flowtx.auth import KeySource, TokenVerifier, key_source
from flowtx.config import CLAIMS, HMAC_ALGORITHMS, Settings
from flowtx.data_dir import DataDir
from flowtx.demo import Demo
from flowtx.errors import Unavailable, UnknownOutcome
from flowtx.groups.service import Groups
from flowtx.interfaces import IPubSub, IUserDirectory
from flowtx.listening import Listening
from flowtx.metrics import Metrics
from flowtx.notifications.service import NotificationService
from flowtx.notifications.upkeep import InboxUpkeep
from flowtx.presence.online import OnlineUsers
from flowtx.presence.presence import Presence
from flowtx.presence.recorder import PresenceRecorder
from flowtx.presence.tracker import Tracker
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.service import OrderedMultiService
from flowtx.sessions.directory import BatchedRevocations, BatchedUserDirectory
from flowtx.sessions.history import MAX_QUEUED, History
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Limits
from flowtx.storage.embedded import EmbeddedPostgres
from flowtx.storage.groups import CHANNEL as GROUPS_CHANNEL
from flowtx.storage.groups import PostgresGroupStore
from flowtx.storage.listener import Listener
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
from flowtx.web.api import Api
from flowtx.web.broadcasts import BroadcastCalls
from flowtx.web.groups import GroupCalls
from flowtx.web.inboxes import InboxCalls
from flowtx.web.operations import OperationCalls
from flowtx.web.presence import PresenceCalls
from flowtx.web.sessions import SessionCalls
from flowtx.web.site import AdminSite, pages


class Step(Service):
    """Something to be done, and to have succeeded, before what is listed after it starts.

    Args:
        work: does it; where the database is lost meanwhile it is done again, for 10 s.
        clock: the time.
    """

    patience = 10.0

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]], clock: IReactorTime) -> None:
        self._work = work
        self._clock = clock

    def startService(self) -> Deferred[None]:
        super().startService()
        return Deferred.fromCoroutine(self._do())

    async def _do(self) -> None:
        until = self._clock.seconds() + self.patience
        while True:
            try:
                await self._work()
            except (Unavailable, UnknownOutcome):
                if self._clock.seconds() >= until:
                    raise
                await deferLater(self._clock, 0.2)
            else:
                return


class Keys(Service):
    """Holds what verifies tokens; what it fetches is given up when it stops."""

    def __init__(self, source: KeySource) -> None:
        self.source = source

    def stopService(self) -> None:
        super().stopService()
        self.source.stop()


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

    def startService(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> None:
        self._data_dir = DataDir.open(self.settings.data_dir)
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
        api_key = data_dir.api_key()

        name = f"flowtx/{gethostname()}"
        url, database = self._add_database(data_dir, name)
        directory = user_directory(settings, database)
        if isinstance(directory, SqlUserDirectory):
            Step(directory.check, reactor).setServiceParent(self)
            directory = BatchedUserDirectory(directory, clock=reactor)
        metrics = Metrics()
        pubsub = MemoryPubSub(gethostname())
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
            url,
            CHANNEL,
            notifications.wake,
            reactor=reactor,
            application_name=name,
            connected=notifications.delivery.lost_track,
        )
        listener.setServiceParent(self)
        history = History(
            PostgresHistoryStore(database),
            node=gethostname(),
            clock=reactor,
            metrics=metrics,
            max_queued=MAX_QUEUED + settings.max_sessions,  # all of which may end at once
        )
        history.setServiceParent(self)
        self._add_presence(database, pubsub)
        self.groups = Groups(PostgresGroupStore(database), clock=reactor)
        Listener(
            url, GROUPS_CHANNEL, self.groups.wake, reactor=reactor, application_name=name
        ).setServiceParent(self)
        revocations = PostgresRevocations(database, settings.jwt_max_lifetime)
        sessions = SessionService(
            directory,
            [history, self.online],
            pubsub=pubsub,
            clock=reactor,
            limits=Limits(settings.reconnect_window, settings.idle_timeout, settings.max_devices),
            max_sessions=settings.max_sessions,
            refuse_devices=settings.device_policy == "refuse",
            revocations=BatchedRevocations(revocations, clock=reactor),
            metrics=metrics,
        )
        sessions.setServiceParent(self)

        metrics.sessions.set_function(lambda: len(sessions.namedServices))
        metrics.users_online.set_function(self.online.__len__)
        admission = Admission(settings.handshake_rate, settings.handshake_concurrency)

        def jitter_ms() -> int:
            return admission.jitter_ms(len(sessions.namedServices))

        router = own_router(sessions, notifications, self.online, self.groups, jitter_ms)
        if app is not None:
            services = Services(sessions, notifications, self.presence, self.groups, pubsub, reactor)
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
        )
        clients = [Listening("listen", endpoint, factory, reactor=reactor) for endpoint in settings.listen]
        routes = (
            *InboxCalls(notifications).routes(),
            *SessionCalls(sessions, notifications, pubsub=pubsub, clock=reactor).routes(),
            *PresenceCalls(self.presence, self.online).routes(),
            *BroadcastCalls(pubsub, sessions).routes(),
            *GroupCalls(self.groups).routes(),
            *OperationCalls(
                metrics, lambda: bool(self.running and sessions.healthy and database.ready), pages()
            ).routes(),
        )
        api = Api(routes, api_key)
        admin = Listening(
            "admin", settings.admin, AdminSite(api.resource(), reactor=reactor), reactor=reactor
        )
        for listening in (*clients, admin):
            listening.setServiceParent(self)
        self.database_url, self.database, self.pubsub, self.metrics = url, database, pubsub, metrics
        self.sessions, self.notifications = sessions, notifications
        self.clients, self.admin = clients, admin
        if settings.demo:
            Demo(self, data_dir.path / "api-key", secret).setServiceParent(self)

    def _add_database(self, data_dir: DataDir, name: str) -> tuple[str, Database]:
        url = self.settings.database
        if url is None:
            embedded = EmbeddedPostgres(data_dir.path, reactor=self._reactor)
            embedded.setServiceParent(self)
            url = embedded.url
        slots = self.settings.database_connections
        database = Database(url, reactor=self._reactor, slots=slots, application_name=name)
        database.setServiceParent(self)
        Step(lambda: migrate(database), self._reactor).setServiceParent(self)
        return url, database

    def _add_presence(self, database: Database, pubsub: IPubSub) -> None:
        self.presence = Presence(Tracker(pubsub, clock=self._reactor))
        self.presence.setServiceParent(self)
        recorder = PresenceRecorder(
            PostgresPresenceStore(database),
            node=gethostname(),
            clock=self._reactor,
            window=self.settings.reconnect_window,
            retention_days=self.settings.retention_days,
            max_queued=2 * self.settings.max_sessions,  # all of which may come and go at once
        )
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
