"""A whole server in memory, under a Clock: all but the network and PostgreSQL is the real thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from flowtx.app import App, Services, router_of
from flowtx.channels.router import Router
from flowtx.channels.tokens import Tokens
from flowtx.errors import Refused, StorageError
from flowtx.groups.service import Groups
from flowtx.inbox import Outcome, Push
from flowtx.interfaces import Principal, User
from flowtx.metrics import Metrics
from flowtx.notifications.service import NotificationService
from flowtx.periodic import Periodic
from flowtx.presence.online import OnlineUsers
from flowtx.presence.presence import Presence
from flowtx.presence.recorder import PresenceRecorder
from flowtx.presence.tracker import Tracker
from flowtx.protocol.serializer import serializer_for
from flowtx.recorder import FlightRecorder
from flowtx.service import OrderedMultiService
from flowtx.sessions.notes import SessionNotes
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Limits
from flowtx.settings import Settings
from flowtx.storage.groups import MemoryGroupStore
from flowtx.storage.memory import MemoryRevocations, MemoryUserDirectory
from flowtx.storage.memory_inboxes import MemoryNotificationStore
from flowtx.storage.memory_presence import MemoryPresenceStore
from flowtx.testing.broadcasts import RecordingPubSub
from flowtx.testing.client import Client
from flowtx.testing.database import MemoryDatabase
from flowtx.testing.link import Link
from flowtx.testing.matching import ANY
from flowtx.topics.routes import own_router
from flowtx.transports.outbox import Bounds

EPOCH: Final = 1_767_225_600.0
"""The wall clock of a Clock that shows 0: the beginning of 2026."""
_HEARTBEAT_EVERY: Final = 30.0
_LOOK_EVERY: Final = 5.0
_GATHERING: Final = 0.025


class _Inboxes(MemoryNotificationStore):
    """Says so when something was written, as PostgreSQL does."""

    def __init__(self, now: Callable[[], float], written: Callable[[], object]) -> None:
        super().__init__(now)
        self._written = written

    async def push(self, pushes: Sequence[Push], wait: bool) -> Sequence[Outcome]:
        outcomes = await super().push(pushes, wait)
        self._written()
        return outcomes


class _Users(MemoryUserDirectory):
    """Knows the users it is given; where there are none, whomever a token names."""

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        if self.users:
            return await super().load(principals)
        return {one.user_id: User(one.user_id, one.name or one.user_id, one.email) for one in principals}


class MemoryServer:
    """Runs an application, and flowtx's own Channels beside it.

    Nothing happens by itself: time passes in `advance`, and what is due is done whenever a client looks
    for something; see `settle`.

    Args:
        app: a Router, or a function of the services that returns one; None for flowtx's own Channels.
        users: the users there are; by default, whoever connects.
        clock: the time.
        settings: those of a real server, by name: ``reconnect_window=5``.

    Attributes:
        clock: the time.
        database: what the stores stand on, with its faults: ``go_down``, ``hang``, ``come_back``.
        services: what the application was given; each is an attribute of this, too.
        router: which Channel serves which topic.
        metrics: what was counted.
        recorder: what happened to each user.

    Raises:
        ConfigError: the application cannot be used.
    """

    def __init__(
        self,
        app: App | None = None,
        *,
        users: Sequence[User] = (),
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        self.clock = clock or Clock()
        self.settings = Settings(**settings)
        self.metrics = Metrics()
        self.recorder = FlightRecorder(self.wall)
        self.database = MemoryDatabase(self.clock)
        self.pubsub = RecordingPubSub()
        self._clients: list[Client] = []
        self._tokens: dict[str, Principal] = {}
        self._waking = False
        self._parts = OrderedMultiService()
        self._assemble(users)
        self.services = Services(
            self.sessions, self.notifications, self.presence, self.groups, self.pubsub, self.clock
        )
        if app is not None:
            self.router.extend(router_of(app, self.services))
        self._written()
        self._finished(self._parts.startService(), "the start")

    def _assemble(self, users: Sequence[User]) -> None:
        settings, clock, serve = self.settings, self.clock, self.database.serve
        inboxes = serve(_Inboxes(self.wall, self._written))
        self.notifications = NotificationService(
            inboxes, self.pubsub, clock=clock, metrics=self.metrics, wall=self.wall
        )
        self.presence = Presence(Tracker(self.pubsub, clock=clock))
        recorder = PresenceRecorder(
            serve(MemoryPresenceStore(self.wall)),
            node="memory",
            clock=clock,
            window=settings.reconnect_window,
        )
        self.online = OnlineUsers(self.presence, recorder, clock=clock, now=self.wall)
        self.groups = Groups(serve(MemoryGroupStore()), clock=clock)
        self.sessions = SessionService(
            serve(_Users(users)),
            [self.online, SessionNotes(self.recorder)],
            pubsub=self.pubsub,
            clock=clock,
            limits=Limits(settings.reconnect_window, settings.idle_timeout, settings.max_devices),
            max_sessions=settings.max_sessions,
            refuse_devices=settings.device_policy == "refuse",
            revocations=serve(MemoryRevocations(self.wall)),
            metrics=self.metrics,
        )
        look = Periodic("To look for notifications", self.notifications.wake, _LOOK_EVERY, clock=clock)
        for part in (self.presence, recorder, self.notifications, look, self.sessions):
            part.setServiceParent(self._parts)
        self.router: Router = own_router(self.sessions, self.notifications, self.online, self.groups)

    # Time

    def wall(self) -> float:
        """The wall clock, seconds since the epoch: it goes with the Clock."""
        return EPOCH + self.clock.seconds()

    def settle(self) -> None:
        """Do what is due by now, or in the next 25 ms: some questions to the database are gathered."""
        until = self.clock.seconds() + _GATHERING
        self.clock.advance(0)
        while (calls := self.clock.getDelayedCalls()) and (due := min(map(_time_of, calls))) <= until:
            self.clock.advance(max(0.0, due - self.clock.seconds()))

    def advance(self, seconds: float) -> None:
        """Let time pass; clients send their heartbeats meanwhile, unless they are silent."""
        while seconds > 0:
            step = min(seconds, _HEARTBEAT_EVERY)
            seconds -= step
            self.clock.advance(step)
            for client in self._clients:
                if not client.is_silent and client.link.closed is None:
                    client.heartbeat()
        self.settle()

    # Clients

    def connect(
        self, user_id: str, *, vsn: str = "2.0.0", ttl: float = 86_400.0, user_agent: str = "", **claims: Any
    ) -> Client:
        """Connect a client.

        Args:
            user_id: whom its token names.
            vsn: the version of the protocol.
            ttl: seconds until its token ends.
            user_agent: what it calls itself.
            claims: further values of `Principal`: ``groups``, ``name``, ``email``, ``token_id``.

        Raises:
            Refused, StorageError: as a real handshake is refused.
            AssertionError: the handshake is not decided yet, as the database hangs.
        """
        serializer = serializer_for(vsn)
        if serializer is None:
            raise Refused("unsupported_version")
        principal = self._principal(user_id, ttl, claims)
        claim = self._finished(Deferred.fromCoroutine(self.sessions.claim(principal)), "the handshake")
        settings = self.settings
        bounds = Bounds(settings.outbox_limit, settings.outbox_max_age, self.clock, self.metrics)
        link = Link(bounds, user_agent=user_agent)
        link.open(
            serializer,
            principal,
            router=self.router,
            pubsub=self.pubsub,
            clock=self.clock,
            max_topics=settings.max_topics,
            heartbeat_timeout=settings.heartbeat_timeout,
            ping_interval=settings.ping_interval,
            pong_timeout=settings.pong_timeout,
            tokens=Tokens(self._verify, lambda principal: principal.expires_at - self.wall()),
            recorder=self.recorder,
        )
        client = Client(link, claim, self.settle)
        self._clients.append(client)
        claim.attach(link.socket)
        return client

    def token(self, user_id: str, *, ttl: float = 86_400.0, **claims: Any) -> str:
        """Make a token, for a client to renew its own with ``access_token``; see `connect`."""
        token = f"token-{len(self._tokens)}"
        self._tokens[token] = self._principal(user_id, ttl, claims)
        return token

    def _principal(self, user_id: str, ttl: float, claims: Mapping[str, Any]) -> Principal:
        now = self.wall()
        return Principal(user_id, **{"expires_at": now + ttl, "issued_at": now, **claims})

    async def _verify(self, token: str) -> Principal:
        principal = self._tokens.get(token)
        if principal is None:
            raise Refused("invalid_token")
        if principal.expires_at <= self.wall():
            raise Refused("expired_token")
        await self.sessions.check_revoked(principal)
        return principal

    # Broadcasts

    def assert_broadcast(self, topic: str, event: str, payload: Any = ANY) -> Any:
        """Take a broadcast that was made, whoever it reached.

        Args:
            topic: on which topic.
            event: its event.
            payload: a pattern; see `flowtx.testing.matching.matches`.

        Returns:
            The payload.

        Raises:
            AssertionError: there is none.
        """
        self.settle()
        return self.pubsub.assert_broadcast(topic, event, payload)

    def refute_broadcast(self, topic: str, event: str, payload: Any = ANY) -> None:
        """See that no such broadcast was made; see `assert_broadcast`."""
        self.settle()
        self.pubsub.refute_broadcast(topic, event, payload)

    # The end

    def stop(self) -> None:
        """Stop everything.

        Raises:
            AssertionError: something has not stopped, or a timer of the application's still runs.
        """
        stopping = self._parts.stopService()
        self.settle()
        for client in self._clients:
            client.lose()
        self.database.come_back()
        self.advance(_HEARTBEAT_EVERY)
        self._finished(stopping, "the stop")
        left = self.clock.getDelayedCalls()
        if left:
            raise AssertionError(f"timers are left: {'; '.join(map(str, left))}")

    # Within

    def _written(self) -> None:
        """Look for what was written, soon, as a NOTIFY has the server do."""
        if not self._waking:
            self._waking = True
            self.clock.callLater(0, self._wake)

    def _wake(self) -> None:
        self._waking = False
        looking = Deferred.fromCoroutine(self.notifications.wake())
        # Where the database is down, it is looked again every few seconds.
        looking.addErrback(lambda failure: failure.trap(StorageError))

    def _finished(self, waiting: Deferred[Any], what: str) -> Any:
        """What ``waiting`` has come to, which is to be by now."""
        outcome: list[Any] = []
        problems: list[Any] = []
        waiting.addCallbacks(outcome.append, problems.append)
        self.settle()
        for problem in problems:
            problem.raiseException()
        if not outcome:
            waiting.cancel()
            raise AssertionError(f"{what} is not over by now")
        return outcome[0]


def _time_of(call: IDelayedCall) -> float:
    return call.getTime()
