"""The server and the clients in memory, with their faults."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.app import Services
from flowtx.channels.channel import Channel, Stop, error, ok
from flowtx.channels.router import Router
from flowtx.errors import ConfigError, Refused, Unavailable, UnknownOutcome
from flowtx.interfaces import User
from flowtx.protocol.close import HEARTBEAT_TIMEOUT, SESSION_STOPPED, SLOW_CONSUMER, TOKEN_ENDED
from flowtx.testing import Client, MemoryServer


class RoomChannel(Channel):
    """Does what it is told."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def join(self, payload: Any) -> Any:
        if payload.get("secret") == "no":
            return error({"reason": "unauthorized"})
        if "wait" in payload:
            self.waiting: Deferred[None] = Deferred()
            return self.waiting
        self.assigns.update(payload)
        return ok({"you": self.user_id})

    async def handle_in(self, event: str, payload: Any) -> Any:
        match event:
            case "echo":
                return ok(payload)
            case "quiet":
                return None
            case "shout":
                self.broadcast("shout", payload)
            case "price":
                self.broadcast("price", payload, key="price")
            case "boom":
                raise RuntimeError("boom")
            case "stop":
                return Stop("normal", ok())
            case "notify":
                pushed = await self.services.notifications.push_notification(payload["to"], "note", payload)
                return ok({"seq": pushed.seq})
        return None

    def handle_info(self, message: Any) -> None:
        self.push("info", {"message": message})


def make_router(services: Services) -> Router:
    return Router().channel("room:*", lambda: RoomChannel(services))


class ServerTestCase(SynchronousTestCase):
    options: dict[str, Any] = {}  # noqa: RUF012 - not changed

    def setUp(self) -> None:
        self.server = MemoryServer(make_router, **self.options)
        self.addCleanup(self.server.stop)

    def connected(self, user_id: str = "alice", **options: Any) -> Client:
        client = self.server.connect(user_id, **options)
        client.join("room:1")
        return client

    def failing(self, call: Any, *arguments: Any, **options: Any) -> str:
        return str(self.assertRaises(AssertionError, call, *arguments, **options))


