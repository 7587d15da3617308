"""What the server itself sends to a channel: infos, timers, broadcasts of other topics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.callbacks import STOP_TIMEOUT
from flowtx.channels.channel import Channel, Stop, error, ok
from flowtx.channels.mailbox import MAX_WAITING
from flowtx.channels.membership import MAX_TURN
from flowtx.channels.sources import MAX_SUBSCRIPTIONS, MAX_TIMERS, TooManySources
from flowtx.errors import Unavailable
from flowtx.protocol.message import Broadcast
from tests.channels.scripted import Server, closing, crashed, reply


class Boom(Exception):  # noqa: N818
    """What the tests' Channels crash with."""


class InfoTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.script = self.server.script
        self.client = self.server.connect()
        self.heard: list[Any] = []
        self.outcome: Callable[[Any], Any] = lambda _message: None
        self.script.info = self.info

    def info(self, channel: Channel, message: Any) -> Any:
        self.heard.append(message)
        return self.outcome(message)

    def join(self) -> Channel:
        self.client.join("room:1", "1")
        return self.script.joined[-1]

    def joining(self) -> tuple[Channel, Deferred[Any]]:
        """Begin a join that waits."""
        pending: Deferred[Any] = Deferred()
        self.script.join = lambda _channel, _payload: pending
        self.client.send("1", "1", "room:1", "phx_join")
        return self.script.joined[-1], pending


class SendInfoTests(InfoTestCase):
    def test_is_handled(self) -> None:
        channel = self.join()
        channel.send_info({"a": 1})
        channel.send_info(None)
        self.assertEqual(self.heard, [{"a": 1}, None])

    def test_of_a_join_is_handled_after_its_answer(self) -> None:
        self.script.join = lambda channel, _payload: channel.send_info("after_join")
        self.script.info = lambda channel, message: channel.push(message, {})
        self.client.send("1", "1", "room:1", "phx_join")
        self.assertEqual(
            self.client.received(), [reply("1", "1", "room:1"), ["1", None, "room:1", "after_join", {}]]
        )

    def test_one_at_a_time_in_turn_with_messages(self) -> None:
        gates: list[Deferred[Any]] = [Deferred(), Deferred()]
        self.outcome = lambda message: gates[message]
        self.script.events["ping"] = lambda _channel, payload: ok(payload)
        channel = self.join()
        channel.send_info(0)
        self.client.send("1", "2", "room:1", "ping", {"n": 2})
        channel.send_info(1)
        self.client.send("1", "3", "room:1", "ping", {"n": 3})
        self.assertEqual((self.heard, self.script.handled, self.client.received()), ([0], [], []))
        gates[0].callback(None)
        self.assertEqual((self.heard, self.script.handled), ([0, 1], [{"n": 2}]))
        gates[1].callback(None)
        self.assertEqual(
            self.client.received(), [reply("1", "2", "room:1", {"n": 2}), reply("1", "3", "room:1", {"n": 3})]
        )

    def test_from_within_a_handler_waits_its_turn(self) -> None:
        channel = self.join()
        order: list[str] = []

        def info(message: str) -> None:
            order.append(f"begin {message}")
            if message == "first":
                channel.send_info("second")
            order.append(f"end {message}")

        self.outcome = info
        channel.send_info("first")
        self.assertEqual(order, ["begin first", "end first", "begin second", "end second"])

    def test_stop(self) -> None:
        self.outcome = lambda message: message
        for stop, frame in (
            (Stop(), closing("1", "room:1")),
            (succeed(Stop("shutdown")), closing("1", "room:1")),
            (Stop("boom"), crashed("1", "room:1")),
        ):
            self.join().send_info(stop)
            self.assertEqual(self.client.received(), [frame])
        self.assertEqual([reason for _, reason in self.script.terminated], ["normal", "shutdown", "boom"])

    def test_an_illegal_return_value_is_a_crash_that_lists_the_legal_ones(self) -> None:
        self.outcome = lambda message: message
        returned: list[Any] = [ok(), True, "x", succeed({}), Stop("normal", ok())]
        for illegal in returned:
            self.join().send_info(illegal)
            self.assertEqual(self.client.received(), [crashed("1", "room:1")])
            [failure] = self.flushLoggedErrors(TypeError)
            self.assertIn("ScriptedChannel.handle_info returned", str(failure.value))
            self.assertIn("it may return None or a Stop without a reply", str(failure.value))

    def test_a_crash_ends_this_channel_alone(self) -> None:
        async def boom(problem: Exception) -> None:
            raise problem

        def crash(problem: Any) -> Any:
            if isinstance(problem, Exception):
                raise problem
            return problem

        self.outcome = crash
        self.client.join("room:2", "5")
        for problem in (Boom(), Unavailable("down"), boom(Boom())):
            self.join().send_info(problem)
            self.assertEqual(self.client.received(), [crashed("1", "room:1")])
            self.assertEqual(len(self.flushLoggedErrors(Boom, Unavailable)), 1)
        self.assertEqual(self.script.terminated, [("room:1", "crash")] * 3)
        self.assertEqual(self.client.socket.topics, ("room:2",))

    def test_a_channel_that_ends_hears_no_more(self) -> None:
        channel = self.join()
        pending: Deferred[Any] = Deferred()
        self.outcome = lambda _message: pending
        channel.send_info("first")
        channel.send_info("second")
        self.client.lose()
        channel.send_info("third")
        pending.callback(None)
        self.assertEqual((self.heard, self.script.terminated), (["first"], [("room:1", "closed")]))
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_a_join_that_is_refused_hears_none(self) -> None:
        channel, pending = self.joining()
        channel.send_info("first")
        pending.callback(error())
        channel.send_info("second")
        self.assertEqual(self.heard, [])

    def test_what_is_not_expected_is_logged_by_its_type(self) -> None:
        channel = self.join()
        with capturedLogs() as logged:
            Channel.handle_info(channel, {"secret": 1})
        [line] = [formatEvent(event) for event in logged]
        self.assertEqual(line, "ScriptedChannel has no handle_info, and drops a message of type dict")

    def test_a_channel_that_sends_itself_one_for_each_leaves_room_for_others(self) -> None:
        channel = self.join()
        self.outcome = lambda _message: channel.send_info("again")
        channel.send_info("first")
        self.assertEqual(len(self.heard), MAX_TURN)
        self.client.send("1", "2", "room:1", "phx_leave")
        self.assertEqual(self.client.received(), [reply("1", "2", "room:1"), closing("1", "room:1")])
        self.successResultOf(self.client.lose())
        self.assertEqual(self.server.clock.getDelayedCalls(), [])


