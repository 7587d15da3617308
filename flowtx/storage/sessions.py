"""The history of Sessions in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import psycopg2
from zope.interface import implementer

from flowtx.errors import InvalidPayload, StorageError
from flowtx.interfaces import FinishedSession, IHistoryStore
from flowtx.storage.link import first_line
from flowtx.storage.postgres import Database

_ADD: Final = """
    INSERT INTO flow.sessions (session_id, user_id, node, connected_at, ended_at, duration_seconds, reason,
                               connections, restarts, messages_received)
    SELECT s.session_id, s.user_id, s.node, to_timestamp(s.connected_at), to_timestamp(s.ended_at),
           s.duration_seconds, s.reason, s.connections, s.restarts, s.messages_received
    FROM unnest(%s::text[], %s::text[], %s::text[], %s::float8[], %s::float8[], %s::float8[], %s::text[],
                %s::integer[], %s::integer[], %s::bigint[])
         AS s(session_id, user_id, node, connected_at, ended_at, duration_seconds, reason,
              connections, restarts, messages_received)
    ON CONFLICT (session_id) DO NOTHING
"""

_LATEST: Final = """
    SELECT session_id, user_id, node, extract(epoch FROM connected_at)::float8,
           extract(epoch FROM ended_at)::float8, duration_seconds, reason, connections, restarts,
           messages_received
    FROM flow.sessions WHERE user_id = %s
    ORDER BY connected_at DESC LIMIT %s
"""


@implementer(IHistoryStore)
class PostgresHistoryStore:
    """See `flowtx.interfaces.IHistoryStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, sessions: Sequence[FinishedSession]) -> None:
        columns = [
            [getattr(session, name) for session in sessions] for name in FinishedSession.__struct_fields__
        ]
        try:
            await self._database.query(_ADD, columns)
        except (psycopg2.DataError, psycopg2.IntegrityError, ValueError) as error:
            raise InvalidPayload(first_line(error)) from None
        except psycopg2.Error as error:
            raise StorageError(first_line(error)) from None

    async def latest(self, user_id: str, limit: int) -> Sequence[FinishedSession]:
        try:
            rows = await self._database.query(_LATEST, [user_id, limit])
        except psycopg2.Error as error:
            raise StorageError(first_line(error)) from None
        return [FinishedSession(*row) for row in rows]
