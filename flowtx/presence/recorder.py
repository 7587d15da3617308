"""Writes to the store who came, who went and who is away, in batches and in order.

A change is queued and written within half a second, hundreds in one statement; while the database is
down changes wait, and are tried again. Where more than a bound wait, the rest are not queued: once the
database takes changes again, the store is told of all users who are here, and puts offline those of
whom it is not told. Only what came and went meanwhile leaves no event then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Final, NamedTuple
from uuid import uuid4

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from flowtx import faultpoints
from flowtx.errors import StorageError, UnknownOutcome
from flowtx.periodic import Periodic
from flowtx.presence.store import Instance, IPresenceStore, PresenceChange, Seen, Status
from flowtx.service import OrderedMultiService

MAX_BATCH: Final = 500
MAX_QUEUED: Final = 100_000
WRITE_EVERY: Final = 0.25
BEAT_EVERY: Final = 2.0
SWEEP_EVERY: Final = 60.0
STOP_WITHIN: Final = 5.0
"""Seconds that the stop leaves to what is still queued, once what is under way is over."""
LEAST_GRACE: Final = 30.0
"""Seconds within which the store is told again of all users, where it has missed something."""
_MAX_STEPS: Final = 1_000
_DAY: Final = 86_400.0


class _Change(NamedTuple):
    user_id: str
    status: Status
    at: float
    seen_at: float


class PresenceRecorder(OrderedMultiService):
    """See the module.

    Args:
        store: keeps the changes.
        node: the name of this node, the same after a restart.
        clock: the time, monotonic.
        window: seconds for which a user who has left may come back unnoticed.
        retention_days: days for which events are kept; 0 for ever.
        max_queued: how many changes wait at most.

    Attributes:
        instance: this run of the node.
        max_queued: see above; may be changed.
    """

    _log = Logger()

    def __init__(
        self,
        store: IPresenceStore,
        *,
        node: str,
        clock: IReactorTime,
        window: float,
        retention_days: float = 0,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        super().__init__()
        self.instance = Instance(uuid4().hex, node)
        self._store = store
        self._clock = clock
        self._window = window
        self._max_age = retention_days * _DAY
        self.max_queued = max_queued
        self._queue: deque[_Change] = deque()
        self._last: dict[str, _Change] = {}  # of the queued changes, each user's last
        self._here: dict[str, Status] = {}
        self._known = False  # to the store
        self._full = False
        self._missed = False  # by the store: something that was noted
        self._leaving = False
        self._attempts = count(1)
        for name, work, every in (
            ("To record presence", self._write, WRITE_EVERY),
            ("To say that this node lives", self._beat, BEAT_EVERY),
            ("To delete old presence events", self._sweep, SWEEP_EVERY),
        ):
            Periodic(name, work, every, clock=clock).setServiceParent(self)

    @property
    def waiting(self) -> int:
        """How many changes are not known to be written yet."""
        return len(self._queue)

    def stopService(self) -> Deferred[None]:
        """Write what is queued, and give the users who are still here the window to come back.

        Returns:
            A Deferred that fires with None when that is done, after about 10 s at most; it does not fail.
        """
        return Deferred.fromCoroutine(self._stop_all_and_leave())

    async def _stop_all_and_leave(self) -> None:
        if not self.running:
            return
        # What is under way ends with the next answer of the store.
        await super().stopService()
        self._leaving = True
        leaving = Deferred.fromCoroutine(self._leave())
        timer = self._clock.callLater(STOP_WITHIN, leaving.cancel)
        try:
            await leaving
        except (StorageError, CancelledError) as error:
            # Its next run, or another node, finds that this one is dead.
            self._log.warn(
                "Presence: {count} changes could not be written: {error}",
                count=len(self._queue),
                error=str(error)[:200],
            )
        finally:
            if timer.active():
                timer.cancel()

    async def _leave(self) -> None:
        await self._write()
        await self._store.leave(self.instance, self._window)

    # From those who know who is here

    def note(self, user_id: str, status: Status, seen_at: float | None = None) -> None:
        """Queue a user's new status; this neither waits nor fails.

        Args:
            user_id: whose.
            status: the new one.
            seen_at: when the user was last seen, seconds of the clock; None for now.
        """
        if status == "offline":
            self._here.pop(user_id, None)
        else:
            self._here[user_id] = status
        if self._full:
            return
        if len(self._queue) >= self.max_queued:
            self._full = self._missed = True
            self._log.warn("Presence: {count} changes wait, more are not queued", count=len(self._queue))
            return
        now = self._clock.seconds()
        self._add(_Change(user_id, status, now, now if seen_at is None else seen_at))

    async def seen(self, user_ids: Sequence[str]) -> Mapping[str, Seen]:
        """Ask the store about users who are not here; fails with `StorageError`.

        Returns:
            What is known of them, by id; nothing of those who never were online.
        """
        return await self._store.seen(user_ids, self.instance.id) if user_ids else {}

    def gone_at(self, user_id: str) -> float | None:
        """When a user was last seen whose going offline is not written yet, seconds of the clock."""
        change = self._last.get(user_id)
        return change.seen_at if change is not None and change.status == "offline" else None

    def _add(self, change: _Change) -> None:
        self._queue.append(change)
        self._last[change.user_id] = change

    # To the store

    async def _write(self) -> None:
        await self._write_queue()
        if self._missed:
            await self._store.leave(self.instance, max(self._window, LEAST_GRACE), for_good=False)
            self._known = self._missed = self._full = False
            now = self._clock.seconds()
            for user_id, status in self._here.items():
                self._add(_Change(user_id, status, now, now))
            await self._write_queue()

    async def _write_queue(self) -> None:
        while self._queue and (self.running or self._leaving):
            if not self._known:
                await self._beat()
            batch = self._next_batch()
            now = self._clock.seconds()
            changes = [
                PresenceChange(change.user_id, change.status, now - change.at, now - change.seen_at)
                for change in batch
            ]
            if not await self._store.record(self.instance, next(self._attempts), changes):
                # It was taken for dead, and its users for gone.
                self._known, self._missed = False, True
                continue
            if faultpoints.active and faultpoints.active.strikes("presence.recorded"):
                raise UnknownOutcome("a fault was wanted")
            for change in batch:
                self._queue.popleft()
                if self._last.get(change.user_id) is change:
                    del self._last[change.user_id]

    def _next_batch(self) -> Sequence[_Change]:
        """The first of the queue, up to the second change of a user."""
        batch: dict[str, _Change] = {}
        for change in self._queue:
            if change.user_id in batch or len(batch) == MAX_BATCH:
                break
            batch[change.user_id] = change
        return list(batch.values())

    async def _beat(self) -> None:
        silent = await self._store.beat(self.instance, self._window)
        self._missed = self._missed or (silent and self._known)
        self._known = True

    async def _sweep(self) -> None:
        """Delete old events, in many short transactions."""
        for _ in range(_MAX_STEPS if self._max_age else 0):
            if not self.running or not await self._store.sweep(self._max_age):
                return
