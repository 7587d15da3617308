"""One connection: dispatch, heartbeats, bounds and its end."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.channel import Channel, error, ok
from flowtx.channels.router import Router
from flowtx.channels.socket import MAX_QUEUED
from flowtx.protocol.close import DRAIN, HEARTBEAT_TIMEOUT, SESSION_STOPPED, TOO_MANY_MALFORMED
from flowtx.protocol.message import Broadcast, Frame
from flowtx.testing.memory import connect
from tests.channels.scripted import Client, Server, closing, reply, unmatched


class DispatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.client = self.server.connect()

    def test_a_heartbeat_is_answered_without_a_join_ref(self) -> None:
        self.client.send("9", 7, "phoenix", "heartbeat")
        self.assertEqual(self.client.received(), [reply(None, 7, "phoenix")])

    def test_an_unknown_topic_is_unmatched(self) -> None:
        for topic in ("nope:1", "phoenix", "", 7, None):
            self.client.send("1", "1", topic, "phx_join")
            self.assertEqual(self.client.received(), [unmatched("1", topic)])
        self.assertEqual(self.client.socket.topics, ())

    def test_a_topic_of_more_than_1024_characters_is_unmatched(self) -> None:
        longest = "room:" + "x" * 1019
        self.client.join(longest, "1")
        self.client.send("2", "2", longest + "x", "phx_join")
        self.assertEqual(self.client.received(), [unmatched("2", longest + "x")])

    def test_leaving_what_is_not_joined_is_ok(self) -> None:
        self.client.send("1", "2", "room:1", "phx_leave")
        self.assertEqual(self.client.received(), [reply("1", "2", "room:1")])

    def test_a_push_to_what_is_not_joined_is_unmatched(self) -> None:
        self.client.send("1", "2", "room:1", "ping")
        self.assertEqual(self.client.received(), [unmatched("2", "room:1")])

    def test_a_push_of_another_join_is_dropped(self) -> None:
        self.server.script.events["ping"] = lambda _channel, payload: ok(payload)
        self.client.join("room:1", "2")
        for stale in ("1", 2):
            self.client.send(stale, "3", "room:1", "ping")
            self.client.send(stale, "3", "room:1", "phx_leave")
        self.client.send(None, "4", "room:1", "ping")
        self.client.send("2", "5", "room:1", "ping")
        self.assertEqual(self.client.received(), [reply("2", "4", "room:1"), reply("2", "5", "room:1")])

    def test_a_channel_that_cannot_be_made_crashes_its_join_alone(self) -> None:
        def make() -> Channel:
            raise LookupError("no room")

        self.server.router.channel("broken", make)
        self.client.send("1", "2", "broken", "phx_join")
        self.assertEqual(
            self.client.received(), [reply("1", "2", "broken", {"reason": "join crashed"}, "error")]
        )
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        self.client.join("room:1", "3")

    def test_topics(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.client.join("room:1", "1")
        self.server.script.join = lambda _channel, _payload: pending
        self.client.send("2", "2", "room:2", "phx_join")
        self.assertEqual(self.client.socket.topics, ("room:1", "room:2"))
        pending.callback(error())
        self.assertEqual(self.client.socket.topics, ("room:1",))


class MaxTopicsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.client = self.server.connect(max_topics=2)
        self.client.join("room:1", "1")

    def refused(self, ref: str) -> list[Any]:
        return reply(ref, ref, "room:3", {"reason": "too many channels joined"}, "error")

    def test_one_too_many_is_refused(self) -> None:
        self.client.join("room:2", "2")
        self.client.send("3", "3", "room:3", "phx_join")
        self.assertEqual(self.client.received(), [self.refused("3")])
        self.assertEqual(len(self.server.script.joined), 2)

    def test_a_pending_join_counts_and_a_refused_one_does_not(self) -> None:
        pending: Deferred[Any] = Deferred()
        self.server.script.join = lambda _channel, _payload: pending
        self.client.send("2", "2", "room:2", "phx_join")
        self.client.send("3", "3", "room:3", "phx_join")
        self.assertEqual(self.client.received(), [self.refused("3")])
        pending.callback(error())
        self.client.received()
        self.server.script.join = lambda _channel, _payload: None
        self.client.join("room:3", "4")

    def test_a_topic_left_makes_room(self) -> None:
        self.client.join("room:2", "2")
        self.client.send("1", "3", "room:1", "phx_leave")
        self.client.received()
        self.client.join("room:3", "4")

    def test_a_duplicate_join_needs_no_room(self) -> None:
        self.client.join("room:2", "2")
        self.client.send("3", "3", "room:1", "phx_join")
        self.assertEqual(self.client.received(), [reply("3", "3", "room:1"), closing("1", "room:1")])


class SilenceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.client = self.server.connect()

    def test_a_client_silent_for_60_seconds_is_closed(self) -> None:
        self.server.clock.advance(59.9)
        self.assertIsNone(self.client.transport.closed)
        self.server.clock.advance(0.1)
        self.assertEqual(self.client.transport.closed, HEARTBEAT_TIMEOUT)
        self.assertEqual(self.client.transport.closed.code if self.client.transport.closed else 0, 1002)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_any_frame_is_a_sign_of_life(self) -> None:
        def signs(client: Client) -> list[Any]:
            return [
                lambda: client.send(None, "1", "phoenix", "heartbeat"),
                lambda: client.send(None, "1", "nope", "push"),
                lambda: client.transport.text("malformed"),
                lambda: client.transport.binary(b"malformed"),
                client.socket.touched,
            ]

        for number in range(5):
            client = self.server.connect()
            self.server.clock.advance(40)
            signs(client)[number]()
            self.assertEqual(client.socket.last_received_at, self.server.clock.seconds())
            self.server.clock.pump([20, 39.9])
            self.assertIsNone(client.transport.closed, number)
            self.server.clock.advance(0.2)
            self.assertEqual(client.transport.closed, HEARTBEAT_TIMEOUT, number)

    def test_what_the_server_sends_is_not(self) -> None:
        self.client.join("room:1", "1")
        for _ in range(6):
            self.server.clock.advance(10)
            self.server.pubsub.publish(Broadcast("room:1", "tick", {}))
        self.assertEqual(self.client.transport.closed, HEARTBEAT_TIMEOUT)

    def test_one_timer_however_many_messages(self) -> None:
        for _ in range(100):
            self.client.send(None, "1", "phoenix", "heartbeat")
        self.assertEqual(len(self.server.clock.getDelayedCalls()), 1)


class MalformedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.client = self.server.connect()

    def test_nine_are_dropped_and_the_tenth_closes(self) -> None:
        for number in range(9):
            if number % 2:
                self.client.transport.text("{")
            else:
                self.client.transport.binary(b"\xff")
        self.client.send(None, "1", "phoenix", "heartbeat")
        self.assertEqual(self.client.received(), [reply(None, "1", "phoenix")])
        self.assertIsNone(self.client.transport.closed)
        self.client.transport.text("{")
        self.assertEqual(self.client.transport.closed, TOO_MANY_MALFORMED)
        self.assertEqual(TOO_MANY_MALFORMED.code, 1008)

    def test_ten_in_exactly_sixty_seconds_close(self) -> None:
        self.client.transport.text("{")
        self.server.clock.advance(59)
        for _ in range(8):
            self.client.transport.text("{")
        self.server.clock.advance(1)
        self.assertIsNone(self.client.transport.closed)
        with capturedLogs() as logged:
            self.client.transport.text("{")
        self.assertEqual(self.client.transport.closed, TOO_MANY_MALFORMED)
        self.assertEqual(
            [formatEvent(event) for event in logged], ["Closing memory: 10 malformed frames in 60 s"]
        )

    def test_slower_ones_never_close(self) -> None:
        for _ in range(50):
            self.client.transport.text("{")
            self.server.clock.advance(6.7)
        self.assertIsNone(self.client.transport.closed)

    def test_a_burst_counts_whenever_it_comes(self) -> None:
        for _ in range(9):
            self.client.transport.text("{")
        for _ in range(3):
            self.server.clock.advance(40)
            self.client.send(None, "1", "phoenix", "heartbeat")
        for _ in range(9):
            self.client.transport.text("{")
        self.assertIsNone(self.client.transport.closed)
        self.client.transport.text("{")
        self.assertEqual(self.client.transport.closed, TOO_MANY_MALFORMED)

    def test_joined_topics_live_on(self) -> None:
        self.server.script.events["ping"] = lambda _channel, payload: ok(payload)
        self.client.join("room:1", "1")
        self.client.transport.text("{")
        self.client.send("1", "2", "room:1", "ping")
        self.assertEqual(self.client.received(), [reply("1", "2", "room:1")])


class BackPressureTests(SynchronousTestCase):
    """Past 64 messages in mailboxes nothing more is read."""

    def setUp(self) -> None:
        self.server = Server()
        self.client = self.server.connect()
        self.pending: list[Deferred[Any]] = []
        self.server.script.events["wait"] = self.wait
        self.client.join("room:1", "1")
        self.client.join("room:2", "2")

    def wait(self, _channel: Channel, _payload: Any) -> Deferred[Any]:
        self.pending.append(Deferred())
        return self.pending[-1]

    def fill(self, count: int, topic: str = "room:1", join_ref: str = "1") -> None:
        for number in range(count):
            self.client.send(join_ref, number, topic, "wait")

    def test_pauses_past_the_bound_and_resumes_at_it(self) -> None:
        self.fill(1 + MAX_QUEUED)
        self.assertTrue(self.client.transport.reading)
        self.fill(1)
        self.assertFalse(self.client.transport.reading)
        self.fill(1)
        self.pending[-1].callback(None)
        self.assertFalse(self.client.transport.reading)
        self.pending[-1].callback(None)
        self.assertTrue(self.client.transport.reading)

    def test_the_mailboxes_of_all_topics_count_together(self) -> None:
        self.fill(1 + 40)
        self.fill(1 + 24, "room:2", "2")
        self.assertTrue(self.client.transport.reading)
        self.fill(1, "room:2", "2")
        self.assertFalse(self.client.transport.reading)

    def test_a_channel_that_ends_frees_its_mailbox(self) -> None:
        self.fill(1 + MAX_QUEUED + 10)
        self.client.send("3", "3", "room:1", "phx_join")
        self.assertTrue(self.client.transport.reading)
        self.fill(1 + MAX_QUEUED, "room:2", "2")
        self.assertTrue(self.client.transport.reading)
        self.fill(1, "room:2", "2")
        self.assertFalse(self.client.transport.reading)

    def test_a_join_that_is_refused_frees_its_mailbox(self) -> None:
        joining: Deferred[Any] = Deferred()
        self.server.script.join = lambda _channel, _payload: joining
        self.client.send("3", "3", "room:3", "phx_join")
        self.fill(MAX_QUEUED + 1, "room:3", "3")
        self.assertFalse(self.client.transport.reading)
        joining.callback(error())
        self.assertTrue(self.client.transport.reading)
        self.assertEqual(len(self.client.received()), 1 + MAX_QUEUED + 1)
        self.fill(1 + MAX_QUEUED)
        self.assertTrue(self.client.transport.reading)
        self.fill(1)
        self.assertFalse(self.client.transport.reading)

    def test_handlers_that_answer_at_once_never_pause(self) -> None:
        self.server.script.events["wait"] = lambda _channel, _payload: ok()
        self.fill(5 * MAX_QUEUED)
        self.assertTrue(self.client.transport.reading)
        self.assertEqual(len(self.client.received()), 5 * MAX_QUEUED)


class CloseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.client = self.server.connect()
        self.client.join("room:1", "1")

    def test_the_first_reason_counts(self) -> None:
        self.client.socket.close(DRAIN)
        self.client.socket.close(SESSION_STOPPED)
        self.assertEqual(self.client.transport.closed, DRAIN)

    def test_what_comes_after_a_close_is_dropped(self) -> None:
        self.client.socket.close(DRAIN)
        self.client.send("2", "2", "room:2", "phx_join")
        self.client.transport.binary(b"\x00\x01\x01\x06\x0412room:1ping")
        self.assertEqual(len(self.server.script.joined), 1)
        self.assertEqual(self.server.script.handled, [])
        self.assertEqual(self.client.received(), [])

    def test_channels_end_when_the_connection_has_gone(self) -> None:
        self.client.socket.close(DRAIN)
        self.assertEqual(self.server.script.terminated, [])
        self.successResultOf(self.client.lose())
        self.assertEqual(self.server.script.terminated, [("room:1", "closed")])

    def test_a_lost_connection_leaves_nothing_behind(self) -> None:
        self.client.join("room:2", "2")
        self.assertIsNone(self.successResultOf(self.client.lose()))
        self.assertEqual(self.server.script.terminated, [("room:1", "closed"), ("room:2", "closed")])
        self.assertEqual(self.server.clock.getDelayedCalls(), [])
        self.assertEqual(self.server.pubsub.publish(Broadcast("room:1", "e", {})), 0)
        self.assertEqual(self.client.socket.topics, ())
        self.client.socket.send(Frame(b"late"))
        self.assertEqual(self.client.received(), [])

    def test_a_connection_lost_twice(self) -> None:
        self.successResultOf(self.client.lose())
        self.successResultOf(self.client.lose())
        self.assertEqual(self.server.script.terminated, [("room:1", "closed")])

    def test_a_loss_after_the_heartbeat_timeout(self) -> None:
        self.server.clock.advance(60)
        self.successResultOf(self.client.lose())
        self.assertEqual(self.server.script.terminated, [("room:1", "closed")])

    def test_each_connection_has_an_id(self) -> None:
        self.assertNotEqual(self.server.connect().socket.id, self.client.socket.id)

    def test_when_it_connected(self) -> None:
        self.server.clock.advance(10)
        client = connect(Router(), "7", self.server.clock)
        self.assertEqual((client.socket.connected_at, client.socket.last_received_at), (10, 10))
