"""Delivery: no gap between backlog and live, nothing twice, whatever comes in between."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import InvalidPayload, Unavailable
from flowtx.inbox import Backlog, Notification, Page, ReadMarks, Undeliverable, Want
from flowtx.notifications.service import NotificationService
from flowtx.protocol.message import Broadcast
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.storage.memory_inboxes import MemoryNotificationStore


class SlowStore(MemoryNotificationStore):
    """Reads at once, answers when it is told to: the answer is as old as the question."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.waiting: list[Deferred[None]] = []

    async def pages(self, wants: Sequence[Want], page_size: int) -> Sequence[Page]:
        found = await super().pages(wants, page_size)
        await self._answer()
        return found

    async def backlog(self, user_id: str, after_seq: int | None, limit: int, page_size: int) -> Backlog:
        found = await super().backlog(user_id, after_seq, limit, page_size)
        await self._answer()
        return found

    async def _answer(self) -> None:
        if self.slow:
            gate: Deferred[None] = Deferred()
            self.waiting.append(gate)
            await gate


class Phone:
    """A client: notes what it is given, and answers Pings at once or when it is told to."""

    def __init__(self, service: NotificationService, user_id: str) -> None:
        self.seen: list[int] = []
        self.undeliverable: list[int] = []
        self.pings: list[bytes] = []
        self.answers = True
        self.delivery = service.delivery
        self.reader = self.delivery.open(user_id, self)

    def deliver(self, entries: Sequence[Notification | Undeliverable]) -> None:
        for entry in entries:
            (self.seen if isinstance(entry, Notification) else self.undeliverable).append(entry.seq)

    def ping(self, payload: bytes) -> None:
        self.pings.append(payload)
        if self.answers:
            self.pong()

    def pong(self) -> None:
        while self.pings:
            self.delivery.ponged(self.reader, self.pings.pop(0))

    def begin(self, last_seq: int | None = 0) -> Deferred[Backlog]:
        return Deferred.fromCoroutine(self.delivery.begin(self.reader, last_seq))

    def close(self) -> None:
        self.delivery.close(self.reader)


