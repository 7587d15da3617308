"""Users, history and revocations in memory: for tests and trials; nothing survives the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from math import floor, inf

from zope.interface import implementer

from flowtx.errors import InvalidPayload
from flowtx.interfaces import (
    FinishedSession,
    IHistoryStore,
    IRevocations,
    IUserDirectory,
    Principal,
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
