"""The history of Sessions: one row for each that has ended, written in batches.

A Session's end does not wait for the database. Its row is queued and written within a second, many
rows in one statement; while the database is down they wait, within bounds, and are tried again. What
is queued when the server stops is written before the service has stopped.
"""

from __future__ import annotations

import random as random_module
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Final

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from flowtx import faultpoints
from flowtx.errors import FlowtxError, InvalidPayload, UnknownOutcome
from flowtx.interfaces import FinishedSession, IHistoryStore, ISessionObserver
from flowtx.metrics import Metrics
from flowtx.oneshot import OneShot

if TYPE_CHECKING:
    from flowtx.sessions.session import Session

REASONS: Final = frozenset(
    {"window_expired", "idle_timeout", "session_stopped", "drain", "crashed", "refused", "abandoned"}
)
"""The reasons that the metrics tell apart; all others are "other" to them."""

MAX_BATCH: Final = 500
MAX_QUEUED: Final = 10_000
WRITE_WITHIN: Final = 1.0
"""Seconds for which a row waits for others."""
STOP_WITHIN: Final = 5.0
"""Seconds without a row being written after which the stop gives up those that are still queued."""
STOP_AT_MOST: Final = 15.0
"""Seconds after which it does so anyway."""
BACKOFF_FIRST: Final = 0.1
BACKOFF_MOST: Final = 5.0
BACKOFF_STOPPING: Final = 0.2
SAY_EVERY: Final = 60.0


