"""One transaction on one connection, and what the errors of the server mean.

It is written out here because txpostgres's own ``runInteraction`` reports a lost COMMIT as a failed
rollback, and because a COMMIT of a failed transaction is answered with a silent ROLLBACK.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import psycopg2
from psycopg2 import errors

from flowtx.errors import StorageError, Unavailable
from flowtx.storage.link import Phase, Rows
from flowtx.storage.slot import Slot

T = TypeVar("T")


class StatementTimeout(StorageError):  # noqa: N818 - as its siblings in flowtx.errors
    """The server gave the statement up after ``statement_timeout``, or an operator cancelled it.

    It was not carried out and the connection lives.
    """


async def execute(slot: Slot, sql: str, params: Sequence[object]) -> Rows:
    """Run one statement on a slot that was taken; returns and raises as ``Database.query``."""
    try:
        return await slot.execute(sql, params)
    except errors.QueryCanceled as error:
        raise StatementTimeout("the server gave the statement up, nothing was carried out") from error
    except errors.ReadOnlySqlTransaction as error:
        slot.kill("the server is a standby that only reads")
        raise Unavailable("the database is a standby that only reads; nothing was changed") from error


class Transaction:
    """What ``Database.transaction`` gives to its ``work``; of no use after that returned."""

    def __init__(self, slot: Slot) -> None:
        self._slot: Slot | None = slot
        self._error: Exception | None = None

    async def query(self, sql: str, params: Sequence[object] = ()) -> Rows:
        """Run one statement within the transaction; returns and raises as ``Database.query``.

        After an error of the server only a rollback (to a savepoint) is possible. Statements run
        one after the other: await each before the next.

        Raises:
            StorageError: the transaction has ended.
        """
        if self._slot is None:
            raise StorageError("this transaction has ended")
        try:
            return await execute(self._slot, sql, params)
        except (psycopg2.Error, StorageError) as error:
            self._error = error
            raise

    async def run(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run ``work`` between BEGIN and COMMIT, or ROLLBACK where it raises; for ``Database`` only."""
        await self.query("BEGIN")
        try:
            result = await work(self)
            if self._phase in {Phase.IDLE, Phase.IN_FAILED_TRANSACTION}:
                raise self._error or StorageError("the transaction was ended by its own work")
            await self.query("COMMIT")
        except Exception:
            await self._roll_back()
            raise
        return result

    def end(self) -> None:
        """Let no further statement through: the connection belongs to others from here on."""
        self._slot = None

    async def _roll_back(self) -> None:
        if self._phase not in {Phase.IN_TRANSACTION, Phase.IN_FAILED_TRANSACTION}:
            return
        try:
            await self.query("ROLLBACK")
        except (psycopg2.Error, StorageError):
            if self._slot is not None:
                self._slot.kill("a rollback failed")  # which the server takes as one

    @property
    def _phase(self) -> Phase:
        return Phase.LOST if self._slot is None else self._slot.phase


def first_line(error: BaseException) -> str:
    """Take what the server says of an error, without the DETAIL, which holds values."""
    return str(error).strip().split("\n", 1)[0]
