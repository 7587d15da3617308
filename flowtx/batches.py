"""The database is asked about those who come together in one query.

::

    answer                                 a query is sent when, and no more than two are under way
    ─────────────► queue ─────► query      · 500 are queued, or
                                           · things are calm and the first has waited for 5 ms, or
                                           · there is a storm, and nobody has come for 20 ms, or the
                                             first has waited for 200 ms

It is calm where the last query was sent a tenth of a second ago: who comes alone does not wait for
others. In a storm a query that is sent early would be followed by the next one at once. Answers are
given out a few in each turn of the reactor, as each of them may start a Session.

Where those who come alone must not wait at all (`at_once`), a query is sent whenever there may be one more,
and whoever comes meanwhile goes with the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from math import inf
from typing import Final, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from flowtx.errors import Unavailable

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


def at_once(first: float, latest: float, sent: float) -> float:  # noqa: ARG001
    """Tell to send a query as soon as it may be; see `send_at`."""
    # Not `first`: it comes out of a sum, and may lie a little after now.
    return -inf


class Batches(Generic[Q, T]):
    """Gathers questions, such as those about principals, into queries.

    Args:
        ask: answers many questions, in their order; or fails, for all of them.
        clock: the time.
        when: tells when to send a query; see `send_at`.
        most: how many questions go into one.
        under_way: how many queries are under way at a time.
    """

    def __init__(
        self,
        ask: Callable[[Sequence[Q]], Awaitable[Sequence[T]]],
        clock: IReactorTime,
        *,
        when: Callable[[float, float, float], float] = send_at,
        most: int = MAX_BATCH,
        under_way: int = MAX_UNDER_WAY,
    ) -> None:
        self._when = when
        self._most = most
        self._most_under_way = under_way
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
        while self._queued and self._under_way < self._most_under_way:
            first = next(iter(self._queued))
            until = self._waiting[first]
            if until <= now:
                del self._queued[first]
                continue
            remaining = self._when(until - ANSWER_WITHIN, self._latest, self._sent) - now
            if remaining > 0 and len(self._queued) < self._most:
                if self._sending is None:
                    self._sending = self._clock.callLater(remaining, self._send_later)
                return
            self._send_batch()

    def _send_later(self) -> None:
        self._sending = None
        self._send()

    def _send_batch(self) -> None:
        batch = dict(islice(self._queued.items(), self._most))
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
