"""A server of WebSocket connections for tests, of real parts on a real port, and what watches over it."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from secrets import token_bytes
from types import TracebackType
from typing import Any, Final, Self

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher
from zope.interface import implementer

from flowtx.auth import TokenVerifier, mint
from flowtx.bursts import Bursts
from flowtx.channels.channel import Channel, InResult, JoinResult, ok
from flowtx.channels.router import Router
from flowtx.config import Settings
from flowtx.errors import StartupError
from flowtx.interfaces import Principal, User
from flowtx.keys import StaticKey, secret_key
from flowtx.listening import Listening
from flowtx.metrics import Metrics
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.sessions.service import SessionService
from flowtx.sessions.surroundings import Limits
from flowtx.storage.memory import MemoryUserDirectory
from flowtx.transports.admission import Admission
from flowtx.transports.factory import FlowFactory
from flowtx.transports.origin import OriginRule
from flowtx.transports.websocket import FlowProtocol
from tests.integration.rawclient import PATIENCE, RawClient, Response, connect, request

reactor: Any = global_reactor
SECRET: Final = token_bytes(64)
USERS: Final = ("alice", "bob")
JOIN: Final = '["1","1","room:1","phx_join",{}]'
JOINED: Final = b'["1","1","room:1","phx_reply",{"response":{},"status":"ok"}]'
HEARTBEAT: Final = '[null,"h","phoenix","heartbeat",{}]'
HEARTBEAT_REPLY: Final = b'[null,"h","phoenix","phx_reply",{"response":{},"status":"ok"}]'


def token(user_id: str = "alice", *, ttl: float = 3600, secret: bytes = SECRET) -> str:
    """Make a token."""
    return mint(secret, "HS512", user_id, ttl=ttl, now=time.time())


async def until(condition: Callable[[], object], within: float = PATIENCE) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        await deferLater(reactor, 0.005)


class Room(Channel):
    """A topic of tests: ``echo`` answers, ``flood`` pushes n frames of so many bytes."""

    def join(self, payload: Any) -> JoinResult:
        return None

    def handle_in(self, event: str, payload: Any) -> InResult:
        if event == "flood":
            for number in range(payload["n"]):
                self.push("drop", {"number": number, "pad": "x" * payload["size"]})
            return None
        return ok(payload)


class SlowDirectory(MemoryUserDirectory):
    """Answers when it is told to.

    Attributes:
        asked: a Deferred for each question, to be fired with None or an error.
    """

    def __init__(self, users: Sequence[User]) -> None:
        super().__init__(users)
        self.asked: list[Deferred[None]] = []

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        waiting: Deferred[None] = Deferred()
        self.asked.append(waiting)
        await waiting
        return await super().load(principals)

    def answer(self) -> None:
        """Answer all questions."""
        asked, self.asked = self.asked, []
        for waiting in asked:
            waiting.callback(None)


class FailingDirectory(MemoryUserDirectory):
    """Fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        raise self._error


class StubbornVerifier:
    """Cannot be cancelled.

    Attributes:
        done: to be fired when it shall answer.
    """

    def __init__(self) -> None:
        self.done: Deferred[None] = Deferred()
        self.cancelled = 0
        self.answered = False

    async def verify(self, _: str) -> Principal:
        while not self.done.called:
            try:
                await deferLater(reactor, 0.005)
            except CancelledError:
                self.cancelled += 1
        self.answered = True
        return Principal("alice", time.time() + 60)


def users() -> list[User]:
    """The users that the server knows."""
    return [User(name, name.title(), None) for name in USERS]


class RecordingFactory(FlowFactory):
    """Keeps what it makes.

    Attributes:
        made: in the order of the connections.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.made: list[FlowProtocol] = []

    def buildProtocol(self, address: IAddress) -> FlowProtocol:
        protocol: FlowProtocol = super().buildProtocol(address)
        self.made.append(protocol)
        return protocol


@implementer(ILogObserver)
class Watch:
    """What is logged while it watches.

    Attributes:
        events: each with its text and all its values.
        failures: the texts of those that carry an exception.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.failures: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        text = eventAsText(event, includeTraceback=True, includeSystem=False)
        self.events.append(f"{text} {event!r}")
        if "log_failure" in event or event.get("isError"):
            self.failures.append(text)


