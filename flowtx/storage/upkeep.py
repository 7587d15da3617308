"""Deletes what the inboxes need not keep any more, a little at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from flowtx.storage.link import Rows

AT_ONCE: Final = 500
"""Rows that one transaction deletes: it holds their inboxes for a few milliseconds."""
_MAX_PASSED_BY: Final = 1_000

# An inbox that somebody holds is named and left alone; a row without an inbox was put in by hand.
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
    SELECT (SELECT count(*) FROM gone),
        ARRAY(SELECT i.user_id FROM flow.inboxes i WHERE i.user_id IN (SELECT user_id FROM old)
              AND i.user_id NOT IN (SELECT user_id FROM held)),
        {following}
"""
_EXPIRED: Final = _DELETE.format(
    old=f"""old AS (
        SELECT user_id, seq FROM flow.notifications
        WHERE user_id <> ALL (%s) AND expires_at <= now() ORDER BY expires_at LIMIT {AT_ONCE}
    )""",  # noqa: S608
    following="NULL",
)
_AGED: Final = _DELETE.format(
    old=f"""old AS (
        SELECT user_id, seq FROM flow.notifications
        WHERE user_id <> ALL (%s) AND inserted_at < now() - make_interval(secs => %s) LIMIT {AT_ONCE}
    )""",  # noqa: S608
    following="NULL",
)
_BEYOND_COUNT: Final = _DELETE.format(
    old=f"""large AS (
        SELECT user_id, last_seq FROM flow.inboxes
        WHERE user_id <> ALL (%s) AND user_id > %s AND last_seq > %s ORDER BY user_id LIMIT 1000
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
# A key of that age may be in use again by now.
_FORGET_KEYS: Final = f"""
    WITH old AS (
        SELECT user_id, key FROM flow.idempotency_keys
        WHERE inserted_at < now() - interval '24 hours' LIMIT {AT_ONCE} FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM flow.idempotency_keys k USING old WHERE k.user_id = old.user_id AND k.key = old.key
        RETURNING 1
    )
    SELECT count(*) FROM gone
"""  # noqa: S608


class Upkeep:
    """See the module.

    Args:
        ask: runs a statement in a transaction of its own and gives its rows.
    """

    def __init__(self, ask: Callable[[str, Sequence[object]], Awaitable[Rows]]) -> None:
        self._ask = ask

    async def sweep(self, max_age: float, max_count: int) -> int:
        """Delete a little; see `flowtx.inbox.INotificationStore.sweep`."""
        [(keys,)] = await self._ask(_FORGET_KEYS, [])
        rows = await self._delete(_EXPIRED)
        if max_age and not rows:
            rows = await self._delete(_AGED, max_age)
        if max_count and not rows:
            rows = await self._delete(_BEYOND_COUNT, "", max_count, max_count)
        return int(keys + rows)

    async def _delete(self, sql: str, *params: object) -> int:
        gone = 0
        passed_by: list[str] = []
        while True:
            [(rows, held, following)] = await self._ask(sql, [passed_by, *params])
            gone += int(rows)
            if held and len(passed_by) < _MAX_PASSED_BY:
                passed_by += held
            elif gone or following is None:
                return gone
            else:
                params = (following, *params[1:])
