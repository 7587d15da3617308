"""Work that is done again and again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx.errors import StorageError


class Periodic(Service):
    """Does some work, waits, and does it again; what fails is tried again as usual.

    Each kind of exception is logged once until the work has succeeded. Twisted's
    ``LoopingCall`` ends for good with the first exception.

    Args:
        name: what the log calls the work.
        work: does it; never twice at once. Has deadlines of its own.
        interval: seconds from the end of one time to the next.
        clock: the time.
    """

    _log = Logger()

    def __init__(
        self, name: str, work: Callable[[], Awaitable[object]], interval: float, *, clock: IReactorTime
    ) -> None:
        self._name = name
        self._work = work
        self._interval = interval
        self._clock = clock
        self._waiting: IDelayedCall | None = None
        self._under_way: Deferred[None] | None = None
        self._logged: set[type[Exception]] = set()

    def startService(self) -> None:
        """Begin; the first time comes after one interval."""
        super().startService()
        if self._under_way is None:  # else it waits at its end
            self._wait()

    def stopService(self) -> Deferred[None]:
        """End; fires when the work under way has ended."""
        super().stopService()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        return succeed(None) if self._under_way is None else self._under_way

    def _wait(self) -> None:
        self._waiting = self._clock.callLater(self._interval, self._begin)

    def _begin(self) -> None:
        self._waiting = None
        under_way = Deferred.fromCoroutine(self._once())
        if not under_way.called:
            self._under_way = under_way

    async def _once(self) -> None:
        try:
            await self._work()
        except Exception as error:
            self._failed(error)
        else:
            self._logged.clear()
        self._under_way = None
        if self.running:
            self._wait()

    def _failed(self, error: Exception) -> None:
        if type(error) in self._logged:
            return
        self._logged.add(type(error))
        if isinstance(error, StorageError):  # the database is down, which is no fault of the program
            self._log.warn("{name} failed, and is tried again: {why}", name=self._name, why=error)
        else:
            self._log.failure("{name} failed, and is tried again", Failure(error), name=self._name)
