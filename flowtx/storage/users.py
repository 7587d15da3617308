"""User directories: the product's own table by SQL, or what the tokens claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zope.interface import implementer

from flowtx.errors import StorageError
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
        ids = [principal.user_id for principal in principals]
        users = {}
        for row in await self._database.query(self._query, [ids]):
            if len(row) != 3:
                raise StorageError(f"--users-query must give id, name, email; it gives {len(row)} columns")
            user_id, name, email = row
            user_id = str(user_id)
            users[user_id] = User(user_id, user_id if name is None else str(name), email and str(email))
        return users


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