@implementer(ISessionObserver)
class History(Service):
    """See the module.

    Args:
        store: keeps the rows.
        node: what the rows name as the node.
        clock: the time, monotonic.
        metrics: counts the durations.
        now: the wall clock.
        random: from 0 to 1, spreads what is tried again.
        max_queued: how many rows wait at most; past it the oldest are dropped.

    Attributes:
        max_queued: see above; may be changed.
        dropped: how many rows were dropped, since there was no room or the store refused them.
    """

    _log = Logger()

    def __init__(
        self,
        store: IHistoryStore,
        *,
        node: str,
        clock: IReactorTime,
        metrics: Metrics,
        now: Callable[[], float] = time.time,
        random: Callable[[], float] = random_module.random,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self.dropped = 0
        self._store = store
        self._node = node
        self._clock = clock
        self._metrics = metrics
        self._now = now
        self._random = random
        self.max_queued = max_queued
        self._queue: deque[FinishedSession] = deque()
        self._under_way = 0  # so many of the queue's first are being written
        self._size = MAX_BATCH
        self._failures = 0
        self._timer: IDelayedCall | None = None
        self._writing: Deferred[None] | None = None
        self._pause: OneShot | None = None
        self._unsaid = 0
        self._said_at: float | None = None
        self._allowance: IDelayedCall | None = None

    @property
    def waiting(self) -> int:
        """How many rows are not known to be written yet."""
        return len(self._queue)

    def startService(self) -> None:
        super().startService()
        self._wake()

    def stopService(self) -> Deferred[None]:
        """Write what is queued.

        Returns:
            A Deferred that fires with None once all is written, after 5 s in which nothing was, or
            after 15 s; it does not fail.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if not self.running:
            return
        super().stopService()
        if self._pause is not None:
            self._pause.fire()
        self._write()
        writing = self._writing
        if writing is not None:
            deadline = self._clock.seconds() + STOP_AT_MOST
            self._allow(writing, deadline, None)
            await writing
            if self._allowance is not None and self._allowance.active():
                self._allowance.cancel()
        self._say_dropped()
        if self._queue:
            self._log.warn("History: {count} ended Sessions could not be written", count=len(self._queue))

    def _allow(self, writing: Deferred[None], deadline: float, waited: int | None) -> None:
        """Let the last writing go on for as long as it gets on."""
        if len(self._queue) == waited or self._clock.seconds() >= deadline:
            writing.cancel()
        else:
            arguments = writing, deadline, len(self._queue)
            self._allowance = self._clock.callLater(STOP_WITHIN, self._allow, *arguments)

    # From the Sessions

    async def session_ready(self, session: Session) -> None:
        """Nothing is noted before the end."""

    async def session_closing(self, session: Session) -> None:
        """Queue the row of a Session; this neither waits nor fails."""
        duration = self._clock.seconds() - session.started_at
        reason = session.reason if session.reason in REASONS else "other"
        self._metrics.session_duration.labels(reason).observe(duration)
        ended_at = self._now()
        finished = FinishedSession(
            session_id=session.session_id,
            user_id=session.user_id,
            node=self._node,
            connected_at=ended_at - duration,
            ended_at=ended_at,
            duration_seconds=duration,
            reason=session.reason,
            connections=session.connections,
            restarts=session.restarts,
            messages_received=session.messages_received,
        )
        if len(self._queue) >= self.max_queued:
            del self._queue[self._under_way]
            self._drop()
        self._queue.append(finished)
        self._wake()

    # To the store

    def _wake(self) -> None:
        """See to it that what is queued gets written."""
        if not self.running or self._writing is not None or not self._queue:
            return
        if len(self._queue) >= MAX_BATCH:
            self._write()
        elif self._timer is None:
            self._timer = self._clock.callLater(WRITE_WITHIN, self._write)

    def _write(self) -> None:
        """Write all that is queued, unless that is being done already."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._writing is not None or not self._queue:
            return
        writing = Deferred.fromCoroutine(self._write_all())
        writing.addErrback(self._given_up)
        if not writing.called:
            self._writing = writing
            writing.addCallback(self._written)

    def _written(self, _: None) -> None:
        self._writing = None

    def _given_up(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("History: the writer failed", failure)

    async def _write_all(self) -> None:
        while self._queue:
            try:
                await self._write_batch()
            except CancelledError:
                raise
            except InvalidPayload as refused:
                self._split(refused)
            except Exception as error:
                if not isinstance(error, FlowtxError):
                    self._log.failure("History: rows could not be written")
                await self._wait(error)
            else:
                self._failures = 0
                self._size = min(MAX_BATCH, self._size * 2)
                self._say_dropped()

    async def _write_batch(self) -> None:
        batch = tuple(islice(self._queue, self._size))
        self._under_way = len(batch)
        try:
            await self._store.add(batch)
            if faultpoints.active and faultpoints.active.strikes("history.written"):
                raise UnknownOutcome("a fault was wanted")
        finally:
            self._under_way = 0
        for _ in batch:
            self._queue.popleft()

    def _split(self, refused: InvalidPayload) -> None:
        """Halve the batches down to the one row that cannot be kept, and drop that."""
        if self._size > 1:
            self._size //= 2
            return
        row = self._queue.popleft()
        self.dropped += 1
        self._log.warn(
            "History: the row of {user_id} cannot be kept: {problem}",
            user_id=row.user_id,
            session_id=row.session_id,
            problem=refused.detail[:200],
        )

    async def _wait(self, error: Exception) -> None:
        if self._failures == 0:
            self._log.warn(
                "History: {count} ended Sessions wait for the database: {error}",
                count=len(self._queue),
                error=str(error)[:200],
            )
        seconds = min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(self._failures, 10))
        seconds *= 0.5 + self._random() / 2
        self._failures += 1
        if not self.running:
            seconds = min(seconds, BACKOFF_STOPPING)
        pause = self._pause = OneShot()
        timer = self._clock.callLater(seconds, pause.fire)
        try:
            await pause.when_fired()
        finally:
            self._pause = None
            if timer.active():
                timer.cancel()

    # What is lost

    def _drop(self) -> None:
        self.dropped += 1
        self._unsaid += 1
        if self._said_at is None or self._clock.seconds() - self._said_at >= SAY_EVERY:
            self._said_at = self._clock.seconds()
            self._say_dropped()

    def _say_dropped(self) -> None:
        dropped, self._unsaid = self._unsaid, 0
        if dropped:
            self._log.warn("History: {count} ended Sessions were dropped, as too many wait", count=dropped)