class OverflowTests(InfoTestCase):
    def test_ends_the_channel(self) -> None:
        channel = self.join()
        pending: Deferred[Any] = Deferred()
        self.outcome = lambda _message: pending
        for number in range(MAX_WAITING + 1):
            channel.send_info(number)
        self.assertEqual(self.client.received(), [])
        channel.send_info("too much")
        self.assertEqual(self.client.received(), [crashed("1", "room:1")])
        self.assertEqual(self.script.terminated, [])
        channel.push("late", {})
        pending.callback(None)
        self.assertEqual((self.heard, self.script.terminated), ([0], [("room:1", "overflow")]))
        self.assertEqual((self.client.received(), self.client.socket.topics), ([], ()))

    def test_from_within_a_handler_ends_it_behind_that(self) -> None:
        channel = self.join()
        order: list[str] = []

        def info(_message: Any) -> None:
            for number in range(MAX_WAITING + 1):
                channel.send_info(number)
            order.append("end")

        self.outcome = info
        self.script.terminate = lambda _channel, reason: order.append(reason)
        channel.send_info("first")
        self.assertEqual(order, ["end", "overflow"])
        self.assertEqual((self.heard, self.client.received()), (["first"], [crashed("1", "room:1")]))

    def test_in_a_join_ends_it_behind_its_answer(self) -> None:
        """What the join has done is undone by ``terminate``."""
        channel, pending = self.joining()
        for number in range(MAX_WAITING + 1):
            channel.send_info(number)
        pending.callback(None)
        self.assertEqual(self.client.received(), [reply("1", "1", "room:1"), crashed("1", "room:1")])
        self.assertEqual((self.heard, self.script.terminated), ([], [("room:1", "overflow")]))


