"""Inboxes, users, history and revocations in memory: for tests and trials; nothing survives the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import floor, inf
from uuid import uuid4

import msgspec
from zope.interface import implementer

from flowtx.errors import Conflict, InvalidPayload
from flowtx.interfaces import (
    Backlog,
    FinishedSession,
    IHistoryStore,
    INotificationStore,
    IRevocations,
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


@implementer(IHistoryStore)
class MemoryHistoryStore:
    """See `flowtx.interfaces.IHistoryStore`."""

    def __init__(self) -> None:
        self._sessions: dict[str, FinishedSession] = {}

    async def add(self, sessions: Sequence[FinishedSession]) -> None:
        for session in sessions:
            self._sessions.setdefault(session.session_id, session)

    async def latest(self, user_id: str, limit: int) -> Sequence[FinishedSession]:
        found = [session for session in self._sessions.values() if session.user_id == user_id]
        return sorted(found, key=lambda session: session.connected_at, reverse=True)[:limit]


@implementer(IRevocations)
class MemoryRevocations:
    """See `flowtx.interfaces.IRevocations`; ``now`` is the wall clock."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._tokens: set[str] = set()
        self._users: dict[str, float] = {}

    async def revoke(self, token_id: str | None = None, user_id: str | None = None) -> None:
        if (token_id is None) == (user_id is None):
            raise InvalidPayload("to revoke takes a jti or a user_id, and not both")
        if token_id is not None:
            self._tokens.add(token_id)
        if user_id is not None:
            self._users[user_id] = max(self._now(), self._users.get(user_id, -inf))

    async def revoked(self, principals: Sequence[Principal]) -> frozenset[Principal]:
        return frozenset(filter(self._is_revoked, principals))

    def _is_revoked(self, principal: Principal) -> bool:
        if principal.token_id in self._tokens:
            return True
        revoked_at = self._users.get(principal.user_id)
        if revoked_at is None:
            return False
        return principal.issued_at is None or floor(principal.issued_at) <= floor(revoked_at)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
