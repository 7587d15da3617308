"""The inboxes in PostgreSQL; see ``schema/0003_inbox.sql`` for what keeps them in order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import psycopg2
from psycopg2 import errors
from zope.interface import implementer

from flowtx.errors import Conflict, InvalidPayload, Unavailable
from flowtx.inbox import (
    MAX_PAYLOAD,
    Backlog,
    Busy,
    INotificationStore,
    Joining,
    Listed,
    Notification,
    Outcome,
    Page,
    Push,
    Pushed,
    ReadMarks,
    Receipts,
    Undeliverable,
    Want,
)
from flowtx.storage.link import Rows
from flowtx.storage.postgres import Database, first_line
from flowtx.storage.upkeep import Upkeep

CHANNEL: Final = "flow_inbox"
"""The channel on which a commit that added to an inbox sends a NOTIFY, without a payload."""

MAX_CHANGED: Final = 20_000
_MAX_SEQ: Final = 2**63 - 1
_PAGE_BYTES: Final = 262_144
_LIST_BYTES: Final = 524_288
_MARK_AT_ONCE: Final = 5_000
# What jsonb takes and some clients cannot read: integers of more digits.
_LONG: Final = 4_300
_LONG_NUMBER: Final = re.compile(rb"(?<![0-9])[0-9]{%d}" % _LONG)

_PUSH: Final = """
    SELECT push, user_id, id::text, seq, outcome
    FROM flow.append(%s::int[], %s::text[], %s::text[], %s::jsonb[], %s::text[], %s::timestamptz[],
                     %s::text[], %s)
