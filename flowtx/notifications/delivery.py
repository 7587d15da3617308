"""Delivery: what has committed is read from the database and handed to the clients that are here.

The database is the truth; a wake-up only says that it is worth a look. Each client's channel has a
`Reader` with a cursor of its own: the highest seq it has been given. A channel opens its reader before
its backlog is read, so that what commits meanwhile is noticed: there is no gap between backlog and
live, and nothing comes twice.

::

    wake-up, ack ──► readers that are behind and have room ──► one query for up to 100 of them
                                                                │
    client ◄── notification … notification, Ping ◄── reader ◄───┘

A slow client's reader falls behind and reads on from the database when it has room again; nothing
waits for it in memory, and no other reader waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx import faultpoints
from flowtx.batches import Batches, at_once
from flowtx.errors import InvalidPayload, StorageError
from flowtx.inbox import Backlog, INotificationStore, Joining, Notification, Page, Want
from flowtx.metrics import Metrics
from flowtx.notifications.reader import WINDOW, Client, Reader
from flowtx.notifications.receipts import ReceiptBook
from flowtx.notifications.traces import Traces

MAX_BACKLOG: Final = 1_000
_READ_TOGETHER: Final = 100
_JOIN_TOGETHER: Final = 50


class Delivery:
    """See the module.

    Args:
        store: has the inboxes.
        receipts: keeps what clients prove.
        metrics: counts.
        wall: seconds since the epoch, for the latency.
        clock: the time, monotonic.

    Attributes:
        traces: the pushes that somebody traces.
    """

    _log = Logger()

    def __init__(
        self,
        store: INotificationStore,
        receipts: ReceiptBook,
        metrics: Metrics,
        wall: Callable[[], float] = time.time,
        *,
        clock: IReactorTime,
    ) -> None:
        self._store = store
        # One query for each who joins would be half of what a connection costs.
        self._backlogs = Batches(self._read_backlogs, clock, when=at_once, most=_JOIN_TOGETHER, under_way=1)
        self._receipts = receipts
        self._metrics = metrics
        self._wall = wall
        self._readers: dict[str, dict[Reader, None]] = {}
        self._ready: dict[Reader, None] = {}
        self._mark: str | None = None
        self._lost_track = False
        self._reading: Deferred[None] | None = None
        self._stopped = False
        self.traces = Traces()

    def readers(self, user_id: str) -> Iterable[Reader]:
        """Those of a user's clients that have joined."""
        return tuple(self._readers.get(user_id, ()))

    def open(self, user_id: str, client: Client) -> Reader:
        """Begin to watch a user's inbox for a client, before its backlog is read."""
        reader = Reader(user_id, client)
        self._readers.setdefault(user_id, {})[reader] = None
        return reader

    def close(self, reader: Reader) -> None:
        """Give a client no more."""
        reader.closed = True
        self._ready.pop(reader, None)
        readers = self._readers.get(reader.user_id)
        if readers is not None:
            readers.pop(reader, None)
            if not readers:
                del self._readers[reader.user_id]

    async def begin(self, reader: Reader, after_seq: int | None) -> Backlog:
        """Read what a client that joins has not seen, and give it the first of that.

        Args:
            reader: the client's.
            after_seq: what follows this; None for what is unread.

        Raises:
            StorageError: the database cannot be asked.
        """
        backlog = await self._backlogs.answer(Joining(reader.user_id, after_seq))
        if faultpoints.active:
            await faultpoints.active.stall("inbox.backlog")
        entries = backlog.page.entries
        before = entries[0].seq - 1 if entries else backlog.last_seq
        unread_up_to = backlog.last_seq if after_seq is None else None
        reader.types = backlog.page.types
        reader.begin(before, backlog.last_seq, unread_up_to if backlog.page.more else None)
        if not reader.closed:
            self._give(reader, backlog.page)
        if after_seq:
            self._receipts.add_up_to(reader.user_id, min(after_seq, backlog.last_seq))
        self._read_soon(reader)
        return backlog

    def _read_backlogs(self, asked: Sequence[Joining]) -> Awaitable[Sequence[Backlog]]:
        return self._store.backlogs(asked, MAX_BACKLOG, WINDOW)

    def received(self, reader: Reader, seq: int) -> None:
        """Note a client's ``ack``.

        Raises:
            InvalidPayload: the user has no such seq.
        """
        highest = max(
            max(known.cursor or 0, known.live_after) for known in (*self.readers(reader.user_id), reader)
        )
        if seq > highest:
            raise InvalidPayload(f"seq: got {seq}; the latest is {highest}")
        self._proved(reader, reader.received(seq))
        self._receipts.add_up_to(reader.user_id, seq)

    def ponged(self, reader: Reader, payload: bytes) -> None:
        """Note a client's Pong; one that answers no Ping of ours has no effect."""
        if payload.isdigit() and len(payload) <= 19:
            self._proved(reader, reader.ponged(int(payload)))

    def _proved(self, reader: Reader, seqs: Sequence[int]) -> None:
        if seqs:
            self._receipts.add(reader.user_id, seqs)
            self._read_soon(reader)

    def _give(self, reader: Reader, page: Page) -> None:
        before = reader.cursor
        given = reader.take(page)
        self._metrics.notifications_delivered.inc(given)
        if given:
            self.traces.given(reader.user_id, page.entries, before or 0, reader.cursor or 0)

    # Reading

    def lost_track(self) -> None:
        """Have the next look take every inbox for changed.

        After a crash PostgreSQL gives out again the numbers of transactions that it had not written
        down: what has one of them looks older than a mark from before.
        """
        self._lost_track = True

    async def wake(self) -> None:
        """Look for what has committed since the last look, and begin to hand it to those who are here.

        The next look need not wait until all of it is read: a client with much to catch up on would
        keep the others from theirs.

        Raises:
            StorageError: the database cannot be asked; the next call finds what this one did not.
        """
        everybody, self._lost_track = self._lost_track, False
        try:
            self._mark, changed = await self._store.changed(self._mark)
            if faultpoints.active:
                await faultpoints.active.stall("inbox.changed")
        except BaseException:
            self._lost_track = everybody or self._lost_track
            raise
        for user_id in self._readers if everybody or changed is None else changed:
            for reader in self._readers.get(user_id, ()):
                reader.behind = True
                self._note(reader)
        self._read_on()

    def _note(self, reader: Reader) -> None:
        if reader.behind and reader.cursor is not None and not reader.closed and reader.has_room:
            self._ready[reader] = None

    def _read_soon(self, reader: Reader) -> None:
        self._note(reader)
        self._read_on()

    def _read_on(self) -> None:
        if self._ready and self._reading is None:
            Deferred.fromCoroutine(self._read_all()).addErrback(self._read_failed)

    def _read_failed(self, failure: Failure) -> None:
        # The readers stay behind, so the next wake-up tries again.
        if failure.check(StorageError):
            self._log.warn("Cannot read notifications: {error}", error=failure.value)
        else:
            self._log.failure("Notifications could not be delivered", failure)

    async def _read_all(self) -> None:
        """Read for all who are behind and have room; there is one such loop at a time."""
        done = self._reading = Deferred()
        try:
            while self._ready and not self._stopped:
                await self._read_some()
        finally:
            self._reading = None
            done.callback(None)

    async def _read_some(self) -> None:
        # Clients of one user who are at one place share what is read.
        groups: dict[Want, list[Reader]] = {}
        for reader in list(self._ready):
            want = reader.want
            if want not in groups and len(groups) == _READ_TOGETHER:
                break
            groups.setdefault(want, []).append(reader)
            del self._ready[reader]
            reader.behind = False
        try:
            pages = await self._store.pages(list(groups), WINDOW)
            if faultpoints.active:
                await faultpoints.active.stall("inbox.page")
        except BaseException:
            for readers in groups.values():
                for reader in readers:
                    reader.behind = True
                    self._note(reader)
            raise
        for readers, page in zip(groups.values(), pages, strict=True):
            self._hand_out(readers, page)

    def _hand_out(self, readers: Sequence[Reader], page: Page) -> None:
        live = False
        for reader in readers:
            if reader.closed:
                continue
            if page.entries:
                reader.types = page.types
                live = live or page.entries[-1].seq > reader.live_after
            try:
                self._give(reader, page)
            except Exception:
                # What one client cannot be given does not keep the others from theirs.
                self._log.failure("Notifications could not be handed to a client")
            self._note(reader)
        if live and isinstance(page.entries[-1], Notification):
            self._observe(page.entries[-1])

    def _observe(self, latest: Notification) -> None:
        try:
            inserted_at = datetime.fromisoformat(latest.inserted_at).timestamp()
        except (TypeError, ValueError, OverflowError):  # a row that was put in by hand
            return
        self._metrics.notify_latency.observe(max(0.0, self._wall() - inserted_at))

    def stop(self) -> Deferred[None]:
        """Begin no further read; fires when the one under way has ended."""
        self._stopped = True
        if self._reading is None:
            return succeed(None)
        ended: Deferred[None] = Deferred()
        self._reading.addCallback(lambda _: ended.callback(None))
        return ended
