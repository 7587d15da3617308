"""What the flight recorder hears of a user's connections, channels, tokens and Sessions."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flowtx import Channel, Router
from flowtx.errors import Refused
from flowtx.testing import Client, MemoryServer

WHOSE = ("connection", "session", "at", "event")


class Room(Channel):
    def join(self, payload: Any) -> None:
        if payload.get("secret"):
            raise KeyError("hunter2")

    def handle_in(self, event: str, payload: Any) -> None:
        raise ValueError(f"hunter2 {payload}")


class NotesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer(Router().channel("room:*", Room), idle_timeout=600)

    def connect(self, **options: Any) -> Client:
        client = self.server.connect("alice", **options)
        client.join("user:alice", {"device": "phone"})
        return client

    def push(self, payload: dict[str, Any]) -> None:
        pushing = self.server.notifications.push_notification("alice", "note", payload)
        pushed = Deferred.fromCoroutine(pushing)
        self.server.settle()
        self.successResultOf(pushed)

    def noted(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind, without what they all have."""
        found = [one for one in self.server.recorder.events("alice") if one["event"] == event]
        return [{name: value for name, value in one.items() if name not in WHOSE} for one in found]

    def order(self) -> list[str]:
        return [event["event"] for event in self.server.recorder.events("alice")]

    def test_life_of_a_session(self) -> None:
        client = self.connect()
        client.lose()
        self.server.advance(31)
        self.assertEqual(self.order(), ["session_started", "inbox_opened", "joined", "session_ended"])
        [ended] = self.noted("session_ended")
        self.assertEqual(
            ended, {"reason": "window_expired", "duration": 30.0, "connections": 1, "restarts": 0}
        )
        self.assertEqual(self.noted("joined"), [{"topic": "user:alice", "device": "phone"}])

    def test_restart_of_a_session(self) -> None:
        self.connect()
        session = self.server.sessions.get_session("alice")
        assert session is not None

        async def fail() -> None:
            raise RuntimeError("hunter2")

        session.spawn(fail())
        self.server.settle()
        self.assertEqual(self.noted("session_restarted"), [{"restarts": 1}])
        self.assertEqual(self.noted("left"), [{"topic": "user:alice", "reason": "crash"}])

    def test_joins_that_are_refused_and_leaves(self) -> None:
        client = self.connect()
        self.assertRaises(AssertionError, client.join, "user:bob")
        client.join("room:1")
        client.leave("room:1")
        self.server.settle()
        self.assertEqual(self.noted("join_refused"), [{"topic": "user:bob"}])
        self.assertEqual(self.noted("left"), [{"topic": "room:1", "reason": "leave"}])

    def test_crash_has_its_class_alone(self) -> None:
        client = self.connect()
        client.join("room:1")
        client.push("room:1", "speak", {"text": "hunter2"})
        self.server.settle()
        self.assertRaises(AssertionError, client.join, "room:2", {"secret": "hunter2"})
        self.assertEqual(
            self.noted("channel_crashed"),
            [
                {"error": "ValueError", "topic": "room:1", "channel": "Room", "method": "handle_in"},
                {"error": "KeyError", "topic": "room:2", "channel": "Room", "method": "join"},
            ],
        )
        self.assertNotIn("hunter2", str(self.server.recorder.events("alice")))
        self.flushLoggedErrors()

    def test_what_a_client_that_comes_back_is_sent(self) -> None:
        for number in range(3):
            self.push({"number": number})
        client = self.server.connect("alice")
        client.join("user:alice", {"last_seq": 1})
        [opened] = self.noted("inbox_opened")
        self.assertEqual(
            opened,
            {"last_seq": 1, "sent": 2, "up_to": 3, "unread": 3, "resumed": False, "truncated": False},
        )

    def test_tokens(self) -> None:
        client = self.connect()
        for user_id, token in (("alice", None), ("bob", None), (None, "forged")):
            given = token or self.server.token(str(user_id))
            client.push("user:alice", "access_token", {"access_token": given})
            self.server.settle()
        self.assertEqual(self.noted("token_renewed"), [{}])
        self.assertEqual(self.noted("token_refused"), [{"reason": "invalid_token"}] * 2)

    def test_refused_claim_is_of_nobody(self) -> None:
        server = MemoryServer(max_devices=1, device_policy="refuse")
        server.connect("alice")
        self.assertRaises(Refused, server.connect, "alice")
        self.assertEqual([event["event"] for event in server.recorder.events("alice")], ["session_started"])

    def test_messages_cost_nothing(self) -> None:
        client = self.connect()
        before = self.order()
        for _ in range(50):
            client.push("user:alice", "activity", {})
            client.heartbeat()
        self.push({})
        self.server.settle()
        self.assertEqual(self.order(), before)
