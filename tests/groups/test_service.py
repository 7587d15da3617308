"""Groups under a Clock: who may stay, who is told that they may not, and how often the table is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.batches import MAX_BATCH
from flowtx.errors import InvalidPayload, Unavailable
from flowtx.groups.service import MAX_CHECKED, Groups, Place, group_topic, is_group_name
from flowtx.storage.groups import MemoryGroupStore


class Store(MemoryGroupStore):
    """Answers at once, or finds the answer and keeps it until it is told to give it."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.problem: Exception | None = None
        self.asked: list[int] = []
        self.gates: list[Deferred[None]] = []

    async def present(self, pairs: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        self.asked.append(len(pairs))
        found = await super().present(pairs)
        if self.slow:
            gate: Deferred[None] = Deferred()
            self.gates.append(gate)
            await gate
        if self.problem is not None:
            raise self.problem
        return found


class GroupsCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = Store()
        self.groups = Groups(self.store, clock=self.clock)
        self.lost: list[str] = []

    def do(self, work: Awaitable[Any]) -> Any:
        return self.successResultOf(self.begin(work))

    def begin(self, work: Awaitable[Any]) -> Deferred[Any]:
        begun: Deferred[Any] = Deferred.fromCoroutine(work)  # type: ignore[arg-type]
        self.clock.pump([0.01] * 30)
        return begun

    def place(self, user_id: str, group: str = "sales", name: str | None = None) -> Place:
        return Place(group, user_id, lambda: self.lost.append(name or user_id))

    def held(self, user_id: str, group: str = "sales", name: str | None = None) -> Place:
        """A member's place."""
        self.do(self.store.add(group, user_id))
        place = self.place(user_id, group, name)
        self.assertTrue(self.do(self.groups.hold(place)))
        return place

    def wake(self) -> None:
        self.do(self.groups.wake())


class PlaceTests(GroupsCase):
    def test_a_member_gets_a_place_and_nobody_else(self) -> None:
        self.do(self.groups.add_member("sales", "alice"))
        for user_id, group, held in (
            ("alice", "sales", True),
            ("bob", "sales", False),
            ("alice", "hr", False),
        ):
            self.assertIs(self.do(self.groups.hold(self.place(user_id, group))), held)
        self.assertEqual(list(self.groups._places), [("sales", "alice")])

    def test_who_is_removed_behind_our_back_is_told_at_the_next_look_once(self) -> None:
        for name in ("phone", "desk"):
            self.held("alice", name=name)
        self.held("bob")
        self.held("alice", "hr")
        self.wake()
        self.assertEqual(self.lost, [])
        self.do(self.store.remove("sales", "alice"))
        for _ in range(2):
            self.wake()
            self.assertEqual(self.lost, ["phone", "desk"])
        self.assertEqual(set(self.groups._places), {("sales", "bob"), ("hr", "alice")})

    def test_who_is_removed_by_us_is_told_at_once(self) -> None:
        self.held("alice")
        self.held("bob")
        self.store.asked.clear()
        self.assertTrue(self.do(self.groups.remove_member("sales", "alice")))
        self.assertEqual(self.lost, ["alice"])
        self.assertFalse(self.do(self.groups.remove_member("sales", "alice")))
        self.wake()
        self.assertEqual(self.lost, ["alice"])
        self.assertFalse(self.do(self.groups.hold(self.place("alice"))))

    def test_who_gave_their_place_up_is_told_nothing(self) -> None:
        place, other = self.held("alice", name="phone"), self.held("alice", name="desk")
        for _ in range(2):
            self.groups.release(place)
        self.do(self.groups.remove_member("sales", "alice"))
        self.assertEqual(self.lost, ["desk"])
        self.groups.release(other)
        self.assertEqual(self.groups._places, {})

    def test_a_removal_between_the_answer_and_the_place(self) -> None:
        self.do(self.store.add("sales", "alice"))
        self.store.slow = True
        place = self.place("alice")
        holding = self.begin(self.groups.hold(place))
        self.assertNoResult(holding)
        [gate] = self.store.gates
        self.store.slow = False
        self.do(self.store.remove("sales", "alice"))
        self.wake()
        gate.callback(None)
        self.assertFalse(self.successResultOf(holding))
        self.assertEqual(self.groups._places, {})

    def test_who_came_back_while_the_table_was_asked_stays(self) -> None:
        old = self.held("alice", name="old")
        self.do(self.store.remove("sales", "alice"))
        self.store.slow = True
        waking = self.begin(self.groups.wake())
        [gate] = self.store.gates
        self.store.slow = False
        self.groups.release(old)
        self.held("alice", name="new")
        gate.callback(None)
        self.successResultOf(waking)
        self.assertEqual(self.lost, [])
        self.wake()
        self.assertEqual(self.lost, [])

    def test_one_that_is_told_may_change_the_places(self) -> None:
        other = self.held("alice", name="other")
        place = self.held("alice")
        self.do(self.store.remove("sales", "alice"))
        other.on_lost = lambda: self.groups.release(place)
        self.wake()
        self.assertEqual((self.lost, place.lost, self.groups._places), ([], False, {}))

    def test_the_database_is_down(self) -> None:
        self.held("alice")
        self.do(self.store.remove("sales", "alice"))
        self.store.problem = Unavailable("planted")
        self.failureResultOf(self.begin(self.groups.wake()), Unavailable)
        self.failureResultOf(self.begin(self.groups.hold(self.place("bob"))), Unavailable)
        self.failureResultOf(self.begin(self.groups.is_member("sales", "bob")), Unavailable)
        self.assertEqual((self.lost, list(self.groups._places)), ([], [("sales", "alice")]))
        self.store.problem = None
        self.wake()
        self.assertEqual(self.lost, ["alice"])

    def test_one_who_goes_while_waiting(self) -> None:
        self.store.slow = True
        holding = self.begin(self.groups.hold(self.place("alice")))
        holding.cancel()
        self.failureResultOf(holding, CancelledError)
        self.assertEqual(self.groups._places, {})


class CostTests(GroupsCase):
    def test_a_storm_of_joins_asks_a_few_times(self) -> None:
        users = [f"user-{number}" for number in range(1_000)]
        for user_id in users[::2]:
            self.do(self.store.add("sales", user_id))
        holding = [Deferred.fromCoroutine(self.groups.hold(self.place(user_id))) for user_id in users]
        self.clock.pump([0.01] * 100)
        self.assertEqual([self.successResultOf(one) for one in holding], [True, False] * 500)
        self.assertEqual(sum(self.store.asked), 1_000)
        self.assertLessEqual(max(self.store.asked), MAX_BATCH)
        self.assertLessEqual(len(self.store.asked), 4)

    def test_devices_of_one_user_are_asked_about_once(self) -> None:
        self.do(self.store.add("sales", "alice"))
        holding = [Deferred.fromCoroutine(self.groups.hold(self.place("alice"))) for _ in range(20)]
        self.clock.pump([0.01] * 100)
        self.assertEqual([self.successResultOf(one) for one in holding], [True] * 20)
        self.assertEqual(self.store.asked, [1])
        self.wake()
        self.assertEqual(self.store.asked, [1, 1])

    def test_a_look_asks_in_bounded_pieces(self) -> None:
        count = 2 * MAX_CHECKED + 5
        for number in range(count):
            place = self.place(f"user-{number}")
            self.groups._places[place.pair] = {place: None}
            self.do(self.store.add(*place.pair))
        gone = ["user-0", f"user-{MAX_CHECKED}", f"user-{count - 1}"]
        for user_id in gone:
            self.do(self.store.remove("sales", user_id))
        self.wake()
        self.assertEqual(self.store.asked, [MAX_CHECKED, MAX_CHECKED, 5])
        self.assertEqual(self.lost, gone)

    def test_nobody_is_here(self) -> None:
        self.wake()
        self.assertEqual(self.store.asked, [])


class CallTests(GroupsCase):
    def test_add_remove_and_list(self) -> None:
        for user_id in ("bob", "alice", "carol"):
            self.assertTrue(self.do(self.groups.add_member("sales", user_id)))
        self.assertFalse(self.do(self.groups.add_member("sales", "bob")))
        self.assertEqual(self.do(self.groups.members("sales")), ["alice", "bob", "carol"])
        self.assertEqual(self.do(self.groups.members("sales", after="alice", limit=1)), ["bob"])
        self.assertEqual(self.do(self.groups.members("hr")), [])
        self.assertTrue(self.do(self.groups.is_member("sales", "bob")))
        self.assertTrue(self.do(self.groups.remove_member("sales", "bob")))
        self.assertFalse(self.do(self.groups.is_member("sales", "bob")))

    def test_bad_names_are_refused_and_the_error_says_which(self) -> None:
        for bad in ("", "a b", "x" * 129, "a/b", "a\n", "ż", "*", "a\x00"):
            self.assertFalse(is_group_name(bad))
            for field, work in (
                ("group", self.groups.add_member(bad, "alice")),
                ("user_id", self.groups.add_member("sales", bad)),
                ("group", self.groups.remove_member(bad, "alice")),
                ("user_id", self.groups.remove_member("sales", bad)),
                ("group", self.groups.is_member(bad, "alice")),
                ("user_id", self.groups.is_member("sales", bad)),
                ("group", self.groups.members(bad)),
            ):
                problem = self.failureResultOf(self.begin(work), InvalidPayload).value
                self.assertTrue(problem.detail.startswith(f"{field}: got "), problem.detail)
        self.failureResultOf(self.begin(self.groups.members("sales", limit=0)), InvalidPayload)
        self.assertTrue(is_group_name("a:b@c.d-e_F" + "x" * 117))
        self.assertEqual(group_topic("sales"), "group:sales")
