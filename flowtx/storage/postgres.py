"""The database: a few connections to PostgreSQL, and a deadline for everything.

Nothing waits without limit here, and every failure says what is known about the statement:

* :exc:`~flowtx.errors.Unavailable`: it was not carried out, and is safe to try again;
* :exc:`~flowtx.errors.UnknownOutcome`: it may have been carried out or not;
* :exc:`StatementTimeout` and ``psycopg2.Error``: the server refused it, it was not carried out.

``json`` and ``jsonb`` come back as the text that the server sent (flowtx forwards it), ``timestamptz``
as an aware ``datetime`` in UTC.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from psycopg2 import errors
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx.errors import StartupError, Unavailable, UnknownOutcome
from flowtx.storage.link import LinkFactory, PostgresLink, Rows, connection_string
from flowtx.storage.slot import Slot, SlotState
from flowtx.storage.transaction import StatementTimeout, Transaction, execute, first_line

__all__ = ["Database", "StatementTimeout", "Transaction", "first_line"]

T = TypeVar("T")

START_WITHIN = 10.0
"""Seconds that the start waits for the first connection."""
STOP_WITHIN = 2.0
"""Seconds that the stop leaves to the calls under way."""
ACQUIRE_WITHIN = 2.0
"""Seconds that a call waits for a connection at most."""
MAX_WAITING = 200
"""Calls that may wait for a connection at once."""
CATCH_UP_WITHIN = 0.5
"""Seconds within which the other slots try again once one has got through."""
# A deadlock shows as LockNotAvailable unless the server's deadlock_timeout is below our lock_timeout.
_IN_THE_WAY = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable)


class Database(Service):
    """Access to PostgreSQL over a fixed number of slots, each filled anew when its connection dies.

    Attributes:
        slots: how many connections the service is to hold.
    """

    _log = Logger()

    def __init__(
        self,
        url: str,
        *,
        reactor: IReactorTime,
        slots: int = 4,
        application_name: str = "flowtx",
        random: Callable[[], float] = random_module.random,
        link: LinkFactory = PostgresLink,
    ) -> None:
        """Make the service; nothing connects before ``startService``.

        Args:
            url: ``postgresql://…``; hosts by IP address or socket directory, as libpq's look-up of
                names blocks the reactor.
            slots: how many connections to hold.
            application_name: what ``pg_stat_activity`` shows.

        Raises:
            ConfigError: the URL cannot be read.
        """
        self._dsn, self._label = connection_string(url, application_name)
        self._reactor = reactor
        self._random = random
        self._make_link = link
        self.slots = slots
        self._slots: list[Slot] = []
        self._waiters: dict[Deferred[Slot], None] = {}
        self._serving = False
        self._calls: dict[Slot, Callable[[str], None]] = {}
        self._starting: Deferred[None] | None = None
        self._start_timer: IDelayedCall | None = None
        self._quiet: Deferred[None] | None = None
        self._lost_at: float | None = None

    @property
    def ready(self) -> int:
        """How many connections it holds, idle or at work; 0 means that the database is down."""
        return sum(slot.up for slot in self._slots)

    @property
    def waiting(self) -> int:
        """How many calls wait for a connection."""
        return len(self._waiters)

    def startService(self) -> Deferred[None]:
        """Connect.

        Returns:
            A Deferred that fires with None once the first connection is up, or fails with
            StartupError after 10 s without one; the service is stopped again then, as it is when
            the Deferred is cancelled.
        """
        if self.running:
            return fail(StartupError("the database service runs already"))
        super().startService()
        self._lost_at = None
        self._slots = [
            Slot(self._dsn, self._changed, reactor=self._reactor, random=self._random, link=self._make_link)
            for _ in range(self.slots)
        ]
        started = self._starting = Deferred(lambda _: self._close())
        self._start_timer = self._reactor.callLater(START_WITHIN, self._not_started)
        for slot in self._slots:
            slot.start()
        return started

    def _not_started(self) -> None:
        reason = next((slot.reason for slot in self._slots if slot.reason), "no answer")
        starting = self._starting
        self._close()
        if starting is not None:
            starting.errback(StartupError(f"no connection to database {self._label}: {reason}"))

    def stopService(self) -> Deferred[None]:
        """Take no further calls, let those under way finish, and close all connections.

        Returns:
            A Deferred that fires with None when all is closed, after 2 s at most. Calls still under
            way then fail with UnknownOutcome, those still waiting for a connection with Unavailable.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if not self.running:
            return
        starting = self._starting
        self._turn_all_away()
        if starting is not None:
            starting.errback(StartupError("the database service was stopped before it had started"))
        quiet = self._quiet = Deferred()
        timer = self._reactor.callLater(STOP_WITHIN, self._tell_quiet)
        try:
            if self._calls:
                await quiet
        finally:
            if timer.active():
                timer.cancel()
            self._close()

    def _tell_quiet(self) -> None:
        quiet, self._quiet = self._quiet, None
        if quiet is not None:
            quiet.callback(None)

    def _turn_all_away(self) -> None:
        super().stopService()
        self._end_start()
        for waiter in list(self._waiters):
            self._turn_away(waiter, "the database service stops")

    def _close(self) -> None:
        self._turn_all_away()
        for end in list(self._calls.values()):
            end("the database service stopped")
        for slot in self._slots:
            slot.stop()

    def _end_start(self) -> None:
        self._starting = None
        if self._start_timer is not None and self._start_timer.active():
            self._start_timer.cancel()
        self._start_timer = None

    async def query(
        self,
        sql: str,
        params: Sequence[object] = (),
        *,
        timeout: float = 5.0,  # noqa: ASYNC109 - twisted has no timeout scopes
    ) -> Rows:
        """Run one statement in a transaction of its own.

        Args:
            sql: the statement, with ``%s`` for each parameter. Where there are no parameters, ``%``
                is nothing special.
            params: what to put in; never build SQL from values.
            timeout: seconds for all of it, waiting for a connection included. The server itself
                gives a statement up after 4 s.

        Returns:
            The rows as tuples; an empty list for a statement that gives none.

        Raises:
            Unavailable: not carried out: no connection was free within 2 s, or 200 calls wait
                already, or the server is a standby that only reads.
            UnknownOutcome: the connection was lost, or the time was up, while it was under way.
            StatementTimeout: the server gave it up.
            psycopg2.Error: the server refused it.
            ValueError: a parameter holds NUL or a lone surrogate; nothing was sent.
        """

        async def run(slot: Slot) -> Rows:
            return await execute(slot, sql, params)

        return await self._with_slot(self._reactor.seconds() + timeout, run)

    async def transaction(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        *,
        timeout: float = 5.0,  # noqa: ASYNC109
    ) -> T:
        """Run ``work`` between BEGIN and COMMIT; an exception of ``work`` rolls back and is passed on.

        ``work`` is run a second time where the server ended the first because another transaction
        stood in its way (40001, 40P01, 55P03); so it must have no effects but statements.

        Args:
            timeout: seconds for all of it, both runs included.

        Returns:
            What ``work`` returned.

        Raises:
            UnknownOutcome: as in ``query``; the COMMIT may have been carried out.
            Unavailable, StatementTimeout, psycopg2.Error, ValueError: as in ``query``; nothing of
                the transaction was carried out, also where ``work`` caught an error of the server
                and went on (without a savepoint): it is raised again instead of a COMMIT.
        """
        deadline = self._reactor.seconds() + timeout
        try:
            return await self._transact(work, deadline)
        except _IN_THE_WAY:
            return await self._transact(work, deadline)

    async def _transact(self, work: Callable[[Transaction], Awaitable[T]], deadline: float) -> T:
        transaction: Transaction | None = None

        async def run(slot: Slot) -> T:
            nonlocal transaction
            transaction = Transaction(slot)
            return await transaction.run(work)

        try:
            return await self._with_slot(deadline, run)
        finally:
            if transaction is not None:
                transaction.end()

    async def _with_slot(self, deadline: float, use: Callable[[Slot], Coroutine[Any, Any, T]]) -> T:
        slot = await self._acquire(deadline)
        outcome: Deferred[T] = Deferred(lambda _: job.cancel())

        def finish(result: T | Failure) -> None:
            if not outcome.called:
                outcome.callback(result)

        def end(reason: str) -> None:
            slot.kill(reason)
            if not outcome.called:
                outcome.errback(UnknownOutcome(f"the connection was closed: {reason}"))
            job.cancel()

        self._calls[slot] = end
        remaining = max(0.0, deadline - self._reactor.seconds())
        timer = self._reactor.callLater(remaining, end, "the time for the call was up")
        job = Deferred.fromCoroutine(use(slot))
        job.addBoth(finish)
        try:
            return await outcome
        finally:
            if timer.active():
                timer.cancel()
            del self._calls[slot]
            slot.release()
            if not self._calls:
                self._tell_quiet()

    async def _acquire(self, deadline: float) -> Slot:
        if not self.running:
            raise Unavailable("the database service does not run; nothing was sent")
        slot = self._take()
        if slot is not None:
            return slot
        if len(self._waiters) >= MAX_WAITING:
            raise Unavailable(f"{MAX_WAITING} calls wait for the database already; nothing was sent")
        patience = min(ACQUIRE_WITHIN, max(0.0, deadline - self._reactor.seconds()))
        waiter: Deferred[Slot] = Deferred(lambda waiter: self._waiters.pop(waiter, None))
        self._waiters[waiter] = None
        reason = f"no connection to the database was free within {patience:.3g} s"
        timer = self._reactor.callLater(patience, self._turn_away, waiter, reason)
        try:
            return await waiter
        finally:
            self._waiters.pop(waiter, None)
            if timer.active():
                timer.cancel()

    def _take(self) -> Slot | None:
        for slot in self._slots:
            if slot.state is SlotState.READY:
                slot.take()
                return slot
        return None

    def _turn_away(self, waiter: Deferred[Slot], reason: str) -> None:
        del self._waiters[waiter]
        waiter.errback(Unavailable(f"{reason}; nothing was sent"))

    def _changed(self, slot: Slot) -> None:
        if self.running and self.ready:
            self._found()
        elif self.running and self._starting is None and self._lost_at is None:
            self._lost_at = self._reactor.seconds()
            self._log.warn("Database {database} is lost: {reason}", database=self._label, reason=slot.reason)
        self._serve()

    def _found(self) -> None:
        starting, lost_at = self._starting, self._lost_at
        if starting is None and lost_at is None:
            return
        self._end_start()
        self._lost_at = None
        for slot in self._slots:
            slot.hurry(CATCH_UP_WITHIN)
        if lost_at is not None:
            seconds = round(self._reactor.seconds() - lost_at, 1)
            self._log.info("Database {database} is back after {s} s", database=self._label, s=seconds)
        if starting is not None:
            starting.callback(None)

    def _serve(self) -> None:
        if self._serving:  # whoever got a slot below may give it back at once
            return
        self._serving = True
        try:
            while self._waiters and (slot := self._take()) is not None:
                waiter = next(iter(self._waiters))
                del self._waiters[waiter]
                waiter.callback(slot)
        finally:
            self._serving = False
