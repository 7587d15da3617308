from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.protocol.close import DRAIN
from flowtx.sessions.drainer import EVERY, LEAST, PACE_WITHIN, PATIENCE, REQUESTS_WITHIN, Drainer, batch_size
from flowtx.sessions.machine import State
from flowtx.sessions.session import Limits
from tests.sessions.node import Client, Node


class Line:
    """A connection that notes when it was told to go, and goes at once unless it is stubborn."""

    def __init__(self, entrance: Entrance, *, stubborn: bool = False) -> None:
        self._entrance = entrance
        self._stubborn = stubborn

    def drain(self) -> None:
        self._entrance.told.append(self._entrance.clock.seconds())
        if not self._stubborn:
            self._entrance.connections.discard(self)

    def cut(self) -> None:
        self._entrance.cut += 1
        self._entrance.connections.discard(self)


class OfClient(Line):
    """The connection of a client of the node."""

    def __init__(self, entrance: Entrance, client: Client) -> None:
        super().__init__(entrance)
        self.client = client

    def drain(self) -> None:
        super().drain()
        self.client.socket.close(DRAIN)
        self.client.lose()


class Entrance:
    def __init__(self, clock: Clock, diary: list[str]) -> None:
        self.clock = clock
        self.connections: set[Line] = set()
        self.told: list[float] = []
        self.cut = 0
        self._diary = diary

    def shut(self) -> None:
        self._diary.append("shut")


class Requests:
    def __init__(self, diary: list[str]) -> None:
        self.idle: Deferred[None] | None = None
        self._diary = diary

    def close(self) -> None:
        self._diary.append("refuse requests")

    def when_idle(self) -> Deferred[None]:
        self._diary.append("wait for requests")
        idle: Deferred[None] = Deferred()
        if self.idle is None:
            idle.callback(None)
        else:
            self.idle = idle
        return idle


class Door(Service):
    def __init__(self, name: str, diary: list[str], *, fails: bool = False) -> None:
        self.name = name
        self._diary = diary
        self._fails = fails

    def stopService(self) -> None:
        super().stopService()
        self._diary.append(f"stop {self.name}")
        if self._fails:
            raise RuntimeError("it is stuck")


class Draining(SynchronousTestCase):
    """A node with a Drainer."""

    def begin(self, *, users: int = 0, fails: bool = False, limits: Limits | None = None) -> None:
        self.node = Node(users, limits=limits or Limits())
        self.clock = self.node.clock
        self.diary: list[str] = []
        self.entrance = Entrance(self.clock, self.diary)
        self.requests = Requests(self.diary)
        self.drainer = Drainer(
            self.node.sessions,
            entrances=[self.entrance],
            doors=[Door("front", self.diary, fails=fails)],
            back_doors=[Door("back", self.diary)],
            requests=self.requests,
            clock=self.clock,
        )
        self.drainer.startService()

    def lines(self, number: int, *, stubborn: bool = False) -> None:
        for _ in range(number):
            self.entrance.connections.add(Line(self.entrance, stubborn=stubborn))

    def client(self, user_id: str) -> Client:
        client = self.node.connect(user_id)
        self.entrance.connections.add(OfClient(self.entrance, client))
        return client

    def drain(self, seconds: float = 30) -> Deferred[None]:
        stopped = self.drainer.stopService()
        self.pump(seconds)
        return stopped

    def pump(self, seconds: float) -> None:
        self.clock.pump([0.01] * round(seconds * 100))


class OrderTest(Draining):
    def test_what_comes_after_what(self) -> None:
        self.begin()
        self.lines(1)
        self.assertFalse(self.drainer.draining)
        self.successResultOf(self.drain())
        self.assertTrue(self.drainer.draining)
        self.assertEqual(
            self.diary, ["refuse requests", "shut", "stop front", "wait for requests", "stop back"]
        )
        self.assertEqual(self.entrance.told, [0.0])

    def test_nobody_is_there(self) -> None:
        self.begin()
        self.successResultOf(self.drain(0))
        self.assertEqual(self.diary[-1], "stop back")

    def test_a_door_that_fails_keeps_nothing_from_stopping(self) -> None:
        self.begin(fails=True)
        self.lines(1)
        self.successResultOf(self.drain())
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual((len(self.entrance.told), self.diary[-1]), (1, "stop back"))

    def test_requests_under_way_are_answered_first(self) -> None:
        self.begin()
        self.requests.idle = Deferred()
        stopped = self.drain(REQUESTS_WITHIN - 0.1)
        self.assertNoResult(stopped)
        self.assertNotIn("stop back", self.diary)
        self.requests.idle.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.diary[-1], "stop back")

    def test_requests_that_never_end_are_given_up(self) -> None:
        self.begin()
        self.requests.idle = Deferred()
        self.successResultOf(self.drain(REQUESTS_WITHIN + 0.1))
        self.assertEqual(self.diary[-1], "stop back")


