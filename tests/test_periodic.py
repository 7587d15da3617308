from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import Unavailable, UnknownOutcome
from flowtx.periodic import Periodic


class PeriodicTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.runs: list[Deferred[None]] = []
        self.slow = False
        self.problem: Exception | None = None
        self.periodic = Periodic("To tidy up", self.work, 10.0, clock=self.clock)

    async def work(self) -> None:
        run: Deferred[None] = Deferred()
        self.runs.append(run)
        if self.slow:
            await run
        if self.problem is not None:
            raise self.problem

    def fail_with(self, *problems: Exception | None) -> list[LogEvent]:
        """Have the work fail, once with each; what is logged of it."""
        with capturedLogs() as events:
            for problem in problems:
                self.problem = problem
                self.clock.advance(10)
        return [event for event in events if event.get("name") == "To tidy up"]

    def test_it_works_after_each_interval(self) -> None:
        self.periodic.startService()
        self.assertEqual(len(self.runs), 0)
        for expected, seconds in ((0, 9.9), (1, 0.1), (1, 9.9), (2, 0.1)):
            self.clock.advance(seconds)
            self.assertEqual(len(self.runs), expected)

    def test_never_twice_at_once_and_the_interval_begins_with_the_end(self) -> None:
        self.slow = True
        self.periodic.startService()
        self.clock.pump([10.0] * 10)
        self.assertEqual(len(self.runs), 1)
        self.runs[0].callback(None)
        self.clock.advance(9.9)
        self.assertEqual(len(self.runs), 1)
        self.clock.advance(0.1)
        self.assertEqual(len(self.runs), 2)

    def test_an_exception_does_not_end_it(self) -> None:
        self.periodic.startService()
        self.fail_with(ZeroDivisionError(), Unavailable("down"), None)
        self.assertEqual(len(self.runs), 3)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_what_raises_before_it_waits_does_not_end_it(self) -> None:
        def work() -> Deferred[None]:
            self.runs.append(Deferred())
            raise ZeroDivisionError

        Periodic("To tidy up", work, 10.0, clock=self.clock).startService()
        self.clock.pump([10.0, 10.0])
        self.assertEqual(len(self.runs), 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_each_kind_is_logged_once_until_it_has_worked_again(self) -> None:
        self.periodic.startService()
        down, unknown = Unavailable("down"), UnknownOutcome("lost")
        self.assertEqual(len(self.fail_with(down, down, unknown, down, unknown, down)), 2)
        self.assertEqual(len(self.fail_with(None, down, down)), 1)

    def test_a_database_that_is_down_is_no_error_of_the_program(self) -> None:
        self.periodic.startService()
        [event] = self.fail_with(Unavailable("down"))
        self.assertEqual(event["log_level"].name, "warn")
        self.assertNotIn("log_failure", event)

    def test_stop_ends_the_wait(self) -> None:
        self.periodic.startService()
        self.successResultOf(self.periodic.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_waits_for_the_work_under_way(self) -> None:
        self.slow = True
        self.periodic.startService()
        self.clock.advance(10)
        stopping = self.periodic.stopService()
        self.assertNoResult(stopping)
        self.runs[0].callback(None)
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(self.periodic.stopService())

    def test_it_can_be_started_again(self) -> None:
        self.slow = True
        self.periodic.startService()
        self.clock.advance(10)
        self.runs[0].callback(None)
        self.successResultOf(self.periodic.stopService())
        self.periodic.startService()
        self.clock.advance(10)
        self.assertEqual(len(self.runs), 2)

    def test_a_failure_under_way_is_none_of_the_stop(self) -> None:
        self.slow = True
        self.periodic.startService()
        self.clock.advance(10)
        stopping = self.periodic.stopService()
        self.runs[0].errback(Unavailable("down"))
        self.successResultOf(stopping)

    def test_started_again_while_its_work_still_ends_it_is_not_doubled(self) -> None:
        self.slow = True
        self.periodic.startService()
        self.clock.advance(10)
        self.periodic.stopService()
        self.periodic.startService()
        self.clock.advance(10)
        self.assertEqual(len(self.runs), 1)
        self.runs[0].callback(None)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(10)
        self.assertEqual(len(self.runs), 2)
