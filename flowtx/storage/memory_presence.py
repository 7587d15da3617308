"""Users' presence in memory: for tests and trials; nothing survives the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from zope.interface import implementer

from flowtx.presence.store import (
    SILENCE,
    Instance,
    IPresenceStore,
    PresenceChange,
    PresenceEvent,
    Seen,
    Status,
)


@dataclass
class _Row:
    status: Status
    last_seen: float
    instance: Instance
    told_of: float
    expires_at: float | None = None


@dataclass
class _Run:
    alive_at: float
    attempt: int = 0
    tell_again: bool = False


@implementer(IPresenceStore)
class MemoryPresenceStore:
    """See `flowtx.presence.store.IPresenceStore`; ``now`` is the wall clock."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._rows: dict[str, _Row] = {}
        self._runs: dict[str, _Run] = {}
        self._events: list[PresenceEvent] = []
        self._last_id = 0

    async def record(self, instance: Instance, attempt: int, changes: Sequence[PresenceChange]) -> bool:
        now = self._now()
        run = self._runs.get(instance.id)
        if run is None or attempt <= run.attempt:
            return run is not None
        run.attempt = attempt
        self._expire({change.user_id for change in changes})
        for change in changes:
            row = self._rows.get(change.user_id)
            at = now - change.age
            if row is None or row.instance.id != instance.id:
                if change.status == "offline":
                    continue
                # Where the user has gone to another node since, which still has them, this is old.
                held = row is not None and row.status != "offline" and row.expires_at is None
                if row is not None and held and at < row.told_of <= now:
                    continue
            before: Status = "offline" if row is None else row.status
            last_seen = now - change.seen_age
            if row is not None:
                last_seen = max(row.last_seen, last_seen)
            self._rows[change.user_id] = _Row(change.status, last_seen, instance, at)
            if (change.status == "offline") != (before == "offline"):
                self._note(change.user_id, change.status, instance, at)
        return True

    async def beat(self, instance: Instance, window: float, silence: float = SILENCE) -> bool:
        now = self._now()
        known = self._runs.get(instance.id)
        silent = known is None or known.alive_at < now - silence or known.tell_again
        own = self._runs[instance.id] = _Run(now, 0 if known is None else known.attempt)
        dead = [name for name, run in self._runs.items() if run is not own and run.alive_at < now - silence]
        for name in dead:
            self._end(name, window)
        own.tell_again = False
        self._expire()
        return silent or bool(dead)

    async def leave(self, instance: Instance, window: float, *, for_good: bool = True) -> None:
        if for_good:
            self._end(instance.id, window)
        else:
            self._leave(instance.id, window)

    def _end(self, instance_id: str, window: float) -> None:
        self._leave(instance_id, window)
        for run in self._runs.values():
            run.tell_again = True

    async def seen(self, user_ids: Sequence[str], asking: str) -> Mapping[str, Seen]:
        return {
            user_id: self._seen(self._rows[user_id], asking) for user_id in user_ids if user_id in self._rows
        }

    async def events(self, after: int, limit: int) -> Sequence[PresenceEvent]:
        return [event for event in self._events if event.id > after][:limit]

    async def sweep(self, max_age: float) -> int:
        kept = [event for event in self._events if event.at >= self._now() - max_age]
        gone = len(self._events) - len(kept)
        self._events = kept
        return gone

    def _seen(self, row: _Row, asking: str) -> Seen:
        if row.status == "offline" or row.instance.id == asking:
            return Seen("offline", row.last_seen)
        run = self._runs.get(row.instance.id)
        expired = row.expires_at is not None and row.expires_at <= self._now()
        last_seen = row.last_seen if run is None else max(row.last_seen, run.alive_at)
        return Seen("offline" if expired else row.status, last_seen)

    def _leave(self, instance_id: str, window: float) -> None:
        run = self._runs.pop(instance_id, None)
        if run is None:
            return
        for row in self._rows.values():
            if row.instance.id == instance_id and row.status != "offline" and row.expires_at is None:
                row.expires_at = self._now() + window
                row.last_seen = max(row.last_seen, run.alive_at)

    def _expire(self, only_users: set[str] | None = None) -> None:
        late = [
            (row.expires_at, user_id, row)
            for user_id, row in self._rows.items()
            if row.expires_at is not None
            and row.expires_at <= self._now()
            and (only_users is None or user_id in only_users)
        ]
        for expires_at, user_id, row in sorted(late, key=lambda found: found[:2]):
            row.status, row.expires_at = "offline", None
            self._note(user_id, "offline", row.instance, expires_at)

    def _note(self, user_id: str, status: Status, instance: Instance, at: float) -> None:
        self._last_id += 1
        event = PresenceEvent(
            self._last_id, user_id, "offline" if status == "offline" else "online", instance.node, at
        )
        self._events.append(event)
