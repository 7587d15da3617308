"""Notifications: pushed into inboxes, read back as they commit, handed to the clients that are here.

The database is the truth; a wake-up only says that it is worth a look. Each client's channel has a
`Reader` with a cursor of its own: the highest seq it has been given. A channel opens its reader
before it reads its backlog, so that what commits meanwhile is noticed, and gives it its first cursor
with the backlog: there is no gap between the two, and nothing comes twice.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from flowtx.errors import InvalidPayload, StorageError
from flowtx.interfaces import (
    Backlog,
    INotificationStore,
    IPubSub,
    Notification,
    Pushed,
    ReadMarks,
    Subscriber,
)
from flowtx.metrics import Metrics
from flowtx.protocol.message import Broadcast
from flowtx.sessions.session import user_topic

MAX_BACKLOG: Final = 1_000
MAX_PAYLOAD: Final = 65_536
MAX_USERS: Final = 10_000
_READ_USERS: Final = 100
_READ_ROWS: Final = 200
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Reader:
    """One channel's place in its user's inbox; made by `NotificationService.open`.

    Attributes:
        cursor: the highest seq it was given; None until its backlog has been read.
    """

    __slots__ = ("_close", "_deliver", "cursor", "missed")

    def __init__(
        self, deliver: Callable[[Sequence[Notification]], None], close: Callable[[Reader], None]
    ) -> None:
        self.cursor: int | None = None
        self.missed = False
        self._deliver = deliver
        self._close = close

    def give(self, base: int, notifications: Sequence[Notification]) -> bool:
        """Deliver what follows the cursor, out of what follows ``base``.

        Returns:
            False where something may lie between the cursor and ``base``, and nothing was delivered.
        """
        if self.cursor is None:
            self.missed = True
            return True
        if base > self.cursor:
            return False
        fresh = [notification for notification in notifications if notification.seq > self.cursor]
        if fresh:
            self.cursor = fresh[-1].seq
            self._deliver(fresh)
        return True

    def close(self) -> None:
        """Take no more notifications."""
        self._close(self)


class NotificationService(Service):
    """See the module.

    Args:
        store: keeps the inboxes.
        pubsub: tells a user's other connections what one of them has read.
        metrics: counts.
        wall: seconds since the epoch, for the latency.
    """

    _log = Logger()

    def __init__(
        self,
        store: INotificationStore,
        pubsub: IPubSub,
        metrics: Metrics | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._pubsub = pubsub
        self._metrics = metrics or Metrics()
        self._wall = wall
        self._readers: dict[str, set[Reader]] = {}
        self._behind: set[str] = set()
        self._mark: str | None = None
        self._catching_up: set[Deferred[None]] = set()

    def stopService(self) -> Deferred[None]:
        """Wait for reads under way."""
        super().stopService()
        return DeferredList(list(self._catching_up)).addCallback(lambda _: None)

    # For the backend

    async def push_notification(
        self, user_id: str, type_: str, payload: object, idempotency_key: str | None = None
    ) -> Pushed:
        """Append a notification to a user's inbox; it reaches the user's connections by itself.

        Args:
            user_id: the user.
            type_: e.g. ``deal.won``; 1 to 128 characters.
            payload: any JSON value, at most 65,536 bytes.
            idempotency_key: a second push with the same key and content gives the first one's seq.

        Returns:
            Its id and seq, once it is on disk.

        Raises:
            InvalidPayload: an argument is not of that form.
            Conflict: the key was used for another notification.
            StorageError: the database cannot be asked; see there what may be tried again.
        """
        return (await self.push_notifications([user_id], type_, payload, idempotency_key))[0]

    async def push_notifications(
        self, user_ids: Sequence[str], type_: str, payload: object, idempotency_key: str | None = None
    ) -> Sequence[Pushed]:
        """Append a notification to the inboxes of up to 10,000 users, all or none of them.

        Returns, Raises: see `push_notification`.
        """
        if not 1 <= len(user_ids) <= MAX_USERS:
            raise InvalidPayload(f"user_ids: got {len(user_ids)}; it takes 1 to {MAX_USERS}")
        try:
            text = msgspec.json.encode(payload)
        except (TypeError, ValueError) as error:
            raise InvalidPayload(f"payload: cannot be written as JSON: {error}") from None
        if len(text) > MAX_PAYLOAD:
            raise InvalidPayload(f"payload: got {len(text)} bytes; it takes at most {MAX_PAYLOAD}")
        if _NUL.search(text):
            raise InvalidPayload("payload: has a NUL character, which PostgreSQL cannot store")
        pushed = await self._store.push(user_ids, type_, text, idempotency_key)
        self._metrics.notifications_pushed.inc(len(pushed))
        return pushed

    async def mark_notifications_read(
        self, user_id: str, marks: ReadMarks, sender: Subscriber | None = None
    ) -> int:
        """Mark notifications of a user as read and tell the user's connections.

        Args:
            user_id: the user.
            marks: which ones.
            sender: the one connection that need not be told.

        Returns:
            How many are still unread.

        Raises:
            StorageError: the database cannot be asked.
        """
        unread = await self._store.mark_read(user_id, marks)
        told: dict[str, Any] = {"unread": unread}
        if marks.ids is not None:
            told["ids"] = marks.ids
        elif marks.up_to_seq is not None:
            told["up_to_seq"] = marks.up_to_seq
        else:
            told["all"] = True
        self._pubsub.broadcast(Broadcast(user_topic(user_id), "notifications_read", told), sender)
        return unread

    # For the channels

    def open(self, user_id: str, deliver: Callable[[Sequence[Notification]], None]) -> Reader:
        """Begin to watch a user's inbox, before the backlog is read."""
        reader = Reader(deliver, lambda reader: self._closed(user_id, reader))
        self._readers.setdefault(user_id, set()).add(reader)
        return reader

    def _closed(self, user_id: str, reader: Reader) -> None:
        readers = self._readers.get(user_id)
        if readers is not None:
            readers.discard(reader)
            if not readers:
                del self._readers[user_id]

    def sent(self, count: int) -> None:
        """Count notifications sent to a connection."""
        self._metrics.notifications_delivered.inc(count)

    async def backlog(self, user_id: str, after_seq: int | None) -> Backlog:
        """Read what a client that joins has not seen: what follows ``after_seq``, or what is unread."""
        return await self._store.backlog(user_id, after_seq, MAX_BACKLOG)

    def begin(self, user_id: str, reader: Reader, last_seq: int) -> None:
        """Give a reader its first cursor: the highest seq at the moment its backlog was read."""
        reader.cursor = last_seq
        if reader.missed:
            reader.missed = False
            self._catch_up(user_id)

    def _catch_up(self, user_id: str) -> None:
        self._behind.add(user_id)
        reading = Deferred.fromCoroutine(self._read([user_id]))
        self._catching_up.add(reading)
        reading.addErrback(self._read_failed)
        reading.addBoth(lambda _: self._catching_up.discard(reading))

    def _read_failed(self, failure: Any) -> None:
        # The users stay behind, so the next wake-up tries again.
        failure.trap(StorageError)
        self._log.warn("Cannot read notifications: {error}", error=failure.value)

    # For the listener

    async def wake(self) -> None:
        """Look for what has committed since the last look and hand it to those who are here.

        Raises:
            StorageError: the database cannot be asked; the next call finds what this one did not.
        """
        self._mark, changed = await self._store.changed(self._mark)
        self._behind |= changed & self._readers.keys()
        await self._read(tuple(self._behind))

    async def _read(self, user_ids: Sequence[str]) -> None:
        for start in range(0, len(user_ids), _READ_USERS):
            remaining: Iterable[str] = user_ids[start : start + _READ_USERS]
            while remaining:
                remaining = await self._read_some(remaining)

    async def _read_some(self, user_ids: Iterable[str]) -> list[str]:
        """Read once for some users; those of whom there may be more."""
        self._behind.difference_update(user_ids)
        cursors = {}
        for user_id in user_ids:
            begun = []
            for reader in self._readers.get(user_id, ()):
                if reader.cursor is None:
                    reader.missed = True
                else:
                    begun.append(reader.cursor)
            if begun:
                cursors[user_id] = min(begun)
        if not cursors:
            return []
        try:
            found = await self._store.after(cursors, _READ_ROWS)
        except BaseException:
            self._behind.update(cursors)
            raise
        again = []
        for user_id, notifications in found.items():
            readers = tuple(self._readers.get(user_id, ()))
            taken = [reader.give(cursors[user_id], notifications) for reader in readers]
            inserted_at = datetime.fromisoformat(notifications[-1].inserted_at)
            self._metrics.notify_latency.observe(max(0.0, self._wall() - inserted_at.timestamp()))
            if len(notifications) == _READ_ROWS or not all(taken):
                again.append(user_id)
        return again
