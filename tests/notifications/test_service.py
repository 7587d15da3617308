"""Delivery: no gap between backlog and live, nothing twice, whatever comes in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import InvalidPayload, Unavailable
from flowtx.interfaces import Notification, ReadMarks
from flowtx.notifications.service import NotificationService, Reader
from flowtx.protocol.message import Broadcast
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.storage.memory import MemoryNotificationStore


class SlowStore(MemoryNotificationStore):
    """Reads at once, answers when it is told to: the answer is as old as the question."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.waiting: list[Deferred[None]] = []

    async def after(self, cursors: Mapping[str, int], limit: int) -> Mapping[str, Sequence[Notification]]:
        found = await super().after(cursors, limit)
        if self.slow:
            gate: Deferred[None] = Deferred()
            self.waiting.append(gate)
            await gate
        return found


class Ear:
    """Hears broadcasts."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, object]] = []

    def deliver(self, broadcast: Broadcast) -> None:
        self.heard.append((broadcast.topic, broadcast.event, broadcast.payload))


class NotificationServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.store = SlowStore()
        self.pubsub = MemoryPubSub()
        self.service = NotificationService(self.store, self.pubsub)
        self.service.startService()
        self.wake()

    def push(self, user_id: str = "alice") -> int:
        pushed = self.service.push_notification(user_id, "t", {})
        return self.successResultOf(Deferred.fromCoroutine(pushed)).seq

    def wake(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.service.wake()))

    def join(self, last_seq: int = 0, user_id: str = "alice") -> tuple[list[int], Reader]:
        """Do as a channel does: open, read the backlog, begin."""
        seen, reader = self.open(user_id)
        self.begin(seen, reader, last_seq, user_id)
        return seen, reader

    def open(self, user_id: str = "alice") -> tuple[list[int], Reader]:
        seen: list[int] = []
        reader = self.service.open(user_id, lambda entries: seen.extend(entry.seq for entry in entries))
        return seen, reader

    def begin(self, seen: list[int], reader: Reader, last_seq: int = 0, user_id: str = "alice") -> None:
        backlog = self.successResultOf(Deferred.fromCoroutine(self.service.backlog(user_id, last_seq)))
        seen.extend(entry.seq for entry in backlog.notifications)
        self.service.begin(user_id, reader, backlog.last_seq)

    def test_live_follows_the_backlog(self) -> None:
        self.push()
        seen, _ = self.join()
        self.push()
        self.wake()
        self.assertEqual(seen, [1, 2])

    def test_each_connection_gets_each_once(self) -> None:
        first, _ = self.join()
        self.push()
        self.wake()
        second, _ = self.join()
        self.push()
        self.wake()
        self.wake()
        self.assertEqual((first, second), ([1, 2], [1, 2]))

    def test_others_get_nothing(self) -> None:
        seen, _ = self.join(user_id="bob")
        self.push("alice")
        self.wake()
        self.assertEqual(seen, [])

    def test_a_closed_reader_gets_nothing(self) -> None:
        seen, reader = self.join()
        reader.close()
        reader.close()
        self.push()
        self.wake()
        self.assertEqual(seen, [])

    def test_what_commits_between_backlog_and_begin_is_not_lost(self) -> None:
        seen, reader = self.open()
        backlog = self.successResultOf(Deferred.fromCoroutine(self.service.backlog("alice", 0)))
        self.push()
        self.wake()
        self.assertEqual(seen, [])
        self.service.begin("alice", reader, backlog.last_seq)
        self.assertEqual(seen, [1])

    def test_a_look_that_began_before_a_join_does_not_hide_what_lies_between(self) -> None:
        early, _ = self.join()
        late, reader = self.open()
        backlog = self.successResultOf(Deferred.fromCoroutine(self.service.backlog("alice", 0)))
        self.push()
        self.wake()
        self.push()
        self.store.slow = True
        looking = Deferred.fromCoroutine(self.service.wake())
        self.service.begin("alice", reader, backlog.last_seq)
        self.store.slow = False
        while self.store.waiting:
            self.store.waiting.pop(0).callback(None)
        self.successResultOf(looking)
        self.assertEqual((early, late), ([1, 2], [1, 2]))

    def test_a_long_backlog_of_live_ones_is_read_in_parts(self) -> None:
        seen, _ = self.join()
        for _ in range(450):
            self.push()
        self.wake()
        self.assertEqual(seen, list(range(1, 451)))

    def test_many_users_are_read_in_parts(self) -> None:
        names = [f"user-{number}" for number in range(250)]
        joined = [self.join(user_id=name)[0] for name in names]
        for name in names:
            self.push(name)
        self.wake()
        self.assertEqual(joined, [[1]] * 250)

    def test_a_read_that_fails_is_made_good_by_the_next(self) -> None:
        seen, _ = self.join()
        self.push()
        self.store.slow = True
        failing = Deferred.fromCoroutine(self.service.wake())
        self.store.waiting.pop().errback(Unavailable("down"))
        self.failureResultOf(failing, Unavailable)
        self.store.slow = False
        self.wake()
        self.assertEqual(seen, [1])

    def test_a_catch_up_that_fails_is_made_good_by_the_next_look(self) -> None:
        seen, reader = self.open()
        backlog = self.successResultOf(Deferred.fromCoroutine(self.service.backlog("alice", 0)))
        self.push()
        self.wake()
        self.store.slow = True
        self.service.begin("alice", reader, backlog.last_seq)
        self.store.waiting.pop().errback(Unavailable("down"))
        self.store.slow = False
        self.wake()
        self.assertEqual(seen, [1])

    def test_stop_waits_for_reads(self) -> None:
        _, reader = self.open()
        backlog = self.successResultOf(Deferred.fromCoroutine(self.service.backlog("alice", 0)))
        self.push()
        self.wake()
        self.store.slow = True
        self.service.begin("alice", reader, backlog.last_seq)
        stopping = self.service.stopService()
        self.assertNoResult(stopping)
        self.store.waiting.pop().callback(None)
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
    @given(st.lists(st.sampled_from(["push", "look", "open", "begin", "answer", "close"]), max_size=40))
    def test_any_order_of_events_gives_each_reader_everything_in_order(self, events: list[str]) -> None:
        self.setUp()
        readers: list[tuple[list[int], Reader]] = []
        opened: list[tuple[list[int], Reader, int]] = []
        looks: list[Deferred[None]] = []
        self.store.slow = True
        for event in events:
            if event == "push":
                self.push()
            elif event == "look" and all(look.called for look in looks):
                looks.append(Deferred.fromCoroutine(self.service.wake()))
            elif event == "open":
                seen, reader = self.open()
                backlog = self.successResultOf(Deferred.fromCoroutine(self.service.backlog("alice", 0)))
                seen.extend(entry.seq for entry in backlog.notifications)
                opened.append((seen, reader, backlog.last_seq))
            elif event == "begin" and opened:
                seen, reader, last_seq = opened.pop(0)
                self.service.begin("alice", reader, last_seq)
                readers.append((seen, reader))
            elif event == "answer" and self.store.waiting:
                self.store.waiting.pop().callback(None)
            elif event == "close" and readers:
                readers.pop(0)[1].close()
        for seen, reader, last_seq in opened:
            self.service.begin("alice", reader, last_seq)
            readers.append((seen, reader))
        self.store.slow = False
        while self.store.waiting:
            self.store.waiting.pop(0).callback(None)
        self.wake()
        expected = list(range(1, self.push()))
        for seen, _ in readers:
            self.assertEqual(seen, expected)
