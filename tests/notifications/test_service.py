"""The service of notifications, as the backend and the application see it."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from flowtx.errors import Conflict, InvalidPayload, Unavailable
from flowtx.inbox import Listed, Push, ReadMarks
from flowtx.notifications.reader import WINDOW
from flowtx.protocol.message import Broadcast
from tests.notifications.inbox import InboxTestCase


class Ear:
    """Hears broadcasts."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, object]] = []

    def deliver(self, broadcast: Broadcast) -> None:
        self.heard.append((broadcast.topic, broadcast.event, broadcast.payload))


class NotificationServiceTests(InboxTestCase):
    def ask(self, question: Coroutine[Deferred[Any], Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(question))

    def refused(self, question: Coroutine[Deferred[Any], Any, Any], named: str) -> str:
        problem = self.failureResultOf(Deferred.fromCoroutine(question), InvalidPayload).value
        self.assertTrue(problem.detail.startswith(f"{named}: "), problem.detail)
        self.assertLess(len(problem.detail), 1_000)
        return str(problem.detail)

    def listed(self, user_id: str = "alice") -> Listed:
        listed = self.ask(self.service.list_notifications(user_id))
        assert isinstance(listed, Listed)
        return listed

    def metric(self, name: str) -> float | None:
        return self.service._metrics.registry.get_sample_value(name)

    # Pushing

    def test_a_push_to_several_users(self) -> None:
        self.push("bob")
        pushed = self.ask(self.service.push_notifications(["bob", "alice", "bob"], "t", None))
        self.assertEqual([(one.user_id, one.seq) for one in pushed], [("bob", 2), ("alice", 1)])
        self.assertEqual([entry.id for entry in self.listed().notifications], [pushed[1].id])
        self.assertEqual(self.metric("flowtx_notifications_pushed_total"), 3)

    def test_what_cannot_be_stored_is_refused_with_its_name(self) -> None:
        good: dict[str, Any] = {"user_ids": ["alice"], "type_": "t", "payload": {}}
        deep: object = 0
        for _ in range(33):
            deep = [deep]
        endless: list[object] = []
        endless.append(endless)
        cases: list[tuple[str, str, list[object]]] = [
            ("user_ids", "user_ids", [[], ["u"] * 10_001]),
            ("user_ids", "user_id", [["x", bad] for bad in ("", "a b", "a\n", "ż", "a" * 129, "\0", "../x")]),
            ("type_", "type", ["", "a" * 129, "a\0", "a\nb", "\x7f", "\ud800"]),
            ("idempotency_key", "idempotency_key", ["", "a" * 256, "a\0", "\r\n", "\udfff"]),
            ("collapse_key", "collapse_key", ["", "a" * 129, "a\0", "\t", "\ud800"]),
            (
                "payload",
                "payload",
                [
                    object(),
                    {"a": "\0"},
                    {"a\0": 1},
                    {"a": "\\\0"},
                    "\ud800",
                    {"\ud800": 1},
                    "x" * 65_535,
                    deep,
                ],
            ),
            ("payload", "payload", [float("nan"), {"a": [float("inf")]}, {"a": (1, {"b": -float("inf")})}]),
            ("payload", "payload", [endless, {(1, 2): 3}, b"\xff" * 65_536]),
            (
                "payload",
                "payload",
                [msgspec.Raw(text) for text in (b"", b"{", b"1 2", b"\xff", b'"\\u0000"', b"NaN", b"1e999")],
            ),
            (
                "expires_at",
                "expires_at",
                [
                    datetime(2040, 1, 1),
                    datetime(2020, 1, 1, tzinfo=UTC),
                    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
                    datetime(9999, 12, 31, 23, 30, tzinfo=timezone(timedelta(hours=-1))),
                ],
            ),
        ]
        for argument, named, values in cases:
            for value in values:
                with self.subTest(argument=argument, value=repr(value)[:60]):
                    self.refused(self.service.push_notifications(**{**good, argument: value}), named)
        self.assertEqual((self.listed().unread, self.push()), (0, 1))

    def test_what_can_be_stored_is_stored_as_it_is(self) -> None:
        nasty = "'; DROP TABLE flow.notifications; -- $$ $1 %s %% \\ \" ż 😀 \u202e"
        long = datetime(9999, 12, 31, 23, 30, tzinfo=UTC)
        payload = {nasty: [nasty, "\\u0000", {"n": 2**53, "x": 1.5, "none": None, "yes": True}]}
        pushing = self.service.push_notification(
            "a_.:@-Z9", nasty, payload, nasty * 3, expires_at=long, collapse_key=nasty
        )
        self.ask(pushing)
        [entry] = self.listed("a_.:@-Z9").notifications
        self.assertEqual((entry.type, msgspec.json.decode(entry.payload)), (nasty, payload))

    def test_the_longest_that_are_taken(self) -> None:
        seq = self.push("u" * 128, "ż" * 128, "x" * 65_534, idempotency_key="k" * 255, collapse_key="c" * 128)
        self.assertEqual(seq, 1)

    @given(st.text(max_size=6).map(lambda text: text.replace("u", "\\u0000")) | st.text(alphabet="\0\\u0"))
    def test_of_texts_those_with_a_nul_are_refused_and_no_others(self, text: str) -> None:
        pushing = Deferred.fromCoroutine(self.service.push_notification("alice", "t", {"a": text}))
        if "\0" in text:
            self.failureResultOf(pushing, InvalidPayload)
        else:
            self.successResultOf(pushing)

    def test_a_key_stores_once(self) -> None:
        first = self.push(payload={"a": 1}, idempotency_key="k")
        again = self.push(payload={"a": 1}, idempotency_key="k")
        self.assertEqual((first, again, self.push()), (1, 1, 2))

    def test_a_key_used_for_something_else_is_a_conflict(self) -> None:
        self.push(payload={"a": 1}, idempotency_key="k")
        others: list[object] = [{"a": 2}, {"a": True}, {"a": "1"}, {"a": 1, "b": 1}, [], None]
        for other in others:
            pushing = self.service.push_notification("alice", "t", other, "k")
            self.failureResultOf(Deferred.fromCoroutine(pushing), Conflict)
        self.assertEqual(self.listed().unread, 1)

    def test_it_takes_nothing_once_stopped(self) -> None:
        self.ask(self._stopped())
        pushing = self.service.push_notification("alice", "t", {})
        self.failureResultOf(Deferred.fromCoroutine(pushing), Unavailable)

    async def _stopped(self) -> None:
        await self.service.stopService()

    # Reading and listing

    def test_reading_is_told_to_the_others(self) -> None:
        ear, own = Ear(), Ear()
        self.pubsub.subscribe("user:alice", ear)
        self.pubsub.subscribe("user:alice", own)
        for _ in range(3):
            self.push()
        nobodys = ("00000000-0000-4000-8000-000000000000",)
        cases: list[tuple[ReadMarks, dict[str, object]]] = [
            (ReadMarks(ids=nobodys), {"unread": 3, "ids": nobodys}),
            (ReadMarks(up_to_seq=0), {"unread": 3, "up_to_seq": 0}),
            (ReadMarks(up_to_seq=1), {"unread": 2, "up_to_seq": 1}),
            (ReadMarks(all=True), {"unread": 0, "all": True}),
        ]
        for marks, told in cases:
            unread = self.ask(self.service.mark_notifications_read("alice", marks, own))
            self.assertEqual(unread, told["unread"])
            self.assertEqual(ear.heard.pop(), ("user:alice", "notifications_read", told))
        self.assertEqual(own.heard, [])

    def test_a_list_has_its_bounds(self) -> None:
        for _ in range(3):
            self.push()
        for limit in (0, -1, 101):
            self.refused(self.service.list_notifications("alice", limit=limit), "limit")
        for before in (-1, 2**63):
            self.refused(self.service.list_notifications("alice", before), "before_seq")
        listed = self.ask(self.service.list_notifications("alice", 3, 1))
        self.assertEqual([entry.seq for entry in listed.notifications], [2])

    # Subscriptions

    def test_patterns_that_are_none_are_refused_and_nothing_is_stored(self) -> None:
        subscribe = self.service.subscribe_to_notifications
        for bad in (
            "",
            "a*b",
            "**",
            "*a",
            "a" * 129,
            "a" * 128 + "*",
            "a\0",
            "a\n",
            "\x7f*",
            "\ud800",
            "*\n",
        ):
            with self.subTest(bad=bad[:10]):
                self.refused(subscribe("alice", ["good", bad]), "types")
                self.refused(subscribe("alice", remove=[bad]), "types")
        self.refused(subscribe("a b", ["good"]), "user_id")
        self.refused(subscribe("alice", [f"t{number}" for number in range(101)]), "types")
        self.assertEqual(self.ask(subscribe("alice")), ())

    def test_patterns_that_are_taken(self) -> None:
        good = sorted(["*", "a", "deal.*", "a" * 128, "b" * 127 + "*", "it's -- $$ %s \\", "ż😀*"])
        self.assertEqual(self.ask(self.service.subscribe_to_notifications("alice", good)), tuple(good))

    def test_the_subscriptions_of_who_is_here(self) -> None:
        self.assertEqual(self.service.subscriptions("alice"), ())
        self.ask(self.service.subscribe_to_notifications("alice", ["a", "b"]))
        self.assertEqual(self.service.subscriptions("alice"), ())
        self.push()
        self.join()
        self.assertEqual(self.service.subscriptions("alice"), ("a", "b"))
        self.ask(self.service.subscribe_to_notifications("alice", ["c"], remove=["a"]))
        self.assertEqual(self.service.subscriptions("alice"), ("b", "c"))
        # What another node has changed shows with what comes next.
        self.ask(self.store.subscribe("alice", ["d"], ["b"]))
        self.push()
        self.wake()
        self.assertEqual(self.service.subscriptions("alice"), ("c", "d"))

    # The whole

    def test_the_latency_is_from_the_insertion_of_what_is_live(self) -> None:
        self.push_many(2 * WINDOW)
        phone = self.join()
        self.assertEqual(len(phone.seen), 2 * WINDOW)
        count = "flowtx_notify_latency_seconds_count"
        self.assertEqual(self.metric(count), 0)
        self.push()
        self.wake()
        self.assertEqual(self.metric(count), 1)
        self.assertEqual(self.metric("flowtx_notifications_delivered_total"), 2 * WINDOW + 1)

    def test_a_push_past_the_service_is_delivered_too(self) -> None:
        phone = self.join()
        self.ask(self.store.push([Push(("alice",), "t", b"{}")], wait=True))
        self.wake()
        self.assertEqual(phone.seen, [1])