class PaceTest(Draining):
    def told(self, number: int) -> dict[float, int]:
        """Drain so many connections; how many were told to go when."""
        self.begin()
        self.lines(number)
        self.successResultOf(self.drain())
        self.assertEqual(len(self.entrance.told), number)
        return Counter(round(at, 1) for at in self.entrance.told)

    def test_a_few_go_two_hundred_at_a_time(self) -> None:
        self.assertEqual(self.told(1_000), {0.0: 200, 0.5: 200, 1.0: 200, 1.5: 200, 2.0: 200})

    def test_many_go_a_tenth_at_a_time(self) -> None:
        told = self.told(10_000)
        self.assertEqual([told[0.0], told[0.5], told[1.0]], [1_000, 900, 810])
        self.assertLessEqual(max(told), PACE_WITHIN)

    def test_batches_that_took_long_are_made_up_for(self) -> None:
        self.begin()
        self.lines(10_000)
        stopped = self.drainer.stopService()
        for _ in range(5):
            self.clock.advance(3)  # the loop was busy
        self.pump(1)
        self.successResultOf(stopped)
        self.assertEqual(len(self.entrance.told), 10_000)
        self.assertLess(max(self.entrance.told), PACE_WITHIN + 3)

    def test_who_does_not_go_is_cut_off(self) -> None:
        self.begin()
        self.lines(3)
        self.lines(2, stubborn=True)
        self.assertNoResult(stopped := self.drain(PATIENCE - 0.1))
        self.assertEqual(self.entrance.cut, 0)
        self.pump(0.2)
        self.successResultOf(stopped)
        self.assertEqual((self.entrance.cut, self.entrance.connections), (2, set()))

    @given(st.integers(1, 1_000_000), st.floats(-5, PACE_WITHIN))
    def test_a_batch(self, left: int, seconds: float) -> None:
        size = batch_size(left, seconds)
        self.assertLessEqual(size, left)
        self.assertGreaterEqual(size, min(left, LEAST, left * 0.1))
        # As many as that in each of the batches to come are enough.
        self.assertGreaterEqual(size * max(1.0, seconds / EVERY), left * 0.999 if size < left else 0)


class SessionsTest(Draining):
    def test_a_session_ends_with_its_last_connection(self) -> None:
        self.begin()
        clients = [self.client("alice"), self.client("alice"), self.client("bob")]
        session = self.node.session("alice")
        self.successResultOf(self.drain())
        self.assertEqual([client.closed for client in clients], [DRAIN] * 3)
        self.assertEqual((session.reason, session.state), ("drain", State.STOPPED))
        self.assertEqual({session.user_id for session in self.node.diary.closed}, {"alice", "bob"})
        self.assertFalse(self.node.sessions.namedServices)

    def test_those_who_are_away_end_too(self) -> None:
        self.begin(users=450)
        for number in range(450):
            self.node.connect(f"user-{number}").lose()
        self.successResultOf(self.drain())
        self.assertEqual([session.reason for session in self.node.diary.closed], ["drain"] * 450)

    def test_many_sessions_do_not_end_in_one_turn_of_the_loop(self) -> None:
        self.begin(users=450)
        for number in range(450):
            self.node.connect(f"user-{number}").lose()
        stopped = self.drainer.stopService()
        self.assertEqual(len(self.node.diary.closed), 100)
        self.assertEqual([call.getTime() for call in self.clock.getDelayedCalls()].count(0.0), 1)
        self.clock.advance(0)
        self.successResultOf(stopped)
        self.assertEqual(len(self.node.diary.closed), 450)

    def test_a_window_that_is_shorter_than_the_drain_ends_nothing(self) -> None:
        self.begin(users=800, limits=Limits(reconnect_window=1.0))
        for number in range(800):
            self.client(f"user-{number}")
        self.successResultOf(self.drain())
        self.assertEqual({session.reason for session in self.node.diary.closed}, {"drain"})
        self.assertEqual(len(self.node.diary.closed), 800)
