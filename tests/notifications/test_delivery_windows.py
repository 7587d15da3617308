"""Delivery to clients that are slow, and to those that have much to catch up on."""

from __future__ import annotations

import msgspec
from twisted.internet.defer import Deferred

from flowtx.errors import InvalidPayload
from flowtx.inbox import ReadMarks
from flowtx.notifications.reader import WINDOW
from tests.notifications.inbox import InboxTestCase

LARGE = msgspec.Raw(b'"' + b"x" * 60_000 + b'"')


class WindowTests(InboxTestCase):
    def test_a_silent_client_gets_a_window_and_the_others_all(self) -> None:
        silent, lively = self.join(answers=False), self.join()
        self.push_many(3 * WINDOW)
        self.wake()
        self.assertEqual(silent.seen, list(range(1, WINDOW + 1)))
        self.assertEqual(lively.seen, list(range(1, 3 * WINDOW + 1)))
        reads = len(self.store.reads)
        self.push()
        self.wake()
        self.assertEqual((len(silent.seen), lively.seen[-1]), (WINDOW, 3 * WINDOW + 1))
        self.assertEqual(len(self.store.reads), reads + 1)

    def test_ack_and_pong_open_the_window(self) -> None:
        phone = self.join(answers=False)
        self.push_many(3 * WINDOW)
        self.wake()
        phone.ack(10)
        self.assertEqual(phone.seen, list(range(1, WINDOW + 11)))
        phone.ack(10)
        self.assertEqual(len(phone.seen), WINDOW + 10)
        [ping] = phone.pings
        self.assertEqual(ping, b"%d" % WINDOW)
        phone.answers = True
        phone.pong()
        self.assertEqual(phone.seen, list(range(1, 3 * WINDOW + 1)))
        self.assertEqual(phone.on_wire[-1], b"%d" % (3 * WINDOW))

    def test_a_window_is_bounded_in_bytes(self) -> None:
        phone = self.join(answers=False)
        for _ in range(9):
            self.push(payload=LARGE)
        self.wake()
        self.assertEqual(phone.seen, [1, 2, 3, 4, 5])
        phone.ack(1)
        self.assertEqual(phone.seen, [1, 2, 3, 4, 5, 6])
        phone.ack(6)
        self.assertEqual(phone.seen, list(range(1, 10)))

    def test_a_long_row_of_live_ones_is_read_in_parts(self) -> None:
        phone = self.join()
        self.push_many(450)
        self.wake()
        self.assertEqual(phone.seen, list(range(1, 451)))

    def test_pongs_that_answer_nothing_have_no_effect(self) -> None:
        phone = self.join(answers=False)
        self.push_many(2 * WINDOW)
        self.wake()
        garbage = [b"", b"x", b"-64", b"+64", b"64.0", b" 64", b"\xd9\xa3", b"0", b"63", b"65", b"9" * 19]
        for payload in (*garbage, b"9" * 125, b"6\x004"):
            self.service.delivery.ponged(phone.reader, payload)
        self.assertEqual(len(phone.seen), WINDOW)
        phone.pong()
        self.assertEqual(len(phone.seen), 2 * WINDOW)

    def test_no_ack_beyond_the_latest(self) -> None:
        phone = self.join(answers=False)
        self.assertRaises(InvalidPayload, phone.ack, 1)
        self.push_many(2)
        self.wake()
        with self.assertRaises(InvalidPayload) as refused:
            phone.ack(3)
        self.assertEqual(refused.exception.detail, "seq: got 3; the latest is 2")
        phone.ack(2)
        phone.ack(2)
        phone.ack(0)

    def test_what_another_connection_was_given_may_be_acknowledged(self) -> None:
        slow, quick = self.join(answers=False), self.join()
        self.push_many(2 * WINDOW)
        self.wake()
        self.assertEqual((len(slow.seen), len(quick.seen)), (WINDOW, 2 * WINDOW))
        slow.ack(2 * WINDOW)
        self.assertEqual(slow.seen, list(range(1, 2 * WINDOW + 1)))

    def test_the_last_seq_that_a_join_was_told_may_be_acknowledged(self) -> None:
        self.push_many(2 * WINDOW)
        phone = self.join(last_seq=None, answers=False)
        phone.ack(2 * WINDOW)
        self.assertRaises(InvalidPayload, phone.ack, 2 * WINDOW + 1)
        self.assertEqual(phone.seen, list(range(1, 2 * WINDOW + 1)))

    def test_after_it_has_closed_a_client_proves_without_harm(self) -> None:
        phone = self.join(answers=False)
        self.push_many(2 * WINDOW)
        self.wake()
        phone.close()
        reads = len(self.store.reads)
        phone.ack(WINDOW)
        phone.pong()
        self.assertEqual((len(phone.seen), len(self.store.reads)), (WINDOW, reads))

    # The backlog

    def test_a_long_backlog_comes_with_the_acks(self) -> None:
        self.push_many(3 * WINDOW)
        phone = self.join(last_seq=1, answers=False)
        for last in (WINDOW + 1, 2 * WINDOW + 1, 3 * WINDOW):
            self.assertEqual(phone.seen, list(range(2, last + 1)))
            phone.ack(last)
        self.push()
        self.wake()
        self.assertEqual(phone.seen, list(range(2, 3 * WINDOW + 2)))

    def test_unread_ones_among_many_read_ones(self) -> None:
        ids = []
        for _ in range(500):
            pushing = self.service.push_notification("alice", "t", None)
            ids.append(self.successResultOf(Deferred.fromCoroutine(pushing)).id)
        unread = [seq for seq in range(1, 501) if seq % 3 == 0]
        self.mark(ReadMarks(ids=tuple(id_ for seq, id_ in enumerate(ids, 1) if seq % 3)))
        phone = self.join(last_seq=None, answers=False)
        self.assertEqual(phone.seen, unread[:WINDOW])
        self.push_many(2)
        self.wake()
        self.mark(ReadMarks(ids=(ids[unread[100] - 1],)))
        phone.answers = True
        phone.pong()
        del unread[100]
        self.assertEqual(phone.seen, [*unread, 501, 502])
        self.push()
        self.wake()
        self.assertEqual(phone.seen, [*unread, 501, 502, 503])

    def test_what_was_read_before_the_join_does_not_come_later(self) -> None:
        self.push_many(WINDOW + 3)
        self.mark(ReadMarks(up_to_seq=1))
        phone = self.join(last_seq=None, answers=False)
        self.assertEqual(phone.seen, list(range(2, WINDOW + 2)))
        self.mark(ReadMarks(up_to_seq=WINDOW + 3))
        phone.answers = True
        phone.pong()
        self.assertEqual(phone.seen, list(range(2, WINDOW + 2)))
        self.push()
        self.wake()
        self.assertEqual(phone.seen[-1], WINDOW + 4)

    def test_what_was_read_after_the_last_unread_one_does_not_come_later(self) -> None:
        self.push_many(3)
        rows = self.store._inbox("alice").rows
        self.mark(ReadMarks(ids=(rows[2].entry.id, rows[3].entry.id)))
        phone = self.join(last_seq=None)
        self.push()
        self.wake()
        self.assertEqual(phone.seen, [1, 4])

    def test_a_seq_of_the_future_gets_what_is_live(self) -> None:
        self.push()
        phone = self.join(last_seq=99)
        self.push()
        self.wake()
        self.assertEqual(phone.seen, [2])
