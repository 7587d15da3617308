"""Users' presence in PostgreSQL; see ``schema/0004_presence.sql`` for what keeps the events in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import psycopg2
from zope.interface import implementer

from flowtx.errors import StorageError
from flowtx.presence.store import (
    SILENCE,
    Instance,
    IPresenceStore,
    PresenceChange,
    PresenceEvent,
    Seen,
)
from flowtx.storage.link import Rows, first_line
from flowtx.storage.postgres import Database

AT_ONCE: Final = 500
"""Users that one transaction puts offline, and events that one deletes."""

_RECORD: Final = "SELECT flow.record_presence(%s, %s, %s, %s::text[], %s::text[], %s::float8[], %s::float8[])"
_BEAT: Final = "SELECT flow.beat_presence(%s, %s, %s, %s)"
_EXPIRE: Final = "SELECT flow.expire_presence(%s)"
_LEAVE: Final = "SELECT flow.leave_presence(%s, %s)"
_END: Final = "SELECT flow.end_presence(%s, %s)"
_SEEN: Final = """
    SELECT s.user_id, CASE WHEN p.instance = %s THEN 'offline' ELSE s.status END,
           extract(epoch FROM CASE WHEN p.instance = %s THEN p.last_seen ELSE s.last_seen END)::float8
    FROM flow.presence s JOIN flow.user_presence p ON p.user_id = s.user_id
    WHERE s.user_id = ANY (%s)
"""
_EVENTS: Final = """
    SELECT id, user_id, event, node, extract(epoch FROM at)::float8
    FROM flow.presence_events WHERE id > %s ORDER BY id LIMIT %s
"""
_SWEEP: Final = f"""
    WITH gone AS (
        DELETE FROM flow.presence_events WHERE id = ANY (ARRAY(
            SELECT id FROM flow.presence_events
            WHERE at < clock_timestamp() - make_interval(secs => %s) LIMIT {AT_ONCE}
        )) RETURNING 1
    )
    SELECT count(*) FROM gone
"""  # noqa: S608 - of constants only


@implementer(IPresenceStore)
class PostgresPresenceStore:
    """See `flowtx.presence.store.IPresenceStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, instance: Instance, attempt: int, changes: Sequence[PresenceChange]) -> bool:
        columns = [[getattr(change, name) for change in changes] for name in PresenceChange.__struct_fields__]
        [(known,)] = await self._query(_RECORD, instance.id, instance.node, attempt, *columns)
        return bool(known)

    async def beat(self, instance: Instance, window: float, silence: float = SILENCE) -> bool:
        [(silent,)] = await self._query(_BEAT, instance.id, instance.node, window, silence)
        gone = AT_ONCE
        while gone == AT_ONCE:
            [(gone,)] = await self._query(_EXPIRE, AT_ONCE)
        return bool(silent)

    async def leave(self, instance: Instance, window: float, *, for_good: bool = True) -> None:
        await self._query(_END if for_good else _LEAVE, instance.id, window)

    async def seen(self, user_ids: Sequence[str], asking: str) -> Mapping[str, Seen]:
        rows = await self._query(_SEEN, asking, asking, list(user_ids))
        return {user_id: Seen(status, last_seen) for user_id, status, last_seen in rows}

    async def events(self, after: int, limit: int) -> Sequence[PresenceEvent]:
        return [PresenceEvent(*row) for row in await self._query(_EVENTS, after, limit)]

    async def sweep(self, max_age: float) -> int:
        [(gone,)] = await self._query(_SWEEP, max_age)
        return int(gone)

    async def _query(self, sql: str, *params: object) -> Rows:
        try:
            return await self._database.query(sql, params)
        except psycopg2.Error as error:
            raise StorageError(first_line(error)) from None
