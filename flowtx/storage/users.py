"""User directories: the product's own table by SQL, or what the tokens claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg2
from zope.interface import implementer

from flowtx.errors import StartupError, StorageError, Unavailable, UnknownOutcome
from flowtx.interfaces import IUserDirectory, Principal, User
from flowtx.storage.postgres import Database, first_line

_COLUMNS: Final = "id, name, email"


@implementer(IUserDirectory)
class SqlUserDirectory:
    """Asks the database.

    Args:
        database: where.
        query: SQL with one ``%s``, an array of ids as text, that gives ``id, name, email``.
    """

    def __init__(self, database: Database, query: str) -> None:
        self._database = database
        self._query = query

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        rows = await self._ask(self._query, [principal.user_id for principal in principals])
        users = (_user(*row[:3]) for row in rows)
        return {user.id: user for user in users}

    async def check(self) -> None:
        """Ask for nobody, to find out whether the query can be asked.

        Raises:
            StartupError: the query is not one that the database can answer with id, name, email.
        """
        try:
            await self._ask(self._query, [])
            if await self._has_columns("id, name, email, more") or not await self._has_columns(_COLUMNS):
                raise StartupError(f"--users-query: it must give the columns {_COLUMNS}, and no others")
        except (Unavailable, UnknownOutcome):
            raise
        except StorageError as error:
            raise StartupError(str(error)) from None

    async def _has_columns(self, names: str) -> bool:
        """Whether there are at least as many columns as names; the server tells without a row."""
        query = f"SELECT FROM ({self._query.strip().rstrip(';')}) AS u({names})"
        try:
            await self._database.query(query, [[]])
        except psycopg2.ProgrammingError:
            return False
        return True

    async def _ask(self, query: str, ids: list[str]) -> list[tuple[Any, ...]]:
        try:
            rows = await self._database.query(query, [ids])
        except (psycopg2.Error, ValueError, IndexError, TypeError) as error:
            raise StorageError(f"--users-query: {first_line(error)}") from None
        return rows


def _user(user_id: object, name: object, email: object) -> User:
    return User(str(user_id), str(user_id if name is None else name), None if email is None else str(email))


@implementer(IUserDirectory)
class ClaimsUserDirectory:
    """Takes every principal for a user, named by the claims of their token."""

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        return {
            principal.user_id: User(principal.user_id, principal.name or principal.user_id, principal.email)
            for principal in principals
        }


async def add_user(database: Database, user: User) -> None:
    """Add a user to ``flow.users``, or change their name and e-mail.

    Raises:
        StorageError: the database cannot, or will not.
    """
    await _run(
        database,
        "INSERT INTO flow.users (id, name, email) VALUES (%s, %s, %s) "
        "ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email",
        [user.id, user.name, user.email],
    )


async def list_users(database: Database) -> list[User]:
    """List ``flow.users``, by id; see `add_user` for what it raises."""
    rows = await _run(database, "SELECT id, name, email FROM flow.users ORDER BY id", [])
    return [User(*row) for row in rows]


async def _run(database: Database, sql: str, parameters: list[object]) -> list[tuple[Any, ...]]:
    try:
        return await database.query(sql, parameters)
    except (psycopg2.Error, ValueError) as error:
        raise StorageError(f"flow.users: {first_line(error)}") from None
