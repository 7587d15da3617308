"""What an application's Channel can do."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.channel import Channel, Reply, Stop, UnhandledEvent, error, ok
from flowtx.channels.router import Router
from flowtx.protocol.message import UnencodablePayload
from flowtx.testing.memory import connect
from tests.channels.scripted import Server, reply


class ReturnValueTests(SynchronousTestCase):
    def test_ok_and_error(self) -> None:
        self.assertEqual(ok(), Reply("ok", {}))
        self.assertEqual(ok([]), Reply("ok", []))
        self.assertEqual(ok(b""), Reply("ok", b""))
        self.assertEqual(error(), Reply("error", {}))
        self.assertEqual(error({"reason": "no"}), Reply("error", {"reason": "no"}))

    def test_stop(self) -> None:
        self.assertEqual(Stop(), Stop("normal", None))


class DefaultsTests(SynchronousTestCase):
    def test_lets_everybody_in_and_knows_no_event(self) -> None:
        channel = Channel()
        self.assertIsNone(channel.join({}))
        self.assertIsNone(channel.terminate("leave"))
        self.assertRaises(UnhandledEvent, channel.handle_in, "ping", {})


class ChannelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.client = self.server.connect()
        self.client.join("room:1", "1")
        [self.channel] = self.server.script.joined

    def test_what_it_knows_of_itself(self) -> None:
        self.client.join("room:2", "2")
        other = self.server.script.joined[1]
        self.assertEqual((self.channel.topic, other.topic), ("room:1", "room:2"))
        self.assertIs(self.channel.socket, self.client.socket)
        self.assertEqual(self.channel.socket.principal.user_id, "42")
        self.assertEqual(self.channel.assigns, {})
        self.assertIsNot(self.channel.assigns, other.assigns)

    def test_push(self) -> None:
        self.channel.push("new", {"a": 1})
        self.channel.push("blob", b"\xff")
        self.assertEqual(
            self.client.received(),
            [["1", None, "room:1", "new", {"a": 1}], b"\x00\x01\x06\x041room:1blob\xff"],
        )

    def test_what_may_be_dropped_says_so(self) -> None:
        self.channel.push("price", {}, key="price")
        self.channel.broadcast("price", {}, key="all")
        self.server.connect().join("room:1", "7")
        self.server.script.joined[1].broadcast_from("price", {}, key="others")
        self.channel.push("blob", b"", key="blob")
        self.channel.push("deal", {})
        keys = [frame.key for frame in self.client.transport.take()]
        self.assertEqual(keys, ["price", "all", "others", "blob", None])

    def test_whose_it_is(self) -> None:
        self.assertEqual(self.channel.user_id, "42")

    def test_there_is_a_ref_in_handle_in_only(self) -> None:
        problem = self.assertRaises(RuntimeError, lambda: self.channel.ref)
        self.assertIn("ref is for handle_in", str(problem))
        refs = []

        def handle(channel: Channel, _message: Any) -> None:
            refs.append(channel._membership.ref)

        self.server.script.info = self.server.script.events["ping"] = handle
        self.channel.send_info("x")
        self.client.send("1", "2", "room:1", "ping")
        self.assertEqual(refs, [None, b'"2"'])

    def test_what_cannot_be_sent_fails_the_sender(self) -> None:
        self.client.join("room:2", "2")
        for send in (self.channel.push, self.channel.broadcast, self.channel.broadcast_from):
            self.assertRaises(UnencodablePayload, send, "new", [1])
            self.assertRaises(UnencodablePayload, send, "new", {"a": object()})
        self.assertEqual(self.client.received(), [])

    def test_a_message_can_be_answered_later(self) -> None:
        refs = []

        def later(channel: Channel, _payload: Any) -> None:
            refs.append(channel.ref)

        self.server.script.events["later"] = later
        self.client.send("1", "2", "room:1", "later")
        self.client.send("1", 3, "room:1", "later")
        self.assertEqual(self.client.received(), [])
        self.channel.reply(refs[1], ok({"n": 2}))
        self.channel.reply(refs[0], error())
        self.assertEqual(
            self.client.received(),
            [reply("1", 3, "room:1", {"n": 2}), reply("1", "2", "room:1", status="error")],
        )

    def test_a_channel_that_has_ended_sends_nothing(self) -> None:
        self.client.send("1", "2", "room:1", "phx_leave")
        self.client.received()
        self.channel.push("new", {})
        self.channel.reply(b'"1"', ok())
        self.assertEqual(self.client.received(), [])

    def test_broadcast_reaches_all_and_broadcast_from_all_others(self) -> None:
        other = self.server.connect()
        other.join("room:1", "7")
        self.assertEqual(self.channel.broadcast("new", {"a": 1}), 2)
        self.assertEqual(self.client.received(), [["1", None, "room:1", "new", {"a": 1}]])
        self.assertEqual(other.received(), [["7", None, "room:1", "new", {"a": 1}]])
        self.assertEqual(self.channel.broadcast_from("new", {"b": 1}), 1)
        self.assertEqual(self.client.received(), [])
        self.assertEqual(other.received(), [["7", None, "room:1", "new", {"b": 1}]])

    def test_its_subscriber_is_what_broadcast_from_leaves_out(self) -> None:
        other = self.server.connect()
        other.join("room:1", "7")
        self.assertEqual(self.server.script.joined[1].broadcast_from("new", {}), 1)
        self.client.received()
        self.server.pubsub.unsubscribe("room:1", self.channel.subscriber)
        self.assertEqual(self.channel.broadcast("new", {}), 1)
        self.assertEqual(self.client.received(), [])


class PlainChannelTests(SynchronousTestCase):
    def test_a_channel_class_serves_as_it_is(self) -> None:
        client = connect(Router().channel("room:*", Channel), "42", Clock())
        client.text('["1","1","room:1","phx_join",{}]')
        [frame] = client.take()
        self.assertEqual(json.loads(frame.payload), reply("1", "1", "room:1"))
