"""Delivery under any order of events: each client gets what is for it, in order, once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from flowtx.inbox import Backlog, ReadMarks
from flowtx.notifications import reader as reader_module
from flowtx.notifications.delivery import MAX_BACKLOG
from tests.notifications.inbox import InboxTestCase, Phone

EVENTS = st.one_of(
    st.tuples(st.just("push"), st.integers(1, 90)),
    st.tuples(
        st.sampled_from(
            ["other", "look", "join", "join unread", "begin", "answer", "answer last", "pong", "ack"]
        ),
        st.integers(0, 3),
    ),
    st.tuples(st.sampled_from(["read", "read one", "close", "silent", "lively"]), st.integers(0, 200)),
)


class OrdersTests(InboxTestCase):
    def run_event(self, event: str, number: int) -> None:
        phone = self.begun[number % len(self.begun)] if self.begun else None
        match event:
            case "push":
                # No more than a join is given.
                for _ in range(min(number, MAX_BACKLOG - self.last_seq)):
                    self.push(type_="deal.won")
            case "other" if self.last_seq < MAX_BACKLOG:
                self.unwanted.add(self.push(type_="task.due"))
            case "look":
                self.wake()
            case "join" | "join unread":
                self.opened.append((self.open(), None if event == "join unread" else 0))
            case "begin" if self.opened:
                self.begin(*self.opened.pop(0))
            case "answer" if self.store.waiting:
                self.store.waiting.pop(0).callback(None)
            case "answer last" if self.store.waiting:
                self.store.waiting.pop().callback(None)
            case "pong" if phone is not None:
                phone.pong()
            case "ack" if phone is not None and phone.seen:
                phone.ack(phone.seen[-1 - number % len(phone.seen)])
            case "read":
                self.mark(ReadMarks(up_to_seq=number))
                self.read.update(range(1, min(number, self.last_seq) + 1))
            case "read one" if self.last_seq:
                seq = number % self.last_seq + 1
                self.mark(ReadMarks(ids=(self.store._inbox("alice").rows[seq].entry.id,)))
                self.read.add(seq)
            case "close" if phone is not None:
                phone.close()
                self.begun.remove(phone)
            case "silent" | "lively" if phone is not None:
                phone.answers = event == "lively"

    @property
    def last_seq(self) -> int:
        return self.store._inbox("alice").last_seq

    def begin(self, phone: Phone, last_seq: int | None) -> None:
        self.begun.append(phone)
        read = frozenset(self.read)

        def note(backlog: Backlog) -> None:
            # It may have been read later: one read of backlogs is under way at a time.
            self.known[phone] = (last_seq is None, backlog.last_seq, read)

        phone.begin(last_seq).addCallback(note)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(EVENTS, max_size=50))
    def test_each_reader_gets_all_that_is_for_it_in_order_and_once(
        self, events: list[tuple[str, int]]
    ) -> None:
        self.setUp()
        self.read: set[int] = set()
        self.unwanted: set[int] = set()
        self.opened: list[tuple[Phone, int | None]] = []
        self.begun: list[Phone] = []
        self.known: dict[Phone, tuple[bool, int, frozenset[int]]] = {}
        subscribing = self.service.subscribe_to_notifications("alice", ["deal.*"])
        self.successResultOf(Deferred.fromCoroutine(subscribing))
        self.store.slow = True
        for event, number in events:
            self.run_event(event, number)
            for phone in self.begun:
                self.assertLessEqual(len(phone.pings), 1)
                self.assertLessEqual(phone.reader.in_flight, reader_module.WINDOW)
        for phone, last_seq in self.opened:
            self.begin(phone, last_seq)
        self.answer()
        self.wake()
        for phone in self.begun:
            phone.answers = True
            phone.pong()
        for phone in self.begun:
            unread_only, last_then, read_then = self.known[phone]
            backlog, live = set(range(1, last_then + 1)), set(range(last_then + 1, self.last_seq + 1))
            may = must = backlog | live - self.unwanted
            if unread_only:
                # What was read while its backlog was on its way need not come any more.
                may, must = may - read_then, may - (self.read & backlog)
            self.assertEqual(phone.seen, sorted(set(phone.seen)))
            self.assertEqual((set(phone.seen) - may, must - set(phone.seen)), (set(), set()))
            self.assertEqual(phone.reader._bytes, 0)
            phone.close()
        self.assertEqual(self.service.delivery._readers, {})
