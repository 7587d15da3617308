"""How many handshakes are let in: a rate, and a number at a time.

Ten thousand stock clients that lost their server come back within milliseconds of each other. A
handshake costs a thousand times what it costs to refuse one, so a few are let in at a time and the
others are told when to come again.
"""

from __future__ import annotations

from math import ceil
from typing import Final, TypeVar

T = TypeVar("T")

MIN_JITTER_MS: Final = 1_000
MAX_JITTER_MS: Final = 60_000


class Admission:
    """A token bucket that holds one second's worth, and a count of those under way.

    Args:
        rate: handshakes per second.
        concurrency: handshakes under way at once.

    Attributes:
        under_way: how many there are; kept by those who decide them.
    """

    __slots__ = ("_concurrency", "_filled_at", "_rate", "_tokens", "under_way")

    def __init__(self, rate: float, concurrency: int) -> None:
        self.change(rate, concurrency)
        self.under_way = 0
        self._tokens = max(1.0, rate)
        self._filled_at: float | None = None

    def change(self, rate: float, concurrency: int) -> None:
        """Change the two from now on."""
        self._rate = rate
        self._concurrency = concurrency

    def admit(self, now: float) -> int:
        """Let a handshake in, or not.

        Args:
            now: seconds, monotonic.

        Returns:
            0 where it is let in; otherwise after how many seconds it may come again.
        """
        if self._filled_at is not None:
            gained = (now - self._filled_at) * self._rate
            self._tokens = min(max(1.0, self._rate), self._tokens + gained)
        self._filled_at = now
        if self._tokens < 1:
            return ceil((1 - self._tokens) / self._rate)
        if self.under_way >= self._concurrency:
            return 1
        self._tokens -= 1
        return 0

    def decided(self, outcome: T) -> T:
        """Tell that a handshake is over; gives ``outcome`` back."""
        self.under_way -= 1
        return outcome

    def jitter_ms(self, connections: int) -> int:
        """Find over how long clients should spread their return, if all lost their connection now.

        Args:
            connections: how many there are.

        Returns:
            Milliseconds: what it takes to let them all in, from one second to a minute.
        """
        return max(MIN_JITTER_MS, min(MAX_JITTER_MS, ceil(1_000 * connections / self._rate)))
