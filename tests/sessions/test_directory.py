"""Questions that come together are asked together, and everybody has an answer in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from flowtx.batches import ALONE, ANSWER_WITHIN, AT_ONCE, CALM, MAX_BATCH, MAX_WAITING, QUIET, TOGETHER
from flowtx.errors import StorageError, Unavailable
from flowtx.interfaces import IRevocations, IUserDirectory, Principal, User
from flowtx.sessions.directory import (
    FOUND_FOR,
    MAX_REMEMBERED,
    UNKNOWN_FOR,
    BatchedRevocations,
    BatchedUserDirectory,
)
from flowtx.storage.memory import MemoryRevocations

Found = Mapping[str, User]


def principal(user_id: object, jti: str | None = None) -> Principal:
    return Principal(str(user_id), expires_at=4e9, token_id=jti)


@implementer(IUserDirectory)
class SlowDirectory:
    """Knows everybody but strangers; answers when it is told to, or after ``seconds``."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds: float | None = None
        self.asked: list[list[str]] = []
        self.gates: list[Deferred[None]] = []
        self.cancelled = 0

    async def load(self, principals: Sequence[Principal]) -> Found:
        ids = [principal.user_id for principal in principals]
        self.asked.append(ids)
        gate: Deferred[None] = Deferred(self._cancelled)
        self.gates.append(gate)
        if self.seconds is not None:
            self.clock.callLater(self.seconds, self.answer)
        await gate
        return {user_id: User(user_id, user_id, None) for user_id in ids if "stranger" not in user_id}

    def _cancelled(self, gate: Deferred[None]) -> None:
        self.cancelled += 1
        self.gates.remove(gate)

    def answer(self) -> None:
        """Answer the query that came first."""
        if self.gates:
            self.gates.pop(0).callback(None)


class DirectoryTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000)
        self.slow = SlowDirectory(self.clock)
        self.directory = BatchedUserDirectory(self.slow, clock=self.clock)

    def load(self, *users: object) -> Deferred[Found]:
        return Deferred.fromCoroutine(self.directory.load([principal(user) for user in users]))

    def load_each(self, number: int, prefix: str = "user") -> list[Deferred[Found]]:
        return [self.load(f"{prefix}-{index}") for index in range(number)]

    def sizes(self) -> list[int]:
        return [len(ids) for ids in self.slow.asked]

    def answer(self) -> None:
        """Have the oldest query answered, and everybody told."""
        self.slow.answer()
        self.tell()

    def tell(self) -> None:
        self.clock.advance(0)

    def found(self, loading: Deferred[Found]) -> list[str]:
        found: Found = self.successResultOf(loading)
        return list(found)


