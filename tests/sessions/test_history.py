"""Each ended Session leaves one row, whatever the database does meanwhile; or it is said how many did not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from flowtx.errors import InvalidPayload, Unavailable, UnknownOutcome
from flowtx.interfaces import FinishedSession, IHistoryStore, ISessionObserver, Principal, User
from flowtx.metrics import Metrics
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.sessions.history import (
    MAX_BATCH,
    REASONS,
    SAY_EVERY,
    STOP_AT_MOST,
    STOP_WITHIN,
    WRITE_WITHIN,
    History,
)
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Session
from flowtx.storage.memory import MemoryHistoryStore, MemoryUserDirectory

WALL = 1_700_000_000.0


class TrickyStore(MemoryHistoryStore):
    """Keeps what it is given as it is told to: at once, when told to, or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.rows: list[FinishedSession] = []
        self.slow = False
        self.waiting: list[Deferred[None]] = []
        self.error: Exception | None = None
        self.lost_answers = 0
        self.poison = ""

    async def add(self, sessions: Sequence[FinishedSession]) -> None:
        self.sizes.append(len(sessions))
        if self.slow:
            gate: Deferred[None] = Deferred()
            self.waiting.append(gate)
            await gate
        if self.error is not None:
            raise self.error
        if any(session.session_id == self.poison for session in sessions):
            raise InvalidPayload("poison")
        await super().add(sessions)
        self.rows = list(self._sessions.values())
        if self.lost_answers:
            self.lost_answers -= 1
            raise UnknownOutcome("the connection was lost")


class Ended:
    """As much of a Session as the history reads."""

    connections, restarts, messages_received = 3, 1, 42

    def __init__(self, number: int, started_at: float, reason: str = "idle_timeout") -> None:
        self.user_id, self.session_id = "alice", str(number)
        self.started_at, self.reason = started_at, reason


class HistoryTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(500.0)
        self.store = TrickyStore()
        self.metrics = Metrics()
        self.history = self.make()
        self.history.startService()
        logs = capturedLogs()
        self.events = logs.__enter__()
        self.addCleanup(logs.__exit__, None, None, None)

    def make(self, max_queued: int = 10_000) -> History:
        return History(
            self.store,
            node="node-a",
            clock=self.clock,
            metrics=self.metrics,
            now=lambda: WALL + self.clock.seconds(),
            random=lambda: 1.0,
            max_queued=max_queued,
        )

    def end(self, *numbers: int, reason: str = "idle_timeout", lasted: float = 60.0) -> None:
        for number in numbers:
            ended = Ended(number, self.clock.seconds() - lasted, reason)
            closing = self.history.session_closing(cast("Session", ended))
            self.successResultOf(Deferred.fromCoroutine(closing))

    def kept(self) -> list[int]:
        return [int(row.session_id) for row in self.store.rows]

    def said(self) -> list[str]:
        return [formatEvent(event) for event in self.events]

    def assert_calm(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])


class RowTests(HistoryTestCase):
    def test_interfaces(self) -> None:
        verifyObject(ISessionObserver, self.history)
        verifyObject(IHistoryStore, self.store)

    def test_a_row_says_what_there_was(self) -> None:
        self.end(7, lasted=60.5)
        self.clock.advance(WRITE_WITHIN)
        [row] = self.store.rows
        self.assertEqual(
            row,
            FinishedSession(
                session_id="7",
                user_id="alice",
                node="node-a",
                connected_at=WALL + 439.5,
                ended_at=WALL + 500.0,
                duration_seconds=60.5,
                reason="idle_timeout",
                connections=3,
                restarts=1,
                messages_received=42,
            ),
        )

    def test_a_wall_clock_that_is_set_does_not_change_how_long_it_lasted(self) -> None:
        self.history = History(
            self.store,
            node="n",
            clock=self.clock,
            metrics=self.metrics,
            now=lambda: 5.0,
        )
        self.history.startService()
        self.end(1, lasted=60.0)
        self.clock.advance(WRITE_WITHIN)
        [row] = self.store.rows
        self.assertEqual((row.connected_at, row.ended_at, row.duration_seconds), (-55.0, 5.0, 60.0))

    def test_durations_are_counted_by_reasons_out_of_a_list(self) -> None:
        for reason in (*sorted(REASONS), "an application's own", "and another"):
            self.end(1, reason=reason, lasted=2.5)
        counted = {
            sample.labels["reason"]: sample.value
            for metric in self.metrics.session_duration.collect()
            for sample in metric.samples
            if sample.name.endswith("_sum")
        }
        self.assertEqual(counted, {**dict.fromkeys(REASONS, 2.5), "other": 5.0})
        self.clock.advance(WRITE_WITHIN)
        self.assertEqual(self.store.rows[0].reason, min(REASONS))

    def test_the_row_of_a_real_session(self) -> None:
        sessions = SessionService(
            MemoryUserDirectory([User("alice", "Alice", None)]),
            [self.history],
            pubsub=MemoryPubSub(),
            clock=self.clock,
        )
        sessions.startService()
        claim = self.successResultOf(Deferred.fromCoroutine(sessions.claim(Principal("alice", 4e9))))
        self.clock.advance(2)
        self.successResultOf(Deferred.fromCoroutine(self.stop_session(sessions, claim)))
        self.clock.advance(WRITE_WITHIN)
        [row] = self.store.rows
        self.assertEqual(
            (row.session_id, row.user_id, row.reason, row.duration_seconds, row.connections),
            (claim.session.session_id, "alice", "session_stopped", 2.0, 0),
        )
        self.successResultOf(sessions.stopService() or succeed(None))

    async def stop_session(self, sessions: SessionService, claim: object) -> None:
        stopping = Deferred.fromCoroutine(sessions.stop_session("alice"))
        claim.release()  # type: ignore[attr-defined]
        await stopping


