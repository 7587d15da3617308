"""The database is asked about those who sign in together in one query.

::

    load, revoked                          a query is sent when, and no more than two are under way
    ─────────────► queue ─────► query      · 500 are queued, or
                                           · things are calm and the first has waited for 5 ms, or
                                           · there is a storm, and nobody has come for 20 ms, or the
                                             first has waited for 200 ms

It is calm where the last query was sent a tenth of a second ago: who comes alone does not wait for
others. In a storm a query that is sent early would be followed by the next one at once. Answers are
given out a few in each turn of the reactor, as each of them starts a Session.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from math import inf
from typing import Final, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from flowtx.errors import Unavailable
from flowtx.interfaces import IRevocations, IUserDirectory, Principal, User

Q = TypeVar("Q")
T = TypeVar("T")

MAX_BATCH: Final = 500
MAX_UNDER_WAY: Final = 2
MAX_WAITING: Final = 10_000
ANSWER_WITHIN: Final = 2.25
"""Seconds in which there is an answer, or `Unavailable`: everybody has been told of it before 3 s."""
AT_ONCE: Final = 50
"""How many are told in one turn of the reactor."""
ALONE: Final = 0.005
QUIET: Final = 0.02
TOGETHER: Final = 0.2
CALM: Final = 0.1

FOUND_FOR: Final = 5.0
"""Seconds for which a user who was found is remembered."""
UNKNOWN_FOR: Final = 1.0
"""Seconds for which it is remembered that a user is unknown."""
MAX_REMEMBERED: Final = 10_000


def send_at(first: float, latest: float, sent: float) -> float:
    """Tell when to send a query, as the picture above has it.

    Args:
        first: when the first who is queued came.
        latest: when the latest one came.
        sent: when the query before this one was sent.
    """
    if first - sent >= CALM:
        return first + ALONE
    return min(latest + QUIET, first + TOGETHER)


class Batches(Generic[Q, T]):
    """Gathers questions, such as those about principals, into queries.

    Args:
        ask: answers many questions, in their order; or fails, for all of them.
        clock: the time.
    """

    def __init__(self, ask: Callable[[Sequence[Q]], Awaitable[Sequence[T]]], clock: IReactorTime) -> None:
        self._ask = ask
        self._clock = clock
        # In the order in which they came, with the time by which each has an answer.
        self._waiting: dict[Deferred[T], float] = {}
        self._queued: dict[Deferred[T], Q] = {}
        self._under_way = 0
        self._latest = self._sent = -inf
        self._sending: IDelayedCall | None = None
        self._expiring: IDelayedCall | None = None
        self._answers: deque[tuple[Deferred[T], T | Failure]] = deque()
        self._telling = False

    @property
    def waiting(self) -> int:
        """How many wait for an answer."""
        return len(self._waiting)

    async def answers(self, questions: Iterable[Q]) -> list[T]:
        """Ask each of ``questions``.

        Raises:
            Unavailable: there was no answer within 2.25 s, or 10,000 wait already.
            Exception: whatever the query failed with.
        """
        waiters = [self.answer(question) for question in questions]
        try:
            return [await waiter for waiter in waiters]
        except Exception:
            for waiter in waiters:
                waiter.addErrback(lambda _: None)
                waiter.cancel()
            raise

    def answer(self, question: Q) -> Deferred[T]:
        """Ask one question.

        Returns:
            A Deferred of the caller's own, which may be cancelled; see `answers`.
        """
        if len(self._waiting) >= MAX_WAITING:
            return fail(Unavailable(f"{MAX_WAITING} ask the database already; nothing was sent"))
        waiter: Deferred[T] = Deferred(self._forget)
        self._latest = self._clock.seconds()
        self._waiting[waiter] = self._latest + ANSWER_WITHIN
        self._queued[waiter] = question
        if self._expiring is None:
            self._expiring = self._clock.callLater(ANSWER_WITHIN, self._expire)
        self._send()
        return waiter

    def _forget(self, waiter: Deferred[T]) -> None:
        self._waiting.pop(waiter, None)
        self._queued.pop(waiter, None)
        if not self._waiting and self._expiring is not None:
            self._expiring.cancel()
            self._expiring = None
        if not self._queued:
            self._stop_sending()

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _send(self) -> None:
        """Send what is due; see to the rest when it is."""
        now = self._clock.seconds()
        while self._queued and self._under_way < MAX_UNDER_WAY:
            first = next(iter(self._queued))
            until = self._waiting[first]
            if until <= now:
                del self._queued[first]
                continue
            remaining = send_at(until - ANSWER_WITHIN, self._latest, self._sent) - now
            if remaining > 0 and len(self._queued) < MAX_BATCH:
                if self._sending is None:
                    self._sending = self._clock.callLater(remaining, self._send_later)
                return
            self._send_batch()

    def _send_later(self) -> None:
        self._sending = None
        self._send()

    def _send_batch(self) -> None:
        batch = dict(islice(self._queued.items(), MAX_BATCH))
        for waiter in batch:
            del self._queued[waiter]
        self._stop_sending()
        self._under_way += 1
        self._sent = self._clock.seconds()
        asking = Deferred.fromCoroutine(self._asked(tuple(batch.values())))
        asking.addTimeout(ANSWER_WITHIN, self._clock)
        asking.addBoth(self._answered, tuple(batch))

    async def _asked(self, questions: Sequence[Q]) -> Sequence[T]:
        return await self._ask(questions)

    def _answered(self, result: Sequence[T] | Failure, waiters: Sequence[Deferred[T]]) -> None:
        self._under_way -= 1
        if isinstance(result, Failure):
            failure = Failure(_too_late()) if result.check(TimedOut, CancelledError) else result
            self._answers.extend((waiter, failure) for waiter in waiters)
        else:
            self._answers.extend(zip(waiters, result, strict=True))
        self._send()
        if not self._telling:
            self._tell()

    def _tell(self) -> None:
        self._telling = True
        for _ in range(min(AT_ONCE, len(self._answers))):
            waiter, answer = self._answers.popleft()
            if waiter in self._waiting:
                self._forget(waiter)
                waiter.callback(answer)
        self._telling = bool(self._answers)
        if self._telling:
            self._clock.callLater(0, self._tell)

    def _expire(self) -> None:
        self._expiring = None
        now = self._clock.seconds()
        for waiter, until in tuple(islice(self._waiting.items(), AT_ONCE)):
            if until <= now and waiter in self._waiting:
                self._forget(waiter)
                waiter.errback(_too_late())
        if self._waiting and self._expiring is None:
            remaining = max(0.0, next(iter(self._waiting.values())) - now)
            self._expiring = self._clock.callLater(remaining, self._expire)


def _too_late() -> Unavailable:
    return Unavailable(f"the database did not answer within {ANSWER_WITHIN} s")


@implementer(IUserDirectory)
class BatchedUserDirectory:
    """Asks another directory for many users at once, and remembers them for some seconds.

    Args:
        directory: the other one; what it says of a user hangs on nothing but the user's id.
        clock: the time.
    """

    def __init__(self, directory: IUserDirectory, *, clock: IReactorTime) -> None:
        self._directory = directory
        self._clock = clock
        self._batches = Batches(self._ask, clock)
        self._remembered: OrderedDict[str, tuple[User | None, float]] = OrderedDict()

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        found: dict[str, User | None] = {}
        unsure = {}
        for principal in principals:
            user_id = principal.user_id
            if self._remembers(user_id):
                found[user_id] = self._remembered[user_id][0]
            else:
                unsure[user_id] = principal
        if unsure:
            found.update(zip(unsure, await self._batches.answers(unsure.values()), strict=True))
        return {user_id: user for user_id, user in found.items() if user is not None}

    def _remembers(self, user_id: str) -> bool:
        _, until = self._remembered.get(user_id, (None, -inf))
        if until <= self._clock.seconds():
            self._remembered.pop(user_id, None)
            return False
        self._remembered.move_to_end(user_id)
        return True

    async def _ask(self, principals: Sequence[Principal]) -> list[User | None]:
        distinct = {principal.user_id: principal for principal in principals}
        found = await self._directory.load(tuple(distinct.values()))
        now = self._clock.seconds()
        for user_id in distinct:
            user = found.get(user_id)
            self._remembered[user_id] = user, now + (UNKNOWN_FOR if user is None else FOUND_FOR)
            self._remembered.move_to_end(user_id)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return [found.get(principal.user_id) for principal in principals]


@implementer(IRevocations)
class BatchedRevocations:
    """Asks other revocations about many tokens at once; remembers nothing.

    Args:
        revocations: the others.
        clock: the time.
    """

    def __init__(self, revocations: IRevocations, *, clock: IReactorTime) -> None:
        self._revocations = revocations
        self._batches = Batches(self._ask, clock)

    async def revoke(self, token_id: str | None = None, user_id: str | None = None) -> None:
        await self._revocations.revoke(token_id=token_id, user_id=user_id)

    async def revoked(self, principals: Sequence[Principal]) -> frozenset[Principal]:
        answers = await self._batches.answers(principals)
        return frozenset(
            principal for principal, is_revoked in zip(principals, answers, strict=True) if is_revoked
        )

    async def _ask(self, principals: Sequence[Principal]) -> list[bool]:
        revoked = await self._revocations.revoked(tuple(set(principals)))
        return [principal in revoked for principal in principals]
