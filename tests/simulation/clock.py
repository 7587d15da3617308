"""The time of a simulation: one for all, which passes only by going to the next thing that is due.

Each life of a node has a `NodeClock`, so that it can be frozen, as by SIGSTOP, and killed; clients,
network and database go by the one of the world outside. Among things due at the same time chance
chooses, as a reactor promises no order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from random import Random

from twisted.internet.base import DelayedCall
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from twisted.logger import Logger

_Due = tuple[float, float, int, "NodeClock", DelayedCall]


class Time:
    """What passes, for all clocks.

    Attributes:
        now: seconds.
        steps: how many things have been done.
        running: the clock of whoever does something now.
    """

    _log = Logger()

    def __init__(self, chance: Random) -> None:
        self.now = 0.0
        self.steps = 0
        self.running: NodeClock | None = None
        self._chance = chance.random
        self._due: list[_Due] = []
        self._number = 0

    def add(self, when: float, clock: NodeClock, call: DelayedCall) -> None:
        """Have a call made at a time."""
        self._number += 1
        heappush(self._due, (when, self._chance(), self._number, clock, call))

    def add_again(self, due: Sequence[_Due]) -> None:
        """Have calls that were held back made now, in the order in which they were due."""
        for when, tie, _, clock, call in sorted(due, key=lambda one: one[:3]):
            self._number += 1
            # Before whatever else is due now: it has waited longer.
            heappush(self._due, (self.now, when + tie / 1e6 - 1e9, self._number, clock, call))

    def pass_until(self, until: float) -> None:
        """Do all that is due by a time."""
        due = self._due
        while due and due[0][0] <= until:
            one = heappop(due)
            when, _, _, clock, call = one
            if call.called or call.cancelled or clock.is_dead:
                continue
            if call.delayed_time:  # it was put off since
                call.activate_delay()
                self.add(call.time, clock, call)
                continue
            self.now = max(self.now, when)
            if clock.is_frozen:
                clock.held.append(one)
                continue
            del clock.pending[call]
            self.running = clock
            call.called = 1
            self.steps += 1
            try:
                call.func(*call.args, **call.kw)
            except Exception:
                self._log.failure("Unhandled: {call}", call=name_of(call))
        self.now = max(self.now, until)


class NodeClock(Clock):
    """The clock of one life of a node, or of the world outside.

    Args:
        time: of the simulation.
        late: by how many seconds a call is made too late, as where a reactor is busy; None for never.

    Attributes:
        pending: the calls that are still to be made.
        held: those that were due while it is frozen.
        is_frozen: whether nothing is done.
        is_dead: whether nothing will be, ever.
    """

    def __init__(self, time: Time, late: Callable[[], float] | None = None) -> None:
        self._time = time
        self._late = late
        self.pending: dict[DelayedCall, None] = {}
        self.held: list[_Due] = []
        self.is_frozen = False
        self.is_dead = False

    def seconds(self) -> float:
        return self._time.now

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],  # noqa: A002
        *args: object,
        **kw: object,
    ) -> IDelayedCall:
        assert delay >= 0, f"{callable} is to be called {delay} s ago"
        when = self._time.now + delay
        if self._late is not None and delay:
            when += self._late()
        call = DelayedCall(when, callable, args, kw, self._cancelled, self._sooner, self.seconds)
        self.pending[call] = None
        self._time.add(when, self, call)
        return call

    def _cancelled(self, call: DelayedCall) -> None:
        self.pending.pop(call, None)  # a dead one has none

    def _sooner(self, call: DelayedCall) -> None:
        self._time.add(call.time, self, call)

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        return tuple(self.pending)

    def advance(self, amount: float) -> None:
        self._time.pass_until(self._time.now + amount)

    def freeze(self) -> None:
        """Do nothing from now on."""
        self.is_frozen = True

    def thaw(self) -> None:
        """Do what was due meanwhile, and go on."""
        if self.is_frozen:
            self.is_frozen = False
            held, self.held = self.held, []
            self._time.add_again(held)

    def die(self) -> None:
        """Do nothing ever again."""
        self.is_dead = True
        self.pending.clear()
        self.held.clear()


def name_of(call: DelayedCall) -> str:
    """Name what is to be called, for people to read."""
    return str(getattr(call.func, "__qualname__", type(call.func).__qualname__))
