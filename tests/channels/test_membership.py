"""One Channel on one Socket: its join, its messages one after the other, and its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import LogEvent, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.callbacks import STOP_TIMEOUT
from flowtx.channels.channel import Channel, Reply, Stop, error, ok
from flowtx.channels.membership import MAX_TURN
from flowtx.errors import InvalidPayload, PresenceFull, Unavailable
from flowtx.protocol.message import Broadcast
from tests.channels.scripted import Client, Server, closing, crashed, reply, unmatched


class Boom(Exception):  # noqa: N818
    """What the tests' Channels crash with."""


async def stubborn(first: Deferred[Any], second: Deferred[Any]) -> None:
    """Swallow a cancellation and wait on."""
    try:
        await first
    except CancelledError:
        await second


class MembershipTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.script = self.server.script
        self.client: Client = self.server.connect()
        self.logged = self.enterContext(capturedLogs())

    def on(self, event: str, handler: Callable[[Channel, Any], Any]) -> None:
        self.script.events[event] = handler

    def joining(self) -> Deferred[Any]:
        """Have the next join wait."""
        pending: Deferred[Any] = Deferred()
        self.script.join = lambda _channel, _payload: pending
        return pending

    def warnings(self) -> list[LogEvent]:
        return [event for event in self.logged if event["log_level"].name == "warn"]

    def crashes(self, exception: type[Exception] = Boom) -> int:
        return len(self.flushLoggedErrors(exception))


class JoinTests(MembershipTestCase):
    def join(self, outcome: Any) -> Any:
        """Join with what the Channel gives; the status and the response."""
        self.script.join = lambda _channel, _payload: outcome
        self.client.send("1", "2", "room:1", "phx_join")
        [frame] = self.client.received()
        self.assertEqual(frame[:4], ["1", "2", "room:1", "phx_reply"])
        return frame[4]["status"], frame[4]["response"]

    def test_in(self) -> None:
        async def later() -> Reply:
            return ok({"a": 1})

        self.assertEqual(self.join(None), ("ok", {}))
        self.assertEqual(self.server.connect().socket.topics, ())
        for outcome in (ok({"a": 1}), succeed(ok({"a": 1})), later()):
            client = self.client = self.server.connect()
            self.assertEqual(self.join(outcome), ("ok", {"a": 1}))
            self.assertEqual(client.socket.topics, ("room:1",))

    def test_refused(self) -> None:
        self.assertEqual(self.join(error({"reason": "no"})), ("error", {"reason": "no"}))
        self.assertEqual(self.client.socket.topics, ())
        self.assertEqual(self.server.pubsub.publish(Broadcast("room:1", "e", {})), 0)
        self.successResultOf(self.client.lose())
        self.assertEqual(self.script.terminated, [])

    def test_a_crash_refuses(self) -> None:
        def crash(_channel: Channel, _payload: Any) -> None:
            raise Boom

        self.assertEqual(self.join(fail(Boom())), ("error", {"reason": "join crashed"}))
        self.script.join = crash
        self.client.send("1", "1", "room:1", "phx_join")
        self.assertEqual(
            self.client.received(), [reply("1", "1", "room:1", {"reason": "join crashed"}, "error")]
        )
        self.assertEqual(self.crashes(), 2)
        self.assertEqual(self.client.socket.topics, ())

    def test_an_illegal_return_value_is_a_crash_that_lists_the_legal_ones(self) -> None:
        for illegal in ("nonsense", True, Reply("pending"), Stop(), {"a": 1}):
            self.assertEqual(self.join(illegal), ("error", {"reason": "join crashed"}))
            [failure] = self.flushLoggedErrors(TypeError)
            name = type(illegal).__name__
            expected = f"ScriptedChannel.join returned {name}; it may return None, ok(…) or error(…)"
            self.assertEqual(str(failure.value), expected)

    def test_a_response_that_cannot_be_sent_is_a_crash(self) -> None:
        self.assertEqual(self.join(ok({"a": object()})), ("error", {"reason": "join crashed"}))
        self.assertEqual(self.crashes(Exception), 1)
        self.assertEqual(self.client.socket.topics, ())
        # What the Channel took for its client is given back.
        self.assertEqual(self.script.terminated, [("room:1", "crash")])

    def test_storage_that_fails_refuses_without_a_traceback(self) -> None:
        self.assertEqual(self.join(fail(Unavailable("down"))), ("error", {"reason": "unavailable"}))
        self.assertEqual(len(self.warnings()), 1)

    def test_an_invalid_payload_refuses(self) -> None:
        outcome = self.join(fail(InvalidPayload("no number")))
        self.assertEqual(outcome, ("error", {"reason": "invalid_payload", "detail": "no number"}))

    def test_a_payload_that_cannot_be_read_is_not_given_to_the_channel(self) -> None:
        deep: list[Any] = []
        for _ in range(33):
            deep = [deep]
        self.client.send("1", "1", "room:1", "phx_join", deep)
        [frame] = self.client.received()
        self.assertEqual(frame[4]["response"]["reason"], "invalid_payload")
        self.assertEqual(self.script.joined, [])

    def test_the_payload(self) -> None:
        payloads: list[Any] = []
        self.script.join = lambda _channel, payload: payloads.append(payload)
        for payload in ({"a": 1}, [1], "text", 5):
            self.client.send("1", "1", f"room:{payload}", "phx_join", payload)
        self.client.transport.text('["1","1","room:null","phx_join",null]')
        self.assertEqual(payloads, [{"a": 1}, [1], "text", 5, None])


