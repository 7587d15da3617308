"""A client in memory: a Socket and what carries it, without a network.

An application's tests connect to their Router and play the client::

    client = connect(router, "42", clock)
    client.text('["1","1","room:1","phx_join",{}]')
    [frame] = client.take()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from flowtx.channels.router import Router
from flowtx.channels.socket import Socket
from flowtx.channels.tokens import Tokens
from flowtx.interfaces import IPubSub, ITransport, Principal
from flowtx.protocol.close import Close
from flowtx.protocol.message import Frame
from flowtx.protocol.serializer import Serializer, serializer_for
from flowtx.pubsub.memory import MemoryPubSub


@implementer(ITransport)
class MemoryTransport:
    """Carries a Socket nowhere: keeps what it sends, and feeds it what a client would.

    Attributes:
        socket: the Socket at the server's end.
        sent: the frames that the Socket has sent and nobody has taken.
        closed: why the Socket closed the connection, or None.
        on_close: called, where it is set, when the Socket closes the connection.
        reading: whether the Socket wants more; what is fed all the same was on its way already.
        answers_pings: whether a Ping is answered at once, as clients do.
        pings: the payloads of the Pings that were not answered.
    """

    socket: Socket

    def __init__(self, address: str = "memory", user_agent: str = "") -> None:
        self.address = address
        self.user_agent = user_agent
        self.waiting_bytes = 0
        self.sent: list[Frame] = []
        self.closed: Close | None = None
        self.on_close: Callable[[], object] | None = None
        self.reading = True
        self.answers_pings = True
        self.pings: list[bytes] = []

    def open(self, serializer: Serializer, principal: Principal, **options: Any) -> None:
        """Make the Socket; see there."""
        self.socket = Socket(self, serializer, principal, **options)

    # What the Socket calls

    def send(self, frame: Frame) -> None:
        if self.closed is None:
            self.sent.append(frame)

    def ping(self, payload: bytes) -> None:
        if self.closed is None:
            self.pings.append(payload)
            if self.answers_pings:
                self.pong()

    def close(self, close: Close) -> None:
        if self.closed is None:
            self.closed = close
            if self.on_close is not None:
                self.on_close()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    # What the client does

    def text(self, data: str) -> None:
        """Send a text frame to the Socket."""
        self.socket.text_received(data.encode())

    def binary(self, data: bytes) -> None:
        """Send a binary frame to the Socket."""
        self.socket.binary_received(data)

    def pong(self) -> None:
        """Answer the Pings that were not answered yet."""
        pings, self.pings = self.pings, []
        for payload in pings:
            self.socket.pong_received(payload)

    def take(self) -> list[Frame]:
        """Take what the Socket has sent since the last call."""
        taken, self.sent = self.sent, []
        return taken

    def lose(self) -> Deferred[None]:
        """Lose the connection.

        Returns:
            A Deferred that fires with None when the Socket's channels have ended.
        """
        return self.socket.connection_lost()


def connect(
    router: Router,
    user_id: str,
    clock: Clock,
    *,
    vsn: str = "2.0.0",
    pubsub: IPubSub | None = None,
    max_topics: int = 100,
    heartbeat_timeout: float = 60.0,
    tokens: Tokens | None = None,
) -> MemoryTransport:
    """Connect a client.

    Args:
        router: serves the topics that it joins.
        user_id: whom its token names.
        clock: the time.
        vsn: the version of the protocol.
        pubsub: carries the broadcasts; clients that are to hear each other share it.
        max_topics: how many topics it may join.
        heartbeat_timeout: seconds of its silence after which it is closed.
        tokens: when its token ends, and how it is renewed; None for never.

    Returns:
        The client's end; ``socket`` is the server's.

    Raises:
        ValueError: flowtx does not speak ``vsn``.
    """
    serializer = serializer_for(vsn)
    if serializer is None:
        raise ValueError(f"flowtx speaks versions 1.0.x and 2.0.x of the protocol, not {vsn!r}")
    transport = MemoryTransport()
    transport.open(
        serializer,
        Principal(user_id, expires_at=clock.seconds() + 3600),
        router=router,
        pubsub=MemoryPubSub() if pubsub is None else pubsub,
        clock=clock,
        max_topics=max_topics,
        heartbeat_timeout=heartbeat_timeout,
        tokens=tokens,
    )
    return transport
