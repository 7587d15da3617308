"""Broadcasts that a channel handles itself."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.channel import Channel, Stop, ok
from flowtx.channels.mailbox import MAX_WAITING
from tests.channels.scripted import Server, closing, crashed, reply


class Boom(Exception):  # noqa: N818
    """What the tests' Channels crash with."""


class InterceptTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.script = self.server.script
        self.script.intercept = ("new_msg",)
        self.client = self.server.connect()
        self.client.join("room:1", "1")

    def send(self, *events: str) -> None:
        for number, event in enumerate(events):
            self.server.pubsub.broadcast("room:1", event, {"n": number})

    def returns(self, outcome: Any) -> None:
        """Have ``handle_out`` do nothing but return that."""
        self.script.out = lambda _channel, _event, _payload: outcome

    def events(self) -> list[str]:
        return [frame[3] for frame in self.client.received()]

    def test_goes_to_each_receiver(self) -> None:
        other = self.server.connect()
        self.script.intercept = ()
        other.join("room:1", "7")
        self.script.out = lambda channel, event, payload: channel.push("changed", {event: payload})
        self.assertEqual(self.script.joined[1].broadcast("new_msg", {"n": 0}), 2)
        self.assertEqual(self.client.received(), [["1", None, "room:1", "changed", {"new_msg": {"n": 0}}]])
        self.assertEqual(other.received(), [["7", None, "room:1", "new_msg", {"n": 0}]])

    def test_nothing_goes_out_that_is_not_pushed(self) -> None:
        self.script.out = lambda _channel, _event, _payload: None
        self.send("new_msg", "other")
        self.assertEqual(self.client.received(), [["1", None, "room:1", "other", {"n": 1}]])

    def test_by_default_what_came_goes_out(self) -> None:
        self.script.out = Channel.handle_out
        self.send("new_msg")
        self.assertEqual(self.client.received(), [["1", None, "room:1", "new_msg", {"n": 0}]])

    def test_those_behind_one_wait_for_it(self) -> None:
        gates: list[Deferred[Any]] = []

        async def out(channel: Channel, event: str, payload: Any) -> None:
            gates.append(Deferred())
            await gates[-1]
            channel.push(event, payload)

        self.script.out = out
        self.send("before", "new_msg", "between", "new_msg", "after")
        self.assertEqual((self.events(), len(gates)), (["before"], 1))
        gates[0].callback(None)
        self.assertEqual((self.events(), len(gates)), (["new_msg", "between"], 2))
        gates[1].callback(None)
        self.assertEqual(self.events(), ["new_msg", "after"])
        self.send("straight")
        self.assertEqual(self.events(), ["straight"])

    def test_waits_for_the_message_in_hand(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.script.events["wait"] = lambda _channel, _payload: pending
        self.client.send("1", "2", "room:1", "wait")
        self.send("straight", "new_msg", "behind")
        self.assertEqual(self.events(), ["straight"])
        pending.callback(ok())
        self.assertEqual(
            self.client.received(),
            [
                reply("1", "2", "room:1"),
                ["1", None, "room:1", "new_msg", {"n": 1}],
                ["1", None, "room:1", "behind", {"n": 2}],
            ],
        )

    def test_what_a_handler_broadcasts_follows_what_it_pushes(self) -> None:
        def out(channel: Channel, event: str, payload: Any) -> None:
            channel.broadcast("echo", {})
            channel.push(event, payload)

        self.script.out = out
        self.send("new_msg")
        self.assertEqual(self.events(), ["new_msg", "echo"])

    def test_stop(self) -> None:
        outcomes: list[Any] = [Stop(), succeed(Stop())]
        for outcome in outcomes:
            self.returns(outcome)
            self.send("new_msg", "behind")
            self.assertEqual(self.client.received(), [closing("1", "room:1")])
            self.client.join("room:1", "1")

    def test_an_illegal_return_value_is_a_crash_that_lists_the_legal_ones(self) -> None:
        outcomes: list[Any] = [ok(), {}, Stop("normal", ok())]
        for outcome in outcomes:
            self.returns(outcome)
            self.send("new_msg", "behind")
            self.assertEqual(self.client.received(), [crashed("1", "room:1")])
            [failure] = self.flushLoggedErrors(TypeError)
            self.assertIn("ScriptedChannel.handle_out returned", str(failure.value))
            self.assertIn("it may return None or a Stop without a reply", str(failure.value))
            self.client.join("room:1", "1")

    def test_a_crash_ends_this_channel_alone(self) -> None:
        def out(channel: Channel, event: str, payload: Any) -> None:
            if channel is self.script.joined[0]:
                raise Boom
            channel.push(event, payload)

        other = self.server.connect()
        other.join("room:1", "7")
        self.script.out = out
        self.send("new_msg")
        self.assertEqual(self.client.received(), [crashed("1", "room:1")])
        self.assertEqual(len(other.received()), 1)
        self.assertEqual(len(self.flushLoggedErrors(Boom)), 1)
        self.assertEqual(self.script.terminated, [("room:1", "crash")])

    def test_overflow(self) -> None:
        self.script.out = lambda _channel, _event, _payload: Deferred()
        self.send(*["new_msg"] * (MAX_WAITING + 1))
        self.assertEqual(self.client.received(), [])
        for number in range(3):
            self.server.pubsub.broadcast("room:1", "price", {"n": number}, key="price")
        self.assertEqual(self.client.received(), [])
        self.send("one more")
        self.assertEqual(self.client.received(), [crashed("1", "room:1")])

    def test_a_channel_that_ends_handles_none(self) -> None:
        pending: Deferred[Any] = Deferred()
        outs: list[Any] = []
        self.script.events["wait"] = lambda _channel, _payload: pending
        self.script.out = lambda _channel, _event, payload: outs.append(payload)
        self.client.send("1", "2", "room:1", "wait")
        self.send("new_msg")
        self.client.lose()
        pending.callback(None)
        self.assertEqual(outs, [])

    def test_what_is_declared_must_be_a_tuple_of_events(self) -> None:
        for wrong in ("new_msg", (1,)):
            problem = self.assertRaises(TypeError, type, "Bad", (Channel,), {"intercept": wrong})
            self.assertEqual(
                str(problem), f'Bad.intercept is {wrong!r}; it takes a tuple of events: ("new_msg",)'
            )
