"""What the tests of notifications share: an inbox whose database and clients can be slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import Unavailable
from flowtx.inbox import Backlog, Joining, Notification, Page, ReadMarks, Undeliverable, Want
from flowtx.notifications.service import NotificationService
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.storage.memory_inboxes import MemoryNotificationStore


class SlowStore(MemoryNotificationStore):
    """Reads at once, answers when it is told to: the answer is as old as the question.

    Attributes:
        slow: whether it waits to be told.
        waiting: the questions that have no answer yet.
        reads: the wants of each read of pages.
        forgets: whether it says that nothing changed, as PostgreSQL does of a number that it gives out
            again after a crash.
        down: whether it cannot be asked what changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.waiting: list[Deferred[None]] = []
        self.reads: list[list[Want]] = []
        self.forgets = False
        self.down = False

    async def changed(self, since: str | None) -> tuple[str, frozenset[str] | None]:
        if self.down:
            raise Unavailable("down")
        mark, changed = await super().changed(since)
        return mark, frozenset() if self.forgets else changed

    async def pages(self, wants: Sequence[Want], page_size: int) -> Sequence[Page]:
        self.reads.append(list(wants))
        found = await super().pages(wants, page_size)
        await self._answer()
        return found

    async def backlogs(self, asked: Sequence[Joining], limit: int, page_size: int) -> Sequence[Backlog]:
        found = await super().backlogs(asked, limit, page_size)
        await self._answer()
        return found

    async def _answer(self) -> None:
        if self.slow:
            gate: Deferred[None] = Deferred()
            self.waiting.append(gate)
            await gate


class Phone:
    """A client: notes what it is given, and answers Pings at once or when it is told to.

    Attributes:
        seen: the seqs of notifications, in the order in which they came.
        undeliverable: those of what could not be sent.
        pings: the payloads of the Pings that it has not answered.
        on_wire: all that came, Pings too.
        answers: whether it answers Pings at once.
        broken: whether it cannot be given anything.
    """

    def __init__(self, service: NotificationService, user_id: str) -> None:
        self.seen: list[int] = []
        self.undeliverable: list[Undeliverable] = []
        self.pings: list[bytes] = []
        self.on_wire: list[int | bytes] = []
        self.answers = True
        self.broken = False
        self.delivery = service.delivery
        self.reader = self.delivery.open(user_id, self)

    def deliver(self, entries: Sequence[Notification | Undeliverable]) -> None:
        if self.broken:
            raise ValueError("broken")
        for entry in entries:
            self.on_wire.append(entry.seq)
            if isinstance(entry, Notification):
                self.seen.append(entry.seq)
            else:
                self.undeliverable.append(entry)

    def ping(self, payload: bytes) -> None:
        self.pings.append(payload)
        self.on_wire.append(payload)
        if self.answers:
            self.pong()

    def pong(self) -> None:
        while self.pings:
            self.delivery.ponged(self.reader, self.pings.pop(0))

    def begin(self, last_seq: int | None = 0) -> Deferred[Backlog]:
        return Deferred.fromCoroutine(self.delivery.begin(self.reader, last_seq))

    def ack(self, seq: int) -> None:
        self.delivery.received(self.reader, seq)

    def close(self) -> None:
        self.delivery.close(self.reader)


class InboxTestCase(SynchronousTestCase):
    """Has the service of notifications on a `SlowStore`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.store = SlowStore()
        self.pubsub = MemoryPubSub()
        self.service = NotificationService(self.store, self.pubsub, clock=self.clock)
        self.service.startService()
        self.wake()

    def push(self, user_id: str = "alice", type_: str = "t", payload: object = None, **more: Any) -> int:
        pushed = self.service.push_notification(user_id, type_, payload, **more)
        return self.successResultOf(Deferred.fromCoroutine(pushed)).seq

    def push_many(self, count: int, user_id: str = "alice", type_: str = "t") -> None:
        for _ in range(count):
            self.push(user_id, type_)

    def mark(self, marks: ReadMarks) -> None:
        marking = self.service.mark_notifications_read("alice", marks)
        self.successResultOf(Deferred.fromCoroutine(marking))

    def wake(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.service.wake()))

    def open(self, user_id: str = "alice") -> Phone:
        return Phone(self.service, user_id)

    def join(self, last_seq: int | None = 0, user_id: str = "alice", *, answers: bool = True) -> Phone:
        phone = self.open(user_id)
        phone.answers = answers
        self.successResultOf(phone.begin(last_seq))
        return phone

    def answer(self) -> None:
        """Have the store answer all that was asked, and from now on at once."""
        self.store.slow = False
        while self.store.waiting:
            self.store.waiting.pop(0).callback(None)
