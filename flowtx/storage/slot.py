"""One place for a connection to PostgreSQL, kept filled for as long as it is started.

txpostgres never replaces a connection that died and has no deadline for anything. So nothing here
is ever repaired: a :class:`Slot` is a sequence of lives, each a fresh link that is opened under a
deadline, asked every few seconds whether it is still there, and closed at the first doubt.

::

    STOPPED --start--> CONNECTING --opened--> READY --take--> BUSY --release--> READY
                          |   ^                 | ^             |
                   failed |   | timer   5 s idle| |answered     | release, not idle
                          v   |                 v |             |
                         BACKOFF <--no answer--CHECKING         |
                            ^-----------------------------------+      stop: any --> STOPPED
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from flowtx.errors import UnknownOutcome
from flowtx.storage.link import Link, LinkFactory, Phase, PostgresLink, Rows, first_line

CONNECT_WITHIN = 3.0
"""Seconds for connecting and setting up; an asynchronous libpq ignores ``connect_timeout``."""
CHECK_EVERY = 5.0
"""Seconds that a connection may idle before it is asked whether it is still there."""
CHECK_WITHIN = 2.0
"""Seconds for the answer."""
BACKOFF_FIRST = 0.1
BACKOFF_MOST = 5.0

SETUP = (
    "SET statement_timeout='4s';SET lock_timeout='1s';"
    "SET idle_in_transaction_session_timeout='10s';SET timezone='UTC'"
)
"""What every connection begins with."""


def backoff(failures: int, random: float) -> float:
    """Give the seconds to wait after ``failures`` failures in a row: 0.1 to 5 s, full jitter."""
    return random * min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(failures, 10))


class SlotState(Enum):
    """The life of a slot; the picture is at the head of this module."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    READY = "ready"
    BUSY = "busy"
    CHECKING = "checking"
    BACKOFF = "backoff"


_NEXT = {
    SlotState.STOPPED: {SlotState.CONNECTING},
    SlotState.CONNECTING: {SlotState.READY, SlotState.BACKOFF, SlotState.STOPPED},
    SlotState.READY: {SlotState.BUSY, SlotState.CHECKING, SlotState.BACKOFF, SlotState.STOPPED},
    SlotState.BUSY: {SlotState.READY, SlotState.BACKOFF, SlotState.STOPPED},
    SlotState.CHECKING: {SlotState.READY, SlotState.BACKOFF, SlotState.STOPPED},
    SlotState.BACKOFF: {SlotState.CONNECTING, SlotState.BACKOFF, SlotState.STOPPED},
}


