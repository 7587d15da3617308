"""When what is sent to one connection is joined."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.bursts import WORTH_IT, Bursts
from flowtx.protocol.message import Broadcast
from flowtx.pubsub.memory import MemoryPubSub


class Subscriber:
    """Notes whether what it is given is to be joined."""

    def __init__(self, bursts: Bursts) -> None:
        self.bursts = bursts
        self.joined: list[bool] = []

    def deliver(self, broadcast: Broadcast) -> None:
        self.joined.append(self.bursts.joining)


class BurstsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.bursts = Bursts(self.clock)
        self.pubsub = MemoryPubSub("here", self.bursts)

    def subscribers(self, count: int) -> list[Subscriber]:
        all_ = [Subscriber(self.bursts) for _ in range(count)]
        for one in all_:
            self.pubsub.subscribe("room", one)
        return all_

    def test_the_first_of_a_turn_goes_at_once_the_others_are_joined(self) -> None:
        [first, *_] = self.subscribers(WORTH_IT)
        for _ in range(3):
            self.pubsub.broadcast("room", "new", {})
        self.assertFalse(self.bursts.joining)
        self.clock.advance(0)
        self.pubsub.broadcast("room", "new", {})
        self.assertEqual(first.joined, [False, True, True, False])

    def test_few_are_not_worth_it(self) -> None:
        [first, *_] = self.subscribers(WORTH_IT - 1)
        for _ in range(3):
            self.pubsub.broadcast("room", "new", {})
        self.assertEqual(first.joined, [False] * 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_was_joined_is_sent_when_the_turn_is_over(self) -> None:
        flushed: list[int] = []
        self.bursts.begin()
        self.bursts.end()
        self.bursts.begin()
        self.bursts.at_end(lambda: flushed.append(1))
        self.bursts.end()
        self.assertEqual(flushed, [])
        self.clock.advance(0)
        self.assertEqual(flushed, [1])
        self.clock.advance(1)
        self.assertEqual(flushed, [1])

    def test_a_subscriber_that_fails_leaves_nothing_open(self) -> None:
        class Broken(Subscriber):
            def deliver(self, broadcast: Broadcast) -> None:
                raise ValueError("broken")

        self.subscribers(WORTH_IT)
        self.pubsub.subscribe("room", Broken(self.bursts))
        self.pubsub.broadcast("room", "new", {})
        self.pubsub.broadcast("room", "new", {})
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        self.assertFalse(self.bursts.joining)
