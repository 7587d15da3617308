from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import Unavailable
from flowtx.metrics import Metrics
from flowtx.notifications.upkeep import LOOK_EVERY, SWEEP_EVERY, InboxUpkeep
from flowtx.storage.memory_inboxes import MemoryNotificationStore


class UpkeepStore(MemoryNotificationStore):
    """Answers out of a list, then with nothing more to do; or when it is told to.

    Attributes:
        answers: what it finds or deletes, in turn.
        sweeps: what each sweep was asked.
        looks: what each search for the undelivered was asked.
        waiting: where it is a Deferred, every answer waits for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[int | Exception] = []
        self.sweeps: list[tuple[float, int]] = []
        self.looks: list[tuple[float, int]] = []
        self.waiting: Deferred[None] | None = None

    async def sweep(self, max_age: float, max_count: int) -> int:
        self.sweeps.append((max_age, max_count))
        return await self._answer()

    async def find_undelivered(self, after_seconds: float, limit: int) -> int:
        self.looks.append((after_seconds, limit))
        return await self._answer()

    async def _answer(self) -> int:
        if self.waiting is not None:
            await self.waiting
        answer = self.answers.pop(0) if self.answers else 0
        if isinstance(answer, Exception):
            raise answer
        return answer


class InboxUpkeepTests(SynchronousTestCase):
    def start(self, undelivered_after: float = 0, days: float = 0, count: int = 0) -> InboxUpkeep:
        self.clock = Clock()
        self.store = UpkeepStore()
        self.metrics = Metrics()
        upkeep = InboxUpkeep(
            self.store,
            clock=self.clock,
            metrics=self.metrics,
            undelivered_after=undelivered_after,
            retention_days=days,
            retention_count=count,
        )
        self.successResultOf(upkeep.startService())
        return upkeep

    def counted(self) -> float | None:
        return self.metrics.registry.get_sample_value("flowtx_notifications_undelivered_total")

    def test_a_sweep_goes_on_until_nothing_is_left(self) -> None:
        self.start(days=2, count=100)
        self.store.answers = [500, 1, 0, 7]
        self.clock.advance(SWEEP_EVERY - 1)
        self.assertEqual(self.store.sweeps, [])
        self.clock.advance(1)
        self.assertEqual(self.store.sweeps, [(172_800.0, 100)] * 3)
        self.clock.advance(SWEEP_EVERY)
        self.assertEqual(len(self.store.sweeps), 5)

    def test_a_sweep_has_an_end_where_more_and_more_is_there(self) -> None:
        self.start()
        self.store.answers = [1] * 5_000
        self.clock.advance(SWEEP_EVERY)
        self.assertEqual(len(self.store.sweeps), 1_000)

    def test_a_sweep_that_fails_comes_again(self) -> None:
        self.start()
        self.store.answers = [Unavailable("down"), 3, 0]
        self.clock.advance(SWEEP_EVERY)
        self.clock.advance(SWEEP_EVERY)
        self.assertEqual(self.store.answers, [])

    def test_what_nobody_got_is_counted(self) -> None:
        self.start(undelivered_after=30)
        self.store.answers = [500, 500, 3]
        self.clock.advance(LOOK_EVERY)
        self.assertEqual(self.store.looks, [(30, 500)] * 3)
        self.assertEqual(self.counted(), 1_003)

    def test_it_looks_more_often_where_that_is_soon(self) -> None:
        for after, every in ((30, 5.0), (20, 5.0), (8, 2.0), (0.01, 0.1)):
            self.start(undelivered_after=after)
            self.clock.advance(every * 0.99)
            self.assertEqual(self.store.looks, [], after)
            self.clock.advance(every * 0.02)
            self.assertEqual(len(self.store.looks), 1, after)

    def test_zero_is_never(self) -> None:
        self.start(undelivered_after=0)
        self.clock.pump([1.0] * 59)
        self.assertEqual(self.store.looks, [])

    def test_stop_waits_for_the_step_under_way_and_begins_no_other(self) -> None:
        for due, asked in ((SWEEP_EVERY, "sweeps"), (LOOK_EVERY, "looks")):
            upkeep = self.start(undelivered_after=30)
            self.store.answers = [500, 500, 500]
            self.store.waiting = Deferred()
            self.clock.advance(due)
            stopping = upkeep.stopService()
            self.assertNoResult(stopping)
            self.store.waiting.callback(None)
            self.successResultOf(stopping)
            self.assertEqual(len(getattr(self.store, asked)), 1)
            self.assertEqual(self.clock.getDelayedCalls(), [])
