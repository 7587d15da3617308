"""What waits to be sent to one connection, within a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from flowtx.protocol.message import Frame


@implementer(IPushProducer)
class Outbox:
    """Frames go straight to the transport until it is full; then they wait here.

    Registered as the transport's producer, it is told when the transport is full (64 KiB) and when
    it has room again.

    Args:
        write: hands a frame to the transport.
        limit: bytes that may wait here.
        overflow: called once when more would wait; what waits is given up.
    """

    __slots__ = ("_limit", "_overflow", "_paused", "_waiting", "_write", "waiting_bytes")

    def __init__(self, write: Callable[[Frame], None], limit: int, overflow: Callable[[], None]) -> None:
        self._write = write
        self._limit = limit
        self._overflow = overflow
        self._paused = False
        self._waiting: deque[Frame] = deque()
        self.waiting_bytes = 0

    def send(self, frame: Frame) -> None:
        """Send a frame, or keep it until there is room."""
        if not self._paused:
            self._write(frame)
            return
        self._waiting.append(frame)
        self.waiting_bytes += len(frame.payload)
        if self.waiting_bytes > self._limit:
            self.clear()
            self._overflow()

    def clear(self) -> None:
        """Give up what waits."""
        self._waiting.clear()
        self.waiting_bytes = 0

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        while self._waiting and not self._paused:
            frame = self._waiting.popleft()
            self.waiting_bytes -= len(frame.payload)
            self._write(frame)

    def stopProducing(self) -> None:
        self._paused = True
        self.clear()
