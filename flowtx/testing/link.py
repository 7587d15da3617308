"""A connection in memory that can be slow, late or lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred
from zope.interface import implementer

from flowtx.interfaces import ITransport
from flowtx.protocol.close import SLOW_CONSUMER, Close
from flowtx.protocol.message import Frame
from flowtx.testing.memory import MemoryTransport
from flowtx.transports.outbox import Bounds, Outbox


class _Parcel(bytes):
    """What the outbox takes for bytes: a frame, or a Ping with a payload."""

    content: Frame | bytes


@implementer(ITransport)
class Link(MemoryTransport):
    """Carries a Socket as a real connection does, which is not always at once::

        server ── outbox ── network ── client

    The client that stops reading fills the outbox, the one of real connections with its bounds. The
    network can hold what is under way, in both directions, and let it go later: so it comes late, and
    behind what others sent after it. What it holds is lost with the connection.

    Args:
        bounds: those of the outbox.
        address: the client's.
        user_agent: what the client calls itself.
    """

    def __init__(self, bounds: Bounds, address: str = "memory", user_agent: str = "") -> None:
        super().__init__(address, user_agent)
        self._bounds = bounds
        self._outbox = Outbox(self, self, bounds)
        self._unread_for: set[str] = set()
        self._unread: deque[Callable[[], None]] = deque()
        self._is_held = False
        self._to_client: deque[Callable[[], None]] = deque()
        self._to_server: deque[Callable[[], None]] = deque()
        self._to_drop = 0

    # Faults

    def stop_reading(self) -> None:
        """Have the client take nothing from its connection: what is sent waits in the outbox."""
        self._outbox.pauseProducing()

    def go_on_reading(self) -> None:
        """Undo `stop_reading`."""
        self._outbox.resumeProducing()
        self.waiting_bytes = self._outbox.waiting_bytes

    def hold(self) -> None:
        """Have the network keep what is sent from now on, by either side."""
        self._is_held = True

    def release(self) -> None:
        """Have what the network kept arrive, and undo `hold`."""
        self._is_held = False
        # What the server answers comes behind what it had sent before.
        for under_way in (self._to_client, self._to_server):
            while under_way and not self._is_held:
                under_way.popleft()()

    def drop(self, count: int = 1) -> None:
        """Lose the next frames to the client, as only a broken proxy does."""
        self._to_drop += count

    # What the Socket calls

    def send(self, frame: Frame) -> None:
        if self.closed is None:
            self._post(frame, frame.payload, frame.key)

    def ping(self, payload: bytes) -> None:
        if self.closed is None:
            self._post(payload, payload, None)

    def close(self, close: Close) -> None:
        if self.closed is None:
            self._outbox.stopProducing()
            self.waiting_bytes = 0
            super().close(close)

    def pause_reading(self) -> None:
        self._stop_taking("mailboxes")

    def resume_reading(self) -> None:
        self._take_again("mailboxes")

    # What the outbox calls

    def write(self, data: bytes) -> None:
        if isinstance(data, _Parcel):
            content = data.content
            self._travel(self._to_client, lambda: self._arrive(content))

    def cork(self) -> None: ...

    def uncork(self) -> None: ...

    def piled_up(self, *, high: bool) -> None:
        if high:
            self._stop_taking("outbox")
        else:
            self._take_again("outbox")

    def overflowed(self, waited: int) -> None:  # noqa: ARG002
        self._bounds.metrics.slow_consumers.inc()
        self.socket.close(SLOW_CONSUMER)

    # What the client does

    def text(self, data: str) -> None:
        self._travel(self._to_server, lambda: self._take(lambda: super(Link, self).text(data)))

    def binary(self, data: bytes) -> None:
        self._travel(self._to_server, lambda: self._take(lambda: super(Link, self).binary(data)))

    def lose(self) -> Deferred[None]:
        """Lose the connection, and what is under way.

        Returns:
            A Deferred that fires with None when the Socket's channels have ended.
        """
        for lost in (self._to_client, self._to_server, self._unread):
            lost.clear()
        self._outbox.stopProducing()
        self.waiting_bytes = 0
        return super().lose()

    # Within

    def _post(self, content: Frame | bytes, data: bytes, key: str | None) -> None:
        parcel = _Parcel(data)
        parcel.content = content
        self._outbox.send(parcel, key)
        self.waiting_bytes = self._outbox.waiting_bytes

    def _travel(self, direction: deque[Callable[[], None]], arrive: Callable[[], None]) -> None:
        if self._is_held or direction:
            direction.append(arrive)
        else:
            arrive()

    def _arrive(self, content: Frame | bytes) -> None:
        if self._to_drop:
            self._to_drop -= 1
        elif isinstance(content, Frame):
            self.sent.append(content)
        else:
            self.pings.append(content)
            if self.answers_pings:
                self.pong()

    def pong(self) -> None:
        """Answer the Pings that were not answered yet."""
        pings, self.pings = self.pings, []
        for payload in pings:
            self._travel(self._to_server, partial(self.socket.pong_received, payload))

    def _take(self, receive: Callable[[], None]) -> None:
        """Have the server take something from its connection, if it reads that now."""
        if self.reading and not self._unread:
            receive()
        else:
            self._unread.append(receive)

    def _stop_taking(self, why: str) -> None:
        self._unread_for.add(why)
        self.reading = False

    def _take_again(self, why: str) -> None:
        self._unread_for.discard(why)
        if not self._unread_for and not self.reading:
            self.reading = True
            # Not now: the server is in the middle of something.
            self._bounds.clock.callLater(0, self._read_on)

    def _read_on(self) -> None:
        self.socket.read_again()
        while self._unread and self.reading:
            self._unread.popleft()()
