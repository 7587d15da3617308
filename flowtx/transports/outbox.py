"""What waits to be sent to one connection, within a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer


@implementer(IPushProducer)
class Outbox:
    """Data goes straight to the transport until that is full; then it waits here.

    Registered as the transport's producer, it is told when the transport is full (64 KiB) and when
    it has room again.

    Args:
        write: hands data to the transport.
        limit: bytes that may wait here.
        overflow: called once, when more would wait; what waits is given up.

    Attributes:
        waiting_bytes: how much waits.
    """

    __slots__ = ("_limit", "_overflow", "_paused", "_pong", "_stopped", "_waiting", "_write", "waiting_bytes")

    def __init__(self, write: Callable[[bytes], None], limit: int, overflow: Callable[[], None]) -> None:
        self._write = write
        self._limit = limit
        self._overflow = overflow
        self._paused = False
        self._stopped = False
        self._pong: bytes | None = None
        self._waiting: deque[bytes] = deque()
        self.waiting_bytes = 0

    def send(self, data: bytes) -> None:
        """Send, or keep until there is room; without effect once stopped."""
        if self._stopped:
            return
        if not self._paused:
            self._write(data)
            return
        self._waiting.append(data)
        self.waiting_bytes += len(data)
        if self.waiting_bytes > self._limit:
            self.stopProducing()
            self._overflow()

    def send_pong(self, data: bytes) -> None:
        """Send the answer to a ping, or keep it in the place of an earlier one.

        RFC 6455, section 5.5.3, lets only the most recent ping be answered; a client that floods
        with pings and reads no answers thus fills nothing.
        """
        if not self._paused:
            self._write(data)
        elif not self._stopped:
            self._pong = data

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        if self._stopped:
            return
        self._paused = False
        pong, self._pong = self._pong, None
        if pong is not None:
            self._write(pong)
        while self._waiting and not self._paused:
            data = self._waiting.popleft()
            self.waiting_bytes -= len(data)
            self._write(data)

    def stopProducing(self) -> None:
        """Give up what waits and whatever comes."""
        self._stopped = self._paused = True
        self._waiting.clear()
        self._pong = None
        self.waiting_bytes = 0