class Server:
    """A server, for as long as its ``async with`` lasts.

    When that ends, nothing may be left of a connection, and nothing in the log may be wrong: no
    token, and no failure but as many as ``failures`` says.

    Args:
        protocol: makes the connections.
        directory: knows the users.
        verifier: verifies tokens, in the place of a real one.
        origins: which origins are let in.
        router: serves topics; by default ``room:*`` is a `Room`.
        endpoint: where to listen; ``PORT`` in it is a free one.
        failures: how many failures the log may have.
        guarded: whether all that is to be looked at in the end.
        settings: see `Settings`.
    """

    def __init__(
        self,
        *,
        protocol: type[FlowProtocol] = FlowProtocol,
        directory: MemoryUserDirectory | None = None,
        verifier: Any = None,
        origins: OriginRule | None = None,
        router: Router | None = None,
        endpoint: str = "tcp:PORT:interface=127.0.0.1",
        failures: int = 0,
        guarded: bool = True,
        limits: Limits | None = None,
        **settings: Any,
    ) -> None:
        self.settings = Settings(**settings)
        keys = StaticKey(secret_key(SECRET, self.settings.jwt_algorithms))
        self.directory = directory or MemoryUserDirectory(users())
        # As the application does it: what bursts send is joined.
        bursts = Bursts(reactor)
        self.pubsub = MemoryPubSub(bursts=bursts)
        self.sessions = SessionService(
            self.directory, pubsub=self.pubsub, clock=reactor, limits=limits or Limits(reconnect_window=0)
        )
        self.factory = RecordingFactory(
            self.settings,
            verifier=verifier or TokenVerifier(self.settings, keys),
            sessions=self.sessions,
            router=router or Router().channel("room:*", Room),
            pubsub=self.pubsub,
            origins=origins,
            admission=Admission(self.settings.handshake_rate, self.settings.handshake_concurrency),
            metrics=Metrics(),
            reactor=reactor,
            bursts=bursts,
        )
        self.factory.protocol = protocol
        self.protocols = self.factory.made
        self.clients: list[RawClient] = []
        self.tokens: set[str] = set()
        self.log = Watch()
        self.expected_failures = failures
        self.guarded = guarded
        self._endpoint = endpoint
        self._listening: Listening | None = None

    async def __aenter__(self) -> Self:
        globalLogPublisher.addObserver(self.log)
        self.sessions.startService()
        while self._listening is None:
            # Below 32768, where no client's port can be.
            self.port = random.randrange(20_000, 32_000)
            endpoint = self._endpoint.replace("PORT", str(self.port))
            listening = Listening("listen", endpoint, self.factory, reactor=reactor)
            try:
                await listening.startService()
            except StartupError:
                if endpoint == self._endpoint:
                    raise
            else:
                self._listening = listening
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._listening is not None
        await self._listening.stopService()
        for client in self.clients:
            if client.end is None:
                client.reset()
        try:
            await until(lambda: self.factory.countConnections == 0)
            if isinstance(self.directory, SlowDirectory):
                self.directory.answer()
            await maybeDeferred(self.sessions.stopService).addTimeout(PATIENCE, reactor)
            await until(lambda: not self.sessions.namedServices)
            gc.collect()
        finally:
            globalLogPublisher.removeObserver(self.log)
        if kind is None and self.guarded:
            self.check()

    def check(self) -> None:
        """Fail where something is left of a connection, or wrong in the log."""
        for protocol in self.protocols:
            assert protocol._timer is None
            assert protocol._socket is None
            assert protocol._opened is None
            assert protocol._deciding is None
        text = "\n".join(self.log.events)
        for used in self.tokens:
            assert used not in text
            assert used.split(".")[2] not in text
        assert len(self.log.failures) == self.expected_failures, "\n".join(self.log.failures)

    def lines(self, word: str) -> list[str]:
        """The log's lines of this package with a word."""
        return [line for line in self.log.events if word in line]

    # Clients

    def token(self, user_id: str = "alice", **options: Any) -> str:
        """Make a token, which the log must not show."""
        made = token(user_id, **options)
        self.tokens.add(made)
        return made

    def target(self, user_id: str = "alice", vsn: str = "2.0.0") -> str:
        """The path and query of a good request."""
        return f"/socket/websocket?token={self.token(user_id)}&vsn={vsn}"

    async def connect(self, endpoint: str | None = None) -> RawClient:
        """Connect, and send nothing."""
        client = await connect(reactor, endpoint or f"tcp:127.0.0.1:{self.port}")
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> Response:
        """Send a request, and wait for its answer and the end of the connection, if it is refused."""
        client = await self.connect()
        client.send(data)
        response = await client.response()
        if response.status != 101:
            assert await client.ended() == "fin"
            assert client.received == b""
        return response

    async def open(self, user_id: str = "alice", *, join: bool = False, vsn: str = "2.0.0") -> RawClient:
        """Open a connection, and join ``room:1`` on it."""
        client = await self.connect()
        client.send(request(self.target(user_id, vsn)))
        response = await client.response()
        assert response.status == 101, response
        if join:
            client.text(JOIN)
            received = await client.frame()
            assert received.payload == JOINED, received
        return client

    async def is_alive(self, client: RawClient) -> bool:
        """Whether the next frame of a connection is the answer to a heartbeat."""
        client.text(HEARTBEAT)
        return (await client.frame()).payload == HEARTBEAT_REPLY
