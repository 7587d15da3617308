"""The registry of Sessions: one a user, kept by its connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from flowtx.channels.router import Router
from flowtx.errors import Refused, Unavailable
from flowtx.interfaces import ISessionObserver, Principal, User
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.sessions.machine import State
from flowtx.sessions.service import Claim, SessionService
from flowtx.sessions.session import Session
from flowtx.storage.memory import MemoryUserDirectory
from flowtx.testing.memory import MemoryTransport, connect

ALICE = Principal("alice", expires_at=4e9)
BOB = Principal("bob", expires_at=4e9)
MALLORY = Principal("mallory", expires_at=4e9)
USERS = [User("alice", "Alice Adams", "alice@example.com"), User("bob", "Bob Brown", None)]


class SlowDirectory(MemoryUserDirectory):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(USERS)
        self.asked: list[Deferred[None]] = []

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        gate: Deferred[None] = Deferred()
        self.asked.append(gate)
        await gate
        return await super().load(principals)


@implementer(ISessionObserver)
class Diary:
    """Notes what it is told; its answers may be held back."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.closing: Deferred[None] | None = None
        self.fails = False

    async def session_ready(self, session: Session) -> None:
        self.lines.append(f"ready {session.user_id}")

    async def session_closing(self, session: Session) -> None:
        self.lines.append(f"closing {session.user_id}")
        if self.closing is not None:
            await self.closing
        if self.fails:
            raise RuntimeError("the diary is full")


class SessionServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.directory = SlowDirectory()
        self.diary = Diary()
        self.pubsub = MemoryPubSub()
        self.sessions = SessionService(self.directory, [self.diary], pubsub=self.pubsub, clock=self.clock)
        self.sessions.startService()

    def claim(self, principal: Principal = ALICE) -> Deferred[Claim]:
        return Deferred.fromCoroutine(self.sessions.claim(principal))

    def claimed(self, principal: Principal = ALICE) -> Claim:
        waiting = self.claim(principal)
        if not waiting.called:
            self.directory.asked.pop().callback(None)
        return self.successResultOf(waiting)

    def test_the_first_connection_starts_a_session(self) -> None:
        claim = self.claimed()
        self.assertIs(claim.session, self.sessions.get_session("alice"))
        self.assertTrue(self.sessions.session_exists("alice"))
        self.assertEqual(claim.session.user, USERS[0])
        self.assertIs(claim.session.state, State.READY)
        self.assertEqual(self.diary.lines, ["ready alice"])

    def test_a_second_connection_shares_it(self) -> None:
        first, second = self.claim(), self.claim()
        self.assertEqual(len(self.directory.asked), 1)
        self.directory.asked.pop().callback(None)
        self.assertIs(self.successResultOf(first).session, self.successResultOf(second).session)
        self.assertEqual(len(list(self.sessions)), 1)

    def test_users_have_sessions_of_their_own(self) -> None:
        self.assertIsNot(self.claimed(ALICE).session, self.claimed(BOB).session)
        children = self.sessions.which_children()
        self.assertEqual(
            [(name, type_) for name, _, type_, _ in children], [("alice", "worker"), ("bob", "worker")]
        )

    def test_an_unknown_user_is_refused_and_leaves_nothing(self) -> None:
        waiting = self.claim(MALLORY)
        self.directory.asked.pop().callback(None)
        refused = self.failureResultOf(waiting, Refused).value
        self.assertEqual((refused.reason, refused.status), ("unknown_user", 403))
        self.assertFalse(self.sessions.session_exists("mallory"))
        self.assertEqual(self.diary.lines, [])

    def test_a_directory_that_fails_is_told_to_all_who_wait(self) -> None:
        first, second = self.claim(), self.claim()
        self.directory.asked.pop().errback(Unavailable("down"))
        self.failureResultOf(first, Unavailable)
        self.failureResultOf(second, Unavailable)
        self.assertFalse(self.sessions.session_exists("alice"))
        self.assertIs(self.claimed().session.state, State.READY)

    def test_the_session_ends_with_its_last_connection(self) -> None:
        first, second = self.claimed(), self.claimed()
        first.release()
        first.release()
        self.assertTrue(self.sessions.session_exists("alice"))
        second.release()
        self.assertFalse(self.sessions.session_exists("alice"))
        self.assertEqual(self.diary.lines, ["ready alice", "closing alice"])
        self.assertIs(first.session.state, State.STOPPED)

    def test_a_new_session_has_a_new_id(self) -> None:
        claim = self.claimed()
        claim.release()
        self.assertNotEqual(self.claimed().session.session_id, claim.session.session_id)

    def test_a_quick_return_waits_for_the_teardown(self) -> None:
        claim = self.claimed()
        self.diary.closing = Deferred()
        claim.release()
        self.assertTrue(self.sessions.session_exists("alice"))
        again = self.claim()
        self.assertEqual(self.directory.asked, [])
        self.diary.closing.callback(None)
        self.directory.asked.pop().callback(None)
        self.assertIsNot(self.successResultOf(again).session, claim.session)

    def test_a_client_that_leaves_while_the_user_is_looked_up(self) -> None:
        waiting = self.claim()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertTrue(self.directory.asked.pop().called)
        self.assertFalse(self.sessions.session_exists("alice"))
        self.assertEqual(self.diary.lines, [])

    def test_one_client_leaves_and_another_stays(self) -> None:
        leaving, staying = self.claim(), self.claim()
        leaving.cancel()
        self.failureResultOf(leaving, CancelledError)
        self.directory.asked.pop().callback(None)
        self.assertIs(self.successResultOf(staying).session.state, State.READY)

    def test_stop_session_closes_the_connections_and_waits_for_them(self) -> None:
        claim = self.claimed()
        client = self.connect(claim)
        stopping = Deferred.fromCoroutine(self.sessions.stop_session("alice"))
        self.assertEqual(client.closed, (1000, "session_stopped"))
        self.assertNoResult(stopping)
        claim.release()
        self.assertTrue(self.successResultOf(stopping))
        self.assertFalse(self.sessions.session_exists("alice"))

    def test_stop_session_of_nobody(self) -> None:
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(self.sessions.stop_session("alice"))))

    def test_a_connection_that_opens_on_an_ending_session_is_closed(self) -> None:
        claim = self.claimed()
        Deferred.fromCoroutine(self.sessions.stop_session("alice"))
        self.assertEqual(self.connect(claim).closed, (1012, "drain"))

    def test_the_service_stops_all_sessions(self) -> None:
        claims = [self.claimed(ALICE), self.claimed(BOB)]
        clients = [self.connect(claim) for claim in claims]
        stopping = self.sessions.stopService()
        self.assertEqual([client.closed for client in clients], [(1012, "drain")] * 2)
        self.assertNoResult(stopping)
        for claim in claims:
            claim.release()
        self.successResultOf(stopping)
        self.assertEqual(list(self.sessions), [])

    def test_nobody_is_let_in_while_it_stops(self) -> None:
        self.sessions.stopService()
        refused = self.failureResultOf(self.claim(), Refused).value
        self.assertEqual((refused.status, refused.headers), (503, {"Retry-After": "1"}))

    def test_a_client_in_its_handshake_is_refused_when_it_stops(self) -> None:
        waiting = self.claim()
        stopping = self.sessions.stopService()
        self.directory.asked.pop().callback(None)
        self.assertEqual(self.failureResultOf(waiting, Refused).value.status, 503)
        self.successResultOf(stopping)

    def test_an_observer_that_fails_does_not_keep_the_session(self) -> None:
        claim = self.claimed()
        self.diary.fails = True
        claim.release()
        self.assertFalse(self.sessions.session_exists("alice"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_only_services_with_a_name_of_their_own_are_taken(self) -> None:
        self.claimed()
        nameless, second = Service(), Service()
        second.setName("alice")
        for service in (nameless, second):
            with self.assertRaises(RuntimeError):
                service.setServiceParent(self.sessions)

    def test_nothing_is_left_in_the_clock(self) -> None:
        self.claimed().release()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def connect(self, claim: Claim) -> MemoryTransport:
        client = connect(Router(), claim.session.user_id, self.clock)
        claim.attach(client.socket)
        self.addCleanup(client.lose)
        return client
