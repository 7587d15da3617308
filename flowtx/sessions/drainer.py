"""The orderly end of a server: what happens from SIGTERM on, before anything else stops.

1. The server is not ready any more and takes no new work: `Drainer.draining` tells those who ask.
2. Nobody can connect to it any more, and who has not got past the handshake is sent away.
3. The connections are closed with 1012 ("come back"), in batches: every half second a tenth of those that
   are left, at least 200, and so many that all have had it after ten seconds. Ten thousand clients that
   come back at once would cost whoever takes them more than ten thousand that come one after the other.
4. A Session ends with its last connection. Its user counts as present all the while: they have the
   reconnection window to come back, counted from the end of the process (`flowtx.presence.store`).
5. Who has not let go by then is cut off.
6. Requests of the backend that are under way are answered; then it cannot connect any more either.

Only then are the Sessions' rows written, and the storage closed, by the parts that stop after this one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from math import ceil
from typing import Final, Protocol, cast

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from flowtx import faultpoints
from flowtx.protocol.close import DRAIN
from flowtx.service import settled
from flowtx.sessions.machine import State
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Session

EVERY: Final = 0.5
"""Seconds from a batch to the next."""
SHARE: Final = 0.1
LEAST: Final = 200
PACE_WITHIN: Final = 10.0
"""Seconds within which all connections have been told."""
PATIENCE: Final = 5.0
"""Seconds after the last batch for which a connection may take its time to end."""
REQUESTS_WITHIN: Final = 5.0
"""Seconds for which requests under way may take their time."""
SESSIONS_A_TURN: Final = 100
_POLL: Final = 0.05


class Connection(Protocol):
    """A connection of a client."""

    def drain(self) -> None:
        """Close with 1012; one that has not been let in is refused, or closed as soon as it has been."""

    def cut(self) -> None:
        """End now, whatever the client does."""


class Entrance(Protocol):
    """What lets clients in."""

    @property
    def connections(self) -> Collection[Connection]:
        """Those that are there, in any state."""

    def shut(self) -> None:
        """Let nobody in any more; who is being let in just now is closed as soon as that is done."""


class Requests(Protocol):
    """The requests of the backend."""

    def close(self) -> None:
        """Refuse those that would change something, from now on."""

    def when_idle(self) -> Deferred[None]:
        """Wait until none is under way any more."""


class Drainer(Service):
    """See the module; the last part of a server, and so the first one to be stopped.

    Args:
        sessions: the Sessions.
        entrances: let clients in.
        doors: what clients connect to; is stopped first.
        back_doors: what the backend connects to; is stopped when it has been answered.
        requests: those of the backend.
        clock: the time.

    Attributes:
        draining: whether the end has begun.
    """

    _log = Logger()

    def __init__(
        self,
        sessions: SessionService,
        *,
        entrances: Sequence[Entrance],
        doors: Sequence[IService],
        back_doors: Sequence[IService],
        requests: Requests,
        clock: IReactorTime,
    ) -> None:
        self.draining = False
        self._sessions = sessions
        self._entrances = entrances
        self._doors = doors
        self._back_doors = back_doors
        self._requests = requests
        self._clock = clock

    def stopService(self) -> Deferred[None]:
        """Drain the server.

        Returns:
            A Deferred that fires with None when no client and no request is left, after about 20 s at
            most; it does not fail.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._drain())

    async def _drain(self) -> None:
        began = self._clock.seconds()
        self.draining = True
        self._requests.close()
        for entrance in self._entrances:
            entrance.shut()
        for door in self._doors:
            await self._stop(door)
        if faultpoints.active:
            await faultpoints.active.stall("drain.shut")
        waiting = deque(connection for entrance in self._entrances for connection in entrance.connections)
        told = len(waiting)
        if told:
            self._log.info("Draining: {count} connections are closed with 1012", count=told)
        await self._close(waiting, began)
        cut = await self._wait_for_ends()
        await self._end_sessions()
        await self._answer()
        for door in self._back_doors:
            await self._stop(door)
        self._log.info(
            "Drained within {seconds:.1f} s: {count} connections closed, {cut} of them cut off",
            seconds=self._clock.seconds() - began,
            count=told,
            cut=cut,
        )

    async def _stop(self, door: IService) -> None:
        try:
            await settled(door.stopService())
        except Exception:
            self._log.failure("{door} failed to stop", door=type(door).__name__)

    async def _close(self, waiting: deque[Connection], began: float) -> None:
        number = 0
        while waiting:
            for _ in range(batch_size(len(waiting), began + PACE_WITHIN - self._clock.seconds())):
                waiting.popleft().drain()
            number += 1
            await self._end_sessions()
            # From the beginning: a slow batch does not put off all that follow.
            wait = began + number * EVERY - self._clock.seconds()
            if waiting and wait > 0:
                await deferLater(self._clock, wait)

    async def _wait_for_ends(self) -> int:
        """Wait for all connections to be gone; past a time cut them off, and tell how many that were."""
        until = self._clock.seconds() + PATIENCE
        while any(entrance.connections for entrance in self._entrances):
            if self._clock.seconds() >= until:
                left = [connection for entrance in self._entrances for connection in entrance.connections]
                for connection in left:
                    connection.cut()
                return len(left)
            await self._end_sessions()
            await deferLater(self._clock, _POLL)
        return 0

    async def _end_sessions(self) -> None:
        """End the Sessions that have no connection, a few at a time: requests are answered meanwhile."""
        away = [child for child in self._sessions if cast("Session", child).state is State.AWAY]
        for number, child in enumerate(away, 1):
            session = cast("Session", child)
            if session.state is State.AWAY:
                session.end("drain", DRAIN)
            if number % SESSIONS_A_TURN == 0:
                await deferLater(self._clock, 0)

    async def _answer(self) -> None:
        try:
            await self._requests.when_idle().addTimeout(REQUESTS_WITHIN, self._clock)
        except TimedOut:
            self._log.warn("Requests are still under way after {seconds} s", seconds=REQUESTS_WITHIN)


def batch_size(left: int, seconds: float) -> int:
    """Find how many connections to close now.

    Args:
        left: how many there are still to close.
        seconds: within which all of them are to have been closed.
    """
    batches = max(1.0, seconds / EVERY)
    return min(left, max(LEAST, ceil(left * SHARE), ceil(left / batches)))
