"""One Session's start, idleness and end."""

from __future__ import annotations

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import Refused, Unavailable
from flowtx.protocol.close import DRAIN, HEARTBEAT_TIMEOUT, IDLE_TIMEOUT, SESSION_STOPPED, TOKEN_REVOKED
from flowtx.protocol.message import Broadcast
from flowtx.sessions.machine import State
from flowtx.sessions.session import Limits, Session, Surroundings, socket_topic
from tests.sessions.node import Client, Node, principal


class StartTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node()

    def test_the_users_session_is_ready_before_the_connection_is_let_in(self) -> None:
        self.node.directory.slow = True
        waiting = self.node.claim()
        self.assertIs(self.node.session().state, State.STARTING)
        self.assertNoResult(waiting)
        self.node.directory.asked[0].callback(None)
        session = self.successResultOf(waiting).session
        self.assertIs(session.state, State.READY)
        self.assertEqual((session.user and session.user.name, self.node.diary.ready), ("Alice", [session]))

    def test_the_log_says_so(self) -> None:
        with capturedLogs() as logged:
            client = self.node.connect()
            client.claim.session.end()
            client.lose()
        self.assertEqual(
            [formatEvent(event) for event in logged],
            [
                "Starting session for user: alice",
                "Session initialized for user: Alice (None)",
                "Session terminating for user alice: session_stopped",
            ],
        )

    def test_an_unknown_user_is_refused_though_the_answer_comes_at_once(self) -> None:
        refused = self.node.refusal("mallory")
        self.assertEqual((refused.reason, refused.status), ("unknown_user", 403))
        self.assert_nothing_left("mallory")

    def test_a_directory_that_fails_at_once(self) -> None:
        self.node.directory.problem = Unavailable("down")
        self.failureResultOf(self.node.claim(), Unavailable)
        self.assert_nothing_left()
        self.node.directory.problem = None
        self.assertIs(self.node.connect().claim.session.state, State.READY)

    def test_a_directory_with_a_fault_of_its_own_is_logged_once_and_refuses(self) -> None:
        self.node.directory.problem = KeyError("bug")
        refused = self.node.refusal()
        self.assertEqual((refused.status, refused.headers), (503, {"Retry-After": "1"}))
        self.assertEqual(self.node.directory.questions, 1)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assert_nothing_left()

    def test_a_directory_that_never_answers(self) -> None:
        self.node.directory.slow = True
        first, second = self.node.claim(), self.node.claim()
        self.node.clock.advance(4.9)
        self.assertNoResult(first)
        self.node.clock.advance(0.1)
        self.failureResultOf(first, Unavailable)
        self.failureResultOf(second, Unavailable)
        self.assertEqual(self.node.directory.asked, [])
        self.assert_nothing_left()

    def test_an_observer_that_never_answers(self) -> None:
        held: Deferred[None] = Deferred()
        self.node.diary.when_ready = lambda _session: held
        waiting = self.node.claim()
        self.node.clock.advance(5)
        self.failureResultOf(waiting, Unavailable)
        self.assertEqual(self.node.diary.closed, self.node.diary.ready)
        self.assert_nothing_left()

    def test_an_observer_that_has_no_database(self) -> None:
        def no_database(_session: Session) -> None:
            raise Unavailable("down")

        self.node.diary.when_ready = no_database
        self.failureResultOf(self.node.claim(), Unavailable)
        self.assertEqual(len(self.node.diary.ready), 1)
        self.assertEqual(self.node.diary.closed, self.node.diary.ready)
        self.assert_nothing_left()

    def test_stopped_while_it_starts(self) -> None:
        self.node.directory.slow = True
        waiting = self.node.claim()
        stopping = Deferred.fromCoroutine(self.node.sessions.stop_session("alice"))
        self.assertTrue(self.successResultOf(stopping))
        # The client did nothing wrong: it is given a new one.
        self.assertNoResult(waiting)
        [gate] = self.node.directory.asked
        gate.callback(None)
        self.assertIs(self.successResultOf(waiting).session.state, State.READY)
        self.assertEqual(len(self.node.diary.ready), 1)

    def test_a_client_that_leaves_meanwhile_frees_the_name(self) -> None:
        self.node.directory.slow = True
        waiting = self.node.claim()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(self.node.directory.asked, [])
        self.assert_nothing_left()

    def test_a_handshake_that_fails_ends_a_session_that_never_had_a_connection(self) -> None:
        claim = self.successResultOf(self.node.claim())
        claim.release()
        self.assertEqual(claim.session.reason, "abandoned")
        self.assertEqual(self.node.diary.closed, [claim.session])
        self.assert_nothing_left()

    def assert_nothing_left(self, user_id: str = "alice") -> None:
        self.assertFalse(self.node.sessions.session_exists(user_id))
        self.assertEqual(self.node.clock.getDelayedCalls(), [])
        self.assertEqual(self.node.subscribed, [])


