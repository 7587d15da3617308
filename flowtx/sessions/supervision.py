"""A service with work in the background, which is restarted where that fails, as OTP's supervisors do it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from inspect import isawaitable
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx.sessions.tasks import CrashRate, Tasks, Work, drop

MAX_CRASHES: Final = 3
CRASH_PERIOD: Final = 5.0
"""What crashes more than three times in five seconds is given up."""


class Supervised(Service):
    """See the module; a subclass says what a restart is, and an end.

    Attributes:
        restarts: how many times it has been restarted.
    """

    restarts = 0

    _log = Logger()
    _tasks: Tasks | None = None
    _crashes: CrashRate | None = None

    def __init__(self, name: str, clock: IReactorTime) -> None:
        self.name = name
        self._clock = clock

    def spawn(self, work: Work) -> Deferred[None]:
        """Run a coroutine or a Deferred in the background, as long as the Session lives.

        It is cancelled when the Session ends or is restarted. Where it fails, the Session is restarted.

        Returns:
            A Deferred that fires with None when it is over, however it ended; to cancel it cancels
            the work, which is no failure.
        """
        if self._ends():
            drop(work)
            return succeed(None)
        if self._tasks is None:
            self._tasks = Tasks(self.crashed)
        return self._tasks.add(work)

    def call_later(self, seconds: float, call: Callable[..., Any], *args: Any) -> Deferred[None]:
        """Call something after a time, unless the Session ends or is restarted before; see `spawn`."""
        return self.spawn(self._later(seconds, call, args))

    async def _later(self, seconds: float, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        await deferLater(self._clock, seconds)
        result = call(*args)
        if isawaitable(result):
            await result

    def crashed(self, failure: Failure) -> None:
        """Restart: something that runs for this Session has failed.

        Its connections are kept, their channels end with ``phx_error`` and are joined again. At the
        fourth crash in five seconds the Session is given up and its connections are closed.
        """
        self._note_crash()
        error = f"{type(failure.value).__name__}: {failure.getErrorMessage()}"[:200]
        if self._ends():
            self._log.warn("Session of {user_id} crashed at its end: {error}", user_id=self.name, error=error)
            return
        if self._crashes is None:
            self._crashes = CrashRate(MAX_CRASHES, CRASH_PERIOD)
        if self._crashes.exceeds(self._clock.seconds()):
            self._log.failure(
                "Session of {user_id} is given up: it crashed {count} times in {seconds} s",
                failure,
                user_id=self.name,
                count=MAX_CRASHES + 1,
                seconds=CRASH_PERIOD,
            )
            self._give_up()
            return
        self._log.warn(
            "Session of {user_id} crashed and is restarted: {error}", user_id=self.name, error=error
        )
        self.restarts += 1
        self._restart()

    def _cancel_tasks(self) -> None:
        if self._tasks is not None:
            self._tasks.cancel()

    @abstractmethod
    def _ends(self) -> bool:
        """Whether it has begun to end, so that nothing is to run any more."""

    @abstractmethod
    def _note_crash(self) -> None:
        """Called for each crash, also one that comes at the end."""

    @abstractmethod
    def _restart(self) -> None:
        """Start again."""

    @abstractmethod
    def _give_up(self) -> None:
        """End, as it crashes too often."""