class GatheringTests(DirectoryTestCase):
    def test_interfaces(self) -> None:
        verifyObject(IUserDirectory, self.directory)
        verifyObject(IRevocations, BatchedRevocations(MemoryRevocations(), clock=self.clock))

    def test_those_who_come_together_are_one_query_and_each_gets_their_own(self) -> None:
        alice, stranger = self.load("alice"), self.load("stranger")
        self.clock.advance(ALONE / 2)
        bob = self.load("bob")
        self.assertEqual(self.slow.asked, [])
        self.clock.advance(ALONE / 2)
        self.assertEqual(self.slow.asked, [["alice", "stranger", "bob"]])
        self.answer()
        self.assertEqual([self.found(one) for one in (alice, stranger, bob)], [["alice"], [], ["bob"]])

    def test_one_call_may_name_many(self) -> None:
        loading = self.load("alice", "stranger", "bob", "alice")
        self.clock.advance(ALONE)
        self.assertEqual(self.slow.asked, [["alice", "stranger", "bob"]])
        self.answer()
        self.assertEqual(self.found(loading), ["alice", "bob"])
        self.assertEqual(self.found(self.load()), [])

    def test_a_user_who_is_asked_for_twice_is_asked_for_once(self) -> None:
        first, second = self.load("alice"), self.load("alice")
        self.clock.advance(ALONE)
        self.assertEqual(self.slow.asked, [["alice"]])
        self.answer()
        self.assertEqual(self.found(first), self.found(second))

    def test_five_thousand_at_once_are_ten_queries_two_at_a_time(self) -> None:
        loading = self.load_each(5_000)
        for answered in range(10):
            self.assertEqual(len(self.slow.asked), min(10, answered + 2))
            self.answer()
        self.assertEqual(self.sizes(), [MAX_BATCH] * 10)
        self.assertEqual([self.found(one) for one in loading], [[f"user-{n}"] for n in range(5_000)])

    def test_a_storm_that_takes_ten_seconds_costs_a_query_for_fifty(self) -> None:
        for rate in (300, 500, 1_000, 5_000):
            self.setUp()
            self.slow.seconds = 0.004
            random = Random(rate)
            waits: list[float] = []
            for number in range(5_000):
                self.clock.advance(random.expovariate(rate))
                loading = self.load(f"user-{number}")
                loading.addCallback(self.note_wait, self.clock.seconds(), waits)
            for _ in range(100):
                self.clock.advance(0.01)
            self.assertEqual(sum(self.sizes()), 5_000)
            self.assertLessEqual(len(self.slow.asked), 100, rate)
            self.assertEqual(len(waits), 5_000)
            self.assertLessEqual(max(waits), TOGETHER + 0.1)

    def note_wait(self, _: Found, came: float, waits: list[float]) -> None:
        waits.append(self.clock.seconds() - came)

    def test_who_comes_alone_does_not_wait_for_others(self) -> None:
        for number in range(10):
            loading = self.load(f"user-{number}")
            self.clock.advance(ALONE)
            self.answer()
            self.found(loading)
            self.clock.advance(CALM)
        self.assertEqual(self.sizes(), [1] * 10)

    def test_who_comes_soon_after_a_query_waits_until_nobody_else_comes(self) -> None:
        self.load("first")
        self.clock.advance(ALONE)
        self.load("second")
        self.clock.advance(QUIET * 0.9)
        self.load("third")
        self.clock.advance(QUIET * 0.9)
        self.assertEqual(self.sizes(), [1])
        self.clock.advance(QUIET * 0.2)
        self.assertEqual(self.slow.asked, [["first"], ["second", "third"]])

    def test_who_comes_in_a_steady_stream_waits_for_so_long_and_no_longer(self) -> None:
        self.load("first")
        self.clock.advance(ALONE)
        for number in range(100):
            self.load(f"user-{number}")
            self.clock.advance(QUIET / 2)
        self.assertIn(self.sizes()[1], (20, 21))  # in 200 ms, one every 10 ms
        self.assertEqual((QUIET, TOGETHER), (0.02, 0.2))

    def test_no_more_than_two_are_under_way_and_the_rest_comes_together(self) -> None:
        for name in ("first", "second"):
            self.load(name)
            self.clock.advance(CALM + ALONE)
        waiting = self.load_each(300)
        self.clock.advance(0.5)
        self.assertEqual(self.sizes(), [1, 1])
        self.answer()
        self.assertEqual(self.sizes(), [1, 1, 300])
        self.answer()
        self.answer()
        self.assertEqual(self.found(waiting[299]), ["user-299"])

    def test_few_are_told_in_one_turn(self) -> None:
        loading = self.load_each(MAX_BATCH)
        self.slow.answer()
        told = [sum(one.called for one in loading)]
        while told[-1] < MAX_BATCH:
            # Clock.advance would run what the calls add as well.
            call = min(self.clock.getDelayedCalls(), key=lambda call: call.getTime())
            self.assertEqual(call.getTime(), self.clock.seconds())
            tell = call.func  # type: ignore[attr-defined]
            call.cancel()
            tell()
            told.append(sum(one.called for one in loading))
        self.assertEqual(told, list(range(AT_ONCE, MAX_BATCH + 1, AT_ONCE)))

    def test_nothing_is_left_in_the_clock(self) -> None:
        loading = self.load_each(700)
        self.answer()
        self.clock.advance(QUIET)
        self.answer()
        self.assertTrue(all(one.called for one in loading))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class WaitingTests(DirectoryTestCase):
    def test_each_may_give_up_alone(self) -> None:
        staying, leaving, gone = self.load("staying"), self.load("leaving"), self.load("gone")
        gone.cancel()
        self.clock.advance(ALONE)
        self.assertEqual(self.slow.asked, [["staying", "leaving"]])
        leaving.cancel()
        self.answer()
        self.assertEqual(self.found(staying), ["staying"])
        for one in (leaving, gone):
            self.failureResultOf(one, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_when_all_give_up_nobody_is_asked(self) -> None:
        for one in self.load_each(10):
            one.cancel()
            self.failureResultOf(one, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(1)
        self.assertEqual(self.slow.asked, [])

    def test_who_gives_up_a_call_for_many_leaves_nothing(self) -> None:
        loading = self.load("alice", "bob", "carol")
        loading.cancel()
        self.failureResultOf(loading, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_failed_query_fails_those_who_are_in_it(self) -> None:
        first = self.load_each(MAX_BATCH, "first")
        second = self.load_each(MAX_BATCH, "second")
        self.slow.gates.pop(0).errback(StorageError("broken"))
        self.tell()
        for one in first:
            self.assertEqual(str(self.failureResultOf(one, StorageError).value), "broken")
        self.answer()
        self.assertEqual(self.found(second[7]), ["second-7"])
        again = self.load("first-0")
        self.clock.advance(CALM + QUIET)
        self.answer()
        self.assertEqual(self.found(again), ["first-0"])

    def test_a_failure_of_one_call_for_many_is_told_once(self) -> None:
        loading = self.load("alice", "bob")
        self.clock.advance(ALONE)
        self.slow.gates.pop().errback(StorageError("broken"))
        self.failureResultOf(loading, StorageError)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_everybody_has_an_answer_in_time_though_the_database_does_not_answer(self) -> None:
        loading = self.load_each(5_000)
        self.clock.advance(1)
        late = self.load("late")
        self.clock.advance(ANSWER_WITHIN - 1.001)
        self.assertFalse(any(one.called for one in loading))
        self.clock.advance(0.002)
        for one in loading:
            self.failureResultOf(one, Unavailable)
        self.assertNoResult(late)
        self.assertEqual(self.slow.cancelled, 2)
        self.answer()
        self.assertEqual(self.found(late), ["late"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_query_that_hangs_does_not_keep_its_place_for_ever(self) -> None:
        for _ in range(3):
            hanging = []
            for number in range(2):
                hanging.append(self.load(f"hanging-{number}"))
                self.clock.advance(CALM + QUIET)
                self.assertEqual(len(self.slow.gates), number + 1)
            self.clock.advance(ANSWER_WITHIN)
            for one in hanging:
                self.failureResultOf(one, Unavailable)
            self.assertEqual(self.slow.gates, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_past_a_bound_nobody_waits(self) -> None:
        loading = self.load_each(MAX_WAITING)
        self.failureResultOf(self.load("one too many"), Unavailable)
        gone = loading.pop()
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.assertNoResult(self.load("another"))
        self.failureResultOf(self.load("one too many"), Unavailable)
        self.answer()
        self.assertNoResult(self.load("again"))


class RememberingTests(DirectoryTestCase):
    def remembered(self, user: str) -> bool:
        loading = self.load(user)
        known = loading.called
        if known:
            self.found(loading)
        else:
            loading.cancel()
            self.failureResultOf(loading, CancelledError)
        return known

    def learn(self, *users: object) -> None:
        loading = self.load(*users)
        self.clock.advance(CALM + QUIET)
        while not loading.called:
            self.answer()
        self.successResultOf(loading)

    def test_users_are_remembered_for_some_seconds(self) -> None:
        self.learn("alice")
        self.clock.advance(FOUND_FOR - 0.001)
        self.assertEqual(self.found(self.load("alice")), ["alice"])
        self.clock.advance(0.001)
        self.assertFalse(self.remembered("alice"))

    def test_strangers_are_remembered_for_less(self) -> None:
        self.learn("stranger")
        self.clock.advance(UNKNOWN_FOR - 0.001)
        self.assertEqual(self.found(self.load("stranger")), [])
        self.clock.advance(0.001)
        self.assertFalse(self.remembered("stranger"))

    def test_some_may_be_remembered_and_others_asked_for(self) -> None:
        self.learn("alice", "stranger")
        loading = self.load("alice", "bob", "stranger")
        self.clock.advance(CALM + QUIET)
        self.assertEqual(self.slow.asked[1:], [["bob"]])
        self.answer()
        self.assertEqual(sorted(self.found(loading)), ["alice", "bob"])

    def test_a_failure_is_not_remembered(self) -> None:
        loading = self.load("alice")
        self.clock.advance(ALONE)
        self.slow.gates.pop().errback(Unavailable("down"))
        self.failureResultOf(loading, Unavailable)
        self.assertFalse(self.remembered("alice"))

    def test_what_was_learnt_for_one_who_left_is_remembered(self) -> None:
        loading = self.load("alice")
        self.clock.advance(ALONE)
        loading.cancel()
        self.failureResultOf(loading, CancelledError)
        self.answer()
        self.assertTrue(self.remembered("alice"))

    def test_those_used_longest_ago_are_forgotten_first(self) -> None:
        self.slow.seconds = 0.0
        users = [f"user-{number}" for number in range(MAX_REMEMBERED)]
        self.learn(*users)
        self.assertTrue(self.remembered("user-0"))
        self.learn("one", "two")
        self.assertTrue(self.remembered("user-0"))
        self.assertEqual([self.remembered(f"user-{n}") for n in (1, 2, 3)], [False, False, True])


class BatchedRevocationsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.inner = Counting()
        self.revocations = BatchedRevocations(self.inner, clock=self.clock)

    def ask(self, *principals: Principal) -> Deferred[frozenset[Principal]]:
        return Deferred.fromCoroutine(self.revocations.revoked(principals))

    def revoke(self, jti: str) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.revocations.revoke(token_id=jti)))

    def test_one_query_and_each_their_own_answer(self) -> None:
        self.revoke("bad")
        bad, good = principal("alice", "bad"), principal("alice", "good")
        asking = [self.ask(bad), self.ask(good), self.ask(good, bad), self.ask()]
        self.clock.advance(ALONE)
        self.assertEqual(
            [self.successResultOf(one) for one in asking], [{bad}, frozenset(), {bad}, frozenset()]
        )
        self.assertEqual(self.inner.asked, 1)

    def test_nothing_is_remembered(self) -> None:
        token = principal("alice", "a")
        for expected in (frozenset(), frozenset([token])):
            asking = self.ask(token)
            self.clock.advance(1)
            self.assertEqual(self.successResultOf(asking), expected)
            self.revoke("a")
        self.assertEqual(self.inner.asked, 2)

    def test_a_user_is_revoked_as_well(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.revocations.revoke(user_id="alice")))
        asking = self.ask(principal("alice"), principal("bob"))
        self.clock.advance(ALONE)
        self.assertEqual(self.successResultOf(asking), {principal("alice")})


class Counting(MemoryRevocations):
    """Counts how often it is asked."""

    asked = 0

    async def revoked(self, principals: Sequence[Principal]) -> frozenset[Principal]:
        self.asked += 1
        return await super().revoked(principals)
