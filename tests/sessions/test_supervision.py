"""What fails in a Session restarts that Session; what fails too often is given up."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.channel import Channel
from flowtx.errors import Unavailable
from flowtx.protocol.close import INTERNAL_ERROR, SESSION_STOPPED
from flowtx.sessions.machine import State
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Session
from tests.sessions.node import Client, Diary, Node, principal


class BoomError(Exception):
    """What goes wrong in these tests."""


async def explode() -> None:
    raise BoomError


def failing_call() -> None:
    raise BoomError


async def wait_for(deferred: Deferred[None]) -> None:
    await deferred


class RestartTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node()
        self.client = self.node.connect()
        self.session = self.node.session()

    def assert_restarted(self, times: int = 1) -> None:
        self.assertEqual(self.session.restarts, times)
        self.assertIs(self.session.state, State.READY)
        self.assertIs(self.node.session(), self.session)
        self.assertEqual(self.node.diary.ready, [self.session] * (1 + times))
        self.assertEqual(self.node.diary.closed, [])
        self.assertEqual(self.node.value("flowtx_session_restarts_total"), times)
        self.assertIsNone(self.client.closed)

    def test_by_a_coroutine_that_fails_at_once(self) -> None:
        self.session.spawn(explode())
        self.assert_restarted()

    def test_by_a_coroutine_that_fails_later(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.session.spawn(wait_for(waiting))
        self.assertEqual(self.session.restarts, 0)
        waiting.errback(BoomError())
        self.assert_restarted()

    def test_by_a_deferred(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.session.spawn(waiting)
        waiting.errback(BoomError())
        self.assert_restarted()
        self.session.spawn(fail(BoomError()))
        self.assert_restarted(2)

    def test_by_a_timer(self) -> None:
        self.session.call_later(7, failing_call)
        self.node.clock.advance(6.9)
        self.assertEqual(self.session.restarts, 0)
        self.node.clock.advance(0.1)
        self.assert_restarted()

    def test_by_a_timer_whose_call_is_asynchronous(self) -> None:
        self.session.call_later(7, explode)
        self.node.clock.advance(7)
        self.assert_restarted()

    def test_by_an_observer(self) -> None:
        self.node.diary.when_ready = lambda session: failing_call() if session.restarts == 1 else None
        self.session.crashed(Failure(BoomError()))
        self.assert_restarted(2)

    def test_what_succeeds_restarts_nothing(self) -> None:
        heard: list[str] = []
        over: list[Deferred[None]] = [
            self.session.spawn(wait_for(Deferred.fromCoroutine(wait_for(self.fired())))),
            self.session.call_later(1, heard.append, "tick"),
        ]
        self.node.clock.advance(1)
        for deferred in over:
            self.assertIsNone(self.successResultOf(deferred))
        self.assertEqual((heard, self.session.restarts), (["tick"], 0))

    def fired(self) -> Deferred[None]:
        deferred: Deferred[None] = Deferred()
        deferred.callback(None)
        return deferred

    def test_what_its_owner_cancels_is_no_crash(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.session.spawn(wait_for(waiting)).cancel()
        self.session.call_later(5, failing_call).cancel()
        self.assertTrue(waiting.called)
        self.node.clock.advance(5)
        self.assertEqual(self.session.restarts, 0)

    def test_what_else_runs_for_it_is_cancelled(self) -> None:
        cancelled: list[str] = []
        self.session.spawn(Deferred(lambda _: cancelled.append("deferred")))
        self.session.call_later(100, cancelled.append, "called")
        self.session.crashed(Failure(BoomError()))
        self.node.clock.advance(100)
        self.assertEqual(cancelled, ["deferred"])
        self.assert_restarted()

    def test_what_fails_while_it_is_cancelled_is_logged_and_no_further_crash(self) -> None:
        self.session.spawn(Deferred(lambda deferred: deferred.errback(BoomError())))
        self.session.crashed(Failure(BoomError()))
        self.assert_restarted()
        self.assertEqual(len(self.flushLoggedErrors(BoomError)), 1)

    def test_channels_get_phx_error_and_join_again(self) -> None:
        self.client.join()
        self.node.directory.slow = True
        self.session.crashed(Failure(BoomError()))
        self.assertEqual(self.client.received(), [("phx_error", {"reason": "channel_crash"})])
        self.client.send("user:alice", "phx_join", join_ref="2")
        self.assertEqual(self.client.received(), [])  # it waits for the restart
        self.node.directory.asked[0].callback(None)
        [(event, reply)] = self.client.received()
        self.assertEqual((event, reply["status"]), ("phx_reply", "ok"))
        self.assertEqual(reply["response"]["session_id"], self.session.session_id)
        self.assertIsNone(self.client.closed)

    def test_a_connection_whose_handshake_a_crash_interrupts(self) -> None:
        node = Node()
        node.directory.slow = True
        waiting = node.claim()
        node.session().crashed(Failure(BoomError()))
        self.assertNoResult(waiting)
        [gate] = node.directory.asked
        gate.callback(None)
        self.assertEqual(self.successResultOf(waiting).session.restarts, 1)

    def test_a_connection_that_goes_during_a_restart(self) -> None:
        self.node.directory.slow = True
        self.session.crashed(Failure(BoomError()))
        self.client.lose()
        self.assertIs(self.session.state, State.STARTING)
        self.node.directory.asked[0].callback(None)
        self.assertIs(self.session.state, State.AWAY)
        self.node.clock.advance(30)
        self.assertIs(self.session.state, State.STOPPED)

    def test_one_that_comes_during_a_restart(self) -> None:
        self.node.directory.slow = True
        self.session.crashed(Failure(BoomError()))
        waiting = self.node.claim()
        self.assertNoResult(waiting)
        self.node.directory.asked[0].callback(None)
        self.assertIs(self.successResultOf(waiting).session, self.session)

    def test_one_that_is_let_in_after_another_has_crashed_the_session(self) -> None:
        node = Node()
        node.directory.slow = True
        first, second = node.claim(), node.claim()
        first.addCallback(lambda claim: claim.session.crashed(Failure(BoomError())))
        node.directory.asked[0].callback(None)
        self.assertNoResult(second)
        node.directory.asked[0].callback(None)
        session = self.successResultOf(second).session
        self.assertEqual((session.restarts, session.state), (1, State.READY))

    def test_a_channel_whose_end_crashes_it_again_makes_one_start(self) -> None:
        session, node = self.session, self.node

        class Vicious(Channel):
            def terminate(self, reason: str) -> None:
                session.crashed(Failure(BoomError()))

        node.router.channel("vicious", Vicious)
        self.client.join("vicious")
        node.directory.slow = True
        session.crashed(Failure(BoomError()))
        self.assertEqual((session.restarts, len(node.directory.asked)), (2, 1))
        node.directory.asked[0].callback(None)
        self.assertIs(session.state, State.READY)

    def test_a_start_that_is_overtaken_tells_no_further_observer(self) -> None:
        node, second = Node(), Diary()
        sessions = SessionService(node.directory, [node.diary, second], pubsub=node.pubsub, clock=node.clock)
        sessions.startService()
        node.diary.when_ready = lambda session: (
            session.crashed(Failure(BoomError())) if not session.restarts else None
        )
        claiming = Deferred.fromCoroutine(sessions.claim(principal("alice")))
        session = self.successResultOf(claiming).session
        self.assertEqual((len(node.diary.ready), second.ready), (2, [session]))

    def test_crashes_are_told_in_a_line_each(self) -> None:
        with capturedLogs() as logged:
            self.session.crashed(Failure(BoomError("why")))
        crash = [event for event in logged if event["log_level"] is LogLevel.warn]
        self.assertEqual([event["error"] for event in crash], ["BoomError: why"])
        self.assertNotIn("log_failure", crash[0])

    def test_what_is_spawned_after_the_end_does_not_run(self) -> None:
        self.client.lose()
        self.session.end()
        ran: list[str] = []

        async def run() -> None:
            ran.append("ran")

        cancelled: Deferred[None] = Deferred()
        for over in (self.session.spawn(run()), self.session.spawn(cancelled)):
            self.successResultOf(over)
        self.session.call_later(1, ran.append, "later")
        self.assertEqual((ran, cancelled.called, self.node.clock.getDelayedCalls()), ([], True, []))

    def test_what_runs_ends_with_the_session(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.session.spawn(waiting)
        self.session.call_later(1, failing_call)
        self.client.lose()
        self.session.end()
        self.assertTrue(waiting.called)
        self.assertEqual(self.node.clock.getDelayedCalls(), [])

    def test_a_crash_at_the_end_is_told_and_changes_nothing(self) -> None:
        self.session.end()
        with capturedLogs() as logged:
            self.session.crashed(Failure(BoomError("late")))
        self.assertEqual([event["error"] for event in logged], ["BoomError: late"])
        self.assertEqual((self.session.restarts, self.session.state), (0, State.DRAINING))
        self.client.lose()
        self.session.crashed(Failure(BoomError()))
        self.assertIs(self.session.state, State.STOPPED)


class RefusedRestartTests(SynchronousTestCase):
    """A restart that fails is an end, not a loop."""

    def setUp(self) -> None:
        self.node = Node()
        self.client = self.node.connect()
        self.session = self.node.session()

    def assert_ended(self, questions: int) -> None:
        self.assertEqual(self.node.directory.questions, questions)
        self.assertEqual(self.session.reason, "refused")
        self.client.lose()
        self.assertIs(self.session.state, State.STOPPED)
        self.assertEqual(self.node.diary.closed, [self.session])
        self.assertEqual((self.node.clock.getDelayedCalls(), self.node.subscribed), ([], []))

    def test_the_user_has_gone(self) -> None:
        del self.node.directory.users["alice"]
        self.session.crashed(Failure(BoomError()))
        self.assertEqual(self.client.closed, SESSION_STOPPED)
        self.assert_ended(2)
        self.assertEqual(self.node.refusal().reason, "unknown_user")

    def test_the_database_is_down(self) -> None:
        self.node.directory.problem = Unavailable("down")
        self.session.crashed(Failure(BoomError()))
        self.assertEqual(self.client.closed, INTERNAL_ERROR)
        self.assert_ended(2)
        self.node.directory.problem = None
        self.node.connect()  # nobody is locked out

    def test_the_database_never_answers(self) -> None:
        self.node.directory.slow = True
        self.client.join()
        self.session.crashed(Failure(BoomError()))
        self.client.received()
        self.client.send("user:alice", "phx_join", join_ref="2")
        self.node.clock.advance(5)
        self.assertEqual(self.client.closed, INTERNAL_ERROR)
        self.assert_ended(2)

    def test_a_join_that_waits_for_it_is_answered(self) -> None:
        self.node.directory.slow = True
        self.session.crashed(Failure(BoomError()))
        ready = self.session.when_ready()
        self.node.directory.asked[0].errback(Unavailable("down"))
        self.failureResultOf(ready, Unavailable)

    def test_a_session_that_ends_itself_at_each_start_is_refused(self) -> None:
        node = Node()

        def end(session: Session) -> None:
            session.end()

        node.diary.when_ready = end
        self.assertEqual(node.refusal().status, 503)
        self.assertEqual(node.diary.closed, node.diary.ready)
        self.assertFalse(node.sessions.session_exists("alice"))


class GiveUpTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node()
        self.client = self.node.connect()
        self.session = self.node.session()

    def crash(self, times: int = 1) -> None:
        for _ in range(times):
            self.session.crashed(Failure(BoomError("again")))

    def give_up(self) -> None:
        self.crash(4)
        self.flushLoggedErrors(BoomError)

    def test_three_crashes_in_five_seconds_are_survived(self) -> None:
        self.crash(3)
        self.assertIs(self.session.state, State.READY)
        self.node.clock.advance(5.1)
        self.crash(3)
        self.assertIs(self.session.state, State.READY)
        self.assertEqual(self.session.restarts, 6)

    def test_so_are_crashes_without_end_that_are_rare(self) -> None:
        for _ in range(50):
            self.node.clock.advance(1.7)
            self.crash()
        self.assertEqual((self.session.state, self.session.restarts), (State.READY, 50))

    def test_the_fourth_ends_the_session_with_1011(self) -> None:
        self.crash(3)
        self.node.clock.advance(5)
        with capturedLogs() as logged:
            self.crash()
        self.assertEqual((self.client.closed, INTERNAL_ERROR.code), (INTERNAL_ERROR, 1011))
        self.assertEqual(self.session.reason, "crashed")
        self.client.lose()
        self.assertEqual(self.node.diary.closed, [self.session])
        self.assertEqual(self.node.value("flowtx_session_restarts_total"), 3)
        self.assertEqual(self.node.value("flowtx_sessions_given_up_total"), 1)
        [stack] = [event for event in logged if "log_failure" in event]
        self.assertIn("BoomError: again", stack["log_failure"].getTraceback())
        self.assertEqual(len(self.flushLoggedErrors(BoomError)), 1)

    def test_the_user_is_refused_for_a_minute(self) -> None:
        self.give_up()
        # At once, before the old connection has gone, too.
        refused = self.node.refusal()
        self.assertEqual((refused.reason, refused.status), ("unavailable", 503))
        self.assertEqual(refused.headers, {"Retry-After": "60"})
        self.client.lose()
        self.node.clock.advance(20.5)
        self.assertEqual(self.node.refusal().headers, {"Retry-After": "40"})
        self.node.connect("bob")
        self.node.clock.advance(39.5)
        self.node.connect()

    def test_who_is_no_longer_refused_is_forgotten(self) -> None:
        self.give_up()
        self.client.lose()
        self.node.clock.advance(60)
        self.client = self.node.connect("bob")
        self.session = self.node.session("bob")
        self.give_up()
        self.assertEqual(list(self.node.sessions._given_up), ["bob"])

    def test_one_that_crashes_in_its_start_each_time(self) -> None:
        node = Node()

        def boom(_session: Session) -> None:
            raise BoomError

        node.diary.when_ready = boom
        self.assertEqual(node.refusal().headers, {"Retry-After": "60"})
        self.assertEqual(len(node.diary.ready), 4)
        self.assertEqual(len(node.diary.closed), 1)
        self.assertEqual(len(self.flushLoggedErrors(BoomError)), 1)
        self.assertEqual((node.clock.getDelayedCalls(), node.subscribed), ([], []))

    def test_one_whose_background_work_fails_in_its_start_each_time(self) -> None:
        for slow in (False, True):
            with self.subTest(slow=slow):
                self.starts_with_a_spawn(slow)

    def starts_with_a_spawn(self, slow: bool) -> None:
        node = Node()
        held: list[Deferred[None]] = []

        def spawn(session: Session) -> Deferred[None] | None:
            session.spawn(explode())
            if slow:
                held.append(Deferred())
                return held[-1]
            return None

        node.diary.when_ready = spawn
        self.assertEqual(node.refusal().status, 503)
        self.assertEqual(len(self.flushLoggedErrors(BoomError)), 1)
        self.assertTrue(all(gate.called for gate in held))
        self.assertEqual(len(node.diary.closed), 1)
        self.assertFalse(node.sessions.session_exists("alice"))
        self.assertEqual((node.clock.getDelayedCalls(), node.subscribed), ([], []))

    def test_a_channel_whose_end_crashes_the_session_again(self) -> None:
        session = self.session

        class Vicious(Channel):
            def terminate(self, reason: str) -> None:
                session.crashed(Failure(BoomError()))

        self.node.router.channel("vicious:*", Vicious)
        for number in range(5):
            self.client.join(f"vicious:{number}")
        self.crash()
        self.assertEqual(self.client.closed, INTERNAL_ERROR)
        self.assertEqual((session.restarts, self.node.directory.questions), (3, 1))
        self.assertEqual(len(self.flushLoggedErrors(BoomError)), 1)

    def test_a_hundred_in_a_minute_make_the_node_unhealthy(self) -> None:
        node = Node(users=101)
        for number in range(99):
            self.give_up_on(node, number)
        self.assertTrue(node.sessions.healthy)
        node.clock.advance(59)
        self.give_up_on(node, 99)
        self.assertFalse(node.sessions.healthy)
        node.clock.advance(1.1)
        self.assertTrue(node.sessions.healthy)

    def give_up_on(self, node: Node, number: int) -> None:
        client = node.connect(f"user-{number}")
        for _ in range(4):
            client.claim.session.crashed(Failure(BoomError()))
        client.lose()
        self.flushLoggedErrors(BoomError)


class OthersTests(SynchronousTestCase):
    """PROMISES: a crash of one leaves the others untouched."""

    COUNT = 1_000

    def test_a_thousand_crashes_among_a_thousand_sessions(self) -> None:
        node = Node(users=self.COUNT)
        clients: list[Client] = []
        for number in range(self.COUNT):
            clients.append(node.connect(f"user-{number}"))
            clients[-1].join()
        crashing, others = clients[:250], clients[250:]
        told = len(node.diary.ready)
        for round_ in range(4):
            for client in crashing:
                client.claim.session.crashed(Failure(BoomError()))
                client.received()
                client.join()
            for number in range(self.COUNT):
                node.broadcast("tick", {"n": round_}, f"user-{number}")
            node.clock.advance(15)
        self.assertEqual(node.value("flowtx_session_restarts_total"), 1_000)
        for client in others:
            session = client.claim.session
            self.assertEqual((client.closed, session.restarts), (None, 0))
            self.assertIs(session.state, State.READY)
            self.assertEqual(client.received(), [("tick", {"n": n}) for n in range(4)])
        self.assertEqual(len(node.diary.ready), told + 1_000)
        self.assertEqual(node.diary.closed, [])
        self.assertEqual([client.closed for client in crashing], [None] * 250)
        self.assertTrue(node.sessions.healthy)


class ChildrenTests(SynchronousTestCase):
    def test_which_children_lists_them_as_otp_does(self) -> None:
        node = Node()
        node.connect("alice")
        node.connect("bob").lose()
        self.assertEqual(
            node.sessions.which_children(),
            [
                ("alice", node.session("alice"), "worker", [Session]),
                ("bob", node.session("bob"), "worker", [Session]),
            ],
        )
        node.clock.advance(30)
        self.assertEqual([child[0] for child in node.sessions.which_children()], ["alice"])