class Ear:
    """Hears broadcasts."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, object]] = []

    def deliver(self, broadcast: Broadcast) -> None:
        self.heard.append((broadcast.topic, broadcast.event, broadcast.payload))


class NotificationServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = SlowStore()
        self.pubsub = MemoryPubSub()
        self.service = NotificationService(self.store, self.pubsub, clock=self.clock)
        self.service.startService()
        self.wake()

    def push(self, user_id: str = "alice") -> int:
        pushed = self.service.push_notification(user_id, "t", {})
        return self.successResultOf(Deferred.fromCoroutine(pushed)).seq

    def wake(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.service.wake()))

    def open(self, user_id: str = "alice") -> Phone:
        return Phone(self.service, user_id)

    def join(self, last_seq: int | None = 0, user_id: str = "alice") -> Phone:
        phone = self.open(user_id)
        self.successResultOf(phone.begin(last_seq))
        return phone

    def answer(self) -> None:
        self.store.slow = False
        while self.store.waiting:
            self.store.waiting.pop(0).callback(None)

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
        self.assertEqual(phone.seen, [])

    def test_a_closed_reader_gets_nothing(self) -> None:
        phone = self.join()
        phone.close()
        phone.close()
        self.push()
        self.wake()
        self.assertEqual(phone.seen, [])

    def test_what_commits_between_backlog_and_begin_is_not_lost(self) -> None:
        phone = self.open()
        self.store.slow = True
        phone.begin()
        self.push()
        self.wake()
        self.assertEqual(phone.seen, [])
        self.answer()
        self.assertEqual(phone.seen, [1])

    def test_a_long_backlog_of_live_ones_is_read_in_parts(self) -> None:
        phone = self.join()
        for _ in range(450):
            self.push()
        self.wake()
        self.assertEqual(phone.seen, list(range(1, 451)))

    def test_many_users_are_read_in_parts(self) -> None:
        names = [f"user-{number}" for number in range(250)]
        phones = [self.join(user_id=name) for name in names]
        for name in names:
            self.push(name)
        self.wake()
        self.assertEqual([phone.seen for phone in phones], [[1]] * 250)

    def test_a_read_that_fails_is_made_good_by_the_next(self) -> None:
        phone = self.join()
        self.push()
        self.store.slow = True
        failing = Deferred.fromCoroutine(self.service.wake())
        self.store.waiting.pop().errback(Unavailable("down"))
        self.failureResultOf(failing, Unavailable)
        self.store.slow = False
        self.wake()
        self.assertEqual(phone.seen, [1])

    def test_stop_waits_for_reads(self) -> None:
        self.join()
        self.push()
        self.store.slow = True
        waking = Deferred.fromCoroutine(self.service.wake())
        stopping = self.service.stopService()
        self.assertNoResult(stopping)
        self.answer()
        self.successResultOf(waking)
        self.successResultOf(stopping)

    def test_reading_is_told_to_the_others(self) -> None:
        ear, own = Ear(), Ear()
        self.pubsub.subscribe("user:alice", ear)
        self.pubsub.subscribe("user:alice", own)
        for _ in range(3):
            self.push()
        for marks, told in (
            (ReadMarks(ids=("00000000-0000-4000-8000-000000000000",)), {"unread": 3}),
            (ReadMarks(up_to_seq=1), {"unread": 2, "up_to_seq": 1}),
            (ReadMarks(all=True), {"unread": 0, "all": True}),
        ):
            if marks.ids is not None:
                told["ids"] = marks.ids  # type: ignore[assignment]
            marking = self.service.mark_notifications_read("alice", marks, own)
            self.assertEqual(self.successResultOf(Deferred.fromCoroutine(marking)), told["unread"])
            self.assertEqual(ear.heard.pop(), ("user:alice", "notifications_read", told))
        self.assertEqual(own.heard, [])

    def test_what_cannot_be_stored_is_refused_with_its_name(self) -> None:
        users: list[str] = ["alice"]
        for user_ids, payload, named in (
            (users, object(), "payload"),
            (users, {"a": "\0"}, "payload"),
            (users, {"a\0": 1}, "payload"),
            (users, {"a": "\\\0"}, "payload"),
            (users, "\ud800", "payload"),
            (users, "x" * 65_535, "payload"),
            ([], {}, "user_ids"),
            (["u"] * 10_001, {}, "user_ids"),
        ):
            pushing = Deferred.fromCoroutine(self.service.push_notifications(user_ids, "t", payload))
            problem = self.failureResultOf(pushing, InvalidPayload).value
            self.assertTrue(problem.detail.startswith(f"{named}: "), problem.detail)
        self.assertEqual(self.push(), 1)

    def test_a_backslash_before_u0000_is_no_nul(self) -> None:
        pushing = Deferred.fromCoroutine(self.service.push_notification("alice", "t", {"a": "\\u0000"}))
        self.assertEqual(self.successResultOf(pushing).seq, 1)

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.sampled_from(["push", "look", "open", "silent", "begin", "answer", "pong", "close"]),
            max_size=40,
        )
    )
    def test_any_order_of_events_gives_each_reader_everything_in_order(self, events: list[str]) -> None:
        self.setUp()
        phones: list[Phone] = []
        opened: list[Phone] = []
        looks: list[Deferred[None]] = []
        self.store.slow = True
        for event in events:
            if event == "push":
                self.push()
            elif event == "look" and all(look.called for look in looks):
                looks.append(Deferred.fromCoroutine(self.service.wake()))
            elif event in ("open", "silent"):
                opened.append(self.open())
                opened[-1].answers = event == "open"
            elif event == "begin" and opened:
                phones.append(opened.pop(0))
                phones[-1].begin()
            elif event == "answer" and self.store.waiting:
                self.store.waiting.pop().callback(None)
            elif event == "pong" and phones:
                phones[0].pong()
            elif event == "close" and phones:
                phones.pop(0).close()
        for phone in opened:
            phones.append(phone)
            phone.begin()
        self.answer()
        self.wake()
        expected = list(range(1, self.push()))
        for phone in phones:
            self.assertEqual(phone.seen, expected)
