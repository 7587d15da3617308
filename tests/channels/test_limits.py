"""How much a client may ask for, and whether it is still there."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.channel import Channel, error, ok
from flowtx.channels.liveness import PING
from flowtx.channels.router import Router
from flowtx.channels.socket import Socket
from flowtx.channels.throttle import Quota
from flowtx.channels.tokens import Tokens
from flowtx.interfaces import Principal
from flowtx.limits import Rate
from flowtx.protocol.close import HEARTBEAT_TIMEOUT, TOKEN_ENDED, Close
from flowtx.protocol.serializer import serializer_for
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.testing.memory import MemoryTransport


class Echo(Channel):
    def handle_in(self, event: str, payload: Any) -> Any:
        return ok({"event": event})


class TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000)
        self.exceeded: list[str] = []
        self.handled: list[Any] = []
        self.transport = self.connect()

    def connect(self, **options: Any) -> MemoryTransport:
        serializer = serializer_for("2.0.0")
        assert serializer is not None
        transport = MemoryTransport()
        given: dict[str, Any] = {
            "heartbeat_timeout": 60.0,
            "quota": Quota(Rate(50, 100), Rate(10, 20), Rate(5, 10), self.exceeded.append),
            **options,
        }
        transport.socket = Socket(
            transport,
            serializer,
            Principal("42", expires_at=1e9),
            router=Router().channel("room:*", Echo),
            pubsub=MemoryPubSub(),
            clock=self.clock,
            max_topics=100,
            **given,
        )
        return transport

    def send(self, ref: object, topic: str = "room:1", event: str = "ping", join_ref: object = "1") -> None:
        self.transport.text(json.dumps([join_ref, ref, topic, event, {}]))

    def take(self) -> list[Any]:
        return [json.loads(frame.payload) for frame in self.transport.take()]

    def join(self) -> None:
        self.send("1", event="phx_join")
        self.assertEqual(self.take()[0][4]["status"], "ok")


class MessageLimitTests(TestCase):
    def test_a_burst_is_handled_and_one_more_is_refused(self) -> None:
        self.join()
        for number in range(100):
            self.send(f"{number}")
        self.assertEqual([frame[4]["status"] for frame in self.take()], ["ok"] * 100)
        self.assertEqual(self.exceeded, [])
        self.send("over")
        self.assertEqual(
            self.take(),
            [
                [
                    "1",
                    "over",
                    "room:1",
                    "phx_reply",
                    {"status": "error", "response": {"reason": "rate_limited", "retry_after_ms": 20}},
                ]
            ],
        )
        self.assertEqual(self.exceeded, ["messages"])
        self.clock.advance(0.02)
        self.send("again")
        self.assertEqual(self.take()[0][4], {"status": "ok", "response": {"event": "ping"}})
        self.assertIsNone(self.transport.closed)

    def test_the_third_within_ten_seconds_closes(self) -> None:
        self.join()
        for number in range(102):
            self.send(f"{number}")
        self.assertIsNone(self.transport.closed)
        self.take()
        with capturedLogs() as logged:
            self.send("third")
        closed = Close(1008, "rate_limited retry_after_ms=2000")
        self.assertEqual(self.transport.closed, closed)
        # It is told, even so.
        [answer] = self.take()
        self.assertEqual(answer[4]["response"]["reason"], "rate_limited")
        self.assertEqual(self.exceeded, ["messages"] * 3)
        self.assertEqual([formatEvent(event) for event in logged], [f"Closing memory: 1008 {closed.reason}"])
        self.assertLessEqual(len(closed.reason), 123)
        self.send("more")
        self.assertEqual((self.take(), len(self.exceeded)), ([], 3))

    def test_now_and_then_is_forgiven(self) -> None:
        self.join()
        for _ in range(10):
            for number in range(102):
                self.send(f"{number}")
            self.clock.advance(10.1)
        self.assertIsNone(self.transport.closed)
        self.assertEqual(self.exceeded, ["messages"] * 20)

    def test_any_message_counts(self) -> None:
        for send in (
            lambda: self.send("1", "phoenix", "heartbeat", None),
            lambda: self.send("1", "nowhere", "push"),
            lambda: self.send("1", "room:1", "phx_leave"),
            lambda: self.transport.binary(b"\x00\x01\x01\x06\x04" + b"11" + b"room:1ping"),
            lambda: self.transport.text('[null,"1",7,null,{}]'),
        ):
            self.transport = self.connect()
            self.exceeded.clear()
            for _ in range(101):
                send()
            self.assertEqual(self.exceeded, ["messages"])

    def test_heartbeats_alone_are_never_too_many_but_read_no_faster(self) -> None:
        for _ in range(100):
            self.send("1", "phoenix", "heartbeat", None)
        self.assertTrue(self.transport.reading)
        for _ in range(50):
            self.send("1", "phoenix", "heartbeat", None)
            self.assertFalse(self.transport.reading)
            # What was on its way is answered all the same.
            self.send("1", "phoenix", "heartbeat", None)
            self.clock.advance(0.02)
            self.send("1", "phoenix", "heartbeat", None)
            self.assertTrue(self.transport.reading)
        self.assertEqual([frame[4]["status"] for frame in self.take()], ["ok"] * 250)
        self.assertIsNone(self.transport.closed)
        self.assertEqual(set(self.exceeded), {"messages"})
        self.send("1", "phoenix", "heartbeat", None)
        self.send("2", event="phx_leave")
        self.assertEqual(self.take()[-1][4]["response"]["reason"], "rate_limited", "they count")
        self.transport.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_heartbeats_as_usual(self) -> None:
        quota = Quota(Rate(1, 1), Rate(1, 1), Rate(1, 1), self.exceeded.append)
        self.transport = self.connect(quota=quota)
        for _ in range(1_000):
            self.clock.advance(5)
            self.send("1", "phoenix", "heartbeat", None)
        self.assertEqual(self.exceeded, [])

    def test_what_waits_for_a_join_is_counted_once(self) -> None:
        """Once the join is refused, it is dispatched again."""
        joining: Deferred[Any] = Deferred()
        self.patch(Echo, "join", lambda _self, _payload: joining)
        self.send("1", event="phx_join")
        for number in range(60):
            self.send(f"{number}")
        self.assertEqual(self.take(), [])
        joining.callback(error())
        self.assertEqual(len(self.take()), 61)
        self.assertEqual(self.exceeded, [])

    def test_without_a_quota_nothing_is_counted(self) -> None:
        self.transport = self.connect(quota=None)
        for _ in range(1_000):
            self.send("1", "phoenix", "heartbeat", None)
            self.transport.socket.ping_received()
        self.assertEqual(len(self.take()), 1_000)


class JoinLimitTests(TestCase):
    def test_joins_have_a_burst_of_their_own(self) -> None:
        for number in range(20):
            self.send(f"{number}", f"room:{number}", "phx_join", f"{number}")
        self.assertEqual([frame[4]["status"] for frame in self.take()], ["ok"] * 20)
        self.send("over", "room:over", "phx_join", "over")
        [answer] = self.take()
        self.assertEqual(answer[:2], ["over", "over"])
        self.assertEqual(answer[4]["response"], {"reason": "rate_limited", "retry_after_ms": 100})
        self.assertEqual(self.exceeded, ["joins"])
        self.assertEqual(len(self.transport.socket.topics), 20)
        for number in range(100):
            self.send(f"{number}", "room:1", join_ref=None)
        self.assertEqual(self.exceeded, ["joins"])
        self.clock.advance(0.1)
        self.send("21", "room:21", "phx_join", "21")
        self.assertEqual(len(self.transport.socket.topics), 21)

    def test_a_flood_closes(self) -> None:
        for number in range(1_000):
            self.send(f"{number}", f"room:{number}", "phx_join", f"{number}")
        assert self.transport.closed is not None
        self.assertEqual(self.transport.closed.code, 1008)
        self.assertEqual((len(self.take()), self.exceeded), (23, ["joins"] * 3))


class PingLimitTests(TestCase):
    def test_ten_at_once_and_five_a_second(self) -> None:
        for _ in range(10):
            self.transport.socket.ping_received()
        for _ in range(50):
            self.clock.advance(0.2)
            self.transport.socket.ping_received()
        self.assertIsNone(self.transport.closed)
        self.transport.socket.ping_received()
        self.assertEqual(self.transport.closed, Close(1008, "rate_limited retry_after_ms=2000"))
        self.transport.socket.ping_received()
        self.assertEqual(self.exceeded[0], "pings")


class LivenessTests(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.transport.lose()
        self.transport = self.connect(ping_interval=25.0, pong_timeout=10.0)
        self.transport.answers_pings = False

    def heartbeat(self, seconds: float) -> None:
        """Let time pass, in which the client sends something each second."""
        while seconds > 0:
            self.clock.advance(min(1.0, seconds))
            self.send("1", "phoenix", "heartbeat", None)
            seconds -= 1

    def assert_open(self, pings: int) -> None:
        self.assertIsNone(self.transport.closed)
        self.assertEqual(self.transport.pings, [PING] * pings)

    def test_a_client_that_answers_nothing_has_gone_after_35_seconds(self) -> None:
        self.clock.advance(24.9)
        self.assert_open(0)
        self.clock.advance(0.2)
        self.assert_open(1)
        self.clock.advance(9.8)
        self.assert_open(1)
        self.clock.advance(0.2)
        self.assertEqual(self.transport.closed, HEARTBEAT_TIMEOUT)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_only_a_pong_counts(self) -> None:
        self.heartbeat(34)
        self.assert_open(1)
        self.heartbeat(1)
        self.assertEqual(self.transport.closed, HEARTBEAT_TIMEOUT)

    def test_a_client_that_answers_lives_on_without_a_word(self) -> None:
        self.transport.answers_pings = True
        pings: list[bytes] = []
        answer = self.transport.ping

        def ping(payload: bytes) -> None:
            pings.append(payload)
            answer(payload)

        self.transport.ping = ping  # type: ignore[method-assign]
        self.clock.pump([1.0] * 1_000)
        self.assertIsNone(self.transport.closed)
        self.assertEqual(pings, [PING] * 40)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_any_pong_will_do_and_puts_the_next_ping_off(self) -> None:
        for _ in range(10):
            self.heartbeat(24)
            self.transport.socket.pong_received(b"17")
        self.assert_open(0)
        self.heartbeat(26)
        self.assert_open(1)
        self.transport.socket.pong_received(b"18")
        self.heartbeat(24)
        self.assert_open(1)
        self.heartbeat(2)
        self.assert_open(2)

    def test_its_own_pongs_are_nobody_elses(self) -> None:
        heard: list[bytes] = []
        self.transport.socket.on_pong = heard.append
        self.transport.socket.pong_received(PING)
        self.transport.socket.pong_received(b"17")
        self.assertEqual(heard, [b"17"])

    def test_while_something_waits_for_the_client_it_is_not_judged(self) -> None:
        self.transport.waiting_bytes = 1
        self.heartbeat(100)
        self.assert_open(1)
        self.transport.waiting_bytes = 0
        self.heartbeat(11)
        self.assertEqual(self.transport.closed, HEARTBEAT_TIMEOUT)

    def test_while_it_is_not_read_it_is_not_judged(self) -> None:
        self.transport.pause_reading()
        self.clock.pump([1.0] * 200)
        self.assertIsNone(self.transport.closed)
        self.transport.resume_reading()
        self.transport.socket.read_again()
        self.clock.advance(9.9)
        self.assertIsNone(self.transport.closed)
        self.clock.advance(0.2)
        self.assertEqual(self.transport.closed, HEARTBEAT_TIMEOUT)

    def test_the_token_ends_all_the_same(self) -> None:
        tokens = Tokens(lambda _: None, lambda _: 30.0)  # type: ignore[arg-type, return-value]
        transport = self.connect(ping_interval=25.0, tokens=tokens)
        self.clock.pump([10.0, 10.0, 9.9])
        self.assertIsNone(transport.closed)
        self.clock.advance(0.2)
        self.assertEqual(transport.closed, TOKEN_ENDED)

    def test_without_pings_any_frame_is_enough(self) -> None:
        self.transport = self.connect(ping_interval=0.0)
        self.transport.answers_pings = False
        self.heartbeat(300)
        self.assert_open(0)