class JoinOrderTests(MembershipTestCase):
    """The answer to a join is the first frame of it that a client sees."""

    def test_an_answer_at_once_does_not_overtake_what_was_held(self) -> None:
        def join(channel: Channel, _payload: Any) -> None:
            channel.socket.on_pong = lambda payload: channel.push("pong", {"seq": payload.decode()})
            channel.push("first", {})
            channel.ping(b"1")
            channel.push("second", {})

        self.script.join = join
        self.client.transport.answers_pings = True
        self.client.send("1", "1", "room:1", "phx_join")
        self.assertEqual(
            [frame[3] for frame in self.client.received()], ["phx_reply", "first", "second", "pong"]
        )

    def test_what_a_join_pushes_follows_its_answer(self) -> None:
        def join(channel: Channel, _payload: Any) -> None:
            channel.push("first", {})
            channel.push("second", b"\x00")

        self.script.join = join
        self.client.send("1", "1", "room:1", "phx_join")
        self.assertEqual(
            self.client.received(),
            [
                reply("1", "1", "room:1"),
                ["1", None, "room:1", "first", {}],
                b"\x00\x01\x06\x061room:1second\x00",
            ],
        )

    def test_pushes_and_messages_wait_for_a_join_that_takes_its_time(self) -> None:
        self.on("ping", lambda _channel, payload: ok(payload))
        pending = self.joining()
        self.client.send("1", "1", "room:1", "phx_join")
        self.client.send("1", "2", "room:1", "ping", {"n": 2})
        self.script.joined[0].push("pushed", {})
        self.client.send(None, "3", "room:1", "ping", {"n": 3})
        self.client.send(None, "4", "phoenix", "heartbeat")
        self.assertEqual(self.client.received(), [reply(None, "4", "phoenix")])
        self.assertEqual(self.script.handled, [])
        pending.callback(None)
        self.assertEqual(
            self.client.received(),
            [
                reply("1", "1", "room:1"),
                ["1", None, "room:1", "pushed", {}],
                reply("1", "2", "room:1", {"n": 2}),
                reply("1", "3", "room:1", {"n": 3}),
            ],
        )

    def test_a_broadcast_is_heard_from_the_answer_on(self) -> None:
        pending = self.joining()
        self.client.send("1", "1", "room:1", "phx_join")
        self.server.pubsub.publish(Broadcast("room:1", "before", {}))
        pending.callback(None)
        self.server.pubsub.publish(Broadcast("room:1", "after", {}))
        self.assertEqual(
            self.client.received(), [reply("1", "1", "room:1"), ["1", None, "room:1", "after", {}]]
        )

    def test_what_a_refused_join_pushed_is_dropped_and_what_came_is_unmatched(self) -> None:
        pending = self.joining()
        self.client.send("1", "1", "room:1", "phx_join")
        self.script.joined[0].push("pushed", {})
        self.client.send("1", "2", "room:1", "ping")
        self.client.send("1", "3", "room:1", "phx_leave")
        pending.callback(error())
        self.assertEqual(
            self.client.received(),
            [
                reply("1", "1", "room:1", status="error"),
                unmatched("2", "room:1"),
                reply("1", "3", "room:1"),
            ],
        )

    def test_leaving_while_the_join_is_pending(self) -> None:
        pending = self.joining()
        self.client.send("1", "1", "room:1", "phx_join")
        self.client.send("1", "2", "room:1", "phx_leave")
        pending.callback(None)
        self.assertEqual(
            self.client.received(),
            [reply("1", "1", "room:1"), reply("1", "2", "room:1"), closing("1", "room:1")],
        )
        self.assertEqual(self.script.terminated, [("room:1", "leave")])

    def test_a_join_without_a_join_ref(self) -> None:
        self.on("ping", lambda _channel, _payload: ok())
        self.client.send(None, "1", "room:1", "phx_join")
        self.client.send("9", "2", "room:1", "ping")
        self.client.send(None, "3", "room:1", "phx_leave")
        self.assertEqual(
            self.client.received(),
            [
                reply(None, "1", "room:1"),
                reply("1", "2", "room:1"),
                reply("1", "3", "room:1"),
                closing(None, "room:1"),
            ],
        )


