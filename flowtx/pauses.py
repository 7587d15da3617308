"""How long Python's garbage collector holds everything up, and what keeps that short.

All that is loaded at the start stays for good, and need not be looked at again and again. After that
Python would look for garbage each 700 objects, which is every few connections, and through all of them
each 70,000: while thousands come at once an eighth of all time went into it. Almost nothing here is
freed by it, as connections and Sessions take their cycles apart when they end.
"""

from __future__ import annotations

import gc
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.application.service import Service

THRESHOLDS: Final = (10_000, 10, 20)
"""Objects that make a collection of the youngest; how many of those make one of the next, and so on."""

BOUNDS: Final = (0.001, 0.01, 0.1, 1.0)


class Pauses(Collector):
    """Counts the pauses, as ``flowtx_gc_pause_seconds``.

    Plain numbers: a collection may begin while one of Prometheus's own counters holds its lock.
    """

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._total = 0.0
        self._began: float | None = None

    def called(self, phase: str, _info: Mapping[str, int]) -> None:
        """Take what `gc.callbacks` are told: the start or the stop of a collection."""
        now = time.perf_counter()
        if phase == "start":
            self._began = now
        elif self._began is not None:
            seconds, self._began = now - self._began, None
            self._counts[bisect_left(BOUNDS, seconds)] += 1
            self._total += seconds

    def collect(self) -> Iterator[Metric]:
        seen, buckets = 0, []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self._counts, strict=True):
            seen += count
            buckets.append((bound, seen))
        yield HistogramMetricFamily(
            "flowtx_gc_pause_seconds",
            "For how long a garbage collection held everything up",
            buckets=buckets,
            sum_value=self._total,
        )


def spare_the_loaded() -> None:
    """Leave what is there now out of all collections, and have fewer of them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


class PauseWatch(Service):
    """Listens to the garbage collector for as long as it runs."""

    def __init__(self, pauses: Pauses) -> None:
        self._called: Any = pauses.called

    def startService(self) -> None:
        super().startService()
        gc.callbacks.append(self._called)

    def stopService(self) -> None:
        super().stopService()
        if self._called in gc.callbacks:
            gc.callbacks.remove(self._called)
