"""One client's window: what is on its way to it, and what proves that it has come."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from flowtx.inbox import Notification, Page, Undeliverable, Want
from flowtx.notifications.reader import WINDOW, WINDOW_BYTES, Reader


class Wire:
    """A client that notes all that comes, in order: seqs, and the payloads of Pings."""

    def __init__(self) -> None:
        self.came: list[int | bytes] = []

    def deliver(self, entries: Sequence[Notification | Undeliverable]) -> None:
        self.came.extend(entry.seq for entry in entries)

    def ping(self, payload: bytes) -> None:
        self.came.append(payload)

    def take(self) -> list[int | bytes]:
        came, self.came = self.came, []
        return came


def one(seq: int, type_: str = "t", size: int = 2) -> Notification:
    payload = msgspec.Raw(b'"' + b"x" * (size - 2) + b'"')
    return Notification(f"id-{seq}", seq, type_, payload, "2026-01-01T00:00:00.000000Z", None)


def page(*entries: Notification | Undeliverable, more: bool = False, types: tuple[str, ...] = ()) -> Page:
    return Page(entries, more, types)


class ReaderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.wire = Wire()
        self.reader = Reader("alice", self.wire)
        self.reader.begin(0, 0, None)

    def give(self, *seqs: int) -> int:
        return self.reader.take(page(*map(one, seqs)))

    def test_a_ping_follows_with_the_last_seq(self) -> None:
        self.assertEqual(self.give(1, 2, 3), 3)
        self.assertEqual(self.wire.take(), [1, 2, 3, b"3"])
        self.assertEqual(self.reader.cursor, 3)

    def test_one_ping_at_a_time(self) -> None:
        self.give(1)
        self.give(2)
        self.give(3)
        self.assertEqual(self.wire.take(), [1, b"1", 2, 3])
        self.assertEqual(self.reader.ponged(1), [1])
        self.assertEqual(self.wire.take(), [b"3"])
        self.assertEqual(self.reader.ponged(3), [2, 3])
        self.assertEqual(self.wire.take(), [])
        self.give(4)
        self.assertEqual(self.wire.take(), [4, b"4"])

    def test_a_pong_that_answers_no_ping_has_no_effect(self) -> None:
        self.assertEqual(self.reader.ponged(0), [])
        self.assertEqual(self.reader.ponged(1), [])
        self.give(1, 2)
        self.give(3)
        for seq in (0, 1, 3, 4, 10**18):
            self.assertEqual(self.reader.ponged(seq), [], seq)
        self.assertEqual(self.wire.take(), [1, 2, b"2", 3])
        self.assertEqual(self.reader.ponged(2), [1, 2])
        self.assertEqual(self.reader.ponged(2), [])

    def test_an_ack_is_news_once(self) -> None:
        self.give(1, 2, 3)
        self.assertEqual(self.reader.received(2), [1, 2])
        self.assertEqual(self.reader.received(2), [])
        self.assertEqual(self.reader.received(0), [])
        self.assertEqual(self.reader.received(99), [3])
        self.assertEqual(self.reader.received(3), [])

    def test_after_an_ack_the_ping_is_still_waited_for(self) -> None:
        self.give(1)
        self.reader.received(1)
        self.give(2)
        self.assertEqual(self.wire.take(), [1, b"1", 2])
        self.assertEqual(self.reader.ponged(1), [])
        self.assertEqual(self.wire.take(), [b"2"])

    def test_what_it_was_given_is_not_given_again(self) -> None:
        self.give(1, 2)
        self.assertEqual(self.give(1, 2, 3), 1)
        self.assertEqual([came for came in self.wire.take() if isinstance(came, int)], [1, 2, 3])

    def test_nothing_is_given_before_its_place_is_known(self) -> None:
        reader = Reader("alice", self.wire)
        self.assertEqual(reader.take(page(one(1))), 0)
        self.assertEqual((self.wire.take(), reader.cursor), ([], None))

    # The window

    def test_no_more_than_the_window_is_on_its_way(self) -> None:
        for seq in range(1, WINDOW + 1):
            self.assertTrue(self.reader.has_room)
            self.give(seq)
        self.assertFalse(self.reader.has_room)
        self.assertEqual(self.give(WINDOW + 1), 0)
        self.assertEqual((self.reader.cursor, self.reader.behind), (WINDOW, True))
        self.reader.received(1)
        self.assertTrue(self.reader.has_room)
        self.assertEqual(self.give(WINDOW + 1, WINDOW + 2), 1)
        self.assertEqual(self.reader.cursor, WINDOW + 1)

    def test_no_more_bytes_than_the_window_are_on_their_way(self) -> None:
        size = WINDOW_BYTES // 4
        entries = [one(seq, size=size) for seq in range(1, 7)]
        self.assertEqual(self.reader.take(page(*entries)), 4)
        self.assertEqual((self.reader.cursor, self.reader.behind, self.reader.has_room), (4, True, False))
        self.reader.received(2)
        self.assertEqual(self.reader.take(page(*entries[4:])), 2)
        self.reader.received(6)
        self.assertEqual(self.reader.take(page(one(7, size=WINDOW_BYTES - 1), one(8), one(9))), 2)

    def test_a_large_one_goes_alone(self) -> None:
        self.assertEqual(self.reader.take(page(one(1, size=WINDOW_BYTES * 2), one(2))), 1)
        self.reader.received(1)
        self.assertTrue(self.reader.has_room)

    def test_what_cannot_be_sent_costs_no_window(self) -> None:
        lost = [Undeliverable(f"id-{seq}", seq, "too_large") for seq in range(1, 2 * WINDOW + 1)]
        self.assertEqual(self.reader.take(page(*lost)), 2 * WINDOW)
        self.assertEqual((self.reader.cursor, self.reader.has_room), (2 * WINDOW, True))
        # Nothing is to be proved, so nothing is asked.
        self.assertEqual(self.wire.take(), list(range(1, 2 * WINDOW + 1)))
        self.reader.take(page(one(200), Undeliverable("id-201", 201, "too_large")))
        self.assertEqual(self.wire.take(), [200, 201, b"201"])
        self.assertEqual(self.reader.ponged(201), [200])

    # Types

    def test_types_filter_what_is_live(self) -> None:
        reader = Reader("alice", self.wire)
        reader.begin(0, 2, None)
        deal, task = "deal.won", "task.due"
        entries = [one(1, task), one(2, task), one(3, task), one(4, deal), one(5, task)]
        self.assertEqual(reader.take(page(*entries, types=("deal.*",))), 3)
        self.assertEqual(self.wire.take(), [1, 2, 4, b"4"])
        self.assertEqual(reader.cursor, 5)
        self.assertEqual(reader.received(5), [1, 2, 4])

    def test_what_is_filtered_costs_no_window(self) -> None:
        unwanted = [one(seq, "task.due", WINDOW_BYTES) for seq in range(1, 3 * WINDOW + 1)]
        self.assertEqual(self.reader.take(page(*unwanted, types=("deal.*",))), 0)
        self.assertEqual((self.reader.cursor, self.reader.has_room), (3 * WINDOW, True))
        self.assertEqual((self.wire.take(), self.reader.behind), ([], False))

    def test_without_room_what_is_filtered_still_moves_the_cursor(self) -> None:
        self.give(*range(1, WINDOW + 1))
        unwanted, wanted = one(WINDOW + 1, "task.due"), one(WINDOW + 2, "deal.won")
        self.assertEqual(self.reader.take(page(unwanted, wanted, types=("deal.*",))), 0)
        self.assertEqual((self.reader.cursor, self.reader.behind), (WINDOW + 1, True))

    def test_what_cannot_be_sent_has_no_type_to_filter(self) -> None:
        self.assertEqual(self.reader.take(page(Undeliverable("id", 1, "too_large"), types=("deal.*",))), 1)

    # Its place

    def test_a_page_with_more_leaves_it_behind(self) -> None:
        self.reader.take(page(one(1), more=True))
        self.assertTrue(self.reader.behind)
        self.assertEqual(self.reader.want, Want("alice", 1))

    def test_after_the_unread_ones_all_is_for_it(self) -> None:
        reader = Reader("alice", self.wire)
        reader.begin(4, 100, 100)
        reader.take(page(one(5), one(50), more=True))
        self.assertEqual(reader.want, Want("alice", 50, unread_up_to=100))
        reader.behind = False
        reader.take(page(one(60)))
        self.assertEqual((reader.want, reader.behind), (Want("alice", 100), True))

    def test_at_the_end_of_its_backlog_it_is_at_what_is_live(self) -> None:
        for given, place in ((range(1, 4), 9), (range(1, 2 * WINDOW), WINDOW)):
            reader = Reader("alice", self.wire)
            reader.begin(0, 9 if place == 9 else 3 * WINDOW, None)
            reader.take(page(*map(one, given)))
            self.assertEqual(reader.cursor, place)

    def test_unread_ones_that_had_no_room_are_asked_for_again(self) -> None:
        reader = Reader("alice", self.wire)
        reader.begin(0, 100, 100)
        reader.take(page(*map(one, range(1, 2 * WINDOW))))
        self.assertEqual((reader.want, reader.behind), (Want("alice", WINDOW, unread_up_to=100), True))
