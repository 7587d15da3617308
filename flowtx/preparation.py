"""What has to be done, and to be there, before the parts of a server that come after it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from flowtx.auth import KeySource
from flowtx.errors import Unavailable, UnknownOutcome


class Step(Service):
    """Something to be done, and to have succeeded, before what is listed after it starts.

    Args:
        work: does it; where the database is lost meanwhile it is done again, for 10 s.
        clock: the time.
    """

    patience = 10.0

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]], clock: IReactorTime) -> None:
        self._work = work
        self._clock = clock

    def startService(self) -> Deferred[None]:
        super().startService()
        return Deferred.fromCoroutine(self._do())

    async def _do(self) -> None:
        until = self._clock.seconds() + self.patience
        while True:
            try:
                await self._work()
            except (Unavailable, UnknownOutcome):
                if self._clock.seconds() >= until:
                    raise
                await deferLater(self._clock, 0.2)
            else:
                return


class Keys(Service):
    """Holds what verifies tokens; what it fetches is given up when it stops."""

    def __init__(self, source: KeySource) -> None:
        self.source = source

    def stopService(self) -> None:
        super().stopService()
        self.source.stop()

    def change(self, source: KeySource) -> None:
        """Have others from now on."""
        before, self.source = self.source, source
        if before is not source:
            before.stop()
