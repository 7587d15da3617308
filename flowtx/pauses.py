"""How long Python's garbage collector holds everything up."""

from __future__ import annotations

import gc
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.application.service import Service

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
