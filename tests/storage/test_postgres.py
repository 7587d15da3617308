"""Hand-out, deadlines and transactions, on a clock and without a server."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from psycopg2 import errors
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import StartupError, StorageError, Unavailable, UnknownOutcome
from flowtx.storage.link import Rows
from flowtx.storage.postgres import Database, StatementTimeout, Transaction
from tests.storage.fake_link import FakeLink, FakeServer

URL = "postgresql://flow:s3cret@127.0.0.1:6000/flow"


def begun(coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    return Deferred.fromCoroutine(coroutine)


class DatabaseTestCase(SynchronousTestCase):
    slots = 2

    def setUp(self) -> None:
        self.clock = Clock()
        self.server = FakeServer()
        self.database = Database(
            URL, reactor=self.clock, slots=self.slots, random=lambda: 1.0, link=self.server
        )
        self.events = self.enterContext(capturedLogs())

    @property
    def lines(self) -> list[str]:
        return [
            f"{event['log_level'].name}: {formatEvent(event)}"
            for event in self.events
            if event["log_namespace"].startswith("flowtx.storage")
        ]

    def start(self) -> None:
        started = self.database.startService()
        self.server.open_all()
        self.successResultOf(started)

    def working(self) -> FakeLink:
        [link] = [link for link in self.server.live if link.at_work]
        return link


class StartTests(DatabaseTestCase):
    def test_fires_with_the_first_connection(self) -> None:
        started = self.database.startService()
        self.assertNoResult(started)
        self.server.links[1].opened()
        self.successResultOf(started)
        self.assertEqual((self.database.ready, self.database.slots, self.database.waiting), (1, 2, 0))
        self.server.links[0].opened()
        self.assertEqual(self.database.ready, 2)
        self.assertEqual(self.lines, [])

    def test_gives_up_after_10_s_and_tells_why_without_the_password(self) -> None:
        started = self.database.startService()
        for _ in range(200):
            for link in self.server.live:
                if not link.opening.called:
                    link.not_opened('FATAL:  database "flow" does not exist\n')
            self.clock.advance(0.05)
        error = self.failureResultOf(started, StartupError).value
        self.assertEqual(
            str(error),
            'no connection to database 127.0.0.1:6000/flow: FATAL:  database "flow" does not exist',
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.database.running)
        self.successResultOf(self.database.stopService())
        self.assertEqual(self.lines, [])

    def test_no_answer_at_all(self) -> None:
        started = self.database.startService()
        self.clock.pump([0.1] * 101)
        self.assertIn("no connection in 3 s", str(self.failureResultOf(started, StartupError).value))
        self.assertEqual(self.server.live, [])

    def test_a_cancelled_start_leaves_nothing_behind(self) -> None:
        started = self.database.startService()
        started.cancel()
        self.failureResultOf(started, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.server.live, [])
        self.successResultOf(self.database.stopService())

    def test_stopped_while_starting(self) -> None:
        started = self.database.startService()
        self.successResultOf(self.database.stopService())
        self.failureResultOf(started, StartupError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_can_be_started_again(self) -> None:
        self.start()
        self.successResultOf(self.database.stopService())
        self.failureResultOf(begun(self.database.query("SELECT 1")), Unavailable)
        self.start()
        self.failureResultOf(self.database.startService(), StartupError)
        result = begun(self.database.query("SELECT 1"))
        self.working().answer([(1,)])
        self.assertEqual(self.successResultOf(result), [(1,)])

    def test_the_repr_tells_no_password(self) -> None:
        self.assertNotIn("s3cret", repr(self.database) + str(self.database))


class StopTests(DatabaseTestCase):
    def test_lets_calls_finish(self) -> None:
        self.start()
        result = begun(self.database.query("INSERT"))
        stopped = self.database.stopService()
        self.assertNoResult(stopped)
        self.working().answer()
        self.successResultOf(result)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.server.live, [])

    def test_but_not_for_ever(self) -> None:
        self.start()
        never: Deferred[None] = Deferred()
        result = begun(self.database.query("INSERT"))
        other = begun(self.database.transaction(lambda _: never))
        waiting = begun(self.database.query("INSERT"))
        self.working_transaction().answer()
        stopped = self.database.stopService()
        self.failureResultOf(waiting, Unavailable)
        self.failureResultOf(begun(self.database.query("INSERT")), Unavailable)
        self.clock.advance(1.9)
        self.assertNoResult(stopped)
        self.clock.advance(0.1)
        self.successResultOf(stopped)
        self.failureResultOf(result, UnknownOutcome)
        self.failureResultOf(other, UnknownOutcome)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.server.live, [])

    def working_transaction(self) -> FakeLink:
        [link] = [link for link in self.server.live if link.at_work and link.said[-1][0] == "BEGIN"]
        return link


class HandOutTests(DatabaseTestCase):
    slots = 1

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_first_come_first_served(self) -> None:
        results = [begun(self.database.query(f"SELECT {n}")) for n in range(3)]
        self.assertEqual(self.database.waiting, 2)
        for n, result in enumerate(results):
            self.assertEqual(self.working().said[-1], (f"SELECT {n}", ()))
            self.working().answer([(n,)])
            self.assertEqual(self.successResultOf(result), [(n,)])
        self.assertEqual(self.database.waiting, 0)

    def test_nothing_free_within_2_s(self) -> None:
        begun(self.database.query("SELECT 1")).addErrback(lambda _: None)
        result = begun(self.database.query("SELECT 2"))
        self.clock.advance(1.9)
        self.assertNoResult(result)
        self.clock.advance(0.1)
        self.assertIn("nothing was sent", str(self.failureResultOf(result, Unavailable).value))
        self.assertEqual(self.database.waiting, 0)

    def test_a_short_deadline_counts_for_the_waiting_too(self) -> None:
        begun(self.database.query("SELECT 1")).addErrback(lambda _: None)
        result = begun(self.database.query("SELECT 2", timeout=0.5))
        self.clock.advance(0.5)
        self.failureResultOf(result, Unavailable)

    def test_the_201st_is_turned_away_at_once(self) -> None:
        first = begun(self.database.query("SELECT 1"))
        waiting = [begun(self.database.query("SELECT 2")) for _ in range(200)]
        self.failureResultOf(begun(self.database.query("SELECT 3")), Unavailable)
        self.assertEqual(self.database.waiting, 200)
        self.working().answer()
        self.successResultOf(first)
        for result in waiting:
            self.working().answer()
            self.successResultOf(result)

    def test_200_waiting_calls_that_fail_at_once(self) -> None:
        first = begun(self.database.query("SELECT 1"))
        waiting = [begun(self.database.query("SELECT %s", ("\0",))) for _ in range(200)]
        self.working().answer()
        self.successResultOf(first)
        for result in waiting:
            self.failureResultOf(result, ValueError)
        self.assertEqual(len(self.server.links), 1)

    def test_who_gives_up_waiting_is_forgotten(self) -> None:
        first = begun(self.database.query("SELECT 1"))
        second = begun(self.database.query("SELECT 2"))
        third = begun(self.database.query("SELECT 3"))
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.working().answer()
        self.successResultOf(first)
        self.assertEqual(self.working().said[-1], ("SELECT 3", ()))
        self.working().answer()
        self.successResultOf(third)
        self.clock.advance(2)

    def test_never_a_connection_that_is_being_checked(self) -> None:
        self.clock.advance(5)
        result = begun(self.database.query("SELECT 2"))
        self.assertEqual(self.working().said, [("SELECT 1", ())])
        self.working().answer([(1,)])
        self.assertEqual(self.working().said[-1], ("SELECT 2", ()))
        self.working().answer()
        self.successResultOf(result)


class QueryTests(DatabaseTestCase):
    slots = 1

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_rows_and_parameters(self) -> None:
        result = begun(self.database.query("SELECT %s", ["x"]))
        self.assertEqual(self.working().said, [("SELECT %s", ("x",))])
        self.working().answer([("x",)])
        self.assertEqual(self.successResultOf(result), [("x",)])

    def test_the_deadline(self) -> None:
        result = begun(self.database.query("SELECT 1"))
        self.clock.advance(4.9)
        self.assertNoResult(result)
        self.clock.advance(0.1)
        self.failureResultOf(result, UnknownOutcome)
        self.assertTrue(self.server.links[0].closed)

    def test_waiting_and_running_share_one_deadline(self) -> None:
        first = begun(self.database.query("SELECT 1"))
        second = begun(self.database.query("SELECT 2"))
        self.clock.advance(1.9)
        self.working().answer()
        self.successResultOf(first)
        self.clock.advance(3.0)
        self.assertNoResult(second)
        self.clock.advance(0.1)
        self.failureResultOf(second, UnknownOutcome)

    def test_an_error_of_the_server_passes_and_the_connection_stays(self) -> None:
        result = begun(self.database.query("INSERT"))
        self.working().refuse(errors.UniqueViolation("twice"))
        self.failureResultOf(result, errors.UniqueViolation)
        self.assertEqual(len(self.server.links), 1)
        self.assertEqual(self.database.ready, 1)

    def test_statement_timeout_is_named(self) -> None:
        result = begun(self.database.query("SELECT 1"))
        self.working().refuse(errors.QueryCanceled("canceling statement due to statement timeout"))
        self.failureResultOf(result, StatementTimeout)
        self.assertEqual(self.database.ready, 1)

    def test_a_standby_is_left(self) -> None:
        result = begun(self.database.query("INSERT"))
        self.working().refuse(errors.ReadOnlySqlTransaction("cannot execute INSERT"))
        self.failureResultOf(result, Unavailable)
        self.assertTrue(self.server.links[0].closed)
        self.clock.advance(0.1)
        self.assertEqual(len(self.server.links), 2)

    def test_a_loss_is_an_unknown_outcome(self) -> None:
        result = begun(self.database.query("INSERT"))
        self.working().lose()
        self.failureResultOf(result, UnknownOutcome)

    def test_a_cancelled_call_costs_its_connection_and_nothing_else(self) -> None:
        result = begun(self.database.query("SELECT pg_sleep(9)"))
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertTrue(self.server.links[0].closed)
        self.clock.advance(0.1)
        self.server.latest.opened()
        self.assertEqual(self.database.ready, 1)


class TransactionTests(DatabaseTestCase):
    slots = 1

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def statements(self) -> list[str]:
        return [sql for link in self.server.links for sql, _ in link.said]

    def transact(self, work: Callable[[Transaction], Awaitable[Any]]) -> Deferred[Any]:
        return begun(self.database.transaction(work))

    def answers(self, *steps: Rows | Exception) -> None:
        for step in steps:
            if isinstance(step, Exception):
                self.working().refuse(step)
            else:
                self.working().answer(step)

    async def two(self, transaction: Transaction) -> Rows:
        await transaction.query("INSERT")
        return await transaction.query("SELECT")

    def test_commits(self) -> None:
        result = self.transact(self.two)
        self.answers([], [], [(7,)], [])
        self.assertEqual(self.successResultOf(result), [(7,)])
        self.assertEqual(self.statements(), ["BEGIN", "INSERT", "SELECT", "COMMIT"])

    def test_an_error_rolls_back_and_passes(self) -> None:
        result = self.transact(self.two)
        self.answers([], errors.UniqueViolation("twice"))
        self.assertNoResult(result)
        self.answers([])
        self.failureResultOf(result, errors.UniqueViolation)
        self.assertEqual(self.statements(), ["BEGIN", "INSERT", "ROLLBACK"])
        self.assertEqual(len(self.server.links), 1)

    def test_an_exception_of_the_work_rolls_back_and_passes(self) -> None:
        async def work(transaction: Transaction) -> None:
            await transaction.query("INSERT")
            raise LookupError("no such user")

        result = self.transact(work)
        self.answers([], [], [])
        self.failureResultOf(result, LookupError)
        self.assertEqual(self.statements(), ["BEGIN", "INSERT", "ROLLBACK"])

    def test_an_error_that_the_work_hides_does_not_pass_for_a_commit(self) -> None:
        async def work(transaction: Transaction) -> str:
            with contextlib.suppress(errors.UniqueViolation):
                await transaction.query("INSERT")
            return "done"

        result = self.transact(work)
        self.answers([], errors.UniqueViolation("twice"), [])
        self.failureResultOf(result, errors.UniqueViolation)
        self.assertEqual(self.statements(), ["BEGIN", "INSERT", "ROLLBACK"])

    def test_a_work_that_commits_by_itself_is_told(self) -> None:
        async def work(transaction: Transaction) -> None:
            await transaction.query("COMMIT")

        result = self.transact(work)
        self.answers([], [])
        self.failureResultOf(result, StorageError)
        self.assertEqual(self.database.ready, 1)

    def test_conflicts_are_tried_once_more(self) -> None:
        for error in (
            errors.SerializationFailure("40001"),
            errors.DeadlockDetected("40P01"),
            errors.LockNotAvailable("55P03"),
        ):
            self.setUp()
            result = self.transact(self.two)
            self.answers([], error, [], [], [], [(7,)], [])
            self.assertEqual(self.successResultOf(result), [(7,)])
            self.assertEqual(
                self.statements(), ["BEGIN", "INSERT", "ROLLBACK", "BEGIN", "INSERT", "SELECT", "COMMIT"]
            )

    def test_and_not_twice(self) -> None:
        result = self.transact(self.two)
        once: list[Rows | Exception] = [[], errors.DeadlockDetected("40P01"), []]
        self.answers(*once, *once)
        self.failureResultOf(result, errors.DeadlockDetected)

    def test_a_conflict_at_the_commit(self) -> None:
        result = self.transact(self.two)
        self.answers([], [], [], errors.SerializationFailure("40001"), [], [], [(8,)], [])
        self.assertEqual(self.successResultOf(result), [(8,)])

    def test_a_lost_commit_is_an_unknown_outcome(self) -> None:
        result = self.transact(self.two)
        self.answers([], [], [])
        self.assertEqual(self.statements()[-1], "COMMIT")
        self.working().lose()
        self.failureResultOf(result, UnknownOutcome)

    def test_a_lost_rollback_keeps_the_first_error(self) -> None:
        result = self.transact(self.two)
        self.answers([], errors.UniqueViolation("twice"))
        self.working().lose()
        self.failureResultOf(result, errors.UniqueViolation)
        self.assertTrue(self.server.links[0].closed)

    def test_one_deadline_for_all_of_it(self) -> None:
        result = self.transact(self.two)
        self.clock.advance(3)
        self.answers([], [])
        self.clock.advance(2)
        self.failureResultOf(result, UnknownOutcome)
        self.assertTrue(self.server.links[0].closed)

    def test_the_deadline_counts_for_what_the_work_waits_for(self) -> None:
        given_up: list[Deferred[None]] = []
        result = self.transact(lambda _: Deferred(given_up.append))
        self.answers([])
        self.clock.advance(5)
        self.failureResultOf(result, UnknownOutcome)
        self.assertEqual(len(given_up), 1)
        self.assertTrue(self.server.links[0].closed)

    def test_a_work_that_will_not_stop_does_no_harm(self) -> None:
        gate: Deferred[None] = Deferred()
        seen: list[Exception] = []

        async def stubborn(transaction: Transaction) -> None:
            try:
                await Deferred()
            except CancelledError:
                await gate
            try:
                await transaction.query("DELETE")
            except StorageError as error:
                seen.append(error)

        result = self.transact(stubborn)
        self.answers([])
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.clock.advance(0.1)
        self.server.latest.opened()
        other = begun(self.database.query("SELECT 5"))
        gate.callback(None)
        self.assertEqual(str(seen[0]), "this transaction has ended")
        self.assertEqual(self.working().said, [("SELECT 5", ())])
        self.working().answer([(5,)])
        self.assertEqual(self.successResultOf(other), [(5,)])

    def test_is_of_no_use_afterwards(self) -> None:
        kept: list[Transaction] = []

        def keep(transaction: Transaction) -> Deferred[None]:
            kept.append(transaction)
            return succeed(None)

        result = self.transact(keep)
        self.answers([], [])
        self.successResultOf(result)
        self.failureResultOf(begun(kept[0].query("DELETE")), StorageError)
        self.assertEqual(self.statements(), ["BEGIN", "COMMIT"])

    def test_cancelled_between_statements(self) -> None:
        result = self.transact(lambda _: Deferred())
        self.answers([])
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertTrue(self.server.links[0].closed)
        self.clock.advance(0.1)
        self.server.latest.opened()
        self.assertEqual(self.database.ready, 1)


class LogTests(DatabaseTestCase):
    slots = 4

    def test_one_line_for_a_loss_and_one_for_the_recovery(self) -> None:
        self.start()
        for link in list(self.server.live):
            link.lose()
        for _ in range(30):
            for link in list(self.server.live):
                link.not_opened("Connection refused")
            self.clock.advance(0.1)
        self.clock.advance(5)
        for link in list(self.server.live):
            if not link.opening.called:
                link.opened()
        self.assertEqual(len(self.lines), 2, self.lines)
        self.assertTrue(self.lines[0].startswith("warn: Database 127.0.0.1:6000/flow is lost: server closed"))
        self.assertRegex(self.lines[1], r"info: Database 127.0.0.1:6000/flow is back after \d\.\d s")

    def test_the_loss_of_some_is_no_loss_of_the_database(self) -> None:
        self.start()
        for link in self.server.live[:3]:
            link.lose()
        self.assertEqual(self.lines, [])
        self.assertEqual(self.database.ready, 1)

    def test_one_recovery_brings_the_others_back_soon(self) -> None:
        self.start()
        for link in list(self.server.live):
            link.lose()
        for _ in range(100):
            for link in list(self.server.live):
                link.not_opened("Connection refused")
            self.clock.advance(0.1)
        while not self.server.live:
            self.clock.advance(0.1)
        first = self.server.live[0]
        for link in self.server.live[1:]:
            link.not_opened("Connection refused")
        first.opened()
        self.clock.advance(0.5)
        self.server.open_all()
        self.assertEqual(self.database.ready, 4)
