from __future__ import annotations

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flowtx.oneshot import OneShot


class OneShotTests(SynchronousTestCase):
    def test_all_who_wait_are_told(self) -> None:
        happening = OneShot()
        early, also_early = happening.when_fired(), happening.when_fired()
        self.assertNoResult(early)
        happening.fire()
        for deferred in (early, also_early, happening.when_fired()):
            self.assertIsNone(self.successResultOf(deferred))

    def test_all_who_wait_are_told_of_a_failure(self) -> None:
        happening = OneShot()
        early = happening.when_fired()
        happening.fire(Failure(KeyError("x")))
        for deferred in (early, happening.when_fired()):
            self.failureResultOf(deferred, KeyError)

    def test_a_failure_that_nobody_asks_for_is_no_error(self) -> None:
        happening = OneShot()
        happening.fire(Failure(KeyError("x")))
        del happening
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_one_may_stop_waiting(self) -> None:
        happening = OneShot()
        leaving, staying = happening.when_fired(), happening.when_fired()
        leaving.addErrback(lambda _: None)
        leaving.cancel()
        happening.fire()
        self.successResultOf(staying)
