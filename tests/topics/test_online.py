"""The channel ``users:online`` on the wire."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from flowtx.presence.tracker import PERIOD
from flowtx.testing.server import MemoryServer

TOPIC = "users:online"


class OnlineChannelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer(reconnect_window=1.0)

    def test_the_reply_then_the_state_then_diffs(self) -> None:
        bob = self.server.connect("bob")
        bob.join("user:bob", {"device": "desk"})
        self.server.advance(1)
        client = self.server.connect("alice")
        client.send_join(TOPIC)
        self.server.advance(2 * PERIOD)
        reply, state, diff = client.received()
        self.assertEqual((reply.event, reply.payload), ("phx_reply", {"status": "ok", "response": {}}))
        self.assertEqual((state.join_ref, state.ref, state.event), (reply.join_ref, None, "presence_state"))
        [meta] = state.payload["bob"]["metas"]
        self.assertEqual(set(meta), {"phx_ref", "online_at", "device", "status"})
        self.assertEqual((diff.join_ref, diff.ref, diff.event), (reply.join_ref, None, "presence_diff"))
        self.assertEqual((list(diff.payload["joins"]), diff.payload["leaves"]), (["alice"], {}))
        self.assertEqual(self.server.presence.list(TOPIC), {**state.payload, **diff.payload["joins"]})

    def test_version_1(self) -> None:
        client = self.server.connect("alice", vsn="1.0.0")
        client.join(TOPIC)
        client.assert_push("presence_state", {})
        self.server.advance(2 * PERIOD)
        self.assertEqual(list(client.assert_push("presence_diff")["joins"]), ["alice"])

    def test_a_second_join_gets_the_state_again_and_tells_nobody(self) -> None:
        client, other = self.server.connect("alice"), self.server.connect("bob")
        for each in (client, other):
            each.join(TOPIC)
        self.server.advance(1)
        other.received()
        client.join(TOPIC)
        self.assertEqual(set(client.assert_push("presence_state", topic=TOPIC)), set())
        self.assertEqual(set(client.assert_push("presence_state", topic=TOPIC)), {"alice", "bob"})
        self.server.advance(1)
        self.assertEqual(other.received(), [])

    def test_any_payload_joins(self) -> None:
        for number, payload in enumerate(([], "x", 1, {"device": 5})):
            self.server.connect(f"user-{number}").join(TOPIC, payload)
        self.server.advance(1)
        self.assertEqual(len(self.server.presence.list(TOPIC)), 4)

    def test_who_left_gets_no_diffs(self) -> None:
        client = self.server.connect("alice")
        client.join(TOPIC)
        self.server.advance(1)
        client.leave(TOPIC)
        client.received()
        self.server.connect("bob").join(TOPIC)
        self.server.advance(1)
        self.assertEqual(client.received(), [])