class BatchTests(HistoryTestCase):
    def test_rows_wait_for_others_for_a_second_since_the_first(self) -> None:
        self.end(1)
        self.clock.advance(WRITE_WITHIN * 0.9)
        self.end(2)
        self.assertEqual(self.store.sizes, [])
        self.clock.advance(WRITE_WITHIN * 0.1)
        self.assertEqual(self.store.sizes, [2])
        self.assertEqual(self.kept(), [1, 2])
        self.assertEqual(self.history.waiting, 0)
        self.assert_calm()
        self.end(3)
        self.clock.advance(WRITE_WITHIN)
        self.assertEqual(self.kept(), [1, 2, 3])

    def test_a_full_batch_does_not_wait(self) -> None:
        self.end(*range(MAX_BATCH - 1))
        self.assertEqual(self.store.sizes, [])
        self.end(MAX_BATCH)
        self.assertEqual(self.store.sizes, [MAX_BATCH])
        self.assert_calm()

    def test_one_statement_at_a_time_and_what_comes_meanwhile_goes_with_the_next(self) -> None:
        self.store.slow = True
        self.end(*range(MAX_BATCH))
        self.end(*range(MAX_BATCH, 2 * MAX_BATCH + 10))
        self.clock.advance(10)
        self.assertEqual(self.store.sizes, [MAX_BATCH])
        for _ in range(3):
            self.store.waiting.pop().callback(None)
        self.assertEqual(self.store.sizes, [MAX_BATCH, MAX_BATCH, 10])
        self.assertEqual(self.kept(), list(range(2 * MAX_BATCH + 10)))
        self.assert_calm()

    def test_what_ended_before_the_start_is_written_after_it(self) -> None:
        self.history = self.make()
        self.end(1)
        self.assert_calm()
        self.history.startService()
        self.clock.advance(WRITE_WITHIN)
        self.assertEqual(self.kept(), [1])