class Slot:
    """A connection that is replaced whenever it is lost.

    Attributes:
        state: where it stands. Every state has at most one timer, and leaving it cancels that.
        reason: why the latest life ended, in one line.
    """

    def __init__(
        self,
        dsn: str,
        changed: Callable[[Slot], None],
        *,
        reactor: IReactorTime,
        random: Callable[[], float],
        setup: str = SETUP,
        notified: Callable[[], None] = lambda: None,
        link: LinkFactory = PostgresLink,
    ) -> None:
        """Make a slot; nothing happens before ``start``.

        Args:
            dsn: what libpq is given, see ``connection_string``.
            changed: called when the slot became READY, and when a life ended (BACKOFF).
            setup: the statements that each connection begins with.
            notified: called, once for any number of them, when NOTIFYs came.
        """
        self.state = SlotState.STOPPED
        self.reason = ""
        self._dsn = dsn
        self._setup = setup
        self._changed = changed
        self._notified = notified
        self._reactor = reactor
        self._random = random
        self._make_link = link
        self._link: Link | None = None
        self._failures = 0
        self._timer: IDelayedCall | None = None

    @property
    def up(self) -> bool:
        """Whether there is a connection, idle or at work."""
        return self.state in {SlotState.READY, SlotState.BUSY, SlotState.CHECKING}

    @property
    def phase(self) -> Phase:
        """Where the connection stands; LOST if there is none."""
        return Phase.LOST if self._link is None else self._link.phase

    def start(self) -> None:
        """Begin to connect, and go on until ``stop``."""
        self._connect()

    def stop(self) -> None:
        """Close the connection; what is under way fails with UnknownOutcome."""
        if self.state is not SlotState.STOPPED:
            self._enter(SlotState.STOPPED)
            self._close("the service stopped")

    def hurry(self, within: float) -> None:
        """Where the slot waits to connect again, let it do so within these seconds, with jitter."""
        if self.state is SlotState.BACKOFF:
            self._enter(SlotState.BACKOFF, self._random() * within, self._connect)

    def take(self) -> None:
        """Take the READY slot for a call; it is the caller's until ``release``."""
        self._enter(SlotState.BUSY)

    async def execute(self, sql: str, params: Sequence[object] = ()) -> Rows:
        """Run one statement on the slot that was taken.

        Returns:
            The rows; an empty list for a statement that gives none.

        Raises:
            UnknownOutcome: the connection was lost on the way.
            psycopg2.Error: the server refused the statement; the connection lives.
            ValueError: a parameter cannot be sent; nothing was.
            CancelledError: the caller gave up; the connection is closed.
        """
        link = self._link
        if link is None:
            raise UnknownOutcome(f"the connection was lost: {self.reason}")
        try:
            return await link.execute(sql, params)
        except CancelledError:
            raise
        except Exception as error:
            if link.phase not in {Phase.LOST, Phase.AT_WORK}:
                raise
            self.kill(first_line(error))
            raise UnknownOutcome(f"the connection was lost: {self.reason}") from None

    def kill(self, reason: str) -> None:
        """Close the connection of a slot that was taken; its statement fails with UnknownOutcome."""
        if self.state is SlotState.BUSY and self._link is not None:
            self._close(reason)

    def release(self) -> None:
        """Give the slot back. The connection is kept only if it idles outside of a transaction."""
        if self.state is not SlotState.BUSY:
            return
        if self.phase is Phase.IDLE:
            self._ready()
        else:
            self._drop("given back in the middle of something" if self._link is not None else self.reason)

    def _connect(self) -> None:
        link = self._link = self._make_link(
            self._reactor, lambda reason: self._failed(link, reason), self._notified
        )
        self._enter(
            SlotState.CONNECTING, CONNECT_WITHIN, self._drop, f"no connection in {CONNECT_WITHIN:g} s"
        )
        self._await(link, link.open(self._dsn, self._setup))

    def _check(self) -> None:
        assert self._link is not None  # noqa: S101 - READY has one
        self._enter(SlotState.CHECKING, CHECK_WITHIN, self._drop, f"no answer in {CHECK_WITHIN:g} s")
        self._await(self._link, self._link.execute("SELECT 1"))

    def _await(self, link: Link, step: Deferred[Any]) -> None:
        def succeeded(_result: object) -> None:
            if link is self._link:
                self._failures = 0
                self._ready()

        step.addCallbacks(succeeded, lambda failure: self._failed(link, first_line(failure.value)))

    def _failed(self, link: Link, reason: str) -> None:
        if link is not self._link:
            return
        if self.state is SlotState.BUSY:
            self._close(reason)  # whoever took the slot finds out, and gives it back
        else:
            self._drop(reason)

    def _ready(self) -> None:
        self._enter(SlotState.READY, CHECK_EVERY, self._check)
        self._changed(self)

    def _drop(self, reason: str) -> None:
        self._close(reason)
        self._enter(SlotState.BACKOFF, backoff(self._failures, self._random()), self._connect)
        self._failures += 1
        self._changed(self)

    def _close(self, reason: str) -> None:
        self.reason = reason
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _enter(
        self, state: SlotState, after: float = 0.0, then: Callable[..., None] | None = None, *args: object
    ) -> None:
        if state not in _NEXT[self.state]:
            raise RuntimeError(f"a slot cannot go from {self.state.value} to {state.value}")
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.state = state
        self._timer = None if then is None else self._reactor.callLater(after, then, *args)
