"""Groups and their members: in PostgreSQL, and in memory for tests and trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg2
from zope.interface import implementer

from flowtx.errors import InvalidPayload, StorageError
from flowtx.interfaces import IGroupStore
from flowtx.storage.link import first_line
from flowtx.storage.postgres import Database

CHANNEL: Final = "flow_groups"
"""The channel on which a commit that took members away sends a NOTIFY, without a payload."""

_ADD: Final = """
    INSERT INTO flow.group_members (group_name, user_id) VALUES (%s, %s)
    ON CONFLICT DO NOTHING RETURNING true
"""
_REMOVE: Final = "DELETE FROM flow.group_members WHERE group_name = %s AND user_id = %s RETURNING true"
_MEMBERS: Final = """
    SELECT user_id FROM flow.group_members WHERE group_name = %s AND user_id > %s ORDER BY user_id LIMIT %s
"""
_PRESENT: Final = """
    SELECT group_name, user_id FROM unnest(%s::text[], %s::text[]) p(group_name, user_id)
    WHERE EXISTS (
        SELECT FROM flow.group_members m WHERE m.group_name = p.group_name AND m.user_id = p.user_id
    )
"""


@implementer(IGroupStore)
class PostgresGroupStore:
    """See `flowtx.interfaces.IGroupStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, group: str, user_id: str) -> bool:
        return bool(await self._query(_ADD, [group, user_id]))

    async def remove(self, group: str, user_id: str) -> bool:
        return bool(await self._query(_REMOVE, [group, user_id]))

    async def members(self, group: str, after: str, limit: int) -> Sequence[str]:
        return [user_id for (user_id,) in await self._query(_MEMBERS, [group, after, limit])]

    async def present(self, pairs: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        if not pairs:
            return frozenset()
        columns = [[group for group, _ in pairs], [user_id for _, user_id in pairs]]
        return frozenset((group, user_id) for group, user_id in await self._query(_PRESENT, columns))

    async def _query(self, sql: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
        try:
            return await self._database.query(sql, parameters)
        except (psycopg2.DataError, psycopg2.IntegrityError, ValueError) as error:
            raise InvalidPayload(first_line(error)) from None
        except psycopg2.Error as error:
            raise StorageError(first_line(error)) from None


@implementer(IGroupStore)
class MemoryGroupStore:
    """See `flowtx.interfaces.IGroupStore`; nothing survives the process."""

    def __init__(self) -> None:
        self._members: set[tuple[str, str]] = set()

    async def add(self, group: str, user_id: str) -> bool:
        added = (group, user_id) not in self._members
        self._members.add((group, user_id))
        return added

    async def remove(self, group: str, user_id: str) -> bool:
        removed = (group, user_id) in self._members
        self._members.discard((group, user_id))
        return removed

    async def members(self, group: str, after: str, limit: int) -> Sequence[str]:
        found = (user_id for name, user_id in self._members if name == group and user_id > after)
        return sorted(found)[:limit]

    async def present(self, pairs: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        return frozenset(self._members.intersection(pairs))
