"""Sessions in any order of events: what must hold after each, and when all is over.

Clients of three users connect, join, talk and go; Sessions crash, are stopped, disconnected and
revoked; what they stand on is slow or fails; time passes. After every step there is at most one live
Session a user, the registry holds exactly those that have not stopped, and what is said of a return is
true. At the end nothing is left, and each Session's end has been told exactly once.
"""

from __future__ import annotations

import gc
from typing import Any, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from flowtx.errors import Refused, Unavailable
from flowtx.interfaces import User
from flowtx.protocol.close import HEARTBEAT_TIMEOUT
from flowtx.protocol.message import Broadcast
from flowtx.sessions.machine import ENDING, State
from flowtx.sessions.missed import MAX_EVENTS
from flowtx.sessions.service import Claim
from flowtx.sessions.session import Limits, Session, socket_topic
from tests.sessions.node import Client, Node

USERS = ("alice", "bob", "user-0")
MAX_DEVICES = 2

users = st.sampled_from(USERS)
numbers = st.integers(0, 20)


class BoomError(Exception):
    """A failure that this test makes."""


def boom() -> None:
    raise BoomError


class SessionsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.node = Node(
            users=1, limits=Limits(reconnect_window=30, idle_timeout=100, max_devices=MAX_DEVICES)
        )
        self.made: list[Session] = []
        add = self.node.sessions.addService

        def noted(service: IService) -> None:
            assert isinstance(service, Session)
            self.made.append(service)
            add(service)

        self.node.sessions.addService = noted  # type: ignore[method-assign]
        self.handshakes: list[Deferred[Any]] = []
        self.claims: list[Claim] = []
        self.clients: list[Client] = []
        self.gone: list[Client] = []
        self.background: list[Deferred[None]] = []
        self.failures: list[Any] = []
        self.refusals = 0
        self.ticks: dict[str, int] = dict.fromkeys(USERS, 0)
        # By Session: how many ticks there had been when its last connection was closed, and whether
        # that was for silence; until somebody joins.
        self.marks: dict[Session, tuple[int, bool]] = {}
        self.unhandled: list[LogEvent] = []
        self.observer = cast("ILogObserver", self.log)
        globalLogPublisher.addObserver(self.observer)

    def log(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        ours = failure is None or failure.check(BoomError, RuntimeError)
        if not ours or "Unhandled" in str(event.get("log_format", "")):
            self.unhandled.append(event)

    def session(self, user: str) -> Session | None:
        return self.node.sessions.get_session(user)

    # Connections

    @rule(user=users)
    def connect(self, user: str) -> None:
        handshake = self.node.claim(user)
        self.handshakes.append(handshake)

        def let_in(claim: Claim) -> None:
            assert claim.session.state is State.READY
            self.claims.append(claim)

        def refused(failure: Failure) -> None:
            if not failure.check(Refused, Unavailable):
                self.failures.append(failure)
            self.refusals += 1

        handshake.addCallbacks(let_in, refused).addBoth(lambda _: self.handshakes.remove(handshake))

    @precondition(lambda self: self.handshakes)
    @rule(number=numbers)
    def give_up_a_handshake(self, number: int) -> None:
        handshake = self.handshakes[number % len(self.handshakes)]
        refusals, failures = self.refusals, len(self.failures)
        handshake.cancel()
        del self.failures[failures:]
        assert self.refusals == refusals + 1
        assert handshake not in self.handshakes

    @precondition(lambda self: self.claims)
    @rule(number=numbers)
    def open(self, number: int) -> None:
        claim = self.claims.pop(number % len(self.claims))
        ended = claim.session.state in ENDING
        client = self.node.open(claim, heartbeat_timeout=60)
        self.clients.append(client)
        assert (client.closed is not None) == ended

    @precondition(lambda self: self.claims)
    @rule(number=numbers)
    def fail_a_handshake(self, number: int) -> None:
        self.claims.pop(number % len(self.claims)).release()

    @precondition(lambda self: self.clients)
    @rule(number=numbers)
    def drop(self, number: int) -> None:
        client = self.clients.pop(number % len(self.clients))
        self.gone.append(client)
        client.lose()

    @precondition(lambda self: any(client.closed for client in self.clients))
    @rule()
    def drop_all_that_were_closed(self) -> None:
        for client in [client for client in self.clients if client.closed]:
            self.clients.remove(client)
            self.gone.append(client)
            client.lose()

    @precondition(lambda self: self.clients)
    @rule(number=numbers)
    def join(self, number: int) -> None:
        client = self.clients[number % len(self.clients)]
        session = client.claim.session
        if client.closed or session.state is not State.READY:
            client.send(f"user:{session.user_id}", "phx_join")
            self.marks.pop(session, None)
            self.marks[session] = (-1, True)  # who will take what, is open
            return
        client.received()
        reply = client.join()
        ticks = [payload["n"] for event, payload in client.received() if event == "tick"]
        assert reply["session_id"] == session.session_id
        mark, silent = self.marks.pop(session, (None, True))
        if mark == -1:
            return
        if reply["resumed"]:
            assert mark is not None, "resumed, though nobody had been away"
            assert ticks == list(range(mark, self.ticks[session.user_id])), "not what was missed"
        else:
            assert ticks == []
            assert silent or self.ticks[session.user_id] - (mark or 0) > MAX_EVENTS, "nothing resumed"

    @precondition(lambda self: self.clients)
    @rule(number=numbers, event=st.sampled_from(["activity", "phx_leave", "heartbeat"]))
    def talk(self, number: int, event: str) -> None:
        client = self.clients[number % len(self.clients)]
        topic = "phoenix" if event == "heartbeat" else f"user:{client.claim.session.user_id}"
        client.send(topic, event)

    @rule(user=users, times=st.sampled_from([1, 1, 1, 60]))
    def tick(self, user: str, times: int) -> None:
        for _ in range(times):
            self.node.broadcast("tick", {"n": self.ticks[user]}, user)
            self.ticks[user] += 1

    # What befalls Sessions

    @rule(user=users, times=st.sampled_from([1, 1, 1, 4]))
    def crash(self, user: str, times: int) -> None:
        session = self.session(user)
        for _ in range(times if session is not None else 0):
            session.crashed(Failure(BoomError()))  # type: ignore[union-attr]

    @rule(user=users, later=st.booleans())
    def work_in_the_background(self, user: str, later: bool) -> None:
        session = self.session(user)
        if session is None:
            return
        if later:
            session.call_later(7, boom)
        else:
            work: Deferred[None] = Deferred()
            session.spawn(work)
            self.background.append(work)

    @precondition(lambda self: self.background)
    @rule(number=numbers, fails=st.booleans())
    def end_of_work(self, number: int, fails: bool) -> None:
        work = self.background.pop(number % len(self.background))
        if work.called:  # it was cancelled with its Session
            return
        if fails:
            work.errback(BoomError())
        else:
            work.callback(None)

    @rule(user=users)
    def stop(self, user: str) -> None:
        Deferred.fromCoroutine(self.node.sessions.stop_session(user)).addErrback(self.failures.append)

    @rule(user=users)
    def disconnect(self, user: str) -> None:
        self.node.pubsub.publish(Broadcast(socket_topic(user), "disconnect", {}))
        for client in self.clients:
            if client.claim.session.user_id == user:
                assert client.closed

    @rule(user=users, for_good=st.booleans())
    def revoke(self, user: str, for_good: bool) -> None:
        revoking = Deferred.fromCoroutine(self.node.sessions.revoke(user_id=user))
        revoking.addErrback(self.failures.append)
        if not for_good:
            self.node.revocations.users.discard(user)
        for client in self.clients:
            if client.claim.session.user_id == user:
                assert client.closed

    @precondition(lambda self: self.clients)
    @rule(number=numbers)
    def close_connection(self, number: int) -> None:
        client = self.clients[number % len(self.clients)]
        was_open = client.closed is None
        user = client.claim.session.user_id
        assert self.node.sessions.close_connection(user, client.socket.id) == was_open

    # What they stand on

    @rule(slow=st.booleans())
    def the_directory_is_slow(self, slow: bool) -> None:
        self.node.directory.slow = slow

    @rule(down=st.booleans())
    def the_directory_is_down(self, down: bool) -> None:
        self.node.directory.problem = Unavailable("down") if down else None

    @precondition(lambda self: self.node.directory.asked)
    @rule(number=numbers)
    def the_directory_answers(self, number: int) -> None:
        asked = self.node.directory.asked
        asked[number % len(asked)].callback(None)

    @rule(user=users, there=st.booleans())
    def a_user_is_removed(self, user: str, there: bool) -> None:
        if there:
            self.node.directory.users[user] = User(user, user, None)
        else:
            self.node.directory.users.pop(user, None)

    @rule(how=st.sampled_from(["well", "fails", "is down"]))
    def an_observer_does(self, how: str) -> None:
        def ready(_session: Session) -> None:
            if how == "fails":
                raise BoomError
            if how == "is down":
                raise Unavailable("down")

        self.node.diary.when_ready = ready

    @rule(fails=st.booleans())
    def an_observer_fails_at_the_end(self, fails: bool) -> None:
        self.node.diary.fails = fails

    @rule()
    def teardowns_take_long(self) -> None:
        if self.node.diary.closing is None:
            self.node.diary.closing = Deferred()

    @precondition(lambda self: self.node.diary.closing is not None)
    @rule()
    def teardowns_go_on(self) -> None:
        gate, self.node.diary.closing = self.node.diary.closing, None
        assert gate is not None
        gate.callback(None)

    @rule(seconds=st.sampled_from([0.1, 1, 4.9, 5, 7, 29.9, 30, 60, 100]))
    def time_passes(self, seconds: float) -> None:
        self.node.clock.advance(seconds)

    # What must hold

    @invariant()
    def nothing_failed(self) -> None:
        assert self.failures == []
        assert self.unhandled == []

    @invariant()
    def the_registry_is_the_truth(self) -> None:
        alive = [session for session in self.made if session.state is not State.STOPPED]
        assert len({session.user_id for session in alive}) == len(alive), "two live Sessions of a user"
        listed = self.node.sessions.which_children()
        assert {(user, session) for user, session, _, _ in listed} == {
            (session.user_id, session) for session in alive
        }
        assert all(session.running for session in alive)

    @invariant()
    def sessions_know_their_connections(self) -> None:
        for session in self.made:
            mine = [client for client in self.clients if client.claim.session is session]
            assert [client.socket for client in mine if client.closed is None] == session.sockets
            assert len(session.sockets) <= MAX_DEVICES
            claims = len(mine) + sum(claim.session is session for claim in self.claims)
            assert session._claims >= claims
            match session.state:
                case State.READY:
                    assert session._claims == claims > 0
                case State.AWAY | State.STOPPED:
                    assert session._claims == 0
                case _:
                    pass

    @invariant()
    def ends_are_told_once(self) -> None:
        for session in self.made:
            told = session in self.node.diary.ready
            ends = self.node.diary.closed.count(session)
            if session.state is State.STOPPED:
                assert ends == (1 if told else 0)
                assert session.reason
            elif session.state is State.DRAINING:
                assert ends <= 1
            else:
                assert ends == 0

    @invariant()
    def each_has_one_timer_at_most(self) -> None:
        for session in self.made:
            timed = session._timer is not None
            if session.state in (State.READY, State.AWAY):
                assert timed
            elif session.state in ENDING:
                assert not timed

    @invariant()
    def note_who_has_no_connection_left(self) -> None:
        for session in self.made:
            if session.state in ENDING:
                self.marks.pop(session, None)
            elif session.connections and not session.sockets and session not in self.marks:
                closed = [client.closed for client in (*self.clients, *self.gone)]
                self.marks[session] = (self.ticks[session.user_id], HEARTBEAT_TIMEOUT in closed)

    def teardown(self) -> None:
        """Let all come to its end: nothing may be left of it."""
        try:
            node = self.node
            node.directory.slow = False
            node.diary.when_ready = lambda _session: None
            stopping = node.sessions.stopService()
            for gate in tuple(node.directory.asked):
                gate.callback(None)
            if node.diary.closing is not None:
                node.diary.closing.callback(None)
            for claim in self.claims:
                claim.release()
            for client in self.clients:
                client.lose()
            assert stopping.called
            assert self.handshakes == []
            assert all(session.state is State.STOPPED for session in self.made)
            assert list(node.sessions) == []
            self.claims, self.clients = [], []
            self.ends_are_told_once()
            self.sessions_know_their_connections()
            assert node.clock.getDelayedCalls() == []
            assert node.subscribed == []
            assert node.sessions._arrivals == set()
            assert all(work.called for work in self.background)
            gc.collect(1)  # Deferreds tell of failures that nobody has seen when they are collected
            self.nothing_failed()
        finally:
            globalLogPublisher.removeObserver(self.observer)


SessionsMachine.TestCase.settings = settings(
    max_examples=1_000,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
SessionsTest = SessionsMachine.TestCase
