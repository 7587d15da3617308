"""A database in memory: the stores that pass the storage's contract tests, behind a way that can fail.

It survives the nodes. A statement is sent, carried out, and answered; in between the database may go
down, hang, or lose its connections. Who asked is then told what flowtx's storage tells: `Unavailable`
where nothing was sent, `UnknownOutcome` where it was, which may be before or after it was carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, TypeVar, cast

import psycopg2
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from flowtx.errors import Unavailable, UnknownOutcome
from flowtx.inbox import Busy, Outcome, Push
from flowtx.interfaces import User
from flowtx.storage.link import Phase, Rows
from flowtx.storage.memory import MemoryHistoryStore, MemoryRevocations, MemoryUserDirectory
from flowtx.storage.memory_inboxes import MemoryNotificationStore
from flowtx.storage.memory_presence import MemoryPresenceStore
from tests.simulation.clock import NodeClock
from tests.simulation.trace import Trace

DEADLINE: Final = 5.0
"""Seconds after which whoever asks gives up."""

T = TypeVar("T")


class Inboxes(MemoryNotificationStore):
    """Says so when something was written, as PostgreSQL does; names whose in an order of its own.

    Attributes:
        locked: the users whose inboxes somebody else's transaction holds.
    """

    def __init__(self, now: Callable[[], float], written: Callable[[], object]) -> None:
        super().__init__(now)
        self._written = written
        self.locked: set[str] = set()

    async def push(self, pushes: Sequence[Push], wait: bool) -> Sequence[Outcome]:
        free = [push for push in pushes if self.locked.isdisjoint(push.user_ids)]
        stored = iter(await super().push(free, wait))
        self._written()
        # Who waits, waits for no longer than a second or so.
        return [next(stored) if push in free else Busy() for push in pushes]

    async def changed(self, since: str | None) -> tuple[str, frozenset[str] | None]:
        mark, changed = await super().changed(since)
        return mark, None if changed is None else _Ordered(changed)


class _Ordered(frozenset[str]):
    """A set whose order does not hang on the hashes of texts, which differ from process to process."""

    def __iter__(self) -> Any:
        return iter(sorted(super().__iter__()))


class Database:
    """See the module.

    Attributes:
        is_down: whether nobody can connect.
        hangs: whether nothing is answered.
        slowness: up to so many seconds more for each statement.
        deafness: how probable it is that a NOTIFY does not arrive.
        links: the connections that listen.
    """

    def __init__(
        self,
        outside: NodeClock,
        chance: Random,
        trace: Trace,
        *,
        users: Sequence[str],
        wall: Callable[[], float],
    ) -> None:
        self.outside = outside
        self.chance = chance
        self._trace = trace
        self.is_down = False
        self.hangs = False
        self.slowness = 0.0
        self.deafness = 0.0
        self.links: list[ListeningLink] = []
        self._under_way: dict[Statement, None] = {}
        self._held: list[Statement] = []
        self.inboxes = Inboxes(wall, self._notify)
        self.presence = MemoryPresenceStore(wall)
        self.history = MemoryHistoryStore()
        self.revocations = MemoryRevocations(wall)
        self.users = MemoryUserDirectory([User(user, user.title(), None) for user in users])

    def serve(self, store: T, clock: NodeClock) -> T:
        """Give a store as a node has it, by way of this database."""
        return cast("T", _Served(self, store, clock))

    def delay(self) -> float:
        """Choose the seconds that something takes."""
        return 0.0005 + self.chance.random() * (0.004 + self.slowness)

    def ask(self, name: str, question: Callable[[], Any], clock: NodeClock) -> Deferred[Any]:
        """Have a statement carried out."""
        if self.is_down:
            waiting: Deferred[Any] = Deferred()
            clock.callLater(self.delay(), _tell, waiting, Unavailable("the database is down"))
            return waiting
        statement = Statement(self, name, question, clock)
        self._under_way[statement] = None
        self.outside.callLater(self.delay(), self._carry_out, statement)
        return statement.answer

    def _carry_out(self, statement: Statement) -> None:
        if self.hangs and statement in self._under_way:
            self._held.append(statement)
        elif statement.is_lost:
            self._trace.note(f"database lost {statement.name}")
        else:
            statement.carry_out()

    def note(self, what: str) -> None:
        self._trace.note(f"database {what}")

    def forget(self, statement: Statement) -> None:
        self._under_way.pop(statement, None)

    # What can go wrong

    def go_down(self) -> None:
        """Stop as PostgreSQL does when it is told to at once: what is under way is lost, or just done."""
        self.is_down = True
        self.cut()

    def hang(self) -> None:
        """Answer nothing; nobody is told why."""
        self.hangs = True

    def cut(self) -> None:
        """Lose all connections."""
        for statement in tuple(self._under_way):
            statement.is_lost = self.chance.random() < 0.5
            statement.fail(UnknownOutcome("the connection was lost"))
        for link in tuple(self.links):
            link.lose()

    def come_back(self) -> None:
        """Work as it should."""
        self.is_down = self.hangs = False
        self.inboxes.locked.clear()
        self.slowness = self.deafness = 0.0
        held, self._held = self._held, []
        for statement in held:
            # It may have been given up, and be carried out all the same.
            self._carry_out(statement)

    def forget_node(self, clock: NodeClock) -> None:
        """Lose the connections of a node that has died."""
        for statement in tuple(self._under_way):
            if statement.clock is clock:
                statement.is_lost = self.chance.random() < 0.5
        self.links = [link for link in self.links if link.clock is not clock]

    def _notify(self) -> None:
        for link in self.links:
            if link.is_listening and not self.hangs and self.chance.random() >= self.deafness:
                link.clock.callLater(self.delay(), link.notify)


class Statement:
    """One statement."""

    def __init__(self, database: Database, name: str, question: Callable[[], Any], clock: NodeClock) -> None:
        self.name = name
        self.clock = clock
        self.is_lost = False
        self.answer: Deferred[Any] = Deferred(self._given_up)
        self._database = database
        self._question = question
        self._deadline: IDelayedCall | None = clock.callLater(
            DEADLINE, self.fail, UnknownOutcome(f"no answer within {DEADLINE:g} s")
        )

    def _given_up(self, answer: Deferred[Any]) -> None:
        self._over()
        answer.errback(CancelledError())

    def _over(self) -> None:
        self._database.forget(self)
        if self._deadline is not None and not self.clock.is_dead and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None

    def carry_out(self) -> None:
        """Do it, and answer a little later."""
        try:
            result = _now(self._question())
        except Exception as problem:
            result = problem
        self._database.note(f"{self.name} {'done' if self._deadline else 'done, unasked'}")
        if not self.clock.is_dead:
            self.clock.callLater(self._database.delay(), self._answered, result)

    def _answered(self, result: Any) -> None:
        if self._deadline is not None:
            self._over()
            _tell(self.answer, result)

    def fail(self, problem: Exception) -> None:
        """Tell whoever asked that it is not known."""
        if self._deadline is not None and not self.clock.is_dead:
            self._over()
            self.clock.callLater(0, _tell, self.answer, problem)


def _tell(answer: Deferred[Any], result: Any) -> None:
    if not answer.called:
        if isinstance(result, Exception):
            answer.errback(Failure(result))
        else:
            answer.callback(result)


def _now(asked: Any) -> Any:
    """Take what a store in memory answers: it never waits."""
    try:
        asked.send(None)
    except StopIteration as answered:
        return answered.value
    raise AssertionError("a store in memory waits for something")


class _Served:
    """A store, by way of the database."""

    def __init__(self, database: Database, store: object, clock: NodeClock) -> None:
        self._database = database
        self._store = store
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        database, clock = self._database, self._clock

        def ask(*arguments: Any, **options: Any) -> Deferred[Any]:
            return database.ask(name, lambda: method(*arguments, **options), clock)

        setattr(self, name, ask)
        return ask


class ListeningLink:
    """A connection that listens; see `flowtx.storage.link.Link`.

    Attributes:
        clock: of the node whose it is.
        is_listening: whether a NOTIFY is sent to it.
    """

    def __init__(
        self, database: Database, clock: NodeClock, lost: Callable[[str], None], notified: Callable[[], None]
    ) -> None:
        self.clock = clock
        self.is_listening = False
        self.phase = Phase.LOST
        self._database = database
        self._lost = lost
        self._notified = notified
        self._pending: Deferred[Any] | None = None
        self._answering: IDelayedCall | None = None

    def open(self, dsn: str, setup: str) -> Deferred[None]:
        database = self._database
        if database.is_down:
            return fail(psycopg2.OperationalError("connection refused"))
        opening: Deferred[None] = Deferred()
        self._pending = opening
        database.links.append(self)
        self._answering = self.clock.callLater(database.delay(), self._opened, "LISTEN" in setup)
        return opening

    def _opened(self, is_listening: bool) -> None:
        pending = self._take()
        if pending is not None:
            if self._database.hangs:
                self._pending = pending  # for ever
                return
            self.is_listening = is_listening
            self.phase = Phase.IDLE
            pending.callback(None)

    def execute(self, sql: str, params: Sequence[object] = ()) -> Deferred[Rows]:
        pending: Deferred[Rows] = Deferred()
        self._pending = pending
        self.phase = Phase.AT_WORK
        if not self._database.hangs:
            self._answering = self.clock.callLater(self._database.delay(), self._answered, pending)
        return pending

    def _answered(self, pending: Deferred[Rows]) -> None:
        if self._pending is pending:
            self._pending = None
            self.phase = Phase.IDLE
            pending.callback([])

    def _take(self) -> Deferred[Any] | None:
        pending, self._pending = self._pending, None
        return pending

    def notify(self) -> None:
        """Tell of a NOTIFY."""
        if self.is_listening:
            self._notified()

    def lose(self) -> None:
        """Break."""
        if not self.clock.is_dead:
            self.clock.callLater(0, self._broken)

    def _broken(self) -> None:
        if self in self._database.links:
            self._gone()
            pending = self._take()
            if pending is not None:
                pending.errback(psycopg2.OperationalError("the connection was lost"))
            else:
                self._lost("the connection was lost")

    def close(self) -> None:
        self._gone()
        self._pending = None
        if self._answering is not None and self._answering.active():
            self._answering.cancel()

    def _gone(self) -> None:
        self.is_listening = False
        self.phase = Phase.LOST
        if self in self._database.links:
            self._database.links.remove(self)
