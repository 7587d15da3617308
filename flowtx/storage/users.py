"""User directories: the product's own table by SQL, or what the tokens claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg2
from zope.interface import implementer

from flowtx.errors import StartupError, StorageError, Unavailable, UnknownOutcome
from flowtx.interfaces import IUserDirectory, Principal, User
from flowtx.storage.postgres import Database


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
        rows = await self._ask([principal.user_id for principal in principals])
        users = (_user(*row) for row in rows)
        return {user.id: user for user in users}

    async def check(self) -> None:
        """Ask for a user that nobody is.

        Raises:
            StartupError: the query is not one that the database can answer with id, name, email.
        """
        try:
            await self._ask([""])
        except (Unavailable, UnknownOutcome):
            raise
        except StorageError as error:
            raise StartupError(str(error)) from None

    async def _ask(self, ids: list[str]) -> list[tuple[Any, ...]]:
        try:
            rows = await self._database.query(self._query, [ids])
        except (psycopg2.Error, ValueError, IndexError, TypeError) as error:
            raise StorageError(f"--users-query: {str(error).splitlines()[0]}") from None
        if rows and len(rows[0]) != 3:
            raise StorageError(f"--users-query: it takes id, name, email; got {len(rows[0])} columns")
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
    """Add a user to ``flow.users``, or change their name and e-mail."""
    await database.query(
        "INSERT INTO flow.users (id, name, email) VALUES (%s, %s, %s) "
        "ON CONFLICT (id) DO UPDATE SET name = excluded.name, email = excluded.email",
        [user.id, user.name, user.email],
    )


async def list_users(database: Database) -> list[User]:
    """List ``flow.users``, by id."""
    rows = await database.query("SELECT id, name, email FROM flow.users ORDER BY id")
    return [User(*row) for row in rows]