class OutageTests(HistoryTestCase):
    def test_it_tries_again_less_and_less_often_and_says_so_once(self) -> None:
        self.store.error = Unavailable("the database is down")
        self.end(1)
        self.clock.advance(WRITE_WITHIN)
        waits = []
        for _ in range(8):
            [call] = self.clock.getDelayedCalls()
            waits.append(round(call.getTime() - self.clock.seconds(), 6))
            self.clock.advance(waits[-1])
        self.assertEqual(waits, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
        self.assertEqual(
            self.said(), ["History: 1 ended Sessions wait for the database: the database is down"]
        )
        self.store.error = None
        self.end(2)
        self.clock.advance(5)
        self.assertEqual(self.kept(), [1, 2])
        self.assert_calm()
        self.store.error = Unavailable("again")
        self.end(3)
        self.clock.advance(WRITE_WITHIN)
        [call] = self.clock.getDelayedCalls()
        self.assertAlmostEqual(call.getTime() - self.clock.seconds(), 0.1)
        self.assertEqual(len(self.said()), 2)

    def test_what_may_have_been_written_is_written_again_and_kept_once(self) -> None:
        self.store.lost_answers = 2
        self.end(1, 2)
        self.clock.advance(WRITE_WITHIN)
        self.end(3)
        self.clock.pump([1, 1, 1])
        self.assertEqual(self.store.sizes, [2, 3, 3])
        self.assertEqual(self.kept(), [1, 2, 3])

    def test_an_error_that_nobody_foresaw_is_logged_and_loses_nothing(self) -> None:
        self.store.error = RuntimeError("a bug")
        self.end(1)
        self.clock.advance(WRITE_WITHIN)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.store.error = None
        self.clock.advance(1)
        self.assertEqual(self.kept(), [1])

    def test_past_a_bound_the_oldest_are_dropped_and_that_is_said_once_a_minute(self) -> None:
        self.history = self.make(max_queued=10)
        self.history.startService()
        self.store.error = Unavailable("down")
        self.end(*range(10))
        self.clock.advance(WRITE_WITHIN)
        before = len(self.said())
        self.end(10)
        self.end(11, 12)
        self.assertEqual((self.history.waiting, self.history.dropped), (10, 3))
        dropped = "History: {} ended Sessions were dropped, as too many wait"
        self.assertEqual(self.said()[before:], [dropped.format(1)])
        self.clock.pump([1] * int(SAY_EVERY))
        self.end(13)
        self.assertEqual(self.said()[before + 1 :], [dropped.format(3)])
        self.end(14)
        self.store.error = None
        self.clock.advance(5)
        self.assertEqual(self.kept(), list(range(5, 15)))
        self.assertEqual(self.said()[before + 2 :], [dropped.format(1)])

    def test_rows_that_are_being_written_are_not_dropped(self) -> None:
        self.history = self.make(max_queued=MAX_BATCH + 2)
        self.history.startService()
        self.store.slow = True
        self.end(*range(MAX_BATCH + 4))
        self.assertEqual((self.history.waiting, self.history.dropped), (MAX_BATCH + 2, 2))
        self.store.waiting.pop().errback(UnknownOutcome("the connection was lost"))
        self.clock.advance(1)
        self.store.waiting.pop().callback(None)
        self.store.waiting.pop().callback(None)
        self.assertEqual(self.kept(), [*range(MAX_BATCH), MAX_BATCH + 2, MAX_BATCH + 3])

    def test_one_row_that_cannot_be_kept_does_not_keep_the_others_out(self) -> None:
        self.store.poison = "321"
        self.end(*range(700))
        self.clock.advance(WRITE_WITHIN)
        self.assertEqual(self.kept(), [number for number in range(700) if number != 321])
        self.assertEqual((self.history.waiting, self.history.dropped), (0, 1))
        self.assertEqual(self.said(), ["History: the row of alice cannot be kept: poison"])
        self.assertLess(len(self.store.sizes), 30)
        self.store.sizes.clear()
        self.end(*range(1_000, 1_000 + 20 * MAX_BATCH))
        self.assertEqual(self.store.sizes[-1], MAX_BATCH)
        self.assertEqual(len(self.kept()), 699 + 20 * MAX_BATCH)


class StopTests(HistoryTestCase):
    def test_what_is_queued_is_written_first(self) -> None:
        self.store.slow = True
        self.end(1, 2)
        stopping = self.history.stopService()
        self.assertNoResult(stopping)
        self.store.waiting.pop().callback(None)
        self.successResultOf(stopping)
        self.assertEqual(self.kept(), [1, 2])
        self.assertEqual(self.said(), [])
        self.assert_calm()

    def test_with_nothing_queued_it_stops_at_once(self) -> None:
        self.successResultOf(self.history.stopService())
        self.successResultOf(self.history.stopService())
        self.assertEqual(self.store.sizes, [])
        self.assert_calm()

    def test_what_is_being_written_is_waited_for(self) -> None:
        self.store.slow = True
        self.end(*range(MAX_BATCH + 1))
        stopping = self.history.stopService()
        self.store.waiting.pop().callback(None)
        self.assertNoResult(stopping)
        self.store.waiting.pop().callback(None)
        self.successResultOf(stopping)
        self.assertEqual(len(self.kept()), MAX_BATCH + 1)

    def test_it_does_not_wait_for_the_next_try(self) -> None:
        self.store.error = Unavailable("down")
        self.end(1)
        self.clock.pump([1] * 20)
        self.store.error = None
        self.successResultOf(self.history.stopService())
        self.assertEqual(self.kept(), [1])
        self.assert_calm()

    def test_a_database_that_comes_back_during_the_stop_gets_the_rows(self) -> None:
        self.store.error = Unavailable("down")
        self.end(1)
        stopping = self.history.stopService()
        self.clock.pump([0.25] * int((STOP_WITHIN - 0.5) / 0.25))
        self.assertNoResult(stopping)
        self.store.error = None
        self.clock.advance(0.25)
        self.successResultOf(stopping)
        self.assertEqual(self.kept(), [1])

    def test_it_gives_up_in_the_end_and_says_how_many_are_lost(self) -> None:
        self.store.slow = True
        self.end(*range(MAX_BATCH + 3))
        stopping = self.history.stopService()
        self.clock.advance(STOP_WITHIN - 0.001)
        self.assertNoResult(stopping)
        self.clock.advance(0.001)
        self.successResultOf(stopping)
        self.assertEqual(self.said(), [f"History: {MAX_BATCH + 3} ended Sessions could not be written"])
        self.assert_calm()

    def test_it_goes_on_for_as_long_as_rows_are_written_but_not_for_ever(self) -> None:
        self.store.slow = True
        self.end(*range(5 * MAX_BATCH))
        stopping = self.history.stopService()
        for _ in range(int(STOP_AT_MOST / STOP_WITHIN)):
            self.assertNoResult(stopping)
            self.clock.advance(STOP_WITHIN - 1)
            self.store.waiting.pop().callback(None)
            self.clock.advance(1)
        self.successResultOf(stopping)
        self.assertEqual(len(self.kept()), 3 * MAX_BATCH)
        self.assertEqual(self.said(), [f"History: {2 * MAX_BATCH} ended Sessions could not be written"])
        self.assert_calm()

    def test_it_gives_up_between_two_tries_as_well(self) -> None:
        self.store.error = Unavailable("down")
        self.end(1, 2)
        stopping = self.history.stopService()
        self.clock.pump([0.1] * 51)
        self.successResultOf(stopping)
        self.assertEqual(self.said()[-1], "History: 2 ended Sessions could not be written")
        self.assert_calm()