class ClientTests(ServerTestCase):
    def test_join_and_replies(self) -> None:
        alice = self.server.connect("alice")
        self.assertEqual(alice.join("room:1", {"a": 1}), {"you": "alice"})
        self.assertEqual(alice.channel("room:1").assigns, {"a": 1})
        ref = alice.push("room:1", "echo", {"n": 1})
        other = alice.push("room:1", "echo", {"n": 2})
        alice.assert_reply(other, "ok", {"n": 2})
        self.assertEqual(alice.assert_reply(ref), {"n": 1})

    def test_a_join_that_is_refused(self) -> None:
        alice = self.server.connect("alice")
        ref = alice.send_join("room:1", {"secret": "no"})
        alice.assert_reply(ref, "error", {"reason": "unauthorized"})
        text = self.failing(alice.join, "room:1", {"secret": "no"})
        self.assertIn("no reply '2' of status 'ok' with anything came", text)
        self.assertIn("reply '2' on room:1: error {'reason': 'unauthorized'}", text)
        self.assertIn("room:1 is not joined", self.failing(alice.channel, "room:1"))

    def test_a_join_that_takes_its_time(self) -> None:
        alice = self.server.connect("alice")
        ref = alice.send_join("room:1", {"wait": True})
        alice.refute_reply(ref)
        channel: Any = alice.channel("room:1")
        channel.waiting.callback(None)
        alice.assert_reply(ref)

    def test_what_fails_tells_what_came(self) -> None:
        alice = self.connected()
        alice.channel("room:1").send_info("one")
        alice.channel("room:1").send_info("two")
        text = self.failing(alice.assert_push, "info", {"message": "three"}, topic="room:1")
        self.assertEqual(
            text,
            "no 'info' on room:1 with {'message': 'three'} came; what alice got and was not asked for:\n"
            "  'info' on room:1: {'message': 'one'}\n  'info' on room:1: {'message': 'two'}",
        )
        text = self.failing(self.connected("bob").assert_reply, "7", "error", {"a": 1})
        expected = (
            "no reply '7' of status 'error' with {'a': 1} came; what bob got and was not asked for: nothing"
        )
        self.assertEqual(text, expected)

    def test_pushes_are_taken_once_and_in_any_order(self) -> None:
        alice = self.connected()
        for message in ("one", "two", "three"):
            alice.channel("room:1").send_info(message)
        alice.assert_push("info", {"message": "two"})
        self.assertEqual(alice.assert_push("info"), {"message": "one"})
        alice.refute_push("info", {"message": "two"})
        alice.refute_push("info", topic="room:2")
        text = self.failing(alice.refute_push, "info")
        self.assertEqual(
            text, "there was to be no 'info', but it came: 'info' on room:1: {'message': 'three'}"
        )
        self.assertEqual(alice.received(), [])

    def test_refute_reply(self) -> None:
        alice = self.connected()
        alice.refute_reply(alice.push("room:1", "quiet"))
        text = self.failing(alice.refute_reply, alice.push("room:1", "echo"))
        self.assertIn("there was to be no reply '3', but it came", text)

    def test_received(self) -> None:
        alice = self.connected()
        alice.channel("room:1").send_info("one")
        alice.push("room:1", "echo")
        first, second = alice.received()
        self.assertEqual((first.join_ref, first.ref, first.event), ("1", None, "info"))
        self.assertEqual((second.ref, second.payload["status"]), ("2", "ok"))

    def test_binary_both_ways(self) -> None:
        alice, bob = self.connected(), self.connected("bob")
        ref = alice.push("room:1", "echo", b"\x00\xff")
        self.assertEqual(alice.assert_reply(ref), b"\x00\xff")
        alice.push("room:1", "shout", b"\x01")
        bob.assert_push("shout", b"\x01", topic="room:1")
        alice.channel("room:1").push("blob", b"\x02")
        self.assertEqual(alice.assert_push("blob", topic="room:1"), b"\x02")

    def test_version_1(self) -> None:
        alice = self.connected(vsn="1.0.0")
        alice.assert_reply(alice.push("room:1", "echo", [1]), "ok", [1])
        alice.leave("room:1")
        self.assertRaises(Refused, self.server.connect, "alice", vsn="3.0.0")

    def test_leave(self) -> None:
        alice = self.connected()
        alice.leave("room:1")
        self.assertEqual(alice.received(), [])
        alice.leave("room:1")
        ref = alice.push("room:1", "echo")
        alice.assert_reply(ref, "error", {"reason": "unmatched topic"})
        alice.join("room:1")

    def test_the_end_of_a_channel(self) -> None:
        alice = self.connected()
        alice.assert_reply(alice.push("room:1", "stop"))
        alice.assert_push("phx_close", topic="room:1")
        alice.join("room:1")
        alice.push("room:1", "boom")
        alice.assert_push("phx_error", {"reason": "channel_crash"})
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        alice.join("room:1")

    def test_the_server_closes(self) -> None:
        alice = self.connected()
        self.assertIsNone(alice.closed)
        stopping = Deferred.fromCoroutine(self.server.sessions.stop_session("alice"))
        self.assertEqual(alice.closed, SESSION_STOPPED)
        self.assertTrue(self.successResultOf(stopping))
        text = self.failing(alice.assert_push, "info")
        self.assertIn("the server closed the connection: Close(code=1000, reason='session_stopped')", text)

    def test_losing_the_connection(self) -> None:
        alice = self.connected()
        self.successResultOf(alice.lose())
        self.successResultOf(alice.lose())
        self.assertEqual(self.server.pubsub.broadcast("room:1", "shout", {}), 0)
        self.assertTrue(self.server.sessions.session_exists("alice"))
        self.server.advance(self.server.settings.reconnect_window)
        self.assertFalse(self.server.sessions.session_exists("alice"))


