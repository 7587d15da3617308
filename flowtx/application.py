"""The composition root: the parts of a server, in the order in which they start."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from socket import gethostname
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from flowtx.auth import KeySource, TokenVerifier, key_source
from flowtx.channels.router import Router
from flowtx.config import CLAIMS, HMAC_ALGORITHMS, Settings
from flowtx.data_dir import DataDir
from flowtx.demo import Demo
from flowtx.interfaces import IUserDirectory
from flowtx.listening import Listening
from flowtx.metrics import Metrics
from flowtx.notifications.service import NotificationService
from flowtx.notifications.upkeep import InboxUpkeep
from flowtx.notifications.user_channel import UserChannel
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.service import OrderedMultiService
from flowtx.sessions.directory import BatchedRevocations, BatchedUserDirectory
from flowtx.sessions.history import MAX_QUEUED, History
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Limits
from flowtx.storage.embedded import EmbeddedPostgres
from flowtx.storage.listener import Listener
from flowtx.storage.migrations import migrate
from flowtx.storage.notifications import CHANNEL, PostgresNotificationStore
from flowtx.storage.postgres import Database
from flowtx.storage.revocations import PostgresRevocations
from flowtx.storage.sessions import PostgresHistoryStore
from flowtx.storage.users import ClaimsUserDirectory, SqlUserDirectory
from flowtx.transports.admission import Admission
from flowtx.transports.origin import origin_rule
from flowtx.transports.websocket import FlowFactory
from flowtx.web.api import Api
from flowtx.web.inboxes import InboxCalls
from flowtx.web.operations import OperationCalls
from flowtx.web.sessions import SessionCalls
from flowtx.web.site import AdminSite, pages


class Step(Service):
    """Something to be done, and to have succeeded, before what is listed after it starts."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._work = work

    def startService(self) -> Deferred[Any]:
        super().startService()
        return Deferred.fromCoroutine(self._work())


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
        router: the application's Channels; those of flowtx come first.
        reactor: the reactor.
    """

    def __init__(self, settings: Settings, *, reactor: Any, router: Router | None = None) -> None:
        super().__init__()
        self.settings = settings
        self._reactor = reactor
        self._own_router = router
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
            Step(directory.check).setServiceParent(self)
            directory = BatchedUserDirectory(directory, clock=reactor)
        metrics = Metrics()
        pubsub = MemoryPubSub()
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
        listener = Listener(url, CHANNEL, notifications.wake, reactor=reactor, application_name=name)
        listener.setServiceParent(self)
        history = History(
            PostgresHistoryStore(database),
            node=gethostname(),
            clock=reactor,
            metrics=metrics,
            max_queued=MAX_QUEUED + settings.max_sessions,  # all of which may end at once
        )
        history.setServiceParent(self)
        revocations = PostgresRevocations(database, settings.jwt_max_lifetime)
        sessions = SessionService(
            directory,
            [history],
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
        metrics.outbox_bytes.set_function(
            lambda: sum(
                socket.transport.waiting_bytes
                for _, session, _, _ in sessions.which_children()
                for socket in session.sockets
            )
        )
        admission = Admission(settings.handshake_rate, settings.handshake_concurrency)

        def jitter_ms() -> int:
            return admission.jitter_ms(len(sessions.namedServices))

        router = Router().channel("user:*", lambda: UserChannel(sessions, notifications, jitter_ms))
        if self._own_router is not None:
            router.extend(self._own_router)
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
        Step(lambda: migrate(database)).setServiceParent(self)
        return url, database


def make_service(settings: Settings, *, reactor: Any, router: Router | None = None) -> Flow:
    """Make a whole server, to be started with ``startService``; see `Flow`."""
    return Flow(settings, reactor=reactor, router=router)


def user_directory(settings: Settings, database: Database) -> IUserDirectory:
    """Make what the settings say knows the users."""
    if settings.users_query == CLAIMS:
        return ClaimsUserDirectory()
    return SqlUserDirectory(database, settings.users_query)