"""

# In the form that clients get; a payload that is too large is not even read.
_SHOWN: Final = f"""
    n.id::text AS id, n.seq, n.type, CASE WHEN n.size <= {MAX_PAYLOAD} THEN n.body END AS body,
    to_char(n.inserted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS inserted_at,
    to_char(n.read_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS read_at
"""
_SIZED: Final = (
    "*, sum(least(size, {most})) OVER (ORDER BY seq {order}) - least(size, {most}) AS before".format(
        most=MAX_PAYLOAD, order="{order}"
    )
)
_TEXTS: Final = """
    SELECT t.*, octet_length(t.body) AS size FROM (
        SELECT n.*, n.payload::text AS body FROM flow.notifications n
        WHERE n.user_id = {user_id} AND (n.expires_at IS NULL OR n.expires_at > clock_timestamp())
          AND {condition}
        ORDER BY n.seq {order} LIMIT {limit}
    ) t
"""
_UNREAD: Final = """greatest(0,
    i.unread - (SELECT count(*) FROM flow.notifications e WHERE e.user_id = i.user_id
                AND e.read_at IS NULL AND e.expires_at <= clock_timestamp())
)"""
_TYPES: Final = "ARRAY(SELECT pattern FROM flow.subscriptions s WHERE s.user_id = {user_id} ORDER BY 1)"


def _page_of(user_id: str, condition: str, limit: str, order: str = "") -> str:
    """Write a query for a page, whose column ``before`` has the bytes of the entries before each."""
    texts = _TEXTS.format(user_id=user_id, condition=condition, limit=limit, order=order)
    return f"SELECT {_SIZED.format(order=order)} FROM ({texts}) sized"  # noqa: S608 - of constants only


def _backlogs(condition: str) -> str:
    """Write the query for backlogs: one statement, so that counts and page are of one moment."""
    page = _page_of("asked.user_id", f"n.seq > coalesce(floor.seq, asked.after_seq) AND {condition}", "%s")
    types = _TYPES.format(user_id="asked.user_id")
    return f"""
        SELECT asked.number, coalesce({_UNREAD}, 0), coalesce(i.last_seq, 0), floor.seq, {types},
               n.before, {_SHOWN}
        FROM unnest(%s::text[], %s::bigint[]) WITH ORDINALITY AS asked(user_id, after_seq, number)
        LEFT JOIN flow.inboxes i ON i.user_id = asked.user_id
        LEFT JOIN LATERAL (
            SELECT n.seq FROM flow.notifications n
            WHERE n.user_id = asked.user_id AND n.seq > asked.after_seq AND {condition}
              AND (n.expires_at IS NULL OR n.expires_at > clock_timestamp())
            ORDER BY n.seq DESC OFFSET %s LIMIT 1
        ) floor ON true
        LEFT JOIN LATERAL ({page}) n ON true
        ORDER BY asked.number, n.seq
    """  # noqa: S608 - of constants only


_BACKLOGS_AFTER: Final = _backlogs("true")
_BACKLOGS_UNREAD: Final = _backlogs("n.read_at IS NULL")


def _pages(condition: str) -> str:
    page = _page_of("w.user_id", f"n.seq > w.after_seq AND {condition}", "%s")
    return f"""
        SELECT w.number, {_TYPES.format(user_id="w.user_id")}, n.before, {_SHOWN}
        FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) WITH ORDINALITY
             AS w(user_id, after_seq, unread_up_to, number)
        CROSS JOIN LATERAL ({page}) n
        ORDER BY w.number, n.seq
    """  # noqa: S608 - of constants only


_PAGES: Final = _pages("true")
# By the index of what is unread: most of what lies between may have been read.
_UNREAD_PAGES: Final = _pages("n.seq <= w.unread_up_to AND n.read_at IS NULL")

_LIST: Final = """
    SELECT coalesce({unread}, 0), n.before, {shown}
    FROM (SELECT %s::text AS user_id) asked
    LEFT JOIN flow.inboxes i ON i.user_id = asked.user_id
    LEFT JOIN LATERAL ({page}) n ON true
    ORDER BY n.seq DESC
"""
_LIST_ALL, _LIST_UNREAD = (
    _LIST.format(
        unread=_UNREAD, shown=_SHOWN, page=_page_of("asked.user_id", f"n.seq < %s AND {which}", "%s", "DESC")
    )
    for which in ("true", "n.read_at IS NULL")
)

# What was not visible in the earlier snapshot: the transactions that ran then, and those since.
_CHANGED: Final = f"""
    SELECT pg_current_snapshot()::text, ARRAY(
        (
            -- The order leads to the index also where the table has never been analysed.
            SELECT user_id FROM flow.notifications
            WHERE xid >= pg_snapshot_xmax(%s::pg_snapshot) ORDER BY xid LIMIT {MAX_CHANGED + 1}
        ) UNION (
            SELECT user_id FROM flow.notifications
            WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(%s::pg_snapshot))) LIMIT {MAX_CHANGED + 1}
        )
    )
"""  # noqa: S608 - of constants only

# Numbers of transactions that this server has not given out yet: the rows came from another server's
# backup and would look new for ever.
_ADOPT: Final = """
    UPDATE flow.notifications SET xid = '0' WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())
"""

_SUBSCRIBE: Final = "SELECT flow.subscribe(%s, %s::text[], %s::text[])"

# Whoever holds a row is about to mark it as read, to delete it or to mark it as delivered.
_DELIVERED: Final = """
    UPDATE flow.notifications n SET delivered_at = clock_timestamp()
    FROM (
        SELECT n.user_id, n.seq FROM unnest(%s::text[], %s::bigint[]) r(user_id, seq)
        JOIN flow.notifications n ON n.user_id = r.user_id AND {condition} AND n.delivered_at IS NULL
        ORDER BY n.user_id, n.seq FOR UPDATE OF n SKIP LOCKED
    ) r
    WHERE n.user_id = r.user_id AND n.seq = r.seq
