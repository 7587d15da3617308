"""When one broadcast follows another at once, what they send to one connection can be joined.

Each ``send`` is a call of the kernel, which costs more than all that leads up to it. The first broadcast
of a turn of the reactor is sent at once. Those that follow in the same turn are kept for each
connection, and sent with one call when the turn is over: nobody waits for longer than that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IReactorTime

WORTH_IT: Final = 16
"""Subscribers of a topic from which on its broadcasts count."""


class Bursts:
    """See the module.

    Args:
        clock: whose turns.

    Attributes:
        joining: whether what is sent right now is to wait for the end of the turn.
    """

    __slots__ = ("_clock", "_flushes", "_in_turn", "joining")

    def __init__(self, clock: IReactorTime) -> None:
        self.joining = False
        self._clock = clock
        self._in_turn = False
        self._flushes: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Note that a broadcast goes out from here on."""
        if self._in_turn:
            self.joining = True
        else:
            self._in_turn = True
            self._clock.callLater(0, self._end_turn)

    def end(self) -> None:
        """Note that it has gone out."""
        self.joining = False

    def at_end(self, flush: Callable[[], None]) -> None:
        """Have ``flush`` called when the turn is over; it must not raise."""
        self._flushes.append(flush)

    def _end_turn(self) -> None:
        self._in_turn = self.joining = False
        flushes, self._flushes = self._flushes, []
        for flush in flushes:
            flush()
