"""A database without a database: links whose every answer is given by the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg2
from twisted.internet.defer import CancelledError, Deferred

from flowtx.storage.link import Link, Phase, Rows


class FakeLink:
    """Records what it is asked; ``answer``, ``refuse`` and ``lose`` are the server's part."""

    def __init__(self, lost: Callable[[str], None], notified: Callable[[], None]) -> None:
        self.lost = lost
        self.notified = notified
        self.phase = Phase.LOST
        self.closed = False
        self.dsn = self.setup = ""
        self.opening: Deferred[None] = Deferred()
        self.said: list[tuple[str, tuple[object, ...]]] = []
        self._pending: Deferred[Rows] | None = None

    def open(self, dsn: str, setup: str) -> Deferred[None]:
        self.dsn, self.setup = dsn, setup
        return self.opening

    def execute(self, sql: str, params: Sequence[object] = ()) -> Deferred[Rows]:
        pending: Deferred[Rows] = Deferred(self._abandoned)
        if self.closed:
            pending.errback(psycopg2.InterfaceError("connection already closed"))
            return pending
        self.said.append((sql, tuple(params)))
        if any("\0" in str(param) for param in params):
            pending.errback(ValueError("A string literal cannot contain NUL (0x00) characters."))
            return pending
        assert self._pending is None, "two statements at once"
        self._pending = pending
        self._before, self.phase = self.phase, Phase.AT_WORK
        return pending

    def _abandoned(self, pending: Deferred[Rows]) -> None:
        pending.errback(CancelledError())
        self._pending = None
        self.close()

    def close(self) -> None:
        self.closed = True
        self.phase = Phase.LOST
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.errback(psycopg2.OperationalError("connection closed"))

    @property
    def at_work(self) -> bool:
        return self._pending is not None

    def opened(self) -> None:
        """The server takes the connection."""
        self.phase = Phase.IDLE
        self.opening.callback(None)

    def not_opened(self, text: str) -> None:
        """The server, or the network, does not."""
        self.opening.errback(psycopg2.OperationalError(text))

    def answer(self, rows: Rows | None = None) -> None:
        """The statement under way succeeds."""
        pending, self._pending = self._pending, None
        assert pending is not None, "no statement is under way"
        after = {"BEGIN": Phase.IN_TRANSACTION, "COMMIT": Phase.IDLE, "ROLLBACK": Phase.IDLE}
        self.phase = after.get(self.said[-1][0], self._before)
        pending.callback([] if rows is None else rows)

    def refuse(self, error: Exception) -> None:
        """The server refuses the statement under way; the connection lives."""
        pending, self._pending = self._pending, None
        assert pending is not None, "no statement is under way"
        in_transaction = self._before is not Phase.IDLE and self.said[-1][0] != "COMMIT"
        self.phase = Phase.IN_FAILED_TRANSACTION if in_transaction else Phase.IDLE
        pending.errback(error)

    def lose(self, text: str = "server closed the connection unexpectedly\n\tmore") -> None:
        """The connection breaks."""
        self.phase = Phase.LOST
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.errback(psycopg2.OperationalError(text))
        else:
            self.lost(text.splitlines()[0])


class FakeServer:
    """Makes the links, and keeps them in the order in which they were asked for."""

    def __init__(self) -> None:
        self.links: list[FakeLink] = []

    def __call__(self, reactor: Any, lost: Callable[[str], None], notified: Callable[[], None]) -> Link:
        link = FakeLink(lost, notified)
        self.links.append(link)
        return link

    @property
    def latest(self) -> FakeLink:
        return self.links[-1]

    @property
    def live(self) -> list[FakeLink]:
        return [link for link in self.links if not link.closed]

    def open_all(self) -> None:
        for link in self.live:
            if not link.opening.called:
                link.opened()