class HandleInTests(MembershipTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.client.join("room:1", "1")

    def push(self, outcome: Any) -> list[Any]:
        self.on("event", lambda _channel, _payload: outcome)
        self.client.send("1", "2", "room:1", "event")
        return self.client.received()

    def rejoin(self) -> None:
        self.client.join("room:1", "1")

    def test_what_is_answered_at_once(self) -> None:
        async def coroutine() -> Reply:
            return ok()

        for outcome in (ok(), succeed(ok()), coroutine()):
            self.assertEqual(self.push(outcome), [reply("1", "2", "room:1")])
        self.assertEqual(self.push(Reply("pending", [1])), [reply("1", "2", "room:1", [1], "pending")])
        self.assertEqual(self.push(None), [])
        self.assertEqual(self.push(succeed(None)), [])

    def test_what_is_answered_later(self) -> None:
        async def coroutine(pending: Deferred[Any]) -> Any:
            return await pending

        for wrap in (lambda pending: pending, coroutine):
            pending: Deferred[Any] = Deferred()
            self.assertEqual(self.push(wrap(pending)), [])
            pending.callback(ok())
            self.assertEqual(self.client.received(), [reply("1", "2", "room:1")])

    def test_one_message_at_a_time(self) -> None:
        first: Deferred[Any] = Deferred()
        self.on("wait", lambda _channel, _payload: first)
        self.on("ping", lambda _channel, payload: ok(payload))
        self.client.join("room:2", "5")
        self.client.send("1", "2", "room:1", "wait", {"n": 2})
        self.client.send("1", "3", "room:1", "ping", {"n": 3})
        self.client.send("5", "4", "room:2", "ping", {"n": 4})
        self.assertEqual(self.client.received(), [reply("5", "4", "room:2", {"n": 4})])
        self.assertEqual(self.script.handled, [{"n": 2}, {"n": 4}])
        first.callback(ok())
        self.assertEqual(
            self.client.received(), [reply("1", "2", "room:1"), reply("1", "3", "room:1", {"n": 3})]
        )

    def test_a_long_mailbox_is_worked_off_without_recursion(self) -> None:
        async def coroutine() -> Reply:
            return ok()

        outcomes: list[Callable[[], Any]] = [ok, lambda: succeed(ok()), coroutine]
        first: Deferred[Any] = Deferred()
        self.on("wait", lambda _channel, _payload: first)
        self.on("ping", lambda _channel, payload: outcomes[payload % 3]())
        self.client.send("1", "0", "room:1", "wait")
        for number in range(3000):
            self.client.send("1", number, "room:1", "ping", number)
        first.callback(None)
        # The rest is for the next turns of the reactor.
        self.assertEqual(len(self.client.received()), MAX_TURN)
        self.server.clock.pump([0, 0])
        self.assertEqual([frame[1] for frame in self.client.received()], list(range(MAX_TURN, 3000)))

    def test_a_message_sent_from_within_a_handler_waits_its_turn(self) -> None:
        def again(channel: Channel, payload: Any) -> Reply:
            if payload["n"]:
                self.client.send("1", "3", "room:1", "again", {"n": 0})
            return ok(payload)

        self.on("again", again)
        self.client.send("1", "2", "room:1", "again", {"n": 1})
        self.assertEqual(
            self.client.received(), [reply("1", "2", "room:1", {"n": 1}), reply("1", "3", "room:1", {"n": 0})]
        )

    def test_a_crash_ends_this_channel_alone(self) -> None:
        async def coroutine() -> None:
            raise Boom

        def crash(_channel: Channel, _payload: Any) -> None:
            raise Boom

        self.client.join("room:2", "5")
        for outcome in (fail(Boom()), coroutine()):
            self.assertEqual(self.push(outcome), [crashed("1", "room:1")])
            self.rejoin()
        self.on("event", crash)
        self.client.send("1", "2", "room:1", "event")
        self.client.send("1", "3", "room:1", "event")
        self.assertEqual(self.client.received(), [crashed("1", "room:1"), unmatched("3", "room:1")])
        self.assertEqual(self.crashes(), 3)
        self.assertEqual(self.script.terminated, [("room:1", "crash")] * 3)
        self.assertEqual(self.client.socket.topics, ("room:2",))

    def test_messages_behind_a_crash_are_dropped(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.push(pending)
        self.client.send("1", "3", "room:1", "event")
        pending.errback(Boom())
        self.assertEqual(self.client.received(), [crashed("1", "room:1")])
        self.assertEqual(len(self.script.handled), 1)
        self.assertEqual(self.crashes(), 1)

    def test_an_illegal_return_value_is_a_crash_that_lists_the_legal_ones(self) -> None:
        for illegal in ("nonsense", {"a": 1}, False, succeed(5)):
            self.assertEqual(self.push(illegal), [crashed("1", "room:1")])
            [failure] = self.flushLoggedErrors(TypeError)
            self.assertIn("ScriptedChannel.handle_in returned", str(failure.value))
            self.assertIn("it may return None, ok(…), error(…), a Reply or a Stop", str(failure.value))
            self.rejoin()

    def test_an_answer_that_cannot_be_sent_is_a_crash(self) -> None:
        self.assertEqual(self.push(ok({"a": object()})), [crashed("1", "room:1")])
        self.rejoin()
        self.assertEqual(self.push(succeed(ok({"a": object()}))), [crashed("1", "room:1")])
        self.assertEqual(self.crashes(Exception), 2)

    def test_an_unknown_event_is_one_line_in_the_log(self) -> None:
        for event in ("nosuch", "phx_reply", "phx_close", "phx_error", "heartbeat", None, 7):
            before = len(self.logged)
            self.client.send("1", "2", "room:1", event)
            self.assertEqual(self.client.received(), [crashed("1", "room:1")])
            [line] = self.logged[before:]
            self.assertEqual((line["log_level"].name, line["channel"]), ("warn", "ScriptedChannel"))
            self.assertEqual(line["event"], repr(event))
            self.assertNotIn("log_failure", line)
            self.rejoin()

    def test_what_only_a_server_may_send_and_what_is_no_text_is_not_given_to_the_channel(self) -> None:
        for event in ("phx_reply", "phx_close", "phx_error", None, 7):
            self.script.events[event] = lambda _channel, _payload: ok()  # type: ignore[index]
            self.client.send("1", "2", "room:1", event)
            self.assertEqual(self.client.received(), [crashed("1", "room:1")])
            self.rejoin()
        self.assertEqual(self.script.handled, [])

    def test_an_unknown_events_name_is_cut_in_the_log(self) -> None:
        self.client.send("1", "2", "room:1", "x" * 10_000)
        [line] = self.warnings()
        self.assertEqual(len(line["event"]), 64)

    def test_too_many_presences_are_answered_and_the_channel_lives(self) -> None:
        expected = [reply("1", "2", "room:1", {"reason": "presence_full"}, "error")]
        self.assertEqual(self.push(fail(PresenceFull("full"))), expected)
        self.assertEqual(len(self.warnings()), 1)
        self.assertEqual(self.client.socket.topics, ("room:1",))

    def test_storage_that_fails_is_answered_and_the_channel_lives(self) -> None:
        def unavailable(_channel: Channel, _payload: Any) -> None:
            raise Unavailable("down")

        expected = [reply("1", "2", "room:1", {"reason": "unavailable"}, "error")]
        self.assertEqual(self.push(fail(Unavailable("down"))), expected)
        self.on("event", unavailable)
        self.client.send("1", "2", "room:1", "event")
        self.assertEqual(self.client.received(), expected)
        self.assertEqual(len(self.warnings()), 2)
        self.assertEqual(self.client.socket.topics, ("room:1",))

    def test_an_invalid_payload_is_answered_and_the_channel_lives(self) -> None:
        response = {"reason": "invalid_payload", "detail": "no number"}
        expected = [reply("1", "2", "room:1", response, "error")]
        self.assertEqual(self.push(fail(InvalidPayload("no number"))), expected)
        self.assertEqual(self.client.socket.topics, ("room:1",))

    def test_a_payload_that_cannot_be_read_is_not_given_to_the_channel(self) -> None:
        self.client.send("1", "2", "room:1", "event", [0] * 2000)
        [frame] = self.client.received()
        self.assertEqual(frame[4]["response"]["reason"], "invalid_payload")
        self.assertEqual(self.script.handled, [])
        self.assertEqual(self.client.socket.topics, ("room:1",))


class StopTests(MembershipTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.client.join("room:1", "1")

    def stop(self, stop: Any) -> list[Any]:
        self.on("stop", lambda _channel, _payload: stop)
        self.client.send("1", "2", "room:1", "stop")
        return self.client.received()

    def test_normal_and_shutdown_close(self) -> None:
        for reason in ("normal", "shutdown"):
            self.assertEqual(self.stop(Stop(reason)), [closing("1", "room:1")])
            self.assertEqual(self.script.terminated.pop(), ("room:1", reason))
            self.client.join("room:1", "1")

    def test_another_reason_is_a_crash(self) -> None:
        self.assertEqual(self.stop(Stop("boom")), [crashed("1", "room:1")])
        self.assertEqual(self.script.terminated, [("room:1", "boom")])

    def test_with_a_reply(self) -> None:
        frames = self.stop(Stop("normal", ok({"bye": True})))
        self.assertEqual(frames, [reply("1", "2", "room:1", {"bye": True}), closing("1", "room:1")])

    def test_from_a_handler_that_took_its_time(self) -> None:
        """It does not wait for itself."""

        async def coroutine(pending: Deferred[Any]) -> Stop:
            await pending
            return Stop("normal", ok())

        pending: Deferred[Any] = Deferred()
        self.assertEqual(self.stop(coroutine(pending)), [])
        pending.callback(None)
        self.assertEqual(self.client.received(), [reply("1", "2", "room:1"), closing("1", "room:1")])
        self.assertEqual(self.script.terminated, [("room:1", "normal")])
        self.successResultOf(self.client.lose())
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_from_a_coroutine_that_did_not_wait(self) -> None:
        async def coroutine() -> Stop:
            return Stop()

        self.assertEqual(self.stop(coroutine()), [closing("1", "room:1")])
        self.assertEqual(self.script.terminated, [("room:1", "normal")])

    def test_what_terminate_pushes_follows_the_close(self) -> None:
        self.script.terminate = lambda channel, _reason: channel.push("bye", {})
        self.assertEqual(self.stop(Stop()), [closing("1", "room:1"), ["1", None, "room:1", "bye", {}]])


class EndTests(MembershipTestCase):
    """After the frame that ends a channel only ``terminate`` sends."""

    def test_the_handler_under_way_sends_nothing_more(self) -> None:
        pending: Deferred[Any] = Deferred()

        async def wait(channel: Channel, _payload: Any) -> Reply:
            await pending
            channel.push("late", {})
            channel.ping(b"late")
            return ok()

        self.on("wait", wait)
        self.script.terminate = lambda channel, _reason: channel.push("bye", {})
        self.client.join("room:1", "1")
        self.client.send("1", "2", "room:1", "wait")
        self.client.socket.crash_channels()
        self.assertEqual(self.client.received(), [crashed("1", "room:1")])
        self.client.transport.answers_pings = False
        pending.callback(None)
        self.assertEqual(self.client.received(), [["1", None, "room:1", "bye", {}]])
        self.assertEqual(self.client.transport.pings, [])
        self.assertEqual(self.script.terminated, [("room:1", "crash")])


class LeaveTests(MembershipTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.client.join("room:1", "1")

    def test_reply_then_close(self) -> None:
        self.client.send("1", "2", "room:1", "phx_leave")
        self.client.send("1", "3", "room:1", "phx_leave")
        self.assertEqual(
            self.client.received(),
            [reply("1", "2", "room:1"), closing("1", "room:1"), reply("1", "3", "room:1")],
        )
        self.assertEqual(self.script.terminated, [("room:1", "leave")])
        self.assertEqual(self.server.pubsub.publish(Broadcast("room:1", "e", {})), 0)

    def test_while_busy(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.on("wait", lambda _channel, _payload: pending)
        self.client.send("1", "2", "room:1", "wait")
        self.client.send("1", "3", "room:1", "phx_leave")
        self.client.send("1", "4", "room:1", "wait")
        self.assertEqual(self.client.received(), [])
        self.assertEqual(self.script.terminated, [])
        pending.callback(ok())
        self.assertEqual(
            self.client.received(),
            [reply("1", "2", "room:1"), reply("1", "3", "room:1"), closing("1", "room:1")],
        )
        self.assertEqual(len(self.script.handled), 1)
        self.assertEqual(self.script.terminated, [("room:1", "leave")])

    def test_then_joining_again(self) -> None:
        self.client.send("1", "2", "room:1", "phx_leave")
        self.client.received()
        self.client.join("room:1", "3")
        self.assertEqual(self.client.socket.topics, ("room:1",))


class DuplicateJoinTests(MembershipTestCase):
    def test_the_new_reply_then_the_old_close(self) -> None:
        self.client.join("room:1", "1")
        self.client.send("2", "2", "room:1", "phx_join")
        self.assertEqual(self.client.received(), [reply("2", "2", "room:1"), closing("1", "room:1")])
        self.assertEqual(self.script.terminated, [("room:1", "duplicate_join")])
        self.assertEqual(self.server.pubsub.publish(Broadcast("room:1", "e", {})), 1)
        self.assertEqual(self.client.received(), [["2", None, "room:1", "e", {}]])

    def test_a_refused_one_ends_the_old_one_all_the_same(self) -> None:
        self.client.join("room:1", "1")
        self.script.join = lambda _channel, _payload: error()
        self.client.send("2", "2", "room:1", "phx_join")
        self.assertEqual(
            self.client.received(), [reply("2", "2", "room:1", status="error"), closing("1", "room:1")]
        )
        self.assertEqual(self.client.socket.topics, ())

    def test_while_a_handler_is_pending(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.on("wait", lambda _channel, _payload: pending)
        self.client.join("room:1", "1")
        self.client.send("1", "2", "room:1", "wait")
        self.client.send("1", "3", "room:1", "wait")
        self.client.send("4", "4", "room:1", "phx_join")
        self.assertEqual((self.client.received(), len(self.script.joined)), ([], 1))
        pending.callback(ok())
        self.assertEqual(
            self.client.received(),
            [reply("1", "2", "room:1"), reply("4", "4", "room:1"), closing("1", "room:1")],
        )
        self.assertEqual(self.script.terminated, [("room:1", "duplicate_join")])
        self.assertEqual(len(self.script.handled), 1)

    def test_while_a_handler_is_pending_that_stops(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.on("wait", lambda _channel, _payload: pending)
        self.client.join("room:1", "1")
        self.client.send("1", "2", "room:1", "wait")
        self.client.send("3", "3", "room:1", "phx_join")
        pending.callback(Stop("normal", ok()))
        self.assertEqual(
            self.client.received(),
            [reply("1", "2", "room:1"), reply("3", "3", "room:1"), closing("1", "room:1")],
        )
        self.assertEqual(self.script.terminated, [("room:1", "duplicate_join")])
        self.assertEqual(self.client.socket.topics, ("room:1",))

    def test_what_waited_for_a_superseded_join_is_dropped(self) -> None:
        second: Deferred[Any] = Deferred()
        self.on("ping", lambda _channel, _payload: ok())
        self.script.join = lambda _channel, _payload: stubborn(Deferred(), second)
        self.client.send("1", "1", "room:1", "phx_join")
        self.client.send(None, "2", "room:1", "ping")
        self.script.join = lambda _channel, _payload: None
        self.client.send("3", "3", "room:1", "phx_join")
        self.server.clock.advance(STOP_TIMEOUT)
        second.callback(None)
        self.assertEqual(self.client.received(), [reply("3", "3", "room:1"), closing("1", "room:1")])
        self.assertEqual(self.script.handled, [])

    def test_while_a_handler_never_ends(self) -> None:
        cancelled: list[object] = []
        self.on("wait", lambda _channel, _payload: Deferred(cancelled.append))
        self.client.join("room:1", "1")
        self.client.send("1", "2", "room:1", "wait")
        self.client.send("3", "3", "room:1", "phx_join")
        self.server.clock.advance(STOP_TIMEOUT - 0.1)
        self.assertEqual((self.client.received(), cancelled), ([], []))
        self.server.clock.advance(0.1)
        self.assertEqual(self.client.received(), [reply("3", "3", "room:1"), closing("1", "room:1")])
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(self.script.terminated, [("room:1", "duplicate_join")])
        self.assertEqual(len(self.warnings()), 1)

    def test_while_a_join_is_pending(self) -> None:
        first = self.joining()
        self.client.send("1", "1", "room:1", "phx_join")
        second = self.joining()
        self.client.send("2", "2", "room:1", "phx_join")
        self.client.send("2", "3", "room:1", "phx_leave")
        self.assertEqual((self.client.received(), len(self.script.joined)), ([], 1))
        first.callback(ok())
        self.assertEqual((self.client.received(), len(self.script.joined)), ([], 2))
        self.assertEqual(self.script.terminated, [("room:1", "duplicate_join")])
        second.callback(ok())
        self.assertEqual(
            self.client.received(),
            [
                reply("2", "2", "room:1"),
                closing("1", "room:1"),
                reply("2", "3", "room:1"),
                closing("2", "room:1"),
            ],
        )
        self.assertEqual(self.script.terminated[1:], [("room:1", "leave")])

    def test_a_superseded_join_that_is_refused_is_not_terminated(self) -> None:
        first = self.joining()
        self.client.send("1", "1", "room:1", "phx_join")
        self.script.join = lambda _channel, _payload: None
        self.client.send("2", "2", "room:1", "phx_join")
        first.callback(error())
        self.assertEqual(self.client.received(), [reply("2", "2", "room:1"), closing("1", "room:1")])
        self.assertEqual(self.script.terminated, [])

    def test_three_at_once(self) -> None:
        """The one in the middle is never asked; each old one is closed."""
        first = self.joining()
        self.client.send("1", "1", "room:1", "phx_join")
        self.script.join = lambda _channel, _payload: None
        self.client.send("2", "2", "room:1", "phx_join")
        self.client.send("3", "3", "room:1", "phx_join")
        first.callback(None)
        frames = self.client.received()
        self.assertEqual([frame for frame in frames if frame[3] == "phx_reply"], [reply("3", "3", "room:1")])
        self.assertEqual(
            sorted(frame[0] for frame in frames if frame == closing(frame[0], "room:1")), ["1", "2"]
        )
        self.assertEqual(len(self.script.joined), 2)
        self.assertEqual(self.script.terminated, [("room:1", "duplicate_join")])

    def test_while_terminate_never_ends(self) -> None:
        never: Deferred[Any] = Deferred()
        self.script.terminate = lambda _channel, _reason: never
        self.client.join("room:1", "1")
        self.client.send("2", "2", "room:1", "phx_join")
        self.server.clock.advance(STOP_TIMEOUT)
        self.assertEqual(self.client.received(), [reply("2", "2", "room:1"), closing("1", "room:1")])


class LossTests(MembershipTestCase):
    """The connection goes."""

    def lose(self) -> Deferred[None]:
        gone = self.client.lose()
        self.assertNoResult(gone)
        return gone

    def ended(self, gone: Deferred[None], terminated: list[tuple[str, str]]) -> None:
        self.successResultOf(gone)
        self.assertEqual(self.script.terminated, terminated)
        self.assertEqual(self.client.received(), [])
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_while_a_join_is_pending(self) -> None:
        pending = self.joining()
        self.client.send("1", "1", "room:1", "phx_join")
        self.client.send("1", "2", "room:1", "ping")
        gone = self.lose()
        pending.callback(ok())
        self.ended(gone, [("room:1", "closed")])
        self.assertEqual(self.script.handled, [])
        self.assertEqual(self.server.pubsub.publish(Broadcast("room:1", "e", {})), 0)

    def test_while_a_join_is_pending_that_is_refused(self) -> None:
        pending = self.joining()
        self.client.send("1", "1", "room:1", "phx_join")
        gone = self.lose()
        pending.callback(error())
        self.ended(gone, [])

    def test_while_a_join_is_pending_that_crashes(self) -> None:
        pending = self.joining()
        self.client.send("1", "1", "room:1", "phx_join")
        gone = self.lose()
        pending.errback(Boom())
        self.ended(gone, [])
        self.assertEqual(self.crashes(), 1)

    def test_while_a_join_never_ends(self) -> None:
        self.joining()
        self.client.send("1", "1", "room:1", "phx_join")
        gone = self.lose()
        self.server.clock.advance(STOP_TIMEOUT - 0.1)
        self.assertNoResult(gone)
        self.server.clock.advance(0.1)
        self.ended(gone, [])
        self.assertEqual(len(self.warnings()), 1)

    def test_while_a_join_outlives_its_cancellation(self) -> None:
        second: Deferred[Any] = Deferred()
        self.script.join = lambda _channel, _payload: stubborn(Deferred(), second)
        self.client.send("1", "1", "room:1", "phx_join")
        gone = self.lose()
        self.server.clock.advance(STOP_TIMEOUT)
        self.ended(gone, [])
        second.callback(None)
        self.assertEqual(self.script.terminated, [("room:1", "closed")])

    def test_while_a_duplicate_join_waits_for_the_old_channel(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.on("wait", lambda _channel, _payload: pending)
        self.client.join("room:1", "1")
        self.client.send("1", "2", "room:1", "wait")
        self.client.send("3", "3", "room:1", "phx_join")
        gone = self.lose()
        pending.callback(None)
        self.ended(gone, [("room:1", "duplicate_join")])
        self.assertEqual(len(self.script.joined), 1)

    def test_while_a_handler_is_pending(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.on("wait", lambda _channel, _payload: pending)
        self.client.join("room:1", "1")
        self.client.send("1", "2", "room:1", "wait")
        self.client.send("1", "3", "room:1", "wait")
        gone = self.lose()
        self.assertEqual(self.script.terminated, [])
        pending.callback(ok())
        self.ended(gone, [("room:1", "closed")])
        self.assertEqual(len(self.script.handled), 1)

    def test_while_a_handler_is_pending_that_stops(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.on("wait", lambda _channel, _payload: pending)
        self.client.join("room:1", "1")
        self.client.send("1", "2", "room:1", "wait")
        gone = self.lose()
        pending.callback(Stop("normal", ok()))
        self.ended(gone, [("room:1", "closed")])

    def test_while_a_handler_is_pending_that_crashes(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.on("wait", lambda _channel, _payload: pending)
        self.client.join("room:1", "1")
        self.client.send("1", "2", "room:1", "wait")
        gone = self.lose()
        pending.errback(Boom())
        self.ended(gone, [("room:1", "closed")])
        self.assertEqual(self.crashes(), 1)

    def test_while_a_handler_never_ends(self) -> None:
        self.on("wait", lambda _channel, _payload: Deferred())
        self.client.join("room:1", "1")
        self.client.send("1", "2", "room:1", "wait")
        gone = self.lose()
        self.server.clock.advance(STOP_TIMEOUT - 0.1)
        self.assertNoResult(gone)
        self.server.clock.advance(0.1)
        self.ended(gone, [("room:1", "closed")])

    def test_while_a_handler_outlives_its_cancellation(self) -> None:
        second: Deferred[Any] = Deferred()
        self.on("wait", lambda _channel, _payload: stubborn(Deferred(), second))
        self.client.join("room:1", "1")
        self.client.send("1", "2", "room:1", "wait")
        gone = self.lose()
        self.server.clock.advance(STOP_TIMEOUT)
        self.ended(gone, [("room:1", "closed")])
        second.callback(None)
        self.ended(gone, [("room:1", "closed")])

    def test_while_terminate_is_pending(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.script.terminate = lambda _channel, _reason: pending
        self.client.join("room:1", "1")
        self.client.send("1", "2", "room:1", "phx_leave")
        self.client.received()
        self.client.join("room:2", "3")
        gone = self.lose()
        self.assertEqual(self.script.terminated, [("room:1", "leave"), ("room:2", "closed")])
        pending.callback(None)
        self.ended(gone, [("room:1", "leave"), ("room:2", "closed")])

    def test_while_terminate_never_ends(self) -> None:
        self.script.terminate = lambda _channel, _reason: Deferred()
        self.client.join("room:1", "1")
        gone = self.lose()
        self.server.clock.advance(STOP_TIMEOUT - 0.1)
        self.assertNoResult(gone)
        self.server.clock.advance(0.1)
        self.ended(gone, [("room:1", "closed")])
        self.assertEqual(len(self.warnings()), 1)

    def test_while_terminate_outlives_its_cancellation(self) -> None:
        self.script.terminate = lambda _channel, _reason: stubborn(Deferred(), Deferred())
        self.client.join("room:1", "1")
        gone = self.lose()
        self.server.clock.advance(STOP_TIMEOUT)
        self.ended(gone, [("room:1", "closed")])

    def test_a_crash_in_terminate_is_logged_and_ends_nothing_else(self) -> None:
        def crash(channel: Channel, _reason: str) -> Any:
            if channel.topic == "room:1":
                raise Boom
            return fail(Boom())

        self.script.terminate = crash
        self.client.join("room:1", "1")
        self.client.join("room:2", "2")
        self.ended(self.client.lose(), [("room:1", "closed"), ("room:2", "closed")])
        self.assertEqual(self.crashes(), 2)

    def test_terminate_may_return_nothing(self) -> None:
        outcomes: list[Any] = [ok(), succeed(5)]
        for number, outcome in enumerate(outcomes):
            self.script.terminate = lambda _channel, _reason, outcome=outcome: outcome  # type: ignore[misc]
            client = self.server.connect()
            client.join(f"room:{number}", "1")
            self.successResultOf(client.lose())
            [failure] = self.flushLoggedErrors(TypeError)
            self.assertIn("ScriptedChannel.terminate returned", str(failure.value))
            self.assertIn("; it may return None", str(failure.value))

    def test_all_channels_end_side_by_side(self) -> None:
        pending: list[Deferred[Any]] = [Deferred(), Deferred()]
        self.script.terminate = lambda channel, _reason: pending[int(channel.topic[-1])]
        self.client.join("room:0", "1")
        self.client.join("room:1", "2")
        gone = self.lose()
        self.assertEqual(len(self.script.terminated), 2)
        pending[1].callback(None)
        self.assertNoResult(gone)
        pending[0].callback(None)
        self.successResultOf(gone)


class BroadcastTests(MembershipTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.others = [self.server.connect(), self.server.connect(vsn="1.0.0")]
        for number, client in enumerate([self.client, *self.others]):
            client.join("room:1", str(number))
        self.on("blob", lambda channel, _payload: ok({"sent": channel.broadcast("blob", b"\x00")}))
        self.on("new", lambda channel, payload: ok({"sent": channel.broadcast("new", payload)}))

    def test_each_member_hears_it_in_its_own_version(self) -> None:
        self.client.send("0", "9", "room:1", "new", {"a": 1})
        self.assertEqual(
            self.client.received(),
            [["0", None, "room:1", "new", {"a": 1}], reply("0", "9", "room:1", {"sent": 3})],
        )
        self.assertEqual(self.others[0].received(), [["1", None, "room:1", "new", {"a": 1}]])
        self.assertEqual(
            self.others[1].received(), [{"topic": "room:1", "event": "new", "payload": {"a": 1}, "ref": None}]
        )

    def test_is_encoded_once_for_each_version(self) -> None:
        payload = {"a": 1}
        pubsub = self.server.pubsub

        class Changes:
            def deliver(self, broadcast: Broadcast) -> None:
                payload["a"] = 2

        pubsub.subscribe("room:1", Changes())
        later = [self.server.connect(), self.server.connect(vsn="1.0.0")]
        for client in later:
            client.join("room:1", "7")
        pubsub.publish(Broadcast("room:1", "new", payload))
        self.assertEqual(payload, {"a": 2})
        self.assertEqual(later[0].received()[0][4], {"a": 1})
        self.assertEqual(later[1].received()[0]["payload"], {"a": 1})

    def test_all_members_of_version_1_get_the_very_same_bytes(self) -> None:
        other = self.server.connect(vsn="1.0.0")
        other.join("room:1", "7")
        self.server.pubsub.publish(Broadcast("room:1", "new", {"a": 1}))
        self.assertIs(other.transport.take()[0].payload, self.others[1].transport.take()[0].payload)

    def test_what_a_v1_member_cannot_get_hurts_that_member_alone(self) -> None:
        self.client.send("0", "9", "room:1", "blob")
        blob = b"\x02\x06\x04room:1blob\x00"
        self.assertEqual(self.client.received(), [blob, reply("0", "9", "room:1", {"sent": 3})])
        self.assertEqual(self.others[0].received(), [blob])
        self.assertEqual(
            self.others[1].received(),
            [{"topic": "room:1", "event": "phx_error", "payload": {"reason": "channel_crash"}, "ref": "2"}],
        )
        self.assertEqual(self.script.terminated, [("room:1", "crash")])
        self.assertEqual(self.crashes(Exception), 1)

    def test_what_the_sender_cannot_encode_hurts_the_sender_alone(self) -> None:
        self.others[1].send("2", "9", "room:1", "blob")
        self.assertEqual([frame["event"] for frame in self.others[1].received()], ["phx_error"])
        self.assertEqual((self.client.received(), self.others[0].received()), ([], []))
        self.assertEqual(self.crashes(Exception), 1)

    def test_a_member_that_is_busy_hears_it_at_once(self) -> None:
        self.on("wait", lambda _channel, _payload: Deferred())
        self.client.send("0", "9", "room:1", "wait")
        self.server.pubsub.publish(Broadcast("room:1", "new", {}))
        self.assertEqual(self.client.received(), [["0", None, "room:1", "new", {}]])

    def test_a_member_that_is_ending_hears_nothing(self) -> None:
        self.script.terminate = lambda _channel, _reason: Deferred()
        self.client.send("0", "9", "room:1", "phx_leave")
        self.client.received()
        self.script.joined[0]._membership.deliver(Broadcast("room:1", "new", {}))
        self.assertEqual(self.client.received(), [])
