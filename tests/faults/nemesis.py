"""Does harm at random moments: kills servers, cuts the connections of readers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, Protocol

from twisted.internet.task import deferLater

from tests.faults.history import History
from tests.faults.targets import Target

SERVE_PATIENCE: Final = 60.0
"""Seconds in which a server that was started must serve; longer than any back-off."""
_TICK: Final = 0.01


class StuckError(Exception):
    """Something did not happen in its time."""


class Timing:
    """The time that a run has.

    Args:
        reactor: waits.
        seconds: how long the run may take.
    """

    def __init__(self, reactor: Any, seconds: float) -> None:
        self.reactor = reactor
        self.deadline = time.monotonic() + seconds

    @property
    def over(self) -> bool:
        return time.monotonic() > self.deadline

    async def pause(self, seconds: float) -> None:
        """Do nothing for a while."""
        await deferLater(self.reactor, seconds)

    async def until(self, condition: Callable[[], bool], what: str, within: float) -> None:
        """Wait until something is so.

        Raises:
            StuckError: it is not in so many seconds, or the time of the run is over.
        """
        give_up = min(time.monotonic() + within, self.deadline)
        while not condition():
            if time.monotonic() > give_up:
                raise StuckError(f"not within {within:.0f} s, or past the end of the run: {what}")
            await self.pause(_TICK)


class Budget:
    """So many kills of a kind; several nemeses may draw on one.

    Attributes:
        done: the kills so far.
    """

    def __init__(self, kills: int) -> None:
        self.kills = kills
        self.done = 0
        self._drawn = 0

    def draw(self) -> bool:
        """Take one; False where none is left."""
        if self._drawn == self.kills:
            return False
        self._drawn += 1
        return True


class Killer:
    """Kills one server again and again, each time after it has served.

    Args:
        target: the server; it runs.
        budget: how many kills are left.
        random: chooses the moments.
        timing: the time that there is.
        history: is told of an end that nobody caused.
        dwell: the most seconds that it serves before it is killed.
        outage: the most seconds that it is down.
    """

    def __init__(
        self,
        target: Target,
        budget: Budget,
        *,
        random: Random,
        timing: Timing,
        history: History,
        dwell: float,
        outage: float,
    ) -> None:
        self._target = target
        self._budget = budget
        self._random = random
        self._timing = timing
        self._history = history
        self._dwell = dwell
        self._outage = outage

    async def run(self) -> None:
        """Spend the budget, and leave the server serving."""
        await self._until_it_serves()
        while self._budget.draw():
            await self._timing.pause(self._random.uniform(0, self._dwell))
            await self._until_it_serves()  # it may have ended by itself meanwhile
            await self._target.kill()
            self._budget.done += 1
            await self._timing.pause(self._random.uniform(0, self._outage))
            self._target.spawn()
            if self._random.random() < 0.1:
                # In the middle of its start or its recovery: not counted, as it does not serve yet.
                await self._timing.pause(self._random.uniform(0, 1.0))
                await self._target.kill()
                self._target.spawn()
            await self._until_it_serves()

    async def _until_it_serves(self) -> None:
        target = self._target
        while target.has_ended or not target.life.serving:
            await self._timing.until(
                lambda: target.life.serving or target.has_ended, f"{target.name} serves", SERVE_PATIENCE
            )
            if target.has_ended:
                self._note_the_end()
                await target.kill()
                await self._timing.pause(0.1)
                target.spawn()

    def _note_the_end(self) -> None:
        *_, last = ["", *self._target.last_words.splitlines()]
        if self._target.life.serving:
            self._history.surprises.append(f"{self._target.name} ended while it served: {last}")
        else:
            self._history.failed_starts.append(f"{self._target.name} did not start: {last}")


class Dropped(Protocol):
    """A client whose connection can be cut."""

    def drop(self, forget: int = 0) -> None:
        """Cut the connection; the client has taken all durably but the last ``forget``."""


class Cutter:
    """Cuts connections of clients until it is told to stop.

    Attributes:
        cuts: how many it has cut.
    """

    def __init__(self, clients: Sequence[Dropped], random: Random, timing: Timing) -> None:
        self._clients = clients
        self._random = random
        self._timing = timing
        self._stopped = False
        self.cuts = 0

    async def run(self) -> None:
        """Go on until `stop`."""
        while not (self._stopped or self._timing.over):
            await self._timing.pause(self._random.uniform(0, 0.3))
            self._random.choice(self._clients).drop(self._random.choice((0, 0, 1, 5)))
            self.cuts += 1

    def stop(self) -> None:
        self._stopped = True


def describe(budgets: dict[str, Budget]) -> str:
    """Tell the kills so far, e.g. ``kills 200 (flowtx 101, postgres 99)``."""
    done = Counter({kind: budget.done for kind, budget in budgets.items()})
    kinds = ", ".join(f"{kind} {count}" for kind, count in done.items())
    return f"kills {done.total()} ({kinds})"
