"""Inboxes in memory: for tests and trials; nothing survives the process."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import msgspec
from zope.interface import implementer

from flowtx.errors import Conflict, InvalidPayload
from flowtx.inbox import (
    MAX_PAYLOAD,
    Backlog,
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
from flowtx.notifications.patterns import matches

MAX_PATTERNS: Final = 100
_KEYS_KEPT: Final = 86_400.0
_PAGE_BYTES: Final = 262_144
_LIST_BYTES: Final = 524_288


class _Row:
    """One notification."""

    __slots__ = ("collapse_key", "delivered", "entry", "expires_at", "inserted_at", "undelivered")

    def __init__(self, push: Push, seq: int, now: float) -> None:
        compact = msgspec.Raw(msgspec.json.format(push.payload, indent=-1))
        self.entry = Notification(str(uuid4()), seq, push.type, compact, _iso(now), None)
        self.inserted_at = now
        self.expires_at = None if push.expires_at is None else push.expires_at.timestamp()
        self.collapse_key = push.collapse_key
        self.delivered = False
        self.undelivered = False


class _Inbox:
    def __init__(self) -> None:
        self.last_seq = 0
        self.rows: dict[int, _Row] = {}
        self.keys: dict[str, tuple[Push, Pushed, float]] = {}
        self.patterns: list[str] = []

    def visible(self, now: float) -> list[_Row]:
        return [row for row in self.rows.values() if row.expires_at is None or row.expires_at > now]

    def unread(self, now: float) -> int:
        return sum(row.entry.read_at is None for row in self.visible(now))


@implementer(INotificationStore)
class MemoryNotificationStore:
    """See `flowtx.inbox.INotificationStore`; ``now`` is the wall clock.

    Attributes:
        undelivered: the notifications that nobody got in time, as user and seq, in order.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._inboxes: dict[str, _Inbox] = {}
        self._log: list[str] = []
        self.undelivered: list[tuple[str, int]] = []

    def _inbox(self, user_id: str) -> _Inbox:
        return self._inboxes.setdefault(user_id, _Inbox())

    async def push(self, pushes: Sequence[Push], wait: bool) -> Sequence[Outcome]:  # noqa: ARG002
        return [self._push(push) for push in pushes]

    def _push(self, push: Push) -> Outcome:
        now, key = self._now(), push.idempotency_key
        known: dict[str, Pushed] = {}
        for user_id in push.user_ids:
            before = self._inbox(user_id).keys.get(key) if key is not None else None
            if before is not None and before[2] > now - _KEYS_KEPT:
                if not _same(before[0], push):
                    return Conflict("the idempotency_key was used before, for another notification")
                known[user_id] = before[1]
        return tuple(known.get(user_id) or self._append(user_id, push, now) for user_id in push.user_ids)

    def _append(self, user_id: str, push: Push, now: float) -> Pushed:
        inbox = self._inbox(user_id)
        if push.collapse_key is not None:
            for seq, row in list(inbox.rows.items()):
                if row.collapse_key == push.collapse_key and row.entry.read_at is None:
                    del inbox.rows[seq]
        inbox.last_seq += 1
        row = inbox.rows[inbox.last_seq] = _Row(push, inbox.last_seq, now)
        self._log.append(user_id)
        pushed = Pushed(user_id, row.entry.id, inbox.last_seq)
        if push.idempotency_key is not None:
            inbox.keys[push.idempotency_key] = (push, pushed, now)
        return pushed

    async def backlogs(self, asked: Sequence[Joining], limit: int, page_size: int) -> Sequence[Backlog]:
        return [self._backlog(*who, limit, page_size) for who in asked]

    def _backlog(self, user_id: str, after_seq: int | None, limit: int, page_size: int) -> Backlog:
        inbox, now = self._inbox(user_id), self._now()
        found = [
            row
            for row in inbox.visible(now)
            if (row.entry.read_at is None if after_seq is None else row.entry.seq > after_seq)
        ]
        page = self._page(inbox, found[-limit:], page_size)
        return Backlog(page, inbox.unread(now), inbox.last_seq, truncated=len(found) > limit)

    async def pages(self, wants: Sequence[Want], page_size: int) -> Sequence[Page]:
        return [self._page_for(want, page_size) for want in wants]

    def _page_for(self, want: Want, page_size: int) -> Page:
        inbox = self._inbox(want.user_id)
        rows = [row for row in inbox.visible(self._now()) if row.entry.seq > want.after_seq]
        if want.unread_up_to is not None:
            rows = [row for row in rows if row.entry.seq <= want.unread_up_to and row.entry.read_at is None]
        return self._page(inbox, rows, page_size)

    @staticmethod
    def _page(inbox: _Inbox, rows: Sequence[_Row], page_size: int) -> Page:
        shown = _within(rows[:page_size], _PAGE_BYTES)
        entries = [_entry(row) for row in shown]
        return Page(entries, more=len(shown) < len(rows), types=tuple(inbox.patterns) if rows else ())

    async def changed(self, since: str | None) -> tuple[str, frozenset[str] | None]:
        mark = str(len(self._log))
        return mark, frozenset() if since is None else frozenset(self._log[int(since) :])

    async def mark_read(self, user_id: str, marks: ReadMarks) -> int:
        inbox, now = self._inbox(user_id), self._now()
        ids = frozenset(marks.ids or ())
        for row in inbox.rows.values():
            entry = row.entry
            asked = marks.all or entry.id in ids or entry.seq <= (marks.up_to_seq or 0)
            if asked and entry.read_at is None:
                row.entry = msgspec.structs.replace(entry, read_at=_iso(now))
        return inbox.unread(now)

    async def list_page(self, user_id: str, before_seq: int | None, limit: int, unread: bool) -> Listed:
        inbox, now = self._inbox(user_id), self._now()
        rows = [
            row
            for row in reversed(inbox.visible(now))
            if (before_seq is None or row.entry.seq < before_seq)
            and not (unread and row.entry.read_at is not None)
        ][:limit]
        shown = _within(rows, _LIST_BYTES)
        listed = [
            msgspec.structs.replace(row.entry, payload=msgspec.Raw(b"null")) if _is_large(row) else row.entry
            for row in shown
        ]
        return Listed(listed, inbox.unread(now), truncated=len(shown) < len(rows))

    async def subscribe(self, user_id: str, add: Sequence[str], remove: Sequence[str]) -> tuple[str, ...]:
        inbox = self._inbox(user_id)
        patterns = [pattern for pattern in inbox.patterns if pattern not in remove]
        for pattern in dict.fromkeys(add):
            if pattern not in patterns and pattern not in remove:
                insort(patterns, pattern)
        if len(patterns) > MAX_PATTERNS:
            raise InvalidPayload(f"types: a user can have {MAX_PATTERNS} subscriptions")
        inbox.patterns = patterns
        return tuple(patterns)

    async def mark_delivered(self, receipts: Receipts) -> None:
        for user_id, seq in receipts.exact:
            row = self._inbox(user_id).rows.get(seq)
            if row is not None:
                row.delivered = True
        for user_id, up_to in receipts.up_to:
            inbox = self._inbox(user_id)
            for row in inbox.rows.values():
                wanted = not inbox.patterns or matches(inbox.patterns, row.entry.type)
                if up_to - 255 <= row.entry.seq <= up_to and wanted:
                    row.delivered = True

    async def find_undelivered(self, after_seconds: float, limit: int) -> int:
        now = self._now()
        late = [
            (row.inserted_at, user_id, row)
            for user_id, inbox in self._inboxes.items()
            for row in inbox.visible(now)
            if not row.delivered and not row.undelivered and row.entry.read_at is None
            if row.inserted_at < now - after_seconds
        ]
        late.sort(key=lambda item: item[0])
        for _, user_id, row in late[:limit]:
            row.undelivered = True
            self.undelivered.append((user_id, row.entry.seq))
        return len(late[:limit])

    async def sweep(self, max_age: float, max_count: int) -> int:
        now, gone = self._now(), 0
        for inbox in self._inboxes.values():
            for seq, row in list(inbox.rows.items()):
                expired = row.expires_at is not None and row.expires_at <= now
                aged = max_age and row.inserted_at < now - max_age
                if expired or aged or (max_count and seq <= inbox.last_seq - max_count):
                    del inbox.rows[seq]
                    gone += 1
            for key, (_, _, inserted_at) in list(inbox.keys.items()):
                if inserted_at < now - _KEYS_KEPT:
                    del inbox.keys[key]
                    gone += 1
        return gone


def _same(one: Push, other: Push) -> bool:
    return _content(one) == _content(other)


def _content(push: Push) -> tuple[object, ...]:
    # As text: to Python, true is 1.
    payload = msgspec.json.encode(msgspec.json.decode(push.payload), order="sorted")
    return push.type, push.expires_at, push.collapse_key, payload


def _size(row: _Row) -> int:
    return min(len(bytes(row.entry.payload)), MAX_PAYLOAD)


def _is_large(row: _Row) -> bool:
    return len(bytes(row.entry.payload)) > MAX_PAYLOAD


def _within(rows: Sequence[_Row], most: int) -> list[_Row]:
    """Take from the front what begins within so many bytes."""
    shown, size = [], 0
    for row in rows:
        if size >= most:
            break
        shown.append(row)
        size += _size(row)
    return shown


def _entry(row: _Row) -> Notification | Undeliverable:
    return Undeliverable(row.entry.id, row.entry.seq, "too_large") if _is_large(row) else row.entry


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
