"""Pushing under any order of events: nothing is lost silently, nothing is stored or told twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import Conflict, InvalidPayload, Unavailable, UnknownOutcome
from flowtx.inbox import Push, Pushed
from flowtx.notifications import pushing as module
from flowtx.notifications.pushing import ALONE_AT_ONCE, WAIT, Pushing
from tests.notifications.told_store import Statement, ToldStore

MAX_ROWS = 6
MAX_BYTES = 40
MAX_QUEUED = 8
USERS = ("alice", "bob", "carol")
STORED_NOTHING = (Unavailable, InvalidPayload, Conflict)

PUSHES = st.tuples(
    st.just("push"),
    st.sampled_from([("alice",), ("bob",), ("alice", "bob"), USERS]),
    st.sampled_from([None, None, "k", "j"]),
    st.integers(1, 3),  # what it says, where it has a key; else it says what no other one does
)
ANSWERS = st.tuples(
    st.just("answer"),
    st.sampled_from(
        ["ok", "ok", "busy", "some busy", "refused", "unavailable", "unknown", "unknown but stored", "fault"]
    ),
    st.integers(0, 3),  # which statement
)
EVENTS = st.one_of(
    PUSHES,
    PUSHES,
    ANSWERS,
    st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 2.0])),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
)


class Asked(NamedTuple):
    """A push that somebody waits for, and what that one was told."""

    push: Push
    told: list[Sequence[Pushed] | Failure]
    waiter: Deferred[Sequence[Pushed]]


class OrdersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.store = ToldStore()
        self.pushing = Pushing(self.store, self.clock)
        self.asked: list[Asked] = []
        self.patch(module, "MAX_ROWS", MAX_ROWS)
        self.patch(module, "MAX_BYTES", MAX_BYTES)
        self.patch(module, "MAX_QUEUED", MAX_QUEUED)

    def ask(self, user_ids: tuple[str, ...], key: str | None, content: int) -> None:
        type_ = f"type-{len(self.asked)}" if key is None else f"{key}-{content}"
        push = Push(user_ids, type_, b"1" * (content * 5), key)
        told: list[Sequence[Pushed] | Failure] = []
        waiter = self.pushing.push(push)
        waiter.addBoth(told.append)
        self.asked.append(Asked(push, told, waiter))

    def answer(self, how: str, which: int) -> None:
        under_way = self.store.under_way
        if not under_way:
            return
        statement = under_way[which % len(under_way)]
        match how:
            case "ok":
                statement.commit()
            case "busy":
                statement.commit(but=range(len(statement.pushes)))
            case "some busy":
                statement.commit(but=range(which % 2, len(statement.pushes), 2))
            case "refused":
                statement.fail(InvalidPayload("no"))
            case "unavailable":
                statement.fail(Unavailable("down"))
            case "unknown but stored":
                statement.store()
                statement.fail(UnknownOutcome("lost"))
            case "unknown":
                statement.fail(UnknownOutcome("lost"))
            case "fault":
                statement.fail(ZeroDivisionError())

    def check_statement(self, statement: Statement) -> None:
        pushes = statement.pushes
        keys = [push.idempotency_key for push in pushes if push.idempotency_key is not None]
        self.assertEqual(len(keys), len(set(keys)))
        if len(pushes) > 1:
            self.assertFalse(statement.wait)
            self.assertLessEqual(sum(len(push.user_ids) for push in pushes), MAX_ROWS)
            self.assertLessEqual(sum(len(push.payload) for push in pushes), MAX_BYTES)

    def check_under_way(self) -> None:
        under_way = self.store.under_way
        self.assertLessEqual(sum(not statement.wait for statement in under_way), 1)
        self.assertLessEqual(sum(statement.wait for statement in under_way), ALONE_AT_ONCE)
        on_their_way = {id(push) for statement in under_way for push in statement.pushes}
        queued = {id(asked.push) for asked in self.asked if not asked.told} - on_their_way
        self.assertTrue(under_way or not queued, "pushes wait though the database is free")

    @settings(max_examples=500, deadline=None)
    @given(st.lists(EVENTS, min_size=20, max_size=60), st.booleans())
    def test_each_waiter_is_told_once_what_is_true(
        self, events: list[tuple[object, ...]], stops: bool
    ) -> None:
        self.setUp()
        for event in events:
            match event:
                case ("push", tuple(user_ids), str() | None as key, int(content)):
                    self.ask(user_ids, key, content)
                case ("answer", str(how), int(which)):
                    self.answer(how, which)
                case ("wait", float(seconds)):
                    self.clock.advance(seconds)
                case ("cancel", int(number)) if self.asked:
                    self.asked[number % len(self.asked)].waiter.cancel()
            self.check_under_way()
        stopping = Deferred.fromCoroutine(self.pushing.stop()) if stops else None
        while self.store.under_way:
            self.store.under_way[0].commit()
        if stopping is not None:
            self.successResultOf(stopping)
        self.clock.advance(WAIT)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual((self.pushing._bytes, self.pushing._keyed, self.pushing._under_way), (0, {}, set()))
        for statement in self.store.statements:
            self.check_statement(statement)
        self.check_what_was_told()

    def check_what_was_told(self) -> None:
        for asked in self.asked:
            self.assertEqual(len(asked.told), 1, asked.push)
        rows = {user_id: Counter(self.store.stored(user_id)) for user_id in USERS}
        for counter in rows.values():
            self.assertLessEqual(max(counter.values(), default=0), 1)
        for push, [told], _ in self.asked:
            stored = [rows[user_id][push.type] for user_id in push.user_ids]
            if not isinstance(told, Failure):
                self.assertEqual([pushed.user_id for pushed in told], list(push.user_ids))
                for pushed in told:
                    row = self.store._inbox(pushed.user_id).rows[pushed.seq]
                    self.assertEqual((row.entry.id, row.entry.type), (pushed.id, push.type))
            elif told.check(*STORED_NOTHING):
                # Another one with the same key and content may have been stored.
                self.assertTrue(push.idempotency_key is not None or not any(stored), push)
            else:
                self.assertTrue(told.check(UnknownOutcome, ZeroDivisionError, CancelledError), told)
