"""The reconnection window, and what is said and delivered on a return."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.channel import Channel
from flowtx.protocol.close import DISCONNECT, SLOW_CONSUMER
from flowtx.protocol.message import UnencodablePayload
from flowtx.sessions.machine import State
from flowtx.sessions.missed import MAX_BYTES, MAX_EVENTS
from flowtx.sessions.session import Limits
from tests.sessions.node import Client, Node


class Slow(Channel):
    """Takes its time to end."""

    ending: Deferred[None]

    async def terminate(self, reason: str) -> None:
        await self.ending


class WindowTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node()
        self.client = self.node.connect()
        self.client.join()
        self.session = self.node.session()

    def back(self) -> tuple[bool, list[tuple[str, Any]]]:
        """Return and join: what the reply says, and what comes with it."""
        client = self.node.connect()
        reply = client.join()
        self.assertEqual(reply["session_id"], self.session.session_id)
        return reply["resumed"], client.received()

    def test_a_first_join_resumes_nothing(self) -> None:
        self.assertFalse(self.client.claim.session.session_id == "")
        self.assertFalse(self.node.connect().join()["resumed"])

    def test_a_return_within_it_finds_the_session_and_what_was_missed(self) -> None:
        self.client.lose()
        self.assertIs(self.session.state, State.AWAY)
        for number in range(5):
            self.node.clock.advance(5)
            self.assertEqual(self.node.broadcast("tick", {"n": number}), 1)
        self.node.clock.advance(4.9)
        self.assertEqual(self.back(), (True, [("tick", {"n": number}) for number in range(5)]))
        self.assertIs(self.session.state, State.READY)
        self.assertEqual(len(self.node.diary.ready), 1)
        self.assertEqual(self.node.diary.closed, [])

    def test_what_comes_during_the_handshake_and_before_the_join(self) -> None:
        self.client.lose()
        claim = self.successResultOf(self.node.claim())
        self.node.broadcast("during")
        client = self.node.open(claim)
        self.node.broadcast("before")
        self.assertTrue(client.join()["resumed"])
        self.node.broadcast("after")
        self.assertEqual(client.received(), [("during", {}), ("before", {}), ("after", {})])

    def test_live_events_come_once(self) -> None:
        self.client.lose()
        self.assertEqual(self.back(), (True, []))
        self.assertEqual(self.node.broadcast("live"), 1)

    def test_the_first_to_join_gets_them(self) -> None:
        self.client.lose()
        self.node.broadcast("missed")
        early, late = self.node.connect(), self.node.connect()
        self.assertTrue(late.join()["resumed"])
        self.assertFalse(early.join()["resumed"])
        self.assertEqual((late.received(), early.received()), ([("missed", {})], []))

    def test_one_of_two_connections_that_returns_resumes_nothing(self) -> None:
        other = self.node.connect()
        other.join()
        self.client.lose()
        self.node.broadcast("missed")
        self.assertEqual(self.back(), (False, []))

    def test_after_it_the_session_is_torn_down_once(self) -> None:
        self.client.lose()
        self.node.clock.advance(29.9)
        self.assertTrue(self.node.sessions.session_exists("alice"))
        self.node.clock.advance(0.1)
        self.assertFalse(self.node.sessions.session_exists("alice"))
        self.assertEqual((self.node.diary.closed, self.session.reason), ([self.session], "window_expired"))
        self.assertEqual((self.node.clock.getDelayedCalls(), self.node.subscribed), ([], []))
        client = self.node.connect()
        reply = client.join()
        self.assertEqual((reply["resumed"], len(self.node.diary.ready)), (False, 2))
        self.assertNotEqual(reply["session_id"], self.session.session_id)

    def test_a_return_in_the_nick_of_time_may_take_longer_than_the_window(self) -> None:
        self.client.lose()
        self.node.clock.advance(29)
        claim = self.successResultOf(self.node.claim())
        self.node.clock.advance(5)
        self.assertTrue(self.node.open(claim).join()["resumed"])

    def test_handshakes_that_fail_do_not_prolong_it(self) -> None:
        self.client.lose()
        for _ in range(2):
            self.node.clock.advance(10)
            self.successResultOf(self.node.claim()).release()
            self.assertIs(self.session.state, State.AWAY)
        self.node.clock.advance(9.9)
        self.assertIs(self.session.state, State.AWAY)
        self.node.clock.advance(0.1)
        self.assertIs(self.session.state, State.STOPPED)

    def test_a_return_that_comes_to_nothing_loses_nothing(self) -> None:
        self.client.lose()
        self.node.broadcast("first")
        self.successResultOf(self.node.claim()).release()
        self.node.broadcast("second")
        self.node.connect().lose()  # without a join
        self.node.broadcast("third")
        self.assertEqual(self.back(), (True, [("first", {}), ("second", {}), ("third", {})]))

    def test_each_absence_begins_anew(self) -> None:
        self.client.lose()
        self.node.broadcast("first")
        client = self.node.connect()
        client.join()
        client.lose()
        self.node.broadcast("second")
        self.assertEqual(self.back(), (True, [("second", {})]))

    def test_crashes_do_not_prolong_it(self) -> None:
        self.client.lose()
        for _ in range(2):
            self.node.clock.advance(10)
            self.session.crashed(Failure(KeyError()))
            self.assertIs(self.session.state, State.AWAY)
        self.node.clock.advance(9.9)
        self.assertIs(self.session.state, State.AWAY)
        self.node.clock.advance(0.1)
        self.assertIs(self.session.state, State.STOPPED)

    def test_a_crash_while_away_loses_nothing(self) -> None:
        self.client.lose()
        self.node.broadcast("before")
        self.node.directory.slow = True
        self.session.crashed(Failure(KeyError()))
        self.node.broadcast("meanwhile")
        self.node.directory.asked[0].callback(None)
        self.assertIs(self.session.state, State.AWAY)
        self.node.directory.slow = False
        self.assertEqual(self.back(), (True, [("before", {}), ("meanwhile", {})]))

    def test_a_window_of_no_time(self) -> None:
        node = Node(limits=Limits(reconnect_window=0))
        node.connect().lose()
        node.clock.advance(0)
        self.assertFalse(node.sessions.session_exists("alice"))


class CompletenessTests(SynchronousTestCase):
    """``resumed`` is true only where nothing is missing."""

    def setUp(self) -> None:
        self.node = Node()
        self.client = self.node.connect(heartbeat_timeout=60)
        self.client.join()

    def back(self) -> tuple[bool, int]:
        client = self.node.connect()
        return client.join()["resumed"], len(client.received())

    def test_as_many_events_as_are_kept(self) -> None:
        self.client.lose()
        for _ in range(MAX_EVENTS):
            self.node.broadcast("tick")
        self.assertEqual((MAX_EVENTS, self.back()), (100, (True, 100)))

    def test_one_more_and_all_are_given_up(self) -> None:
        self.client.lose()
        for _ in range(MAX_EVENTS + 1):
            self.node.broadcast("tick")
        self.assertEqual(self.back(), (False, 0))
        # The next absence is told truthfully again.
        self.node.session().sockets[0].close(DISCONNECT)
        self.node.broadcast("tick")
        self.assertEqual(self.back(), (True, 1))

    def test_more_bytes_than_are_kept(self) -> None:
        self.client.lose()
        for _ in range(2):
            self.node.broadcast("big", {"text": "x" * (MAX_BYTES // 2 - 100)})
        self.assertEqual((MAX_BYTES, self.back()), (65_536, (True, 2)))
        self.node.session().sockets[0].close(DISCONNECT)
        for _ in range(2):
            self.node.broadcast("big", {"text": "x" * (MAX_BYTES // 2)})
        self.assertEqual(self.back(), (False, 0))

    def test_binary_events(self) -> None:
        self.client.lose()
        self.node.broadcast("bytes", b"\x00\x01")
        client = self.node.connect()
        self.assertTrue(client.join()["resumed"])
        [frame] = client.transport.take()
        self.assertTrue(frame.binary and frame.payload.endswith(b"\x00\x01"))

    def test_what_cannot_be_sent_is_nobodys_to_miss(self) -> None:
        self.client.lose()
        for payload in (object(), [1], {"x": {1, object()}}):
            self.assertRaises(UnencodablePayload, self.node.broadcast, "nonsense", payload)
        self.node.broadcast("tick")
        self.assertEqual(self.back(), (True, 1))

    def test_a_client_that_was_silent_may_have_missed_anything(self) -> None:
        self.node.clock.advance(60)
        self.client.lose()
        self.node.broadcast("tick")
        self.assertEqual(self.back(), (False, 0))

    def test_so_may_one_that_did_not_read(self) -> None:
        self.client.socket.closing(SLOW_CONSUMER)  # the transport closes it by itself
        self.client.lose()
        self.assertEqual(self.back(), (False, 0))

    def test_events_between_the_close_and_the_loss(self) -> None:
        self.client.socket.close(DISCONNECT)
        self.node.broadcast("between")
        self.client.lose()
        self.assertEqual(self.back(), (True, 1))

    def test_events_while_the_channels_end(self) -> None:
        Slow.ending = Deferred()
        self.node.router.channel("slow", Slow)
        self.client.join("slow")
        self.client.lose()
        self.assertIs(self.node.session().state, State.READY)
        self.node.broadcast("meanwhile")
        self.node.clock.advance(3)
        Slow.ending.callback(None)
        self.assertIs(self.node.session().state, State.AWAY)
        # The window runs from the loss of the connection.
        self.node.clock.advance(26.9)
        self.assertEqual(self.back(), (True, 1))

    def test_the_window_runs_while_the_channels_end(self) -> None:
        Slow.ending = Deferred()
        self.node.router.channel("slow", Slow)
        self.client.join("slow")
        self.client.lose()
        self.node.clock.advance(3)
        Slow.ending.callback(None)
        self.node.clock.advance(27)
        self.assertFalse(self.node.sessions.session_exists("alice"))

    def test_a_connection_that_goes_during_its_join_takes_nothing(self) -> None:
        self.client.lose()
        self.node.broadcast("missed")
        leaving = self.node.connect()
        leaving.lose()
        self.assertIsNone(self.node.session().take_missed(leaving.socket))
        self.assertEqual(self.back(), (True, 1))

    def test_the_client_of_another_user(self) -> None:
        self.client.lose()
        self.assertEqual(self.node.broadcast("not for alice", user_id="bob"), 0)
        bob: Client = self.node.connect("bob")
        self.assertFalse(bob.join()["resumed"])
        self.assertEqual(self.back(), (True, 0))
