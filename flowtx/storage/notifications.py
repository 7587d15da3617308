"""The inboxes in PostgreSQL; see ``schema/0001_first.sql`` for what keeps them in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import psycopg2
from zope.interface import implementer

from flowtx.errors import Conflict, InvalidPayload
from flowtx.interfaces import Backlog, INotificationStore, Notification, Pushed, ReadMarks
from flowtx.storage.postgres import Database, first_line

CHANNEL: Final = "flow_inbox"
"""The channel on which a commit that added to an inbox sends a NOTIFY, without a payload."""

_MAX_SEQ: Final = 2**63 - 1
_CONFLICT: Final = "FX409"

_COLUMNS: Final = """
    n.id::text, n.seq, n.type, n.payload::text,
    to_char(n.inserted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    to_char(n.read_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
"""

# One statement each, so that the counts and the list are of one moment.
_BACKLOG: Final = """
    SELECT i.unread, i.last_seq, {columns}
    FROM (SELECT coalesce(max(unread), 0) AS unread, coalesce(max(last_seq), 0) AS last_seq
          FROM flow.inboxes WHERE user_id = %s) i
    LEFT JOIN LATERAL (
        SELECT * FROM flow.notifications
        WHERE user_id = %s AND {condition}
        ORDER BY seq DESC LIMIT %s
    ) n ON true
    ORDER BY n.seq
"""
_BACKLOG_AFTER: Final = _BACKLOG.format(columns=_COLUMNS, condition="seq > %s")
_BACKLOG_UNREAD: Final = _BACKLOG.format(columns=_COLUMNS, condition="read_at IS NULL")

_AFTER: Final = f"""
    SELECT n.user_id, {_COLUMNS}
    FROM unnest(%s::text[], %s::bigint[]) AS c(user_id, seq)
    CROSS JOIN LATERAL (
        SELECT * FROM flow.notifications
        WHERE user_id = c.user_id AND seq > c.seq
        ORDER BY seq LIMIT %s
    ) n
    ORDER BY n.user_id, n.seq
"""  # noqa: S608 - of constants only

# What was not visible in the earlier snapshot: the transactions that ran then, and those since.
_CHANGED: Final = """
    SELECT pg_current_snapshot()::text, ARRAY(
        SELECT user_id FROM flow.notifications
        WHERE xid >= pg_snapshot_xmax(%s::pg_snapshot)
        UNION
        SELECT user_id FROM flow.notifications
        WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(%s::pg_snapshot)))
    )
"""

# Numbers of transactions that this server has not given out yet: the rows came from another server's
# backup and would look new for ever.
_ADOPT: Final = """
    UPDATE flow.notifications SET xid = '0' WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())
"""


@implementer(INotificationStore)
class PostgresNotificationStore:
    """See `flowtx.interfaces.INotificationStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def push(
        self, user_ids: Sequence[str], type_: str, payload: bytes, idempotency_key: str | None
    ) -> Sequence[Pushed]:
        try:
            rows = await self._database.query(
                "SELECT user_id, id::text, seq FROM flow.notify_many(%s, %s, %s::jsonb, %s)",
                [list(user_ids), type_, payload.decode(), idempotency_key],
            )
        except psycopg2.DataError as error:
            raise InvalidPayload(first_line(error)) from None
        except psycopg2.Error as error:
            if error.pgcode == _CONFLICT:
                raise Conflict(first_line(error)) from None
            raise
        pushed = {row[0]: Pushed(*row) for row in rows}
        return [pushed[user_id] for user_id in dict.fromkeys(user_ids)]

    async def backlog(self, user_id: str, after_seq: int | None, limit: int) -> Backlog:
        if after_seq is None:
            rows = await self._database.query(_BACKLOG_UNREAD, [user_id, user_id, limit + 1])
        else:
            rows = await self._database.query(_BACKLOG_AFTER, [user_id, user_id, after_seq, limit + 1])
        unread, last_seq = rows[0][:2]
        found = [_notification(row[2:]) for row in rows if row[3] is not None]
        return Backlog(found[-limit:], unread, last_seq, truncated=len(found) > limit)

    async def after(self, cursors: Mapping[str, int], limit: int) -> Mapping[str, Sequence[Notification]]:
        found: dict[str, list[Notification]] = {}
        for row in await self._database.query(_AFTER, [list(cursors), list(cursors.values()), limit]):
            found.setdefault(row[0], []).append(_notification(row[1:]))
        return found

    async def changed(self, since: str | None) -> tuple[str, frozenset[str]]:
        if since is None:
            await self._database.query(_ADOPT)
            rows = await self._database.query("SELECT pg_current_snapshot()::text")
            return rows[0][0], frozenset()
        rows = await self._database.query(_CHANGED, [since, since])
        return rows[0][0], frozenset(rows[0][1])

    async def mark_read(self, user_id: str, marks: ReadMarks) -> int:
        up_to_seq = _MAX_SEQ if marks.all else marks.up_to_seq
        ids = None if marks.ids is None else list(marks.ids)
        rows = await self._database.query(
            "SELECT flow.mark_read(%s, %s::uuid[], %s)", [user_id, ids, up_to_seq]
        )
        return int(rows[0][0])


def _notification(row: Sequence[Any]) -> Notification:
    notification_id, seq, type_, payload, inserted_at, read_at = row
    compact = msgspec.json.format(payload.encode(), indent=-1)
    return Notification(notification_id, seq, type_, msgspec.Raw(compact), inserted_at, read_at)
