"""Backends that push notifications, by way of a node or in transactions of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from random import Random
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from flowtx.errors import StorageError, Unavailable
from flowtx.inbox import Busy, Pushed
from flowtx.inbox import Push as StoredPush
from tests.faults.history import Outcome, Place, Push, Way
from tests.simulation.clock import NodeClock
from tests.simulation.database import Database
from tests.simulation.node import Node

PATIENCE: Final = 6.0
"""Seconds for which a backend waits for an answer."""


class Writers:
    """All backends.

    Attributes:
        pushes: what they did.
        surprises: answers that no fault explains.
        open: how many pushes by way of a node are still tried.
        stopped: whether they begin no more.
    """

    def __init__(
        self,
        users: Sequence[str],
        *,
        clock: NodeClock,
        chance: Random,
        database: Database,
        node: Callable[[], Node | None],
    ) -> None:
        self.pushes: list[Push] = []
        self.surprises: list[str] = []
        self.open = 0
        self.stopped = False
        self._users = users
        self._clock = clock
        self._chance = chance
        self._database = database
        self._node = node
        self._numbers = count(1)

    def start(self, every: float) -> None:
        """Push again and again, about once in so many seconds."""
        if not self.stopped:
            self.push()
            self._clock.callLater(self._chance.expovariate(1 / every), self.start, every)

    def stop(self) -> None:
        """Begin no more."""
        self.stopped = True

    def push(self, to: Sequence[str] = ()) -> None:
        """Push a notification to users; to some of them where none is named."""
        chance = self._chance
        users = tuple(to or chance.sample(self._users, min(len(self._users), chance.choice((1, 1, 1, 2)))))
        marker = f"m{next(self._numbers)}"
        by_sql = chance.random() < 0.25
        push = Push(marker, users, Way.SQL if by_sql else Way.HTTP, self._clock.seconds())
        self.pushes.append(push)
        if by_sql:
            _BySql(push, self._database, self._clock).begin()
        else:
            self.open += 1
            _ByHttp(self, push).begin()

    def done(self) -> None:
        self.open -= 1

    def later(self, least: float, most: float, call: Callable[..., object], *arguments: object) -> None:
        self._clock.callLater(self._chance.uniform(least, most), call, *arguments)

    @property
    def node(self) -> Node | None:
        return self._node()

    @property
    def clock(self) -> NodeClock:
        return self._clock

    @property
    def chance(self) -> Random:
        return self._chance


class _ByHttp:
    """One push by way of a node, tried with its idempotency key until it is acknowledged."""

    def __init__(self, writers: Writers, push: Push) -> None:
        self._writers = writers
        self._push = push
        self._attempt = 0
        self._timeout: IDelayedCall | None = None

    def begin(self) -> None:
        writers = self._writers
        self._attempt += 1
        self._timeout = writers.clock.callLater(PATIENCE, self._heard, self._attempt, None)
        node = writers.node
        if node is None:
            writers.later(0.001, 0.01, self._heard, self._attempt, None)
        else:
            # The request arrives where the node is, and so its answer.
            for _ in range(2 if writers.chance.random() < 0.1 else 1):  # an impatient one asks twice
                delay = writers.chance.uniform(0.0005, 0.005)
                node.clock.callLater(delay, self._arrive, node, self._attempt)

    def _arrive(self, node: Node, attempt: int) -> None:
        answer = node.push(self._push.users, self._push.marker, f"key-{self._push.marker}")
        if answer is None:
            self._writers.later(0.0005, 0.005, self._heard, attempt, None)
        else:
            answer.addBoth(lambda result: self._writers.later(0.0005, 0.005, self._heard, attempt, result))

    def _heard(self, attempt: int, result: Any) -> None:
        push = self._push
        if attempt != self._attempt or push.outcome is Outcome.OK:
            # The connection with it is no more, or it is the answer to the second of two.
            if isinstance(result, list | tuple) and push.places and _places(result) != push.places:
                self._writers.surprises.append(f"{push.marker} is at {push.places} and at {_places(result)}")
            return
        timeout, self._timeout = self._timeout, None
        if timeout is not None and timeout.active():
            timeout.cancel()
        if result is not None and not isinstance(result, Failure):
            push.outcome = Outcome.OK
            push.completed_at = self._writers.clock.seconds()
            push.places = _places(result)
            self._writers.done()
            return
        if isinstance(result, Failure) and not result.check(StorageError):
            self._writers.surprises.append(f"{push.marker} was answered {result.value!r}")
        self._attempt += 1
        self._writers.later(0.1, 1.0, self.begin)


class _BySql:
    """One push in a transaction of a program's own, which no node has a hand in; tried once."""

    def __init__(self, push: Push, database: Database, clock: NodeClock) -> None:
        self._push = push
        self._database = database
        self._clock = clock

    def begin(self) -> None:
        push = self._push
        stored = StoredPush(push.users, "simulated", msgspec.json.encode({"marker": push.marker}))
        inboxes = self._database.inboxes
        asked: Deferred[Any] = self._database.ask("push", lambda: inboxes.push([stored], True), self._clock)
        asked.addCallbacks(self._committed, self._failed)

    def _committed(self, outcomes: Sequence[Any]) -> None:
        outcome = outcomes[0]
        self._push.completed_at = self._clock.seconds()
        if isinstance(outcome, Busy):
            self._push.outcome = Outcome.FAILED
        else:
            self._push.outcome = Outcome.OK
            self._push.places = _places(outcome)

    def _failed(self, failure: Failure) -> None:
        failure.trap(StorageError)
        if failure.check(Unavailable):
            self._push.outcome = Outcome.FAILED
            self._push.completed_at = self._clock.seconds()


def _places(pushed: Sequence[Pushed]) -> dict[str, Place]:
    return {one.user_id: Place(one.seq, one.id) for one in pushed}
