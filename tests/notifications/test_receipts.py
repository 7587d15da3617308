"""Receipts: written for many at once, kept while the database is down, bounded."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import Unavailable
from flowtx.inbox import Receipts
from flowtx.notifications.receipts import AGAIN_AFTER, MAX_BATCH, MAX_KEPT, WRITE_AFTER, ReceiptBook
from flowtx.storage.memory_inboxes import MemoryNotificationStore


class WritingStore(MemoryNotificationStore):
    """Notes the receipts; fails, or answers when it is told to.

    Attributes:
        written: the receipts that it has kept.
        tried: how often it was asked to.
        problem: what it fails with, or None.
        slow: whether it waits to be told.
        waiting: what has no answer yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Receipts] = []
        self.tried = 0
        self.problem: Exception | None = None
        self.slow = False
        self.waiting: list[Deferred[None]] = []

    async def mark_delivered(self, receipts: Receipts) -> None:
        self.tried += 1
        if self.slow:
            gate: Deferred[None] = Deferred()
            self.waiting.append(gate)
            await gate
        if self.problem is not None:
            raise self.problem
        self.written.append(receipts)


class ReceiptBookTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = WritingStore()
        self.book = ReceiptBook(self.store, self.clock)

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.book.stop())

    def test_those_of_a_tenth_of_a_second_are_written_at_once(self) -> None:
        self.book.add("alice", [1, 2])
        self.clock.advance(WRITE_AFTER / 2)
        self.book.add("bob", [7])
        self.book.add("alice", [2, 3])
        self.book.add_up_to("carol", 5)
        self.book.add_up_to("carol", 9)
        self.book.add_up_to("carol", 4)
        self.assertEqual(self.store.tried, 0)
        self.clock.advance(WRITE_AFTER / 2)
        [receipts] = self.store.written
        self.assertEqual(receipts.exact, [("alice", 1), ("alice", 2), ("bob", 7), ("alice", 3)])
        self.assertEqual(receipts.up_to, [("carol", 9)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_next_ones_are_written_after_them(self) -> None:
        for seq in (1, 2):
            self.book.add("alice", [seq])
            self.clock.advance(WRITE_AFTER)
        self.assertEqual(
            [list(receipts.exact) for receipts in self.store.written], [[("alice", 1)], [("alice", 2)]]
        )

    def test_a_database_that_is_down_gets_them_later(self) -> None:
        self.store.problem = Unavailable("down")
        self.book.add("alice", [1])
        self.book.add_up_to("bob", 2)
        self.clock.advance(WRITE_AFTER)
        self.assertEqual(self.store.tried, 1)
        self.book.add("alice", [2])
        self.clock.advance(AGAIN_AFTER * 0.9)
        self.assertEqual(self.store.tried, 1)
        self.clock.advance(AGAIN_AFTER * 0.1)
        self.assertEqual(self.store.tried, 2)
        self.store.problem = None
        self.clock.advance(AGAIN_AFTER)
        [receipts] = self.store.written
        self.assertEqual((receipts.exact, receipts.up_to), ([("alice", 1), ("alice", 2)], [("bob", 2)]))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_fault_is_logged_and_they_are_kept(self) -> None:
        self.store.problem = ZeroDivisionError()
        self.book.add("alice", [1])
        self.clock.advance(WRITE_AFTER)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.store.problem = None
        self.clock.advance(AGAIN_AFTER * 0.9)
        self.assertEqual(self.store.written, [])
        self.clock.advance(AGAIN_AFTER * 0.1)
        self.assertEqual(self.store.written, [Receipts([("alice", 1)], [])])

    def test_an_outage_is_logged_once_and_then_all_is_as_before(self) -> None:
        for _ in range(2):
            self.store.problem = Unavailable("down")
            with capturedLogs() as events:
                self.book.add("alice", range(MAX_BATCH + 1))
                self.clock.pump([WRITE_AFTER, AGAIN_AFTER, AGAIN_AFTER])
            self.assertEqual(len(events), 1)
            self.store.problem = None
            self.clock.pump([AGAIN_AFTER, WRITE_AFTER])
            self.assertEqual(sum(len(receipts.exact) for receipts in self.store.written), MAX_BATCH + 1)
            self.store.written.clear()

    def test_what_comes_while_it_writes_is_written_next_and_never_two_at_once(self) -> None:
        self.store.slow = True
        self.book.add_up_to("alice", 1)
        self.book.add("bob", [1])
        self.clock.advance(WRITE_AFTER)
        self.book.add_up_to("alice", 5)
        self.book.add("bob", [1, 2])
        self.clock.advance(10)
        self.assertEqual((self.store.tried, self.clock.getDelayedCalls()), (1, []))
        self.store.waiting.pop().callback(None)
        self.clock.advance(WRITE_AFTER)
        self.store.waiting.pop().callback(None)
        self.assertEqual(
            self.store.written,
            [Receipts([("bob", 1)], [("alice", 1)]), Receipts([("bob", 2)], [("alice", 5)])],
        )

    def test_a_write_is_bounded(self) -> None:
        self.book.add("alice", range(MAX_BATCH + 1))
        for number in range(MAX_BATCH + 1):
            self.book.add_up_to(f"user-{number}", 1)
        self.clock.advance(WRITE_AFTER)
        self.clock.advance(WRITE_AFTER)
        self.assertEqual(
            [(len(receipts.exact), len(receipts.up_to)) for receipts in self.store.written],
            [(MAX_BATCH, MAX_BATCH), (1, 1)],
        )

    def test_of_too_many_the_oldest_are_dropped(self) -> None:
        self.store.problem = Unavailable("down")
        self.book.add("alice", range(MAX_KEPT))
        self.book.add("bob", [1, 2])
        for number in range(MAX_KEPT + 2):
            self.book.add_up_to(f"user-{number}", 1)
        self.store.problem = None
        self.successResultOf(self.stop())
        exact = [mark for receipts in self.store.written for mark in receipts.exact]
        up_to = [mark for receipts in self.store.written for mark in receipts.up_to]
        self.assertEqual((len(exact), exact[0], exact[-1]), (MAX_KEPT, ("alice", 2), ("bob", 2)))
        self.assertEqual((len(up_to), up_to[0]), (MAX_KEPT, ("user-2", 1)))

    # The stop

    def test_stop_writes_all_that_there_is(self) -> None:
        self.book.add("alice", range(2 * MAX_BATCH + 1))
        self.book.add_up_to("bob", 1)
        self.successResultOf(self.stop())
        self.assertEqual([len(receipts.exact) for receipts in self.store.written], [MAX_BATCH, MAX_BATCH, 1])
        self.assertEqual(self.store.written[0].up_to, [("bob", 1)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_with_nothing_to_write(self) -> None:
        self.successResultOf(self.stop())
        self.assertEqual(self.store.tried, 0)

    def test_stop_tries_once_where_the_database_is_down(self) -> None:
        self.store.problem = Unavailable("down")
        self.book.add("alice", range(3 * MAX_BATCH))
        self.clock.advance(WRITE_AFTER)
        self.successResultOf(self.stop())
        self.assertEqual((self.store.tried, self.clock.getDelayedCalls()), (2, []))

    def test_stop_tries_again_what_failed_before(self) -> None:
        self.store.problem = Unavailable("down")
        self.book.add("alice", range(2 * MAX_BATCH))
        self.clock.advance(WRITE_AFTER)
        self.store.problem = None
        self.successResultOf(self.stop())
        self.assertEqual(sum(len(receipts.exact) for receipts in self.store.written), 2 * MAX_BATCH)

    def test_stop_waits_for_the_write_under_way_and_writes_the_rest(self) -> None:
        self.store.slow = True
        self.book.add("alice", [1])
        self.clock.advance(WRITE_AFTER)
        self.book.add("alice", [2])
        stopping = self.stop()
        self.store.slow = False
        self.assertNoResult(stopping)
        self.store.waiting.pop().callback(None)
        self.successResultOf(stopping)
        self.assertEqual(self.store.written, [Receipts([("alice", 1)], []), Receipts([("alice", 2)], [])])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_after_the_stop_nothing_is_begun(self) -> None:
        self.successResultOf(self.stop())
        self.book.add("alice", [1])
        self.book.add_up_to("alice", 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
