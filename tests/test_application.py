"""Steps of the start: done again while the database is lost, for a while."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import SchemaError, Unavailable, UnknownOutcome
from flowtx.preparation import Step


class StepTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.problems: list[Exception] = []
        self.done = 0
        self.step = Step(self.work, self.clock)

    async def work(self) -> None:
        self.done += 1
        if self.problems:
            raise self.problems.pop(0)

    def test_a_step_is_done_once(self) -> None:
        self.successResultOf(self.step.startService())
        self.assertEqual((self.done, self.clock.getDelayedCalls()), (1, []))

    def test_a_lost_database_is_tried_again(self) -> None:
        self.problems = [Unavailable("down"), UnknownOutcome("lost")]
        starting = self.step.startService()
        self.assertNoResult(starting)
        self.clock.pump([0.2, 0.2])
        self.successResultOf(starting)
        self.assertEqual(self.done, 3)

    def test_it_is_given_up_after_ten_seconds(self) -> None:
        self.problems = [Unavailable("down")] * 100
        starting = self.step.startService()
        self.clock.pump([0.2] * 49)
        self.assertNoResult(starting)
        self.clock.pump([0.2] * 2)
        self.failureResultOf(starting, Unavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_another_error_ends_the_start_at_once(self) -> None:
        self.problems = [SchemaError("newer")]
        self.failureResultOf(self.step.startService(), SchemaError)

    def test_a_start_can_be_given_up_meanwhile(self) -> None:
        self.problems = [Unavailable("down")] * 100
        starting = self.step.startService()
        starting.cancel()
        self.failureResultOf(starting)
        self.assertEqual(self.clock.getDelayedCalls(), [])