class WhenReadyTests(SynchronousTestCase):
    def test_of_one_that_has_ended(self) -> None:
        node = Node()
        claim = self.successResultOf(node.claim())
        self.assertIsNone(self.successResultOf(claim.session.when_ready()))
        claim.release()
        self.assertIsNone(self.successResultOf(claim.session.when_ready()))
        self.assertIsNone(self.successResultOf(claim.session.when_stopped()))
        self.assertIsNone(self.successResultOf(claim.session.end()))

    def test_outside_of_a_service(self) -> None:
        """All that a Session needs is in its surroundings."""
        node = Node()
        ended: list[Session] = []
        around = Surroundings(
            node.directory, [], node.pubsub, node.clock, Limits(), lambda: None, lambda _: None, ended.append
        )
        session = Session(principal("alice"), around)
        session.claim()
        waiting = session.when_ready()
        session.startService()
        self.successResultOf(waiting)
        stopping = session.stopService()
        self.assertNoResult(stopping)
        session.release(None)
        self.successResultOf(stopping)
        self.assertEqual((ended, session.reason), ([session], "drain"))


class IdleTests(SynchronousTestCase):
    """Half an hour without a message that is not a heartbeat."""

    def setUp(self) -> None:
        self.node = Node()
        self.client = self.node.connect()

    def test_the_client_is_told_to_stay_away(self) -> None:
        self.node.clock.advance(1_799.9)
        self.assertIsNone(self.client.closed)
        self.node.clock.advance(0.1)
        self.assertEqual(self.client.closed, IDLE_TIMEOUT)
        self.assertEqual((IDLE_TIMEOUT.code, self.node.session().reason), (1000, "idle_timeout"))
        self.client.lose()
        self.assertEqual(len(self.node.diary.closed), 1)
        self.assertEqual(self.node.clock.getDelayedCalls(), [])

    def test_any_message_but_a_heartbeat_is_activity(self) -> None:
        for topic, event in (
            ("user:alice", "phx_join"),
            ("user:alice", "activity"),
            ("user:alice", "mark_read"),
            ("user:alice", "access_token"),
            ("user:alice", "phx_leave"),
            ("nowhere", "phx_join"),
            ("nowhere", "whatever"),
            ("phoenix", "whatever"),
        ):
            self.node.clock.advance(1_000)
            self.client.send(topic, event)
            self.assertEqual(self.node.session().last_activity_at, self.node.clock.seconds(), event)
        self.node.clock.advance(1_799)
        self.assertIsNone(self.client.closed)

    def test_heartbeats_and_what_is_malformed_are_none(self) -> None:
        for _ in range(17):
            self.node.clock.advance(100)
            self.client.heartbeat()
            self.client.transport.text("{")
            self.client.socket.touched()
        self.assertIsNone(self.client.closed)
        self.node.clock.advance(100)
        self.assertEqual(self.client.closed, IDLE_TIMEOUT)

    def test_what_the_server_sends_is_none(self) -> None:
        self.client.join()
        for _ in range(18):
            self.node.clock.advance(100)
            self.node.broadcast("tick")
        self.assertEqual(self.client.closed, IDLE_TIMEOUT)

    def test_one_busy_connection_keeps_the_others(self) -> None:
        busy = self.node.connect()
        for _ in range(4):
            self.node.clock.advance(1_000)
            busy.send("user:alice", "activity")
        self.assertIsNone(self.client.closed)
        # What a connection did counts when it has gone, too.
        busy.lose()
        self.node.clock.advance(1_799.9)
        self.assertIsNone(self.client.closed)
        self.node.clock.advance(0.1)
        self.assertEqual(self.client.closed, IDLE_TIMEOUT)

    def test_a_message_costs_no_timer(self) -> None:
        before = self.node.clock.getDelayedCalls()
        for _ in range(100):
            self.client.send("user:alice", "activity")
        self.assertEqual(self.node.clock.getDelayedCalls(), before)
        self.assertEqual(len(before), 2)  # the Session's, and the connection's heartbeat

    def test_who_was_idle_may_return_after_a_while_away(self) -> None:
        self.node.clock.advance(1_790)
        self.client.lose()
        self.node.clock.advance(20)
        returning = self.successResultOf(self.node.claim())
        self.node.clock.advance(1)
        client = self.node.open(returning)
        self.node.clock.advance(1_798)
        self.assertIsNone(client.closed)
        self.node.clock.advance(2)
        self.assertEqual(client.closed, IDLE_TIMEOUT)

    def test_a_restart_is_no_activity(self) -> None:
        self.node.clock.advance(1_000)
        self.node.session().crashed(Failure(KeyError()))
        self.node.clock.advance(799)
        self.assertIsNone(self.client.closed)
        self.node.clock.advance(1)
        self.assertEqual(self.client.closed, IDLE_TIMEOUT)

    def test_the_heartbeat_timeout_is_the_connections_own(self) -> None:
        silent = self.node.connect(heartbeat_timeout=60)
        self.node.clock.advance(60)
        self.assertEqual((silent.closed, self.client.closed), (HEARTBEAT_TIMEOUT, None))


class EndTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node()

    def test_stop_closes_all_connections_with_1000(self) -> None:
        clients = [self.node.connect() for _ in range(3)]
        session = self.node.session()
        stopping = Deferred.fromCoroutine(self.node.sessions.stop_session("alice"))
        self.assertEqual([client.closed for client in clients], [SESSION_STOPPED] * 3)
        self.assertIs(session.state, State.DRAINING)
        for client in clients:
            self.assertNoResult(stopping)
            client.lose()
        self.assertTrue(self.successResultOf(stopping))
        self.assertIs(session.state, State.STOPPED)
        self.assert_over()

    def test_the_first_reason_counts(self) -> None:
        client = self.node.connect()
        session = self.node.session()
        first, second = session.end(), session.end("drain", DRAIN)
        client.lose()
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual((session.reason, client.closed), ("session_stopped", SESSION_STOPPED))
        self.assertEqual(self.node.diary.closed, [session])

    def test_stop_while_away(self) -> None:
        self.node.connect().lose()
        self.assertTrue(
            self.successResultOf(Deferred.fromCoroutine(self.node.sessions.stop_session("alice")))
        )
        self.assert_over()

    def test_disconnect_closes_with_1001_and_the_session_goes_on(self) -> None:
        clients = [self.node.connect() for _ in range(2)]
        session, bob = self.node.session(), self.node.connect("bob")
        self.node.pubsub.publish(Broadcast(socket_topic("alice"), "whatever", {}))
        self.assertEqual([client.closed for client in clients], [None, None])
        self.node.pubsub.publish(Broadcast(socket_topic("alice"), "disconnect", {}))
        self.assertEqual([client.closed for client in clients], [(1001, "disconnect")] * 2)
        self.assertIsNone(bob.closed)
        for client in clients:
            client.lose()
        self.assertIs(session.state, State.AWAY)
        self.assertIs(self.node.connect().claim.session, session)

    def test_a_name_is_free_only_after_the_teardown(self) -> None:
        self.node.diary.closing = Deferred()
        self.node.connect().lose()
        old = self.node.session()
        old.end()
        returning = self.node.claim()
        self.assertNoResult(returning)
        self.assertIs(self.node.session(), old)
        self.assertIs(old.state, State.DRAINING)
        self.node.diary.closing.callback(None)
        new = self.successResultOf(returning).session
        self.assertIsNot(new, old)
        self.assertNotEqual(new.session_id, old.session_id)
        self.assertIs(self.node.session(), new)

    def test_an_observer_that_fails_keeps_nobody(self) -> None:
        self.node.diary.fails = True
        self.node.connect().lose()
        self.node.session().end()
        self.assert_over()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_connection_that_is_given_back_without_its_end(self) -> None:
        client = self.node.connect()
        client.claim.release()
        self.assertEqual((self.node.session().sockets, self.node.session().state), ([], State.AWAY))
        client.lose()
        self.assertIs(self.node.session().state, State.AWAY)

    def test_what_it_counts(self) -> None:
        first, second = self.node.connect(), self.node.connect()
        session = self.node.session()
        first.join()
        second.heartbeat()
        self.assertEqual((session.connections, session.messages_received), (2, 2))
        first.lose()
        second.join()
        second.lose()
        self.assertEqual((session.connections, session.messages_received), (2, 3))

    def assert_over(self) -> None:
        self.assertFalse(self.node.sessions.session_exists("alice"))
        self.assertEqual(len(self.node.diary.closed), 1)
        self.assertEqual(self.node.clock.getDelayedCalls(), [])
        self.assertEqual(self.node.subscribed, [])


class RevocationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node()

    def revoke(self, **what: str) -> int:
        return self.successResultOf(Deferred.fromCoroutine(self.node.sessions.revoke(**what)))

    def refused(self, user_id: str = "alice", token_id: str | None = None) -> None:
        refused = self.failureResultOf(self.node.claim(principal(user_id, token_id=token_id)), Refused).value
        self.assertEqual((refused.reason, refused.status), ("revoked_token", 403))

    def test_of_a_token_closes_the_connections_that_came_with_it(self) -> None:
        first = self.node.connect(token_id="t1")
        again = self.node.connect(token_id="t1")
        other, bob = self.node.connect(token_id="t2"), self.node.connect("bob", token_id="t3")
        self.assertEqual(self.revoke(token_id="t1"), 2)
        self.assertEqual(
            [client.closed for client in (first, again, other, bob)],
            [TOKEN_REVOKED, TOKEN_REVOKED, None, None],
        )
        self.refused(token_id="t1")
        self.assertEqual(self.revoke(token_id="t1"), 0)

    def test_of_a_key_closes_the_connections_whose_token_it_verified(self) -> None:
        old, new = self.node.connect(), self.node.connect("bob")
        socket = new.claim.session.sockets[0]
        socket.principal = msgspec.structs.replace(socket.principal, key_id="k2")
        closed = self.node.sessions.close_revoked(lambda principal: principal.key_id != "k2")
        self.assertEqual((closed, old.closed, new.closed), (1, TOKEN_REVOKED, None))

    def test_of_a_key_while_the_handshake_is_under_way(self) -> None:
        self.node.directory.slow = True
        waiting = self.node.claim(principal("alice", key_id="k1"))
        bob = self.node.claim(principal("bob", key_id="k2"))
        self.node.sessions.close_revoked(lambda principal: principal.key_id != "k2")
        for gate in tuple(self.node.directory.asked):
            gate.callback(None)
        self.assertEqual(self.failureResultOf(waiting, Refused).value.reason, "revoked_token")
        self.successResultOf(bob)

    def test_of_a_user_closes_all_of_theirs(self) -> None:
        clients: list[Client] = [self.node.connect(token_id="t1"), self.node.connect()]
        bob = self.node.connect("bob")
        self.assertEqual(self.revoke(user_id="alice"), 2)
        self.assertEqual([client.closed for client in clients], [TOKEN_REVOKED] * 2)
        self.assertIsNone(bob.closed)
        self.refused()
        self.assertEqual(self.revoke(user_id="nobody"), 0)

    def test_a_token_without_an_id_is_not_that_of_another(self) -> None:
        client = self.node.connect()
        self.revoke(token_id="t1")
        self.assertIsNone(client.closed)

    def test_while_the_handshake_is_under_way(self) -> None:
        for what in ({"token_id": "t1"}, {"user_id": "alice"}):
            with self.subTest(what=what):
                self.node = Node()
                self.node.directory.slow = True
                waiting = self.node.claim(principal("alice", token_id="t1"))
                bob = self.node.claim(principal("bob", token_id="t2"))
                self.revoke(**what)
                for gate in tuple(self.node.directory.asked):
                    gate.callback(None)
                self.assertEqual(self.failureResultOf(waiting, Refused).value.reason, "revoked_token")
                self.assertFalse(self.node.sessions.session_exists("alice"))
                self.successResultOf(bob)

    def test_while_the_token_is_being_checked(self) -> None:
        gate = self.node.revocations.gate = Deferred()
        checking = Deferred.fromCoroutine(self.node.sessions.check_revoked(principal("alice", token_id="t1")))
        self.revoke(token_id="t1")
        gate.callback(None)
        self.assertEqual(self.failureResultOf(checking, Refused).value.reason, "revoked_token")
        self.assertEqual(self.node.sessions._arrivals, set())

    def test_a_token_that_is_good(self) -> None:
        self.revoke(token_id="t1")
        good = self.node.sessions.check_revoked(principal("alice", token_id="t2"))
        self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(good)))


class MaxSessionsTests(SynchronousTestCase):
    def test_past_them_new_users_are_refused_and_those_who_are_here_are_not(self) -> None:
        node = Node(max_sessions=1)
        client = node.connect("alice")
        refused = node.refusal("bob")
        self.assertEqual((refused.status, refused.headers), (503, {"Retry-After": "1"}))
        self.assertTrue(node.sessions.full)
        node.connect("alice").lose()
        client.lose()
        self.assertEqual(node.refusal("bob").status, 503)
        node.clock.advance(30)
        self.assertFalse(node.sessions.full)
        node.connect("bob")
