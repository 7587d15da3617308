"""The channel ``user:<id>``: what a client asks of its inbox, and how it proves what it has."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from flowtx.inbox import Push
from flowtx.notifications.reader import WINDOW
from flowtx.testing.memory import MemoryTransport
from tests.notifications.channel import ChannelTestCase

SEQS_REFUSED: list[object] = [-1, 2**63, 2**64, 10**30, 1.0, 1.5, -0.0, "1", True, None, [], {}, [1]]


class EventsTests(ChannelTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.client = self.connect()
        self.join(self.client)

    def asked(self, event: str, payload: object, client: MemoryTransport | None = None) -> Any:
        [[name, reply]] = self.ask(client or self.client, event, payload)
        self.assertEqual((name, reply["status"]), ("phx_reply", "ok"), reply)
        return reply["response"]

    def check_refused(self, event: str, payload: object, named: str) -> None:
        with self.subTest(event=event, payload=json.dumps(payload)[:80]):
            self.refused(self.ask(self.client, event, payload), named)

    # list_notifications

    def test_the_list(self) -> None:
        ids = [self.push(n=number) for number in range(3)]
        self.asked("mark_read", {"ids": [ids[1]]})
        response = self.asked("list_notifications", {})
        self.assertEqual(set(response), {"notifications", "unread"})
        self.assertEqual(response["unread"], 2)
        self.assertEqual([entry["id"] for entry in response["notifications"]], ids[::-1])
        self.assertEqual(
            set(response["notifications"][0]), {"id", "seq", "type", "payload", "inserted_at", "read_at"}
        )
        self.assertEqual(
            [entry["read_at"] is None for entry in response["notifications"]], [True, False, True]
        )
        for payload, seqs in (
            ({"unread": True}, [3, 1]),
            ({"limit": 1}, [3]),
            ({"before_seq": 3}, [2, 1]),
            ({"before_seq": 3, "unread": True, "limit": 100}, [1]),
            ({"before_seq": 0}, []),
            ({"before_seq": 2**63 - 1, "limit": 2}, [3, 2]),
            ({"before_seq": None, "unknown": 1}, [3, 2, 1]),
        ):
            listed = self.asked("list_notifications", payload)["notifications"]
            self.assertEqual([entry["seq"] for entry in listed], seqs, payload)

    def test_a_list_that_was_cut_says_so(self) -> None:
        for _ in range(12):
            self.push(text="x" * 60_000)
        response = self.asked("list_notifications", {})
        self.assertEqual((response["truncated"], len(response["notifications"])), (True, 9))

    def test_a_list_is_of_the_users_own(self) -> None:
        self.push("bob")
        self.assertEqual(self.asked("list_notifications", {}), {"notifications": [], "unread": 0})

    def test_lists_that_are_refused(self) -> None:
        for limit in (0, -1, 101, 2**63, 2**64, 1.0, "1", True, None, [1]):
            self.check_refused("list_notifications", {"limit": limit}, "limit: ")
        for before in SEQS_REFUSED:
            if before is not None:
                self.check_refused("list_notifications", {"before_seq": before}, "before_seq: ")
        for unread in (1, 0, "true", None, [None]):
            self.check_refused("list_notifications", {"unread": unread}, "unread: ")
        for payload, named in (([], "array"), (None, "null"), ("x", "str"), (1, "int")):
            self.check_refused("list_notifications", payload, named)
        self.assertEqual(self.asked("list_notifications", {})["unread"], 0)

    # subscribe and unsubscribe

    def test_subscriptions(self) -> None:
        other = self.connect()
        self.join(other)
        self.assertEqual(self.asked("subscribe", {"types": []}), {"types": []})
        types = ["task.due", "deal.*", "deal.*"]
        self.assertEqual(self.asked("subscribe", {"types": types}), {"types": ["deal.*", "task.due"]})
        self.push(type_="task.done")
        self.push(type_="deal.won")
        self.wake()
        for client in (self.client, other):
            self.assertEqual([entry["seq"] for _, entry in self.frames(client)], [2])
        self.assertEqual(
            self.asked("unsubscribe", {"types": ["deal.*", "x"]}, other), {"types": ["task.due"]}
        )
        self.assertEqual(self.asked("unsubscribe", {"types": ["task.due"]}), {"types": []})
        self.push(type_="task.done")
        self.wake()
        for client in (self.client, other):
            self.assertEqual([entry["seq"] for _, entry in self.frames(client)], [3])

    def test_what_was_not_wanted_live_comes_with_the_next_join(self) -> None:
        self.asked("subscribe", {"types": ["deal.*"]})
        self.push(type_="task.due")
        self.wake()
        self.assertEqual(self.join(self.connect())[1], [1])

    def test_patterns_that_are_refused(self) -> None:
        kinds: list[tuple[object, str]] = [
            ([1], "types[0]: "),
            ([None], "types[0]: "),
            (["a", ["b"]], "types[1]: "),
            (["a" * 129], "types[0]: "),
            ("deal.*", "types: "),
            ({"deal.*": True}, "types: "),
            (None, "types: "),
            (["a"] * 101, "types: "),
            ([""], "types: got ''"),
            (["a", "de*al"], "types: got 'de*al'"),
            (["**"], "types: got '**'"),
            (["a\0"], "types: got 'a\\x00'"),
            (["a\n*"], "types: got 'a\\n*'"),
            (["\x7f"], "types: got '\\x7f'"),
        ]
        for event in ("subscribe", "unsubscribe"):
            for types, named in kinds:
                self.check_refused(event, {"types": types}, named)
            self.check_refused(event, {}, "types: ")
            self.check_refused(event, ["a"], "array")
            self.check_refused(event, None, "null")
        self.assertEqual(self.asked("subscribe", {"types": []}), {"types": []})

    def test_half_a_character_is_stored_by_no_event(self) -> None:
        for event in ("subscribe", "unsubscribe", "list_notifications", "ack"):
            frames = self.ask(self.client, event, {"types": ["\ud800"], "seq": "\udfff"})
            self.assertNotIn("ok", [reply["status"] for _, reply in frames])
        self.assertEqual(self.asked("subscribe", {"types": []}), {"types": []})

    def test_a_user_has_so_many_at_most(self) -> None:
        types = sorted(f"t{number}" for number in range(100))
        self.assertEqual(self.asked("subscribe", {"types": types}), {"types": types})
        self.check_refused("subscribe", {"types": ["one.more"]}, "types: a user can have 100")
        self.assertEqual(self.asked("subscribe", {"types": []}), {"types": types})

    def test_patterns_are_taken_as_they_are(self) -> None:
        types = sorted(["'; DROP TABLE flow.subscriptions; --", '$$ %s \\ "*', "ż😀", "a" * 127 + "*"])
        self.assertEqual(self.asked("subscribe", {"types": types}), {"types": types})

    # ack

    def test_ack(self) -> None:
        self.client.answers_pings = False
        for _ in range(2 * WINDOW):
            self.push()
        self.wake()
        self.assertEqual(len(self.frames(self.client)), WINDOW)
        frames = self.ask(self.client, "ack", {"seq": WINDOW})
        self.assertEqual([event for event, _ in frames].count("notification"), WINDOW)
        self.assertIn(["phx_reply", {"status": "ok", "response": {}}], frames)
        self.assertEqual(self.asked("ack", {"seq": WINDOW}), {})
        self.assertEqual(self.asked("ack", {"seq": 0}), {})

    def test_acks_that_are_refused(self) -> None:
        self.push()
        self.wake()
        self.frames(self.client)
        for seq in SEQS_REFUSED:
            self.check_refused("ack", {"seq": seq}, "seq: ")
        self.check_refused("ack", {}, "seq: ")
        self.check_refused("ack", [1], "array")
        self.check_refused("ack", None, "null")
        self.check_refused("ack", {"seq": 2}, "seq: got 2; the latest is 1")
        self.check_refused("ack", {"seq": 2**63 - 1}, "the latest is 1")
        self.assertEqual(self.asked("ack", {"seq": 1}), {})

    # activity

    def test_activity(self) -> None:
        for payload in ({}, {"status": "online"}, {"status": "away"}, {"status": None}):
            self.assertEqual(self.asked("activity", payload), {})
        for status in ("offline", "", 1, True, [None]):
            self.check_refused("activity", {"status": status}, "status: ")

    # Whatever comes

    @settings(max_examples=200, deadline=None)
    @given(
        st.sampled_from(["mark_read", "list_notifications", "subscribe", "unsubscribe", "ack", "activity"]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["ids", "up_to_seq", "all", "before_seq", "limit", "unread", "types", "seq", "status"]
                    )
                    | st.text(max_size=3),
                    inner,
                    max_size=3,
                )
            ),
            max_leaves=6,
        ),
    )
    def test_no_payload_ends_the_channel(self, event: str, payload: object) -> None:
        [[name, reply], *rest] = self.ask(self.client, event, payload)
        self.assertEqual((name, rest), ("phx_reply", []))
        if reply["status"] != "ok":
            self.assertEqual(set(reply["response"]), {"reason", "detail"})
            self.assertEqual(reply["response"]["reason"], "invalid_payload")

    # Pings

    def pings_of(self, client: MemoryTransport) -> list[tuple[bytes, int]]:
        """Have a client note each Ping, and how many frames it was sent by then."""
        client.answers_pings = False
        came: list[tuple[bytes, int]] = []
        self.patch(client, "ping", lambda payload: came.append((payload, len(client.sent))))
        return came

    def test_a_ping_follows_what_it_asks_for(self) -> None:
        pings = self.pings_of(self.client)
        for _ in range(3):
            self.push()
        self.wake()
        self.push()
        self.wake()
        self.assertEqual(pings, [(b"3", 3)])
        self.client.socket.pong_received(b"3")
        self.assertEqual(pings, [(b"3", 3), (b"4", 4)])

    def test_a_ping_during_the_join_follows_the_reply_and_the_backlog(self) -> None:
        for _ in range(2):
            self.push()
        client = self.connect()
        pings = self.pings_of(client)
        self.store.slow = True
        client.text('["1","1","user:alice","phx_join",{}]')
        self.assertEqual(pings, [])
        self.store.waiting.pop().callback(None)
        self.assertEqual(pings, [(b"2", 3)])
        self.assertEqual([event for event, _ in self.frames(client)], ["phx_reply", *["notification"] * 2])

    def test_a_pong_of_the_client_opens_its_window(self) -> None:
        self.client.answers_pings = False
        for _ in range(WINDOW + 1):
            self.push()
        self.wake()
        self.assertEqual(len(self.frames(self.client)), WINDOW)
        for garbage in (b"", b"x", b"%d" % (WINDOW + 1), b"\xff" * 125):
            self.client.socket.pong_received(garbage)
        self.assertEqual(self.frames(self.client), [])
        self.client.pong()
        self.assertEqual([entry["seq"] for _, entry in self.frames(self.client)], [WINDOW + 1])

    def test_after_a_leave_a_pong_is_nothing(self) -> None:
        self.client.answers_pings = False
        self.push()
        self.wake()
        self.ask(self.client, "phx_leave", {})
        self.assertIsNone(self.client.socket.on_pong)
        self.client.pong()
        self.assertEqual(self.frames(self.client), [])

    # What cannot be sent

    def test_what_cannot_be_sent_is_an_event_of_its_own(self) -> None:
        text = b'"' + b"x" * 70_000 + b'"'
        pushing = self.store.push([Push(("alice",), "t", text)], wait=True)
        [outcome] = self.successResultOf(Deferred.fromCoroutine(pushing))
        assert isinstance(outcome, tuple)
        [lost] = outcome
        self.push()
        self.wake()
        [[event, payload], [following, entry]] = self.frames(self.client)
        self.assertEqual(
            (event, payload), ("undeliverable", {"id": lost.id, "seq": 1, "reason": "too_large"})
        )
        self.assertEqual((following, entry["seq"]), ("notification", 2))
        [newest, oldest] = self.asked("list_notifications", {})["notifications"]
        self.assertEqual((newest["seq"], oldest["id"], oldest["payload"]), (2, lost.id, None))
