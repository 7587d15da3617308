"""A node under a Clock: its Sessions, what it tells of them, and clients that come and go."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from flowtx.channels.router import Router
from flowtx.channels.tokens import Tokens
from flowtx.errors import Refused
from flowtx.interfaces import IRevocations, ISessionObserver, Principal, User
from flowtx.metrics import Metrics
from flowtx.notifications.service import NotificationService
from flowtx.notifications.user_channel import UserChannel
from flowtx.protocol.close import Close
from flowtx.protocol.message import Broadcast
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.sessions.service import Claim, SessionService
from flowtx.sessions.session import Limits, Session, user_topic
from flowtx.storage.memory import MemoryUserDirectory
from flowtx.storage.memory_inboxes import MemoryNotificationStore
from flowtx.testing.memory import MemoryTransport, connect


def principal(user_id: str, **claims: Any) -> Principal:
    return Principal(user_id, expires_at=4e9, **claims)


class Directory(MemoryUserDirectory):
    """Answers at once, or when it is told to."""

    def __init__(self, users: Sequence[User]) -> None:
        super().__init__(users)
        self.slow = False
        self.problem: Exception | None = None
        self.asked: list[Deferred[None]] = []
        self.questions = 0

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        self.questions += 1
        if self.slow:
            gate: Deferred[None] = Deferred()
            self.asked.append(gate)
            try:
                await gate
            finally:
                self.asked.remove(gate)
        if self.problem is not None:
            raise self.problem
        return await super().load(principals)


@implementer(ISessionObserver)
class Diary:
    """Notes what it is told; its answers may be held back, or be failures."""

    def __init__(self) -> None:
        self.ready: list[Session] = []
        self.closed: list[Session] = []
        self.when_ready: Callable[[Session], Any] = lambda _session: None
        self.closing: Deferred[None] | None = None
        self.fails = False

    async def session_ready(self, session: Session) -> None:
        self.ready.append(session)
        result = self.when_ready(session)
        if isinstance(result, Deferred):
            await result

    async def session_closing(self, session: Session) -> None:
        self.closed.append(session)
        if self.closing is not None:
            gate = self.closing
            waiter: Deferred[None] = Deferred()
            gate.addCallback(lambda _: waiter.callback(None))
            await waiter
        if self.fails:
            raise RuntimeError("the diary is full")


@implementer(IRevocations)
class Revocations:
    """Keeps revocations in two sets; its answers may be held back."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.users: set[str] = set()
        self.gate: Deferred[None] | None = None

    async def revoke(self, token_id: str | None = None, user_id: str | None = None) -> None:
        if token_id is not None:
            self.tokens.add(token_id)
        if user_id is not None:
            self.users.add(user_id)

    async def revoked(self, principals: Sequence[Principal]) -> frozenset[Principal]:
        found = frozenset(
            one for one in principals if one.token_id in self.tokens or one.user_id in self.users
        )
        if self.gate is not None:
            await self.gate
        return found


class Client:
    """One connection of a user."""

    def __init__(self, claim: Claim, transport: MemoryTransport) -> None:
        self.claim = claim
        self.transport = transport
        self.socket = transport.socket
        self._ref = 0

    @property
    def closed(self) -> Close | None:
        return self.transport.closed

    def send(self, topic: str, event: str, payload: Any = None, join_ref: str = "1") -> None:
        self._ref += 1
        payload = {} if payload is None else payload
        self.transport.text(json.dumps([join_ref, str(self._ref), topic, event, payload]))

    def received(self) -> list[tuple[str, Any]]:
        """Take event and payload of what came."""
        return [tuple(json.loads(frame.payload)[3:]) for frame in self.transport.take()]

    def join(self, topic: str | None = None, **payload: Any) -> Any:
        """Join a topic, by default the user's own; what the reply says."""
        self.send(topic or user_topic(self.socket.principal.user_id), "phx_join", payload)
        event, reply = json.loads(self.transport.sent.pop(0).payload)[3:]
        if event != "phx_reply" or reply["status"] != "ok":
            raise AssertionError(f"not let in: {event} {reply}")
        return reply["response"]

    def heartbeat(self) -> None:
        self.send("phoenix", "heartbeat")

    def lose(self) -> None:
        """Lose the connection, as a transport does."""
        self.transport.lose().addCallback(lambda _: self.claim.release())


class Node:
    """See the module; users are ``alice``, ``bob`` and ``user-0``… as far as asked for."""

    def __init__(self, users: int = 0, **options: Any) -> None:
        names = ["alice", "bob", *(f"user-{number}" for number in range(users))]
        self.clock = Clock()
        self.directory = Directory([User(name, name.title(), None) for name in names])
        self.diary = Diary()
        self.pubsub = MemoryPubSub()
        self.metrics = Metrics()
        self.revocations = Revocations()
        options.setdefault("limits", Limits())
        self.sessions = SessionService(
            self.directory,
            [self.diary],
            pubsub=self.pubsub,
            clock=self.clock,
            revocations=self.revocations,
            metrics=self.metrics,
            **options,
        )
        self.sessions.startService()
        self.store = MemoryNotificationStore()
        notifications = NotificationService(self.store, self.pubsub, clock=self.clock)
        self.router = Router().channel("user:*", lambda: UserChannel(self.sessions, notifications))

    def claim(self, user: str | Principal = "alice") -> Deferred[Claim]:
        whom = principal(user) if isinstance(user, str) else user
        return Deferred.fromCoroutine(self.sessions.claim(whom))

    def open(
        self,
        claim: Claim,
        *,
        heartbeat_timeout: float = 1e9,
        tokens: Tokens | None = None,
        token_id: str | None = None,
    ) -> Client:
        transport = connect(
            self.router,
            claim.session.user_id,
            self.clock,
            pubsub=self.pubsub,
            heartbeat_timeout=heartbeat_timeout,
            tokens=tokens,
        )
        if token_id is not None:
            transport.socket.principal = principal(claim.session.user_id, token_id=token_id)
        claim.attach(transport.socket)
        return Client(claim, transport)

    def connect(self, user_id: str = "alice", **options: Any) -> Client:
        """Connect a user whom nothing keeps from it."""
        claims: list[Claim] = []
        problems: list[Failure] = []
        self.claim(user_id).addCallbacks(claims.append, problems.append)
        for problem in problems:
            problem.raiseException()
        [claim] = claims
        return self.open(claim, **options)

    def refusal(self, user_id: str = "alice") -> Refused:
        """Find why a user is refused."""
        problems: list[Failure] = []
        self.claim(user_id).addErrback(problems.append)
        [problem] = problems
        if not isinstance(problem.value, Refused):
            problem.raiseException()
        return problem.value

    def session(self, user_id: str = "alice") -> Session:
        session = self.sessions.get_session(user_id)
        assert session is not None
        return session

    def broadcast(self, event: str, payload: object = None, user_id: str = "alice") -> int:
        return self.pubsub.publish(Broadcast(user_topic(user_id), event, {} if payload is None else payload))

    def value(self, metric: str) -> float | None:
        return self.metrics.registry.get_sample_value(metric)

    @property
    def subscribed(self) -> list[str]:
        """The topics that anybody is subscribed to."""
        return sorted(self.pubsub._topics)
