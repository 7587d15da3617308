"""The queue of pushes: its bounds, how long one waits in it, and its end."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from flowtx.inbox import Busy, Push
from flowtx.notifications import pushing as module
from flowtx.notifications.pushing import WAIT, Pushing
from tests.notifications.told_store import PushingTestCase, ToldStore, Waiter


class QueueTests(PushingTestCase):
    def test_too_many_are_refused_until_there_is_room(self) -> None:
        self.patch(module, "MAX_QUEUED", 3)
        waiters = self.push_all("abcd")
        self.assertIn("nothing was stored", self.unavailable(self.push("e")))
        self.assertEqual(len(self.store.statements), 1)
        self.statement.commit()
        waiters += self.push_all("f")
        self.statement.commit()
        self.statement.commit()
        self.assertEqual(self.seqs(waiters), [1, 2, 3, 4, 5])

    def test_too_many_bytes_are_refused_until_there_is_room(self) -> None:
        self.patch(module, "MAX_QUEUED_BYTES", 10)
        waiters = [self.push(type_, payload=b"12345") for type_ in "abc"]
        self.unavailable(self.push("d", payload=b"1"))
        self.statement.commit()
        waiters += [self.push(type_, payload=b"12345") for type_ in "ef"]
        self.unavailable(self.push("g", payload=b"1"))
        self.statement.commit(but=[0])  # b has no room to wait once more
        self.unavailable(waiters.pop(1))
        self.statement.commit()
        self.assertEqual(self.seqs(waiters), [1, 2, 3, 4])

    def test_what_shares_the_result_of_another_takes_no_room(self) -> None:
        self.patch(module, "MAX_QUEUED", 1)
        waiters = [self.push("a"), *(self.push("b", idempotency_key="k") for _ in range(5))]
        self.statement.commit()
        self.statement.commit()
        self.assertEqual(self.seqs(waiters), [1, 2, 2, 2, 2, 2])

    def test_what_waits_to_go_alone_counts(self) -> None:
        self.patch(module, "MAX_QUEUED", 4)
        self.push("first")
        waiters = self.push_all("abcd")
        self.statement.commit()
        self.statement.commit(but=range(4))  # two go alone at once, two wait for them
        waiters += self.push_all("efg")
        self.unavailable(self.push("h"))
        while self.store.under_way:
            self.store.under_way[0].commit()
        self.assertEqual(sorted(self.seqs(waiters)), [2, 3, 4, 5, 6, 7, 8])

    def test_what_is_to_go_alone_needs_room_in_the_queue(self) -> None:
        self.patch(module, "MAX_QUEUED", 2)
        waiters = self.push_all("ab")
        self.statement.commit()
        waiters += self.push_all("cd")
        self.statement.commit(but=[0])
        self.unavailable(waiters[1])
        self.statement.commit()
        self.assertEqual(self.seqs([waiters[0], *waiters[2:]]), [1, 2, 3])

    # Time

    def test_who_waits_too_long_is_refused_and_never_stored(self) -> None:
        waiters = self.push_all("ab")
        self.clock.advance(WAIT / 2)
        waiters += self.push_all("c")
        self.clock.advance(WAIT / 2)
        self.assertIn("2 s; nothing was stored", self.unavailable(waiters[1]))
        self.assertNoResult(waiters[0])
        self.assertNoResult(waiters[2])
        self.statement.commit()
        self.statement.commit()
        self.clock.advance(WAIT)
        self.assertEqual(self.seqs([waiters[0], waiters[2]]), [1, 2])
        self.assertEqual(self.store.stored(), ["a", "c"])

    def test_who_shares_a_push_that_waited_too_long_is_refused_with_it(self) -> None:
        self.push("a")
        waiters = [self.push("b", idempotency_key="k")]
        self.clock.advance(WAIT / 2)
        waiters.append(self.push("b", idempotency_key="k"))
        self.clock.advance(WAIT / 2)
        for waiter in waiters:
            self.unavailable(waiter)
        again = self.push("b", idempotency_key="k")
        self.statement.commit()
        self.statement.commit()
        self.assertEqual(self.seqs([again]), [2])

    def test_what_waits_to_go_alone_waits_no_longer(self) -> None:
        waiters = self.push_all("abcd")
        self.statement.commit(but=[0])
        self.clock.advance(WAIT / 2)
        self.together.commit(but=[0, 1, 2])
        self.clock.advance(WAIT * 0.9)
        self.assertNoResult(waiters[2])
        self.clock.advance(WAIT * 0.1)
        for waiter in waiters[2:]:
            self.unavailable(waiter)
        while self.store.under_way:
            self.store.under_way[0].commit()
        self.assertEqual(self.store.stored(), ["a", "b"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_each_queue_has_its_own_time(self) -> None:
        self.push("first")
        waiters = self.push_all("abcd")
        self.statement.commit()
        self.statement.commit(but=range(4))  # a and b are under way; c and d wait until 2
        self.clock.advance(1)
        later = self.push("e")
        self.together.commit(but=[0])  # e waits until 3
        self.clock.advance(0.5)
        latest = self.push_all("fg")[1]  # g waits until 3.5
        self.clock.advance(0.5)
        for waiter in waiters[2:]:
            self.unavailable(waiter)
        self.assertNoResult(later)
        self.clock.advance(1)
        self.unavailable(later)
        self.assertNoResult(latest)
        self.clock.advance(0.5)
        self.unavailable(latest)

    # Those who give up, and the end

    def test_who_gives_up_does_no_harm(self) -> None:
        waiters = [self.push("a"), self.push("b"), *(self.push("c", idempotency_key="k") for _ in range(2))]
        waiters.append(self.push("d"))
        for number in (0, 2, 4):
            waiters[number].cancel()
            self.failureResultOf(waiters[number], CancelledError)
        self.statement.commit()
        self.statement.commit()
        self.assertEqual(self.seqs([waiters[1], waiters[3]]), [2, 3])

    def test_stop_refuses_what_is_queued_and_waits_for_what_is_under_way(self) -> None:
        waiters = self.push_all("abc")
        self.statement.commit(but=[0])
        waiters += self.push_all("de")
        stopping = Deferred.fromCoroutine(self.pushing.stop())
        for waiter in (*waiters[3:], self.push("f")):
            self.assertIn("the server stops; nothing was stored", self.unavailable(waiter))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.alone[0].commit()
        self.assertNoResult(stopping)
        self.together.commit(but=[1])
        self.successResultOf(stopping)
        self.assertEqual(self.seqs(waiters[:2]), [1, 2])
        self.unavailable(waiters[2])
        self.assertEqual((self.store.under_way, self.clock.getDelayedCalls()), ([], []))
        self.successResultOf(Deferred.fromCoroutine(self.pushing.stop()))

    def test_stop_refuses_what_waits_to_go_alone(self) -> None:
        self.push("first")
        waiters = self.push_all("abcd")
        self.statement.commit()
        self.statement.commit(but=range(4))
        stopping = Deferred.fromCoroutine(self.pushing.stop())
        for waiter in waiters[2:]:
            self.unavailable(waiter)
        for statement in self.store.under_way:
            statement.commit()
        self.successResultOf(stopping)
        self.assertEqual((self.seqs(waiters[:2]), self.store.under_way), ([2, 3], []))

    def test_a_store_that_answers_at_once(self) -> None:
        answered = ToldStore()
        pushing = Pushing(answered, self.clock)
        waiters: list[Waiter] = []
        for number in range(2_000):
            waiters.append(pushing.push(Push(("alice",), f"type-{number}", b"{}")))
            answered.under_way[0].commit()
        self.assertEqual(self.seqs(waiters), list(range(1, 2_001)))

    def test_busy_is_not_what_a_waiter_gets(self) -> None:
        [waiter] = self.push_all("a")
        self.statement.answer.callback([Busy()])
        self.assertNoResult(waiter)
