"""The database, with its metrics: the states of its connections, how long calls take, what goes wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import psycopg2
from psycopg2 import errors
from twisted.internet.interfaces import IReactorTime

from flowtx.errors import Unavailable, UnknownOutcome
from flowtx.metrics import Metrics
from flowtx.storage.link import Rows
from flowtx.storage.postgres import Database, StatementTimeout, Transaction
from flowtx.storage.slot import SlotState

T = TypeVar("T")

_STATES: Final = {
    "ready": (SlotState.READY, SlotState.CHECKING),
    "busy": (SlotState.BUSY,),
    "connecting": (SlotState.CONNECTING, SlotState.BACKOFF),
}


class MeasuredDatabase(Database):
    """See the module, and `Database`.

    Args:
        metrics: where all of it is shown.
    """

    def __init__(self, url: str, *, reactor: IReactorTime, metrics: Metrics, **others: Any) -> None:
        super().__init__(url, reactor=reactor, **others)
        self._metrics = metrics
        for name, states in _STATES.items():
            metrics.database_connections.labels(name).set_function(partial(self._count, states))
        metrics.database_waiters.set_function(lambda: self.waiting)

    def _count(self, states: Collection[SlotState]) -> int:
        return sum(slot.state in states for slot in self._slots)

    async def query(
        self,
        sql: str,
        params: Sequence[object] = (),
        *,
        timeout: float = 5.0,  # noqa: ASYNC109 - as in `Database`
    ) -> Rows:
        """See `Database.query`."""
        return await self._measured(super().query(sql, params, timeout=timeout))

    async def transaction(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        *,
        timeout: float = 5.0,  # noqa: ASYNC109
    ) -> T:
        """See `Database.transaction`."""
        return await self._measured(super().transaction(work, timeout=timeout))

    async def _measured(self, call: Awaitable[T]) -> T:
        began = self._reactor.seconds()
        try:
            return await call
        except Exception as error:
            kind = _kind(error)
            if kind is not None:
                self._metrics.database_errors.labels(kind).inc()
            raise
        finally:
            self._metrics.database_seconds.observe(max(0.0, self._reactor.seconds() - began))


def _kind(error: Exception) -> str | None:
    """Name what went wrong with the database, out of `DATABASE_ERRORS`; None where that is not it."""
    kinds: tuple[tuple[Any, str], ...] = (
        (Unavailable, "unavailable"),
        (UnknownOutcome, "unknown_outcome"),
        (StatementTimeout, "timeout"),
        ((errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable), "in_the_way"),
        (psycopg2.Error, "refused"),
    )
    return next((kind for form, kind in kinds if isinstance(error, form)), None)
