"""What is shown of a Session."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from flowtx.sessions.inspection import describe
from tests.sessions.node import Node

NOON = 1_767_268_800.0  # 2026-01-01T12:00:00Z


class DescribeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node()
        self.node.clock.advance(1_000)

    def shown(self) -> Any:
        now = self.node.clock.seconds()
        return json.loads(msgspec.json.encode(describe(self.node.session(), now, NOON + now - 1_000)))

    def test_a_session_with_two_connections(self) -> None:
        laptop = self.node.connect()
        laptop.transport.user_agent = "Firefox"
        laptop.transport.address = "192.0.2.1"
        laptop.transport.waiting_bytes = 17
        self.node.clock.advance(90.5)
        phone = self.node.connect()
        phone.join(device="phone")
        self.node.clock.advance(1)
        laptop.heartbeat()
        self.assertEqual(
            self.shown(),
            {
                "user_id": "alice",
                "session_id": self.node.session().session_id,
                "state": "ready",
                "connected_at": "2026-01-01T12:00:00.000Z",
                "last_activity_at": "2026-01-01T12:01:30.500Z",
                "notification_subscriptions": [],
                "metadata": {},
                "connections": [
                    {
                        "id": laptop.socket.id,
                        "device": None,
                        "address": "192.0.2.1",
                        "user_agent": "Firefox",
                        "connected_at": "2026-01-01T12:00:00.000Z",
                        "last_activity_at": "2026-01-01T12:00:00.000Z",
                        "topics": [],
                        "outbox_bytes": 17,
                    },
                    {
                        "id": phone.socket.id,
                        "device": "phone",
                        "address": "memory",
                        "user_agent": "",
                        "connected_at": "2026-01-01T12:01:30.500Z",
                        "last_activity_at": "2026-01-01T12:01:30.500Z",
                        "topics": ["user:alice"],
                        "outbox_bytes": 0,
                    },
                ],
            },
        )

    def test_a_connection_that_is_being_closed_is_not_shown(self) -> None:
        client = self.node.connect()
        self.node.connect()
        self.node.sessions.close_connection("alice", client.socket.id)
        self.assertEqual(len(self.shown()["connections"]), 1)

    def test_each_state(self) -> None:
        self.node.directory.slow = True
        waiting = self.node.claim()
        self.assertEqual(self.shown()["state"], "starting")
        self.node.directory.asked[0].callback(None)
        client = self.node.open(self.successResultOf(waiting))
        self.assertEqual(self.shown()["state"], "ready")
        client.lose()
        self.assertEqual((self.shown()["state"], self.shown()["connections"]), ("away", []))
        client = self.node.connect()
        self.node.session().end()
        self.assertEqual(self.shown()["state"], "draining")
        client.lose()

    def test_times_follow_the_activity_not_the_look(self) -> None:
        self.node.connect()
        before = self.shown()
        self.node.clock.advance(1_000)
        self.assertEqual(before["last_activity_at"], "2026-01-01T12:00:00.000Z")
        self.assertEqual(self.shown(), before)
