"""Questions that are sent as soon as they may be, and together where others are under way."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.batches import Batches, at_once


class AtOnceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[list[int]] = []
        self.gates: list[Deferred[None]] = []
        self.slow = False
        self.batches = Batches(self.ask, self.clock, when=at_once, most=3, under_way=1)

    async def ask(self, numbers: Sequence[int]) -> list[int]:
        self.asked.append(list(numbers))
        if self.slow:
            gate: Deferred[None] = Deferred()
            self.gates.append(gate)
            await gate
        return [10 * number for number in numbers]

    def test_who_comes_alone_does_not_wait_whatever_the_time(self) -> None:
        for _ in range(200):
            # A sum of such steps is rounded this way and that.
            self.clock.advance(0.1)
            self.assertEqual(self.successResultOf(self.batches.answer(7)), 70)
        self.assertEqual(self.asked, [[7]] * 200)

    def test_who_comes_meanwhile_goes_together(self) -> None:
        self.slow = True
        answers = [self.batches.answer(number) for number in range(6)]
        self.assertEqual(self.asked, [[0]])
        self.gates.pop().callback(None)
        self.assertEqual(self.asked, [[0], [1, 2, 3]])
        self.gates.pop().callback(None)
        self.gates.pop().callback(None)
        self.assertEqual(self.asked, [[0], [1, 2, 3], [4, 5]])
        self.assertEqual([self.successResultOf(answer) for answer in answers], [0, 10, 20, 30, 40, 50])
        self.assertEqual(self.clock.getDelayedCalls(), [])
