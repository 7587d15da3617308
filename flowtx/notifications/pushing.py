"""Pushes that arrive together are committed together.

::

    push ──► queue ──► one statement for all that is queued ──► the outcome of each
                 ▲     (one at a time; what comes meanwhile
                 │      waits for the next)
                 └──── alone: what could not be done with others, two at a time

A commit costs the database the same for one push as for a thousand, and a NOTIFY at its end holds up
every other commit that has one. A push that an inbox held by somebody else's transaction keeps
waiting, or whose content the database refuses, is done again by itself: others do not suffer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from flowtx import faultpoints
from flowtx.errors import InvalidPayload, Unavailable
from flowtx.inbox import Busy, INotificationStore, Outcome, Push, Pushed

MAX_ROWS: Final = 10_000
"""Rows that one statement inserts, but for a single push with more."""
MAX_BYTES: Final = 1_048_576
"""Bytes of payloads in one statement, but for a single push with more."""
MAX_QUEUED: Final = 10_000
MAX_QUEUED_BYTES: Final = 67_108_864
WAIT: Final = 2.0
"""Seconds that a push waits for its statement at most."""
ALONE_AT_ONCE: Final = 2


class _Queued:
    """A push, and those who wait for its outcome."""

    __slots__ = ("push", "until", "waiters")

    def __init__(self, push: Push, until: float) -> None:
        self.push = push
        self.until = until
        self.waiters: list[Deferred[Sequence[Pushed]]] = []

    def tell(self, outcome: Sequence[Pushed] | Exception) -> None:
        for waiter in self.waiters:
            if waiter.called:  # it was cancelled
                continue
            if isinstance(outcome, Exception):
                waiter.errback(outcome)
            else:
                waiter.callback(outcome)


class Pushing:
    """See the module.

    Args:
        store: where to.
        clock: the time.
    """

    def __init__(self, store: INotificationStore, clock: IReactorTime) -> None:
        self._store = store
        self._clock = clock
        self._together: deque[_Queued] = deque()
        self._alone: deque[_Queued] = deque()
        self._keyed: dict[str, _Queued] = {}
        self._bytes = 0
        self._under_way: set[Deferred[None]] = set()
        self._alone_under_way = 0
        self._busy = False
        self._stopped = False
        self._expiring: IDelayedCall | None = None

    def push(self, push: Push) -> Deferred[Sequence[Pushed]]:
        """Append to inboxes.

        Returns:
            A Deferred that fires with where the notification is, once it is on disk; or fails with
            `Conflict`, `InvalidPayload` or `flowtx.errors.StorageError`.
        """
        if self._stopped:
            return fail(Unavailable("the server stops; nothing was stored"))
        waiter: Deferred[Sequence[Pushed]] = Deferred()
        same = self._keyed.get(push.idempotency_key) if push.idempotency_key is not None else None
        if same is not None and same.push == push:
            same.waiters.append(waiter)
            return waiter
        if self._is_full:
            return fail(Unavailable("too many pushes wait for the database; nothing was stored"))
        queued = _Queued(push, self._clock.seconds() + WAIT)
        queued.waiters.append(waiter)
        if push.idempotency_key is not None and same is None:
            self._keyed[push.idempotency_key] = queued
        self._bytes += len(push.payload)
        self._together.append(queued)
        self._send()
        return waiter

    @property
    def _is_full(self) -> bool:
        return len(self._together) + len(self._alone) >= MAX_QUEUED or self._bytes >= MAX_QUEUED_BYTES

    async def stop(self) -> None:
        """Take no more, refuse what is queued and wait for what is under way."""
        self._stopped = True
        refusal = Unavailable("the server stops; nothing was stored")
        for queued in (*self._drain(self._together), *self._drain(self._alone)):
            queued.tell(refusal)
        if self._expiring is not None:
            self._expiring.cancel()
            self._expiring = None
        await DeferredList(list(self._under_way))

    def _drain(self, queue: deque[_Queued]) -> Iterable[_Queued]:
        while queue:
            yield self._taken(queue.popleft())

    def _taken(self, queued: _Queued) -> _Queued:
        """Note that a push has left its queue."""
        self._bytes -= len(queued.push.payload)
        key = queued.push.idempotency_key
        if key is not None and self._keyed.get(key) is queued:
            del self._keyed[key]
        return queued

    # Statements

    def _send(self) -> None:
        if self._together and not self._busy:
            self._busy = True
            self._start(self._push_together(self._next_batch()))
        while self._alone and self._alone_under_way < ALONE_AT_ONCE:
            self._alone_under_way += 1
            self._start(self._push_alone(self._taken(self._alone.popleft())))
        if self._expiring is None and (self._together or self._alone):
            first = min(queue[0].until for queue in (self._together, self._alone) if queue)
            self._expiring = self._clock.callLater(max(0.0, first - self._clock.seconds()), self._expire)

    def _start(self, work: object) -> None:
        under_way: Deferred[None] = Deferred.fromCoroutine(work)  # type: ignore[arg-type]
        self._under_way.add(under_way)
        under_way.addBoth(self._ended, under_way)

    def _ended(self, result: None, under_way: Deferred[None]) -> None:
        self._under_way.discard(under_way)
        self._send()
        return result

    def _next_batch(self) -> list[_Queued]:
        batch: list[_Queued] = []
        rows = size = 0
        keys: set[str] = set()
        while self._together:
            push = self._together[0].push
            rows += len(push.user_ids)
            size += len(push.payload)
            # What has the key of another one must see what became of that.
            if batch and (rows > MAX_ROWS or size > MAX_BYTES or push.idempotency_key in keys):
                break
            if push.idempotency_key is not None:
                keys.add(push.idempotency_key)
            batch.append(self._taken(self._together.popleft()))
        return batch

    async def _push_together(self, batch: list[_Queued]) -> None:
        outcomes: Sequence[Outcome | Exception]
        try:
            found = await self._store.push([queued.push for queued in batch], wait=False)
            outcomes = [outcome for outcome, _ in zip(found, batch, strict=True)]
            if faultpoints.active:
                await faultpoints.active.stall("push.committed")
        except InvalidPayload as problem:
            # Which of them it was is found by doing each by itself.
            outcomes = [problem if len(batch) == 1 else Busy()] * len(batch)
        except Exception as problem:
            outcomes = [problem] * len(batch)
        for queued, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Busy):
                self._again_alone(queued)
            else:
                queued.tell(outcome)
        # Not before all are told: who pushes again at once would be sent ahead of the others.
        self._busy = False

    def _again_alone(self, queued: _Queued) -> None:
        if self._stopped or self._is_full:
            queued.tell(Unavailable("another transaction holds the inbox; nothing was stored"))
            return
        queued.until = self._clock.seconds() + WAIT
        self._bytes += len(queued.push.payload)
        self._alone.append(queued)

    async def _push_alone(self, queued: _Queued) -> None:
        outcome: Outcome | Exception
        try:
            [outcome] = await self._store.push([queued.push], wait=True)
        except Exception as problem:
            outcome = problem
        self._alone_under_way -= 1
        if isinstance(outcome, Busy):
            outcome = Unavailable("another transaction holds the inbox; nothing was stored")
        queued.tell(outcome)

    def _expire(self) -> None:
        self._expiring = None
        now = self._clock.seconds()
        for queue in (self._together, self._alone):
            while queue and queue[0].until <= now:
                late = self._taken(queue.popleft())
                late.tell(Unavailable(f"the database took no push for {WAIT:g} s; nothing was stored"))
        self._send()
