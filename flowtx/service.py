"""Services that start and stop one after the other."""

from __future__ import annotations

from typing import cast

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from flowtx.oneshot import OneShot


class OrderedMultiService(MultiService):
    """A MultiService whose children start in order and stop in reverse, each step awaited.

    Twisted's own ``MultiService`` drops the Deferred of a child's ``startService`` and stops all
    children at once; a session would then outlive the database that it writes to.
    """

    _log = Logger()
    _starting: Deferred[None] | None = None
    _started: OneShot

    def startService(self) -> Deferred[None]:
        """Start the children in the order in which they were added.

        Returns:
            A Deferred that fires with None once the last child has started. Where one fails, or the
            Deferred is cancelled, those already started are stopped again, last first, and the
            failure is passed on.
        """
        self.running = True
        self._started = OneShot()
        starting = Deferred.fromCoroutine(self._start())
        if not starting.called:
            self._starting = starting
        return starting

    async def _start(self) -> None:
        started: list[IService] = []
        try:
            for child in list(self):
                started.append(child)
                await settled(child.startService())
        except BaseException:
            self.running = False
            await self._stop_all(started)
            raise
        finally:
            self._starting = None
            self._started.fire()

    def stopService(self) -> Deferred[None]:
        """Stop the children that run, last first; a start under way is given up first.

        Returns:
            A Deferred that fires with None once the first child has stopped. A child that fails to
            stop is logged and does not keep the others from stopping.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await self._started.when_fired()
        self.running = False
        await self._stop_all([child for child in self if child.running])

    async def _stop_all(self, children: list[IService]) -> None:
        for child in reversed(children):
            try:
                await settled(child.stopService())
            except Exception:
                self._log.failure("Service {service} failed to stop", service=type(child).__name__)


async def settled(result: object) -> None:
    """Wait for ``result`` if it is a Deferred, as ``stopService`` may or may not give one."""
    if isinstance(result, Deferred):
        await cast("Deferred[object]", result)
