"""Delivery: no gap between backlog and live, nothing twice, and no client waits for another."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from flowtx.errors import Unavailable
from flowtx.inbox import Push, ReadMarks, Undeliverable
from flowtx.notifications.reader import WINDOW
from flowtx.notifications.receipts import WRITE_AFTER
from tests.notifications.inbox import InboxTestCase, Phone


class DeliveryTests(InboxTestCase):
    def look(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.service.wake())

    def subscribe(self, *types: str) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.service.subscribe_to_notifications("alice", types)))

    def push_too_large(self) -> str:
        """Put in what only SQL lets through."""
        text = b'"' + b"x" * 70_000 + b'"'
        [outcome] = self.successResultOf(
            Deferred.fromCoroutine(self.store.push([Push(("alice",), "t", text)], wait=True))
        )
        assert isinstance(outcome, tuple)
        return outcome[0].id

    # Live

    def test_live_follows_the_backlog(self) -> None:
        self.push()
        phone = self.join()
        self.push()
        self.wake()
        self.assertEqual(phone.seen, [1, 2])

    def test_each_connection_gets_each_once(self) -> None:
        first = self.join()
        self.push()
        self.wake()
        second = self.join()
        self.push()
        self.wake()
        self.wake()
        self.assertEqual((first.seen, second.seen), ([1, 2], [1, 2]))

    def test_others_get_nothing(self) -> None:
        phone = self.join(user_id="bob")
        self.push("alice")
        self.wake()
        self.assertEqual((phone.seen, self.store.reads), ([], []))

    def test_a_closed_reader_gets_nothing(self) -> None:
        phone = self.join()
        phone.close()
        phone.close()
        self.push()
        self.wake()
        self.assertEqual((phone.seen, self.service.delivery.readers("alice")), ([], ()))

    def test_a_reader_that_is_closed_while_it_is_read_for_gets_nothing(self) -> None:
        gone, there = self.join(), self.join()
        self.push()
        self.store.slow = True
        self.look()
        gone.close()
        self.answer()
        self.assertEqual((gone.seen, there.seen), ([], [1]))

    def test_a_reader_that_is_closed_while_it_waits_its_turn_is_not_read_for(self) -> None:
        gone = self.join()
        self.push()
        self.store.slow = True
        self.look()
        self.push()
        self.wake()
        gone.close()
        self.answer()
        self.assertEqual((gone.seen, len(self.store.reads)), ([], 1))

    def test_what_commits_between_backlog_and_begin_is_not_lost(self) -> None:
        phone = self.open()
        self.store.slow = True
        phone.begin()
        self.push()
        self.wake()
        self.assertEqual(phone.seen, [])
        self.answer()
        self.assertEqual(phone.seen, [1])

    def test_what_was_read_before_a_join_does_not_come_though_its_pong_is_quick(self) -> None:
        phone = self.open()
        self.push_many(3)
        self.mark(ReadMarks(ids=(self.store._inbox("alice").rows[3].entry.id,)))
        self.wake()
        self.successResultOf(phone.begin(None))
        self.assertEqual(phone.seen, [1, 2])
        self.push()
        self.wake()
        self.assertEqual(phone.seen, [1, 2, 4])

    def test_a_client_that_leaves_during_its_join_is_given_nothing(self) -> None:
        self.push()
        phone = self.open()
        self.store.slow = True
        joining = phone.begin()
        phone.close()
        self.answer()
        self.successResultOf(joining)
        self.assertEqual(phone.on_wire, [])
        self.assertEqual(self.delivered(), 0)

    def delivered(self) -> float | None:
        metrics = self.service._metrics.registry
        return metrics.get_sample_value("flowtx_notifications_delivered_total")

    def test_a_wake_up_while_it_reads_leads_to_another_read(self) -> None:
        phone = self.join()
        self.push()
        self.store.slow = True
        self.look()
        self.push()
        self.wake()
        self.assertEqual(len(self.store.reads), 1)
        self.answer()
        self.assertEqual(phone.seen, [1, 2])

    def test_all_of_one_user_at_one_place_are_read_for_once(self) -> None:
        phones = [self.join() for _ in range(5)]
        self.push()
        phones.append(self.join())
        phones.append(self.join(user_id="bob"))
        self.push()
        self.push("bob")
        self.wake()
        self.assertEqual([phone.seen for phone in phones], [[1, 2]] * 6 + [[1]])
        wants = [sorted((want.user_id, want.after_seq) for want in read) for read in self.store.reads]
        self.assertEqual(wants, [[("alice", 0), ("alice", 1), ("bob", 0)]])

    def test_a_user_who_has_nothing_new_is_not_read_for(self) -> None:
        self.join()
        self.wake()
        self.push("bob")
        self.wake()
        self.assertEqual(self.store.reads, [])

    def test_many_users_are_read_in_parts(self) -> None:
        names = [f"user-{number}" for number in range(250)]
        phones = [self.join(user_id=name) for name in names]
        for name in names:
            self.push(name)
        self.wake()
        self.assertEqual([phone.seen for phone in phones], [[1]] * 250)
        self.assertEqual([len(wants) for wants in self.store.reads], [100, 100, 50])

    # Types

    def test_types_filter_what_is_live_and_nothing_before(self) -> None:
        self.subscribe("deal.*")
        self.push(type_="task.due")
        phone = self.join()
        self.push(type_="task.due")
        self.push(type_="deal.won")
        self.wake()
        self.assertEqual(phone.seen, [1, 3])

    def test_a_subscription_holds_from_the_next_read_on(self) -> None:
        phone, other = self.join(), self.join()
        self.subscribe("deal.*")
        self.push(type_="task.due")
        self.push(type_="deal.won")
        self.wake()
        self.assertEqual((phone.seen, other.seen), ([2], [2]))

    def test_what_is_filtered_fills_no_window(self) -> None:
        self.subscribe("deal.*")
        phone = self.join(answers=False)
        self.push_many(5 * WINDOW, type_="task.due")
        self.push(type_="deal.won")
        self.wake()
        self.assertEqual(phone.on_wire, [5 * WINDOW + 1, b"%d" % (5 * WINDOW + 1)])

    # What goes wrong

    def test_what_cannot_be_sent_is_named_and_the_rest_flows(self) -> None:
        self.push()
        lost = self.push_too_large()
        self.push()
        phone = self.join()
        lost_live = self.push_too_large()
        self.push()
        self.wake()
        self.assertEqual(phone.seen, [1, 3, 5])
        self.assertEqual(
            phone.undeliverable,
            [Undeliverable(lost, 2, "too_large"), Undeliverable(lost_live, 4, "too_large")],
        )

    def test_a_client_that_cannot_be_given_anything_does_not_stop_the_others(self) -> None:
        phones = [self.join() for _ in range(3)]
        phones[1].broken = True
        self.push()
        self.wake()
        self.assertEqual([phone.seen for phone in phones], [[1], [], [1]])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_a_read_that_fails_is_made_good_by_the_next_wake_up(self) -> None:
        phones = [self.join(), self.join(user_id="bob")]
        self.push()
        self.push("bob")
        self.store.slow = True
        self.look()
        self.store.waiting.pop().errback(Unavailable("down"))
        self.store.slow = False
        self.assertEqual([phone.seen for phone in phones], [[], []])
        self.wake()
        self.assertEqual([phone.seen for phone in phones], [[1], [1]])

    def test_a_fault_while_it_reads_is_logged_and_made_good(self) -> None:
        phone = self.join()
        self.push()
        self.store.slow = True
        self.look()
        self.store.waiting.pop().errback(ZeroDivisionError())
        self.store.slow = False
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.wake()
        self.assertEqual(phone.seen, [1])

    def test_a_read_after_an_ack_that_fails_is_made_good(self) -> None:
        phone = self.join(answers=False)
        self.push_many(WINDOW + 1)
        self.wake()
        self.store.slow = True
        phone.ack(1)
        self.store.waiting.pop().errback(Unavailable("down"))
        self.store.slow = False
        self.assertEqual(len(phone.seen), WINDOW)
        self.wake()
        self.assertEqual(len(phone.seen), WINDOW + 1)

    def test_what_looks_old_after_a_crash_of_the_database_is_found(self) -> None:
        phone = self.join()
        self.wake()
        self.push()
        self.store.forgets = True
        self.wake()
        self.assertEqual(phone.seen, [])
        self.service.delivery.lost_track()
        self.store.down = True
        self.failureResultOf(self.look(), Unavailable)
        self.store.down = False
        self.wake()
        self.assertEqual(phone.seen, [1])
        reads = len(self.store.reads)
        self.wake()
        self.assertEqual(len(self.store.reads), reads)

    def test_a_backlog_that_fails_leaves_nothing_once_closed(self) -> None:
        phone = self.open()
        self.store.slow = True
        joining = phone.begin()
        self.store.waiting.pop().errback(Unavailable("down"))
        self.failureResultOf(joining, Unavailable)
        phone.close()
        self.assertEqual(self.service.delivery.readers("alice"), ())

    def test_a_look_that_is_given_up_is_made_good_by_the_next(self) -> None:
        phone = self.join()
        self.push()
        self.store.slow = True
        looking = self.look()
        looking.addErrback(lambda failure: failure.trap(CancelledError))
        looking.cancel()
        self.answer()
        self.wake()
        self.assertEqual(phone.seen, [1])

    def test_long_reads_for_one_do_not_keep_the_others_from_theirs(self) -> None:
        busy, other = self.join(), self.join(user_id="bob")
        self.push_many(10 * WINDOW)
        self.store.slow = True
        looking = self.look()
        self.push("bob")
        for _ in range(2):
            self.store.waiting.pop().callback(None)
        # Whoever looks does so again only when the look before has ended.
        self.successResultOf(looking)
        self.wake()
        for _ in range(2):
            self.store.waiting.pop().callback(None)
        self.assertEqual(other.seen, [1])
        self.assertLessEqual(len(busy.seen), 4 * WINDOW)
        self.answer()
        self.assertEqual(busy.seen, list(range(1, 10 * WINDOW + 1)))

    # Receipts and the stop

    def test_what_is_proved_is_written_down(self) -> None:
        acked, ponged, silent = (self.join(user_id=name, answers=False) for name in ("alice", "bob", "carol"))
        for phone in (acked, ponged, silent):
            self.push_many(2, phone.reader.user_id)
        self.wake()
        acked.ack(1)
        ponged.pong()
        self.clock.advance(WRITE_AFTER)
        self.successResultOf(Deferred.fromCoroutine(self.store.find_undelivered(-1, 10)))
        self.assertEqual(sorted(self.store.undelivered), [("alice", 2), ("carol", 1), ("carol", 2)])

    def test_an_ack_proves_what_came_another_way_too(self) -> None:
        self.push_many(2 * WINDOW)
        self.join(last_seq=None, answers=False).ack(2 * WINDOW)
        self.clock.advance(WRITE_AFTER)
        finding = self.store.find_undelivered(-1, 10)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(finding)), 0)

    def test_the_last_seq_of_a_join_proves_what_is_before(self) -> None:
        self.push_many(3)
        self.join(last_seq=2, answers=False)
        self.clock.advance(WRITE_AFTER)
        self.successResultOf(Deferred.fromCoroutine(self.store.find_undelivered(-1, 10)))
        self.assertEqual(self.store.undelivered, [("alice", 3)])

    def test_stop_waits_for_the_read_under_way_and_begins_no_other(self) -> None:
        phone: Phone = self.join()
        self.push_many(2 * WINDOW)
        self.store.slow = True
        self.look()
        stopping = self.service.stopService()
        self.assertNoResult(stopping)
        self.answer()
        self.successResultOf(stopping)
        self.assertEqual(len(phone.seen), WINDOW)
        self.assertEqual(len(self.store.reads), 1)
