"""How often something may happen: pure policies, which are told the time."""

from __future__ import annotations

from collections import deque
from math import inf, isfinite
from typing import Final, Self

MAX_RATE: Final = 1_000_000


class Rate:
    """So many a second, and so many at once after a pause.

    Args:
        per_second: how many a second in the long run; above 0.
        burst: how many at once; at least 1.

    Attributes:
        interval: seconds in which one comes back.
        span: seconds in which a whole burst comes back.
        slack: how far ahead of now a bucket may be booked, seconds.
    """

    __slots__ = ("interval", "slack", "span")

    def __init__(self, per_second: float, burst: float) -> None:
        self.change(per_second, burst)

    def change(self, per_second: float, burst: float) -> None:
        """Change it, for the buckets that share it, too."""
        self.interval = 1 / per_second
        self.span = burst / per_second
        # A little more: what floating-point numbers lose must not cost a whole one.
        self.slack = self.span + self.interval / 100

    @classmethod
    def parse(cls, text: str) -> Self:
        """Make a rate of text such as ``50/100``; see `parse_rate`."""
        return cls(*parse_rate(text))


def parse_rate(text: str) -> tuple[float, float]:
    """Read a rate such as ``50/100``: per second, and at once.

    Raises:
        ValueError: it has another form, or a number is out of range.
    """
    per_second, _, burst = text.partition("/")
    rate, most = float(per_second), float(burst)
    if not (isfinite(rate) and 0 < rate <= MAX_RATE and 1 <= most <= MAX_RATE):
        raise ValueError(f"a rate is more than 0, a burst at least 1, both at most {MAX_RATE}")
    return rate, most


class TokenBucket:
    """Holds a `Rate`'s burst of tokens, and gets one back in each of its intervals.

    All there is to keep is when it will be full again.

    Args:
        rate: shared by all buckets of a kind.
    """

    __slots__ = ("_full_at", "_rate")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._full_at = -inf

    def take(self, now: float) -> float:
        """Take one token.

        Args:
            now: seconds, monotonic.

        Returns:
            0.0 where there was one; otherwise after how many seconds there will be.
        """
        full_at = max(self._full_at, now) + self._rate.interval
        wait = full_at - now - self._rate.slack
        if wait > 0:
            return wait
        self._full_at = full_at
        return 0.0

    def is_full(self, now: float) -> bool:
        """Whether it is as good as new."""
        return self._full_at <= now


class Strikes:
    """Tells when something has happened too often in too short a time.

    Args:
        count: how often is too often.
        period: seconds.
    """

    __slots__ = ("_period", "_times")

    def __init__(self, count: int, period: float) -> None:
        self._times: deque[float] = deque(maxlen=count)
        self._period = period

    def add(self, now: float) -> float | None:
        """Note one more.

        Args:
            now: seconds, monotonic.

        Returns:
            In how many seconds the last ``count`` came, where that is too often; otherwise None.
        """
        times = self._times
        times.append(now)
        within = now - times[0]
        return within if len(times) == times.maxlen and within <= self._period else None
