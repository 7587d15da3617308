"""How late the event loop is: by how much a timer fires after its time."""

from __future__ import annotations

from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from flowtx.metrics import Metrics

EVERY: Final = 0.25
"""Seconds from a measurement to the next."""


class Lag(Service):
    """Measures it, for ``flowtx_reactor_lag_seconds``, as long as it runs.

    Args:
        metrics: where it is shown.
        clock: the time.
    """

    def __init__(self, metrics: Metrics, *, clock: IReactorTime) -> None:
        self._histogram = metrics.reactor_lag
        self._clock = clock
        self._timer: IDelayedCall | None = None
        self._due = 0.0

    def startService(self) -> None:
        super().startService()
        self._wait()

    def stopService(self) -> None:
        super().stopService()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _wait(self) -> None:
        self._due = self._clock.seconds() + EVERY
        self._timer = self._clock.callLater(EVERY, self._measure)

    def _measure(self) -> None:
        self._histogram.observe(max(0.0, self._clock.seconds() - self._due))
        self._wait()
