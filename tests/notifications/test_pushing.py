"""Pushes that arrive together are committed together, and none makes another one suffer."""

from __future__ import annotations

from flowtx.errors import Conflict, InvalidPayload, Unavailable, UnknownOutcome
from flowtx.notifications.pushing import ALONE_AT_ONCE, MAX_BYTES, MAX_ROWS, WAIT
from tests.notifications.told_store import PushingTestCase, Waiter


class PushingTests(PushingTestCase):
    # Together

    def test_the_first_goes_at_once_and_what_comes_meanwhile_goes_together(self) -> None:
        waiters = self.push_all("abcd")
        self.assertEqual((self.statement.types, self.statement.wait), (["a"], False))
        self.statement.commit()
        self.assertEqual((self.statement.types, self.statement.wait), (["b", "c", "d"], False))
        self.assertNoResult(waiters[1])
        self.statement.commit()
        self.assertEqual(self.seqs(waiters), [1, 2, 3, 4])
        self.clock.advance(WAIT)
        self.assertEqual((self.store.under_way, self.clock.getDelayedCalls()), ([], []))

    def test_who_pushes_again_on_the_outcome_is_not_sent_ahead_of_the_others(self) -> None:
        again: list[Waiter] = []
        self.push("first")
        for waiter in self.push_all("abcd"):
            waiter.addCallback(lambda _: again.append(self.push("e")))
        self.statement.commit()
        self.statement.commit()
        self.assertEqual(self.statement.types, ["e"] * 4)
        self.statement.commit()
        self.assertEqual(self.seqs(again), [6, 7, 8, 9])

    def test_each_gets_its_own_users(self) -> None:
        self.push("first")
        two, one = self.push("a", "bob", "alice"), self.push("b", "carol")
        self.statement.commit()
        self.statement.commit()
        self.assertEqual([pushed.user_id for pushed in self.successResultOf(two)], ["bob", "alice"])
        self.assertEqual([pushed.user_id for pushed in self.successResultOf(one)], ["carol"])

    def test_a_failure_is_of_all_in_the_statement_and_of_no_other(self) -> None:
        waiters = self.push_all("abc")
        self.statement.commit()
        waiters += self.push_all("d")
        self.statement.fail(UnknownOutcome("lost"))
        for waiter in waiters[1:3]:
            self.failureResultOf(waiter, UnknownOutcome)
        self.statement.commit()
        self.assertEqual(self.seqs([waiters[0], waiters[3]]), [1, 2])

    def test_a_fault_of_the_store_is_told_and_does_not_stop_it(self) -> None:
        waiters = self.push_all("ab")
        self.statement.fail(ZeroDivisionError())
        self.failureResultOf(waiters[0], ZeroDivisionError)
        self.statement.commit()
        self.assertEqual(self.seqs(waiters[1:]), [1])

    def test_a_store_with_too_few_outcomes_leaves_nobody_waiting(self) -> None:
        waiters = self.push_all("abcd")
        self.statement.commit()
        self.statement.answer.callback(self.statement.store()[:1])
        for waiter in waiters[1:]:
            self.failureResultOf(waiter, ValueError)
        waiters += self.push_all("e")
        self.statement.commit()
        self.assertEqual(self.seqs(waiters[4:]), [5])

    # Bounds of a statement

    def test_a_statement_is_bounded_in_rows(self) -> None:
        self.push("first")
        users = [f"user-{number}" for number in range(MAX_ROWS)]
        self.push("a", *users[: MAX_ROWS // 2])
        self.push("b", *users[MAX_ROWS // 2 :])
        self.push("c")
        self.statement.commit()
        self.assertEqual(self.statement.types, ["a", "b"])
        self.statement.commit()
        self.assertEqual(self.statement.types, ["c"])

    def test_a_statement_is_bounded_in_bytes(self) -> None:
        self.push("first")
        half = b"1" * (MAX_BYTES // 2)
        for type_, payload in (("a", half), ("b", half), ("c", b"1"), ("d", b"1")):
            self.push(type_, payload=payload)
        self.statement.commit()
        self.assertEqual(self.statement.types, ["a", "b"])
        self.statement.commit()
        self.assertEqual(self.statement.types, ["c", "d"])

    def test_a_single_push_may_be_larger(self) -> None:
        self.push("first")
        large = [f"user-{number}" for number in range(MAX_ROWS + 1)]
        waiter = self.push("a", *large)
        self.push("b")
        self.statement.commit()
        self.assertEqual(self.statement.types, ["a"])
        self.statement.commit()
        self.assertEqual(len(self.successResultOf(waiter)), MAX_ROWS + 1)

    # Keys

    def test_the_same_push_under_one_key_is_stored_once_and_told_to_all(self) -> None:
        self.push("first")
        waiters = [self.push("a", idempotency_key="k") for _ in range(3)]
        self.statement.commit()
        self.assertEqual(self.statement.types, ["a"])
        waiters += [self.push("a", idempotency_key="k")]
        self.statement.commit()
        self.statement.commit()
        self.assertEqual(len({self.successResultOf(waiter)[0] for waiter in waiters}), 1)
        self.assertEqual(self.store.stored(), ["first", "a"])

    def test_the_same_push_under_one_key_fails_for_all(self) -> None:
        self.push("first")
        waiters = [self.push("a", idempotency_key="k") for _ in range(2)]
        self.statement.commit()
        self.statement.fail(Unavailable("down"))
        for waiter in waiters:
            self.unavailable(waiter)

    def test_another_push_under_a_key_waits_for_what_became_of_the_first(self) -> None:
        self.push("first")
        waiters = [self.push(type_, idempotency_key=key) for type_, key in zip("abcd", "kkjk", strict=True)]
        self.statement.commit()
        for types in (["a"], ["b", "c"], ["d"]):
            self.assertEqual(self.statement.types, types)
            self.statement.commit()
        self.assertEqual(self.seqs([waiters[0], waiters[2]]), [2, 3])
        for waiter in (waiters[1], waiters[3]):
            self.failureResultOf(waiter, Conflict)
        self.assertEqual(self.store.stored(), ["first", "a", "c"])

    def test_a_conflict_is_told_to_its_own_push_alone(self) -> None:
        self.push("a", idempotency_key="k")
        waiters = [self.push("b"), self.push("c", idempotency_key="k"), self.push("d")]
        self.statement.commit()
        self.assertEqual(self.statement.types, ["b", "c", "d"])
        self.statement.commit()
        self.failureResultOf(waiters[1], Conflict)
        self.assertEqual(self.seqs([waiters[0], waiters[2]]), [2, 3])

    # Alone

    def test_a_busy_inbox_is_waited_for_alone(self) -> None:
        waiters = self.push_all("abc")
        self.statement.commit()
        self.statement.commit(but=[0])
        self.assertEqual((self.statement.types, self.statement.wait), (["b"], True))
        self.assertEqual(self.seqs([waiters[0], waiters[2]]), [1, 2])
        waiters += self.push_all("d")
        self.assertEqual(self.together.types, ["d"])
        self.together.commit()
        self.statement.commit()
        self.assertEqual(self.seqs([waiters[3], waiters[1]]), [3, 4])

    def test_so_many_alone_at_a_time(self) -> None:
        waiters = self.push_all("abcd")
        self.statement.commit(but=[0])
        self.together.commit(but=[0, 1, 2])
        self.assertEqual([statement.types for statement in self.store.under_way], [["a"], ["b"]])
        self.assertEqual(ALONE_AT_ONCE, 2)
        self.alone[0].commit()
        self.assertEqual([statement.types for statement in self.store.under_way], [["b"], ["c"]])
        while self.store.under_way:
            self.store.under_way[0].commit()
        self.assertEqual(self.seqs(waiters), [1, 2, 3, 4])

    def test_an_inbox_that_stays_busy_is_unavailable(self) -> None:
        [waiter] = self.push_all("a")
        self.statement.commit(but=[0])
        self.statement.commit(but=[0])
        self.assertIn("another transaction holds the inbox; nothing was stored", self.unavailable(waiter))
        self.assertEqual(self.store.under_way, [])

    def test_refused_content_is_found_and_the_others_are_stored(self) -> None:
        self.push("first")
        waiters = self.push_all("abc")
        self.statement.commit()
        self.statement.fail(InvalidPayload("what it was"))
        while self.store.under_way:
            statement = self.store.under_way[0]
            self.assertEqual((len(statement.pushes), statement.wait), (1, True))
            if statement.types == ["b"]:
                statement.fail(InvalidPayload("b is not to be stored"))
            else:
                statement.commit()
        self.assertEqual(self.seqs([waiters[0], waiters[2]]), [2, 3])
        refused = self.failureResultOf(waiters[1], InvalidPayload).value
        self.assertEqual(refused.detail, "b is not to be stored")

    def test_refused_content_that_was_alone_anyway_is_not_tried_again(self) -> None:
        [waiter] = self.push_all("a")
        self.statement.fail(InvalidPayload("no"))
        self.failureResultOf(waiter, InvalidPayload)
        self.assertEqual(len(self.store.statements), 1)

    def test_a_fault_alone_is_told_and_leaves_its_place(self) -> None:
        waiters = self.push_all("abcd")
        self.statement.commit(but=[0])
        self.together.commit(but=[0, 1, 2])
        for _ in range(2):
            self.alone[0].fail(ZeroDivisionError())
        for waiter in waiters[:2]:
            self.failureResultOf(waiter, ZeroDivisionError)
        self.assertEqual([statement.types for statement in self.store.under_way], [["c"], ["d"]])
