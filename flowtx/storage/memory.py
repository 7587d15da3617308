"""Inboxes and users in memory: for tests and trials; nothing survives the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import uuid4

import msgspec
from zope.interface import implementer

from flowtx.errors import Conflict
from flowtx.interfaces import (
    Backlog,
    INotificationStore,
    IUserDirectory,
    Notification,
    Principal,
    Pushed,
    ReadMarks,
    User,
)


@implementer(IUserDirectory)
class MemoryUserDirectory:
    """Knows the users it is given."""

    def __init__(self, users: Sequence[User] = ()) -> None:
        self.users = {user.id: user for user in users}

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        ids = {principal.user_id for principal in principals}
        return {user_id: user for user_id, user in self.users.items() if user_id in ids}


@implementer(INotificationStore)
class MemoryNotificationStore:
    """See `flowtx.interfaces.INotificationStore`."""

    def __init__(self) -> None:
        self._inboxes: dict[str, list[Notification]] = {}
        self._keys: dict[tuple[str, str], tuple[bytes, Pushed]] = {}
        self._log: list[str] = []

    async def push(
        self, user_ids: Sequence[str], type_: str, payload: bytes, idempotency_key: str | None
    ) -> Sequence[Pushed]:
        content = msgspec.json.encode([type_, msgspec.json.decode(payload)], order="deterministic")
        known = {
            user_id: self._keys[user_id, idempotency_key]
            for user_id in user_ids
            if idempotency_key is not None and (user_id, idempotency_key) in self._keys
        }
        if any(before != content for before, _ in known.values()):
            raise Conflict("the idempotency_key was used before, for another notification")
        pushed = []
        for user_id in dict.fromkeys(user_ids):
            if user_id in known:
                pushed.append(known[user_id][1])
                continue
            entry = self._append(user_id, type_, payload)
            pushed.append(entry)
            if idempotency_key is not None:
                self._keys[user_id, idempotency_key] = (content, entry)
        return pushed

    def _append(self, user_id: str, type_: str, payload: bytes) -> Pushed:
        inbox = self._inboxes.setdefault(user_id, [])
        compact = msgspec.Raw(msgspec.json.format(payload, indent=-1))
        inbox.append(Notification(str(uuid4()), len(inbox) + 1, type_, compact, _now(), None))
        self._log.append(user_id)
        return Pushed(user_id, inbox[-1].id, inbox[-1].seq)

    async def backlog(self, user_id: str, after_seq: int | None, limit: int) -> Backlog:
        inbox = self._inboxes.get(user_id, [])
        unread = [entry for entry in inbox if entry.read_at is None]
        found = unread if after_seq is None else inbox[after_seq:]
        return Backlog(found[-limit:], len(unread), len(inbox), truncated=len(found) > limit)

    async def after(self, cursors: Mapping[str, int], limit: int) -> Mapping[str, Sequence[Notification]]:
        found = {
            user_id: self._inboxes.get(user_id, [])[seq : seq + limit] for user_id, seq in cursors.items()
        }
        return {user_id: entries for user_id, entries in found.items() if entries}

    async def changed(self, since: str | None) -> tuple[str, frozenset[str]]:
        mark = str(len(self._log))
        return mark, frozenset() if since is None else frozenset(self._log[int(since) :])

    async def mark_read(self, user_id: str, marks: ReadMarks) -> int:
        inbox = self._inboxes.get(user_id, [])
        ids = frozenset(marks.ids or ())
        for index, entry in enumerate(inbox):
            asked = marks.all or entry.id in ids or entry.seq <= (marks.up_to_seq or 0)
            if asked and entry.read_at is None:
                inbox[index] = msgspec.structs.replace(entry, read_at=_now())
        return sum(entry.read_at is None for entry in inbox)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