class ServerTests(ServerTestCase):
    def test_who_may_connect(self) -> None:
        server = MemoryServer(users=[User("alice", "Alice", None)])
        server.connect("alice").join("user:alice")
        self.assertEqual(self.assertRaises(Refused, server.connect, "bob").reason, "unknown_user")
        server.stop()
        response = self.server.connect("carol", name="Carol", email="c@example.com").join("user:carol")
        self.assertEqual(response["user"], {"id": "carol", "name": "Carol", "email": "c@example.com"})

    def test_broadcasts(self) -> None:
        alice = self.connected()
        alice.push("room:1", "shout", {"n": 1})
        self.server.refute_broadcast("room:1", "shout", {"n": 2})
        self.server.refute_broadcast("room:2", "shout")
        text = self.failing(self.server.assert_broadcast, "room:1", "shout", {"n": 2})
        self.assertIn("no broadcast of 'shout' on room:1 with {'n': 2}", text)
        self.assertIn("'shout' on room:1: {'n': 1}", text)
        text = self.failing(self.server.refute_broadcast, "room:1", "shout")
        self.assertIn("it came: {'n': 1}", text)
        self.assertEqual(self.server.assert_broadcast("room:1", "shout", {"n": int}), {"n": 1})
        self.server.refute_broadcast("room:1", "shout")
        alice.push("room:1", "shout", b"\x00")
        self.server.assert_broadcast("room:1", "shout", b"\x00")

    def test_notifications(self) -> None:
        alice, bob = self.connected(), self.server.connect("bob")
        bob.join("user:bob")
        alice.assert_reply(alice.push("room:1", "notify", {"to": "bob"}), "ok", {"seq": 1})
        bob.assert_push(
            "notification", {"seq": 1, "type": "note", "inserted_at": "2026-01-01T00:00:00.000000Z"}
        )

    def test_presence(self) -> None:
        alice, bob = self.server.connect("alice"), self.server.connect("bob")
        alice.join("users:online")
        bob.join("users:online")
        self.server.advance(0.1)
        alice.assert_push("presence_state", {})
        alice.assert_push("presence_diff", {"joins": {"bob": {"metas": [{"status": "online"}]}}})

    def test_groups(self) -> None:
        alice = self.server.connect("alice", groups=("sales",))
        alice.join("group:sales")
        alice.assert_reply(alice.send_join("group:board"), "error", {"reason": "unauthorized"})
        self.successResultOf(Deferred.fromCoroutine(self.server.groups.add_member("board", "alice")))
        alice.join("group:board")

    def test_clients_send_heartbeats_as_time_passes(self) -> None:
        alice, bob = self.connected(), self.connected("bob")
        bob.is_silent = True
        bob.link.answers_pings = False
        self.server.advance(600)
        self.assertEqual((alice.closed, bob.closed), (None, HEARTBEAT_TIMEOUT))
        self.assertEqual(alice.received(), [])

    def test_the_end_of_a_token(self) -> None:
        alice, bob = self.connected(ttl=100), self.connected("bob", ttl=100)
        self.server.advance(90)
        token = self.server.token("bob", ttl=600)
        bob.assert_reply(bob.push("room:1", "access_token", {"access_token": token}))
        bob.assert_reply(bob.push("room:1", "access_token", {"access_token": "nonsense"}), "error")
        self.server.advance(30)
        self.assertEqual((alice.closed, bob.closed), (TOKEN_ENDED, None))

    def test_a_clock_of_ones_own(self) -> None:
        clock = Clock()
        server = MemoryServer(clock=clock)
        self.assertIs(server.clock, clock)
        self.assertIs(server.services.clock, clock)
        server.stop()

    def test_an_app_that_cannot_be_used(self) -> None:
        problem = self.assertRaises(ConfigError, MemoryServer, Router().channel("user:*", Channel))
        self.assertIn("'user:*'", str(problem))

    def test_a_timer_that_is_left(self) -> None:
        server = MemoryServer()
        left = server.clock.callLater(1e6, lambda: None)
        self.assertIn("timers are left", self.failing(server.stop))
        left.cancel()


