"""What runs in the background for one owner and ends with it, and how often it may fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

Work: TypeAlias = "Deferred[Any] | Coroutine[Any, Any, Any]"


class Tasks:
    """Deferreds and coroutines under way.

    Args:
        failed: called when one of them fails, unless it was cancelled.
    """

    __slots__ = ("_failed", "_running")

    _log = Logger()

    def __init__(self, failed: Callable[[Failure], None]) -> None:
        self._failed = failed
        self._running: set[Deferred[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def add(self, work: Work) -> Deferred[None]:
        """Run something.

        Returns:
            A Deferred that fires with None when it is over, however it ended; to cancel it cancels
            the work.
        """
        running = Deferred.fromCoroutine(_run(work))
        self._running.add(running)
        return running.addBoth(self._over, running)

    def cancel(self) -> None:
        """Cancel all of them; what they raise now is no failure of their owner's any more."""
        running, self._running = self._running, set()
        for task in running:
            task.cancel()

    def _over(self, result: Any, running: Deferred[Any]) -> None:
        owned = running in self._running
        self._running.discard(running)
        if not isinstance(result, Failure) or result.check(CancelledError):
            return
        if owned:
            self._failed(result)
        else:
            self._log.failure("Something failed while it was being cancelled", result)


class CrashRate:
    """Restarts of one owner: at most ``most`` in any ``period``, as OTP's supervisors count them."""

    __slots__ = ("_period", "_times")

    def __init__(self, most: int, period: float) -> None:
        self._times: deque[float] = deque(maxlen=most)
        self._period = period

    def exceeds(self, now: float) -> bool:
        """Count a crash; whether it is one too many."""
        times = self._times
        if len(times) == times.maxlen and now - times[0] <= self._period:
            return True
        times.append(now)
        return False


def drop(work: Work) -> None:
    """End what has not been begun, or cancel what has."""
    if isinstance(work, Deferred):
        work.addErrback(lambda failure: failure.trap(CancelledError))
        work.cancel()
    else:
        work.close()


async def _run(work: Work) -> None:
    await work
