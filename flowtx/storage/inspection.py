"""The database as an operator looks at it: how the connections are, and what a query says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from psycopg2 import errors

from flowtx.errors import StorageError, Unavailable
from flowtx.storage.postgres import Database, Transaction

MAX_ROWS: Final = 100


class Inspection:
    """The database: how its connections are, and what a query says.

    Args:
        database: what is looked at.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def pool(self) -> dict[str, int]:
        """Tell how many connections there are, of how many, and how many calls wait for one."""
        database = self._database
        return {"connected": database.ready, "connections": database.slots, "waiting": database.waiting}

    async def query(self, sql: str, params: Sequence[object] = ()) -> list[dict[str, Any]]:
        """Run one SELECT that changes nothing.

        Args:
            sql: a SELECT, VALUES, WITH or TABLE; ``%s`` stands for each of ``params``.
            params: what to put in.

        Returns:
            The first 100 rows, by the names of their columns.

        Raises:
            StorageError: the database cannot be asked, or the statement is one that changes something.
            psycopg2.Error: the server refused it.
        """
        # Around it stands a SELECT of ours: it bounds what comes, and names the columns.
        bounded = f"SELECT to_json(q)::text FROM (\n{sql.strip().rstrip(';')}\n) q LIMIT {MAX_ROWS}"  # noqa: S608

        async def read(transaction: Transaction) -> list[dict[str, Any]]:
            await transaction.query("SET TRANSACTION READ ONLY")
            return [msgspec.json.decode(text) for (text,) in await transaction.query(bounded, params)]

        try:
            return await self._database.transaction(read)
        except Unavailable as error:
            if isinstance(error.__cause__, errors.ReadOnlySqlTransaction):
                raise StorageError("storage.query only reads; nothing was changed") from None
            raise