class SendAfterTests(InfoTestCase):
    def test_comes_in_time(self) -> None:
        channel = self.join()
        channel.send_after(2, "later")
        channel.send_after(1, "sooner")
        self.server.clock.advance(0.9)
        self.assertEqual(self.heard, [])
        self.server.clock.pump([0.1, 1])
        self.assertEqual(self.heard, ["sooner", "later"])

    def test_is_cancelled(self) -> None:
        timer = self.join().send_after(1, "later")
        self.assertTrue(timer.active())
        timer.cancel()
        self.server.clock.advance(1)
        self.assertEqual(self.heard, [])

    def test_ends_with_the_channel(self) -> None:
        channel = self.join()
        channel.send_after(1, "later")
        channel.send_after(1, "never").cancel()
        self.client.send("1", "2", "room:1", "phx_leave")
        self.assertNotIn(1.0, [call.getTime() for call in self.server.clock.getDelayedCalls()])
        self.assertFalse(channel.send_after(1, "too late").active())
        self.server.clock.advance(1)
        self.assertEqual(self.heard, [])

    def test_ends_with_a_join_that_is_refused(self) -> None:
        self.script.join = lambda channel, _payload: [channel.send_after(1, "later"), error()][1]
        self.client.send("1", "1", "room:1", "phx_join")
        self.successResultOf(self.client.lose())
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_there_is_a_bound(self) -> None:
        channel = self.join()
        timers = [channel.send_after(1, number) for number in range(MAX_TIMERS)]
        self.assertRaises(TooManySources, channel.send_after, 1, "one more")
        timers[0].cancel()
        channel.send_after(1, "one more")
        self.assertRaises(TooManySources, channel.send_after, 1, "two more")
        self.server.clock.advance(1)
        channel.send_after(1, "two more")
        self.assertEqual(len(self.heard), MAX_TIMERS)


class SubscribeTests(InfoTestCase):
    def test_hears_the_broadcasts_of_another_topic(self) -> None:
        channel = self.join()
        channel.subscribe("deals")
        channel.subscribe("deals")
        self.assertEqual(self.server.pubsub.broadcast("deals", "won", {"id": 7}), 1)
        [broadcast] = self.heard
        self.assertIsInstance(broadcast, Broadcast)
        self.assertEqual((broadcast.topic, broadcast.event, broadcast.payload), ("deals", "won", {"id": 7}))
        self.assertEqual(self.client.received(), [])

    def test_unsubscribe(self) -> None:
        channel = self.join()
        channel.subscribe("deals")
        channel.unsubscribe("deals")
        channel.unsubscribe("deals")
        channel.unsubscribe("room:1")
        self.assertEqual(self.server.pubsub.broadcast("deals", "won", {}), 0)
        self.assertEqual(self.server.pubsub.broadcast("room:1", "new", {}), 1)

    def test_in_a_join(self) -> None:
        channel, pending = self.joining()
        channel.subscribe("deals")
        self.server.pubsub.broadcast("deals", "won", {})
        self.assertEqual(self.heard, [])
        pending.callback(None)
        self.assertEqual(len(self.heard), 1)

    def test_ends_with_the_channel_and_with_a_join_that_is_refused(self) -> None:
        self.join().subscribe("deals")
        self.client.send("1", "2", "room:1", "phx_leave")
        self.assertEqual(self.server.pubsub.broadcast("deals", "won", {}), 0)
        self.script.joined[-1].subscribe("deals")
        self.assertEqual(self.server.pubsub.broadcast("deals", "won", {}), 0)
        channel, pending = self.joining()
        channel.subscribe("deals")
        pending.callback(error())
        self.assertEqual(self.server.pubsub.broadcast("deals", "won", {}), 0)

    def test_of_a_join_that_outlives_its_connection_has_no_effect(self) -> None:
        gate: Deferred[Any] = Deferred()

        async def join(channel: Channel, _payload: Any) -> None:
            try:
                await Deferred()
            except CancelledError:
                await gate
            channel.subscribe("deals")
            channel.send_after(1, "later")

        self.script.join = join
        self.client.send("1", "1", "room:1", "phx_join")
        self.client.lose()
        self.server.clock.advance(STOP_TIMEOUT)
        gate.callback(None)
        self.assertEqual(self.script.terminated, [("room:1", "closed")])
        self.assertEqual(self.server.pubsub.broadcast("deals", "won", {}), 0)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_its_own_topic_is_refused(self) -> None:
        problem = self.assertRaises(ValueError, self.join().subscribe, "room:1")
        self.assertIn("name the events in intercept", str(problem))

    def test_there_is_a_bound(self) -> None:
        channel = self.join()
        for number in range(MAX_SUBSCRIPTIONS):
            channel.subscribe(f"deal:{number}")
        self.assertRaises(TooManySources, channel.subscribe, "one more")
        channel.subscribe("deal:0")
        channel.unsubscribe("deal:0")
        channel.subscribe("one more")