"""
_DELIVERED_EXACT: Final = _DELIVERED.format(condition="n.seq = r.seq")
# No more than that can have been under way to one client.
_DELIVERED_UP_TO: Final = _DELIVERED.format(
    condition="n.seq BETWEEN r.seq - 255 AND r.seq AND flow.wants(n.user_id, n.type)"
)


@implementer(INotificationStore)
class PostgresNotificationStore:
    """See `flowtx.inbox.INotificationStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._upkeep = Upkeep(self._ask)

    async def push(self, pushes: Sequence[Push], wait: bool) -> Sequence[Outcome]:
        pairs = [(number, user_id) for number, push in enumerate(pushes, 1) for user_id in push.user_ids]
        try:
            rows = await self._ask(
                _PUSH,
                [
                    [number for number, _ in pairs],
                    [user_id for _, user_id in pairs],
                    [push.type for push in pushes],
                    [push.payload.decode() for push in pushes],
                    [push.idempotency_key for push in pushes],
                    [push.expires_at for push in pushes],
                    [push.collapse_key for push in pushes],
                    wait,
                ],
            )
        except _Held:
            if not wait:
                return [Busy()] * len(pushes)
            raise
        return _outcomes(pushes, rows)

    async def backlogs(self, asked: Sequence[Joining], limit: int, page_size: int) -> Sequence[Backlog]:
        found: list[list[Sequence[Any]]] = [[] for _ in asked]
        for sql, numbers in (
            (_BACKLOGS_AFTER, [n for n, who in enumerate(asked) if who.after_seq is not None]),
            (_BACKLOGS_UNREAD, [n for n, who in enumerate(asked) if who.after_seq is None]),
        ):
            users, seqs = [asked[n].user_id for n in numbers], [asked[n].after_seq or 0 for n in numbers]
            for row in await self._ask(sql, [users, seqs, limit, page_size + 1]) if numbers else ():
                found[numbers[row[0] - 1]].append(row[1:])
        return [_backlog_of(rows, page_size) for rows in found]

    async def pages(self, wants: Sequence[Want], page_size: int) -> Sequence[Page]:
        rows: dict[int, list[Any]] = {}
        types: dict[int, Sequence[str]] = {}
        for sql, numbers in (
            (_PAGES, [n for n, want in enumerate(wants) if want.unread_up_to is None]),
            (_UNREAD_PAGES, [n for n, want in enumerate(wants) if want.unread_up_to is not None]),
        ):
            if not numbers:
                continue
            asked = [wants[number] for number in numbers]
            columns = (
                [want.user_id for want in asked],
                [want.after_seq for want in asked],
                [want.unread_up_to for want in asked],
            )
            for row in await self._ask(sql, [*columns, page_size + 1]):
                number = numbers[row[0] - 1]
                types[number] = row[1]
                rows.setdefault(number, []).append(row[2:])
        return [_page(rows.get(n, ()), page_size, types.get(n, ())) for n in range(len(wants))]

    async def changed(self, since: str | None) -> tuple[str, frozenset[str] | None]:
        if since is None:
            await self._ask(_ADOPT)
            rows = await self._ask("SELECT pg_current_snapshot()::text")
            return rows[0][0], frozenset()
        [(mark, users)] = await self._ask(_CHANGED, [since, since])
        return mark, frozenset(users) if len(users) <= MAX_CHANGED else None

    async def mark_read(self, user_id: str, marks: ReadMarks) -> int:
        ids = None if marks.ids is None else list(marks.ids)
        up_to = marks.up_to_seq
        if marks.all:
            # What comes from now on is not meant.
            found = await self._ask("SELECT max(last_seq) FROM flow.inboxes WHERE user_id = %s", [user_id])
            up_to = found[0][0] or 0
        while True:
            # Many are marked in several transactions, so that none holds the inbox for long.
            [(marked, unread)] = await self._ask(
                "SELECT marked, unread FROM flow.mark_read(%s, %s::uuid[], %s::bigint, %s)",
                [user_id, ids, up_to, _MARK_AT_ONCE],
            )
            if ids is not None or marked < _MARK_AT_ONCE:
                return int(unread)

    async def list_page(self, user_id: str, before_seq: int | None, limit: int, unread: bool) -> Listed:
        before = _MAX_SEQ if before_seq is None else before_seq
        rows = await self._ask(_LIST_UNREAD if unread else _LIST_ALL, [user_id, before, limit])
        entries = [row[2:] for row in rows if row[1] is not None]
        shown = [row[2:] for row in rows if row[1] is not None and row[1] < _LIST_BYTES]
        return Listed([_listed(row) for row in shown], rows[0][0], truncated=len(shown) < len(entries))

    async def subscribe(self, user_id: str, add: Sequence[str], remove: Sequence[str]) -> tuple[str, ...]:
        rows = await self._ask(_SUBSCRIBE, [user_id, list(add), list(remove)])
        return tuple(rows[0][0])

    async def mark_delivered(self, receipts: Receipts) -> None:
        for sql, marks in ((_DELIVERED_EXACT, receipts.exact), (_DELIVERED_UP_TO, receipts.up_to)):
            if marks:
                users = [user_id for user_id, _ in marks]
                await self._ask(sql, [users, [seq for _, seq in marks]])

    async def find_undelivered(self, after_seconds: float, limit: int) -> int:
        rows = await self._ask("SELECT flow.find_undelivered(%s, %s)", [after_seconds, limit])
        return int(rows[0][0])

    async def sweep(self, max_age: float, max_count: int) -> int:
        return await self._upkeep.sweep(max_age, max_count)

    async def _ask(self, sql: str, params: Sequence[object] = ()) -> Rows:
        """Run a statement; what the server says against it becomes an error of the port."""
        try:
            return await self._database.query(sql, params)
        except (psycopg2.DataError, ValueError) as error:
            raise InvalidPayload(first_line(error)) from None
        except errors.LockNotAvailable:
            raise _Held("another transaction holds the inbox; nothing was stored") from None
        except (psycopg2.OperationalError, psycopg2.InternalError) as error:
            raise Unavailable(f"the database refused: {first_line(error)}; nothing was stored") from None


class _Held(Unavailable):
    """Somebody else's transaction holds what a statement needs."""


def _outcomes(pushes: Sequence[Push], rows: Sequence[Sequence[Any]]) -> list[Outcome]:
    found: list[dict[str, Pushed]] = [{} for _ in pushes]
    refused: dict[int, Outcome] = {}
    for number, user_id, notification_id, seq, outcome in rows:
        if outcome == "conflict":
            refused[number] = Conflict("the idempotency_key was used before, for another notification")
        elif outcome == "busy":
            refused[number] = Busy()
        else:
            found[number - 1][user_id] = Pushed(user_id, notification_id, seq)
    return [
        refused.get(number) or tuple(found[number - 1][user_id] for user_id in push.user_ids)
        for number, push in enumerate(pushes, 1)
    ]


def _backlog_of(rows: Sequence[Sequence[Any]], page_size: int) -> Backlog:
    unread, last_seq, floor, types = rows[0][:4]
    page = _page([row[4:] for row in rows if row[4] is not None], page_size, types)
    return Backlog(page, unread, last_seq, truncated=floor is not None)


def _page(rows: Sequence[Sequence[Any]], page_size: int, types: Sequence[str]) -> Page:
    """Make a page of rows of ``before`` and an entry each, one more than its size where there are more."""
    shown = [row for row in rows[:page_size] if row[0] < _PAGE_BYTES]
    return Page([_entry(row[1:]) for row in shown], more=len(shown) < len(rows), types=tuple(types))


def _entry(row: Sequence[Any]) -> Notification | Undeliverable:
    notification_id, seq, type_, payload, inserted_at, read_at = row
    if payload is None:
        return Undeliverable(notification_id, seq, "too_large")
    try:
        compact = msgspec.json.format(payload.encode(), indent=-1)
        if len(compact) > _LONG and _LONG_NUMBER.search(compact):
            msgspec.json.decode(compact)
    except (ValueError, RecursionError):
        return Undeliverable(notification_id, seq, "unencodable")
    return Notification(notification_id, seq, type_, msgspec.Raw(compact), inserted_at, read_at)


def _listed(row: Sequence[Any]) -> Notification:
    entry = _entry(row)
    if isinstance(entry, Undeliverable):
        return Notification(entry.id, entry.seq, row[2], msgspec.Raw(b"null"), row[4], row[5])
    return entry
