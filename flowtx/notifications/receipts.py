"""What clients have proved to have is written down a little later, for many at once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx import faultpoints
from flowtx.errors import StorageError, UnknownOutcome
from flowtx.inbox import INotificationStore, Receipts

WRITE_AFTER: Final = 0.1
AGAIN_AFTER: Final = 1.0
MAX_BATCH: Final = 2_000
MAX_KEPT: Final = 100_000
"""Receipts that wait for the database; beyond them the oldest are dropped: a notification then counts
as not delivered although it was."""


class ReceiptBook:
    """See the module.

    Args:
        store: where to.
        clock: the time.
    """

    _log = Logger()

    def __init__(self, store: INotificationStore, clock: IReactorTime) -> None:
        self._store = store
        self._clock = clock
        self._exact: dict[tuple[str, int], None] = {}
        self._up_to: dict[str, int] = {}
        self._timer: IDelayedCall | None = None
        self._writing: Deferred[None] | None = None
        self._failing = False
        self._dropping = False
        self._stopped = False

    def add(self, user_id: str, seqs: Iterable[int]) -> None:
        """Note that a client of a user has certain notifications."""
        self._exact.update(((user_id, seq), None) for seq in seqs)
        while len(self._exact) > MAX_KEPT:
            self._drop(next(iter(self._exact)))
        self._soon(WRITE_AFTER)

    def add_up_to(self, user_id: str, seq: int) -> None:
        """Note that a client of a user has all that was sent to the user up to a seq."""
        self._up_to[user_id] = max(seq, self._up_to.get(user_id, 0))
        while len(self._up_to) > MAX_KEPT:
            del self._up_to[next(iter(self._up_to))]
        self._soon(WRITE_AFTER)

    def _drop(self, oldest: tuple[str, int]) -> None:
        del self._exact[oldest]
        if not self._dropping:
            self._dropping = True
            self._log.warn("More than {count} receipts wait for the database; some are lost", count=MAX_KEPT)

    def _soon(self, seconds: float) -> None:
        if self._timer is None and self._writing is None and not self._stopped:
            self._timer = self._clock.callLater(seconds, self._begin)

    def _begin(self) -> None:
        self._timer = None
        writing = Deferred.fromCoroutine(self._write())
        if not writing.called:
            self._writing = writing

    async def _write(self) -> None:
        try:
            await self._write_batch()
        except StorageError as problem:
            if not self._failing:
                self._log.warn("Receipts cannot be written yet: {error}", error=problem)
            self._failing = True
        except Exception:
            self._log.failure("Receipts cannot be written", Failure())
            self._failing = True
        else:
            self._failing = self._dropping = False
        self._writing = None
        if self._exact or self._up_to:
            self._soon(AGAIN_AFTER if self._failing else WRITE_AFTER)

    async def _write_batch(self) -> None:
        exact = list(islice(self._exact, MAX_BATCH))
        up_to = list(islice(self._up_to.items(), MAX_BATCH))
        await self._store.mark_delivered(Receipts(exact, up_to))
        if faultpoints.active and faultpoints.active.strikes("receipts.written"):
            raise UnknownOutcome("a fault was wanted")
        for mark in exact:
            self._exact.pop(mark, None)
        for user_id, seq in up_to:
            if self._up_to.get(user_id) == seq:
                del self._up_to[user_id]

    async def stop(self) -> None:
        """Write what there is; what the database does not take now is lost."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None:
            await self._writing
        self._failing = False
        while (self._exact or self._up_to) and not self._failing:
            await self._write()
