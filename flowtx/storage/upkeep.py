"""Deletes what the inboxes need not keep any more, a little at a time."""

from __future__ import annotations

from typing import Final

from flowtx.storage.postgres import Database

AT_ONCE: Final = 500
"""Rows that one transaction deletes: it holds their inboxes for a few milliseconds."""

# An inbox that somebody holds is left for the next time; a row without an inbox was put in by hand.
_DELETE: Final = """
    WITH {old}, held AS (
        SELECT i.user_id FROM flow.inboxes i WHERE i.user_id IN (SELECT user_id FROM old)
        ORDER BY i.user_id FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM flow.notifications n USING old
        WHERE n.user_id = old.user_id AND n.seq = old.seq AND (
            n.user_id IN (SELECT user_id FROM held)
            OR NOT EXISTS (SELECT FROM flow.inboxes i WHERE i.user_id = n.user_id)
        )
        RETURNING n.user_id, n.read_at
    ), counted AS (
        UPDATE flow.inboxes i SET unread = greatest(0, i.unread - c.count)
        FROM (SELECT user_id, count(*) FROM gone WHERE read_at IS NULL GROUP BY user_id) c
        WHERE i.user_id = c.user_id
    )
    SELECT (SELECT count(*) FROM gone), {following}
"""
_EXPIRED: Final = _DELETE.format(
    old=f"old AS (SELECT user_id, seq FROM flow.notifications WHERE expires_at <= now() LIMIT {AT_ONCE})",  # noqa: S608
    following="NULL",
)
_AGED: Final = _DELETE.format(
    old=f"""old AS (
        SELECT user_id, seq FROM flow.notifications
        WHERE inserted_at < now() - make_interval(secs => %s) LIMIT {AT_ONCE}
    )""",  # noqa: S608
    following="NULL",
)
_BEYOND_COUNT: Final = _DELETE.format(
    old=f"""large AS (
        SELECT user_id, last_seq FROM flow.inboxes
        WHERE user_id > %s AND last_seq > %s ORDER BY user_id LIMIT 1000
    ), old AS (
        SELECT n.user_id, n.seq FROM large
        CROSS JOIN LATERAL (
            SELECT n.user_id, n.seq FROM flow.notifications n
            WHERE n.user_id = large.user_id AND n.seq <= large.last_seq - %s
            ORDER BY n.seq LIMIT {AT_ONCE}
        ) n
        LIMIT {AT_ONCE}
    )""",  # noqa: S608
    following="(SELECT max(user_id) FROM large)",
)
_FORGET_KEYS: Final = f"""
    WITH gone AS (
        DELETE FROM flow.idempotency_keys WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM flow.idempotency_keys
            WHERE inserted_at < now() - interval '24 hours' LIMIT {AT_ONCE}
        )) RETURNING 1
    )
    SELECT count(*) FROM gone
"""  # noqa: S608


class Upkeep:
    """See the module.

    Args:
        database: where.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sweep(self, max_age: float, max_count: int) -> int:
        """Delete a little; see `flowtx.inbox.INotificationStore.sweep`."""
        [(keys,)] = await self._database.query(_FORGET_KEYS)
        [(rows, _)] = await self._database.query(_EXPIRED)
        if max_age and not rows:
            [(rows, _)] = await self._database.query(_AGED, [max_age])
        if max_count and not rows:
            rows = await self._beyond(max_count)
        return int(keys + rows)

    async def _beyond(self, max_count: int) -> int:
        following: str | None = ""
        while following is not None:
            [(rows, following)] = await self._database.query(_BEYOND_COUNT, [following, max_count, max_count])
            if rows:
                return int(rows)
        return 0
