"""Services that start and stop one after the other."""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from flowtx.service import OrderedMultiService


class Part(Service):
    """Starts and stops when it is told to."""

    def __init__(self, name: str, diary: list[str], *, slow: bool = True) -> None:
        self.label = name
        self.diary = diary
        self.slow = slow
        self.starting: Deferred[None] = Deferred()
        self.stopping: Deferred[None] = Deferred()

    def startService(self) -> Deferred[None] | None:
        super().startService()
        self.diary.append(f"+{self.label}")
        return self.starting if self.slow else None

    def stopService(self) -> Deferred[None] | None:
        super().stopService()
        self.diary.append(f"-{self.label}")
        return self.stopping if self.slow else None


class OrderedMultiServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.diary: list[str] = []
        self.whole = OrderedMultiService()
        self.first, self.second = Part("1", self.diary), Part("2", self.diary)
        self.third = Part("3", self.diary, slow=False)
        for part in (self.first, self.second, self.third):
            part.setServiceParent(self.whole)

    def start(self) -> None:
        starting = self.whole.startService()
        self.first.starting.callback(None)
        self.second.starting.callback(None)
        self.successResultOf(starting)
        self.diary.clear()

    def test_each_start_waits_for_the_one_before(self) -> None:
        starting = self.whole.startService()
        self.assertEqual(self.diary, ["+1"])
        self.first.starting.callback(None)
        self.assertEqual(self.diary, ["+1", "+2"])
        self.assertNoResult(starting)
        self.second.starting.callback(None)
        self.assertEqual(self.diary, ["+1", "+2", "+3"])
        self.successResultOf(starting)
        self.assertTrue(self.whole.running)

    def test_each_stop_waits_for_the_one_after(self) -> None:
        self.start()
        stopping = self.whole.stopService()
        self.assertEqual(self.diary, ["-3", "-2"])
        self.second.stopping.callback(None)
        self.assertEqual(self.diary, ["-3", "-2", "-1"])
        self.assertNoResult(stopping)
        self.first.stopping.callback(None)
        self.successResultOf(stopping)
        self.assertFalse(self.whole.running)

    def test_a_start_that_fails_stops_what_had_started(self) -> None:
        starting = self.whole.startService()
        self.first.starting.callback(None)
        self.second.starting.errback(KeyError("x"))
        self.assertEqual(self.diary, ["+1", "+2", "-2"])
        self.second.stopping.callback(None)
        self.first.stopping.callback(None)
        self.failureResultOf(starting, KeyError)
        self.assertEqual(self.diary, ["+1", "+2", "-2", "-1"])
        self.assertFalse(self.whole.running)

    def test_a_stop_during_the_start_gives_it_up(self) -> None:
        starting = self.whole.startService()
        self.first.starting.callback(None)
        stopping = self.whole.stopService()
        self.assertEqual(self.diary, ["+1", "+2", "-2"])
        self.assertNoResult(stopping)
        self.second.stopping.callback(None)
        self.first.stopping.callback(None)
        self.failureResultOf(starting, CancelledError)
        self.successResultOf(stopping)
        self.assertEqual(self.diary, ["+1", "+2", "-2", "-1"])

    def test_a_part_that_fails_to_stop_does_not_keep_the_others(self) -> None:
        self.start()
        stopping = self.whole.stopService()
        self.second.stopping.errback(KeyError("x"))
        self.first.stopping.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(self.diary, ["-3", "-2", "-1"])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_it_can_start_again(self) -> None:
        self.start()
        self.second.stopping.callback(None)
        self.first.stopping.callback(None)
        self.successResultOf(self.whole.stopService())
        self.first.starting, self.second.starting = Deferred(), Deferred()
        self.start()
        self.assertTrue(self.whole.running)
