"""What waits to be sent to one connection, within bounds of bytes and of age.

What is sent goes straight to the transport until that is full (64 KiB); then it waits here, in three
classes. First goes the *control* frame: the answer to the latest Ping, of which there is never more
than one (RFC 6455, section 5.5.3). Then the *normal* frames, in order. Then the *droppable* ones, those
with a key: a newer one takes the place of an older one with its key, and where room is short they are
dropped, the oldest first.

A client is slow, and is given up, when its normal frames need more than ``limit`` bytes, or when the
first of them has waited for ``max_age`` seconds. Two things are no fault of the client's:

- One frame that is larger than the limit by itself, such as the state of a large topic, may wait
  besides; without that nobody could ever be sent it.
- Behind a large frame, age counts from when a client that takes `SLOWEST` bytes a second would have it.

When normal frames fill a quarter of the limit, nothing more is read from the client, whose own
messages may be what they answer; half of that must have gone before it is read again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from flowtx.metrics import Metrics

LARGE: Final = 65_536
SLOWEST: Final = 16_384


@dataclass(slots=True)
class Bounds:
    """What bounds an outbox, and who counts: shared by all of them, so that it can change for all.

    Attributes:
        limit: bytes of normal frames that may wait.
        max_age: seconds for which one may.
        clock: the time, monotonic.
        metrics: counts.
    """

    limit: int
    max_age: float
    clock: IReactorTime
    metrics: Metrics


class Writer(Protocol):
    """What hands data to the transport."""

    def write(self, data: bytes) -> None: ...

    def cork(self) -> None:
        """Join what is written from here on, until `uncork`."""

    def uncork(self) -> None: ...


class Consumer(Protocol):
    """The connection whose outbox it is."""

    def overflowed(self, waited: int) -> None:
        """Close: the client is slow. Called once; what waited, so many bytes, is gone already."""

    def piled_up(self, *, high: bool) -> None:
        """Stop to read from the client, or go on."""


@implementer(IPushProducer)
class Outbox:
    """See the module.

    Registered as the transport's producer, it is told when the transport is full and when it has
    room again.

    Args:
        writer: hands data to the transport.
        consumer: the connection.
        bounds: the bounds.

    Attributes:
        waiting_bytes: how much waits; the one Pong does not count.
    """

    __slots__ = (
        "_bounds",
        "_busy_until",
        "_consumer",
        "_droppable",
        "_droppable_bytes",
        "_high",
        "_oversize",
        "_paused",
        "_pong",
        "_stopped",
        "_timer",
        "_waiting",
        "_writer",
        "waiting_bytes",
    )

    def __init__(self, writer: Writer, consumer: Consumer, bounds: Bounds) -> None:
        self._writer = writer
        self._consumer = consumer
        self._bounds = bounds
        self._paused = False
        self._stopped = False
        self._high = False
        self._pong: bytes | None = None
        # Each with the time from which its age counts. Most connections never need either of the two.
        self._waiting: deque[tuple[bytes, float]] | None = None
        self._droppable: OrderedDict[str, bytes] | None = None
        self._droppable_bytes = 0
        self._oversize = 0
        self._busy_until = 0.0
        self._timer: IDelayedCall | None = None
        self.waiting_bytes = 0

    def send(self, data: bytes, key: str | None = None) -> None:
        """Send, or keep until there is room; without effect once stopped.

        Args:
            data: a whole frame.
            key: None for a normal frame; otherwise it is droppable.
        """
        if not self._paused:
            self._writer.write(data)
            if self._paused:
                self._note_large(len(data))
        elif self._stopped:
            return
        elif key is None:
            self._keep(data)
        else:
            self._keep_droppable(data, key)

    def send_pong(self, data: bytes) -> None:
        """Send the answer to a Ping, or keep it in the place of an earlier one."""
        if not self._paused:
            self._writer.write(data)
        elif not self._stopped:
            self._pong = data

    # What waits

    def _keep(self, data: bytes) -> None:
        size = len(data)
        bounds = self._bounds
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append((data, max(bounds.clock.seconds(), self._busy_until)))
        self._note_large(size)
        self._count(size)
        if size > bounds.limit:
            # A second one finds the first counted in full.
            self._oversize = size
        self._make_room()
        if self._needed() > bounds.limit:
            self._give_up()
            return
        if self._timer is None:
            self._timer = bounds.clock.callLater(bounds.max_age, self._check_age)
        if not self._high and self._needed() > bounds.limit // 4:
            self._high = True
            self._consumer.piled_up(high=True)

    def _keep_droppable(self, data: bytes, key: str) -> None:
        if self._droppable is None:
            self._droppable = OrderedDict()
        older = self._droppable.get(key)
        if older is not None:
            self._forget(older)
        self._droppable[key] = data
        self._droppable_bytes += len(data)
        self._count(len(data))
        self._make_room()

    def _make_room(self) -> None:
        while self._droppable and self._needed() + self._droppable_bytes > self._bounds.limit:
            self._forget(self._droppable.popitem(last=False)[1])

    def _forget(self, data: bytes) -> None:
        """Account for a droppable frame that will not be sent."""
        self._droppable_bytes -= len(data)
        self._count(-len(data))
        self._bounds.metrics.frames_dropped += 1

    def _needed(self) -> int:
        """How many bytes count against the limit."""
        return self.waiting_bytes - self._droppable_bytes - self._oversize

    def _count(self, change: int) -> None:
        self.waiting_bytes += change
        self._bounds.metrics.outbox_waiting += change

    def _note_large(self, size: int) -> None:
        """Allow for the time that a large frame takes."""
        if size > LARGE:
            self._busy_until = max(self._bounds.clock.seconds(), self._busy_until) + size / SLOWEST

    def _check_age(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        bounds = self._bounds
        left = self._waiting[0][1] + bounds.max_age - bounds.clock.seconds()
        if left > 0:
            self._timer = bounds.clock.callLater(left, self._check_age)
        else:
            self._give_up()

    def _give_up(self) -> None:
        waited = self.waiting_bytes
        self.stopProducing()
        self._consumer.overflowed(waited)

    # IPushProducer

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        if self._stopped:
            return
        self._paused = False
        # The transport has nothing left.
        self._busy_until = 0.0
        self._writer.cork()
        pong, self._pong = self._pong, None
        if pong is not None:
            self._writer.write(pong)
        while self._waiting and not self._paused:
            data = self._waiting.popleft()[0]
            if len(data) == self._oversize:
                self._oversize = 0
            self._hand_over(data)
        while self._droppable and not self._paused:
            data = self._droppable.popitem(last=False)[1]
            self._droppable_bytes -= len(data)
            self._hand_over(data)
        self._writer.uncork()
        if not self._waiting:
            self._waiting = None
        if not self._droppable:
            self._droppable = None
        if self._high and self._needed() <= self._bounds.limit // 8:
            self._high = False
            self._consumer.piled_up(high=False)

    def _hand_over(self, data: bytes) -> None:
        self._count(-len(data))
        self._writer.write(data)
        if self._paused:
            self._note_large(len(data))

    def stopProducing(self) -> None:
        """Give up what waits and whatever comes; what was joined counts as sent."""
        self._writer.uncork()
        self._stopped = self._paused = True
        self._waiting = self._droppable = self._pong = None
        self._count(-self.waiting_bytes)
        self._droppable_bytes = self._oversize = 0
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
