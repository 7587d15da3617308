"""A store of inboxes that commits what it is told to, when it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import Unavailable
from flowtx.inbox import Busy, Outcome, Push, Pushed
from flowtx.notifications.pushing import Pushing
from flowtx.storage.memory_inboxes import MemoryNotificationStore

Waiter = Deferred[Sequence[Pushed]]


class Statement:
    """One call of ``push`` that waits for its outcome.

    Attributes:
        pushes: what it was given.
        wait: whether it waits for inboxes that somebody else holds.
    """

    def __init__(self, store: MemoryNotificationStore, pushes: Sequence[Push], wait: bool) -> None:
        self.pushes = pushes
        self.wait = wait
        self.answer: Deferred[Sequence[Outcome]] = Deferred()
        self._store = store

    @property
    def types(self) -> list[str]:
        return [push.type for push in self.pushes]

    def store(self, *, but: Sequence[int] = ()) -> list[Outcome]:
        """Store the pushes, except for those at some places, whose inboxes somebody else holds."""
        return [Busy() if n in but else self._store._push(push) for n, push in enumerate(self.pushes)]

    def commit(self, *, but: Sequence[int] = ()) -> None:
        """Store, and say so."""
        self.answer.callback(self.store(but=but))

    def fail(self, problem: Exception) -> None:
        """Store nothing."""
        self.answer.errback(problem)


class ToldStore(MemoryNotificationStore):
    """See the module.

    Attributes:
        statements: all that came, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[Statement] = []

    async def push(self, pushes: Sequence[Push], wait: bool) -> Sequence[Outcome]:
        statement = Statement(self, tuple(pushes), wait)
        self.statements.append(statement)
        return await statement.answer

    @property
    def under_way(self) -> list[Statement]:
        return [statement for statement in self.statements if not statement.answer.called]

    def stored(self, user_id: str = "alice") -> list[str]:
        """The types of what is in an inbox, in order."""
        return [row.entry.type for row in self._inbox(user_id).rows.values()]


class PushingTestCase(SynchronousTestCase):
    """Has a `Pushing` whose statements wait to be told."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.store = ToldStore()
        self.pushing = Pushing(self.store, self.clock)

    def push(self, type_: str, *user_ids: str, payload: bytes = b"{}", **more: Any) -> Waiter:
        return self.pushing.push(Push(user_ids or ("alice",), type_, payload, **more))

    def push_all(self, types: str, **more: Any) -> list[Waiter]:
        return [self.push(type_, **more) for type_ in types]

    @property
    def statement(self) -> Statement:
        """The only one under way."""
        [statement] = self.store.under_way
        return statement

    @property
    def together(self) -> Statement:
        """The only one under way that waits for no inbox."""
        [statement] = [statement for statement in self.store.under_way if not statement.wait]
        return statement

    @property
    def alone(self) -> list[Statement]:
        return [statement for statement in self.store.under_way if statement.wait]

    def seqs(self, waiters: Sequence[Waiter]) -> list[int]:
        return [self.successResultOf(waiter)[0].seq for waiter in waiters]

    def unavailable(self, waiter: Waiter) -> str:
        return str(self.failureResultOf(waiter, Unavailable).value)