class SlowReaderTests(ServerTestCase):
    options = {"outbox_limit": 4096, "outbox_max_age": 10.0}  # noqa: RUF012 - not changed

    def test_what_is_sent_waits_and_comes_in_order(self) -> None:
        alice, bob = self.connected(), self.connected("bob")
        bob.link.stop_reading()
        for number in range(3):
            alice.push("room:1", "shout", {"n": number})
        self.assertEqual(bob.received(), [])
        waiting = bob.link.waiting_bytes
        self.assertGreater(waiting, 0)
        self.assertEqual(self.server.metrics.outbox_waiting, waiting)
        bob.link.go_on_reading()
        self.assertEqual([frame.payload["n"] for frame in bob.received()], [0, 1, 2])
        self.assertEqual(bob.link.waiting_bytes, 0)

    def test_droppable_ones_are_coalesced(self) -> None:
        alice, bob = self.connected(), self.connected("bob")
        bob.link.stop_reading()
        for number in range(3):
            alice.push("room:1", "price", {"n": number})
        bob.link.go_on_reading()
        self.assertEqual([frame.payload["n"] for frame in bob.received()], [2])

    def test_is_cut_off_and_misses_no_notification(self) -> None:
        alice, bob = self.connected(), self.server.connect("bob")
        bob.join("user:bob")
        bob.join("room:1")
        bob.link.stop_reading()
        alice.push("room:1", "notify", {"to": "bob"})
        for _ in range(5):
            alice.push("room:1", "shout", {"text": "x" * 1000})
        self.assertEqual((alice.closed, bob.closed), (None, SLOW_CONSUMER))
        self.assertEqual(self.server.metrics.slow_consumers._value.get(), 1)
        self.assertEqual((bob.link.waiting_bytes, self.server.metrics.outbox_waiting), (0, 0))
        again = self.server.connect("bob")
        again.join("user:bob")
        again.assert_push("notification", {"seq": 1})

    def test_is_cut_off_by_age(self) -> None:
        alice, bob = self.connected(), self.connected("bob")
        bob.link.stop_reading()
        alice.push("room:1", "shout")
        self.server.advance(10)
        self.assertEqual(bob.closed, SLOW_CONSUMER)

    def test_is_not_read_while_its_own_answers_pile_up(self) -> None:
        alice = self.connected()
        alice.link.stop_reading()
        refs = [alice.push("room:1", "echo", {"n": number, "text": "x" * 200}) for number in range(20)]
        self.assertFalse(alice.link.reading)
        self.assertIsNone(alice.closed)
        for _ in range(20):
            alice.link.go_on_reading()
            self.server.settle()
        self.assertTrue(alice.link.reading)
        self.assertEqual([alice.assert_reply(ref)["n"] for ref in refs], list(range(20)))


class NetworkTests(ServerTestCase):
    def test_what_is_held_comes_late_and_behind_what_others_got(self) -> None:
        alice, bob = self.connected(), self.connected("bob")
        alice.link.hold()
        late = alice.push("room:1", "shout", {"n": 1})
        bob.push("room:1", "shout", {"n": 2})
        self.assertEqual([frame.payload for frame in bob.received()], [{"n": 2}])
        self.assertEqual(alice.received(), [])
        alice.link.release()
        self.assertEqual([frame.payload for frame in alice.received()], [{"n": 2}, {"n": 1}])
        self.assertEqual([frame.payload for frame in bob.received()], [{"n": 1}])
        alice.refute_reply(late)

    def test_what_is_held_is_lost_with_the_connection(self) -> None:
        alice, bob = self.connected(), self.connected("bob")
        alice.link.hold()
        alice.push("room:1", "shout", {"n": 1})
        bob.push("room:1", "shout", {"n": 2})
        alice.lose()
        alice.link.release()
        self.assertEqual(alice.received(), [])
        bob.refute_push("shout", {"n": 1})

    def test_pongs_are_held_too(self) -> None:
        alice = self.connected()
        alice.link.hold()
        self.server.advance(40)
        self.assertEqual(alice.closed, HEARTBEAT_TIMEOUT)

    def test_drop(self) -> None:
        alice = self.connected()
        alice.link.drop(2)
        for number in range(3):
            alice.channel("room:1").send_info(number)
        self.assertEqual([frame.payload for frame in alice.received()], [{"message": 2}])


class DatabaseTests(ServerTestCase):
    def push(self) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.server.notifications.push_notification("alice", "note", {}))

    def test_down(self) -> None:
        alice = self.connected()
        alice.join("user:alice")
        self.server.database.go_down()
        alice.assert_reply(alice.push("room:1", "notify", {"to": "bob"}), "error", {"reason": "unavailable"})
        alice.assert_reply(alice.push("room:1", "echo"))
        self.assertRaises(Unavailable, self.server.connect, "bob")
        self.server.database.come_back()
        self.server.connect("bob")
        self.successResultOf(self.push())
        alice.assert_push("notification")

    def test_what_was_written_before_is_delivered_when_it_is_back(self) -> None:
        alice = self.connected()
        alice.join("user:alice")
        self.successResultOf(self.push())
        self.server.database.go_down()
        alice.refute_push("notification")
        self.server.database.come_back()
        self.server.advance(5)
        alice.assert_push("notification")

    def test_hanging(self) -> None:
        self.server.database.hang()
        pushing = self.push()
        self.assertIn("the handshake is not over", self.failing(self.server.connect, "bob"))
        self.assertNoResult(pushing)
        self.server.advance(2)
        self.server.database.come_back()
        self.successResultOf(pushing)
        self.server.database.hang()
        pushing = self.push()
        self.server.advance(5)
        self.failureResultOf(pushing, UnknownOutcome)
        self.server.database.come_back()
