"""One connection to PostgreSQL by way of txpostgres, from its opening to its end.

txpostgres 1.7 raises into the reactor when an idle connection is lost, adds dead sockets to the
reactor, and cancels a query by a call that blocks the whole process. :class:`PostgresLink` does
without all three: a loss is told to whoever made the link, and giving up means closing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol

import psycopg2
from psycopg2 import extensions
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.python.failure import Failure
from txpostgres import txpostgres

from flowtx.errors import ConfigError

Rows = list[tuple[Any, ...]]

_KEEPALIVE = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
_JSON_AS_TEXT = extensions.new_type((114, 3802), "JSON_AS_TEXT", lambda value, _cursor: value)
_JSON_ARRAYS_AS_TEXT = extensions.new_array_type((199, 3807), "JSON_ARRAYS_AS_TEXT", _JSON_AS_TEXT)


def connection_string(url: str, application_name: str) -> tuple[str, str]:
    """Turn a database URL into what libpq is given, and into a name for logs.

    Args:
        url: ``postgresql://…`` or libpq's ``key=value`` form. Name the host by IP address or by
            socket directory: libpq looks names up in a way that blocks.
        application_name: what the server shows for these connections.

    Returns:
        The connection string, with keep-alives where the URL sets none (libpq ignores them on a
        Unix socket), and ``host:port/database``, without the password.

    Raises:
        ConfigError: libpq cannot read the URL, or takes a part of the password for the host, the
            port or the database. The text does not repeat it.
    """
    try:
        options = extensions.parse_dsn(url)
    except psycopg2.Error:
        raise ConfigError("the database URL is not one that PostgreSQL's client library can read") from None
    host = options.get("host") or options.get("hostaddr") or "localhost"
    port = options.get("port", "5432")
    database = options.get("dbname", "")
    if "@" in host[1:] or "@" in database or not (port.replace(",", "") or "0").isdecimal():
        raise ConfigError("the database URL is ambiguous: write @ : / in user and password as %40 %3A %2F")
    label = f"{host}:{port}/{database}"
    return extensions.make_dsn(
        **{**_KEEPALIVE, **options, "application_name": application_name, "client_encoding": "UTF8"}
    ), label


def first_line(error: object) -> str:
    """Give what an error says, in one line: the server's own words come first in libpq's texts."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Phase(Enum):
    """Where a link stands between two statements."""

    IDLE = extensions.TRANSACTION_STATUS_IDLE
    AT_WORK = extensions.TRANSACTION_STATUS_ACTIVE
    IN_TRANSACTION = extensions.TRANSACTION_STATUS_INTRANS
    IN_FAILED_TRANSACTION = extensions.TRANSACTION_STATUS_INERROR
    LOST = extensions.TRANSACTION_STATUS_UNKNOWN


class Link(Protocol):
    """One connection, from open to close; it is never opened twice."""

    @property
    def phase(self) -> Phase: ...

    def open(self, dsn: str, setup: str) -> Deferred[None]:
        """Connect and set up; fires with None, or fails with what the server or libpq said."""

    def execute(self, sql: str, params: Sequence[object] = ()) -> Deferred[Rows]:
        """Run one statement; fires with its rows, or fails. Cancelling it closes the link."""

    def close(self) -> None:
        """Close at once; what is under way fails. Nothing is called back after this."""


LinkFactory = Callable[[Any, Callable[[str], None], Callable[[], None]], Link]
"""Takes the reactor, whom to tell of a loss while idle, and whom to tell of a NOTIFY."""


class _Cursor(txpostgres.Cursor):  # type: ignore[misc]
    """A cursor whose QueryCanceled stays what it is (txpostgres makes it a CancelledError)."""

    def _handleCancellation(self, failure: Failure) -> Failure:  # noqa: N802
        return failure


class PostgresLink(txpostgres.Connection):  # type: ignore[misc]
    """A txpostgres connection that tells of its loss instead of raising into the reactor.

    ``json`` and ``jsonb`` come back as the text that the server sent, not parsed.
    """

    cursorFactory = _Cursor  # noqa: N815

    def __init__(self, reactor: Any, lost: Callable[[str], None], notified: Callable[[], None]) -> None:
        super().__init__(reactor)
        self._lost: Callable[[str], None] | None = lost
        self._notified = notified

    @property
    def phase(self) -> Phase:
        if self._connection is None or self._connection.closed:
            return Phase.LOST
        return Phase(self._connection.get_transaction_status())

    def open(self, dsn: str, setup: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self._open(dsn, setup))

    async def _open(self, dsn: str, setup: str) -> None:
        await self.connect(dsn)
        extensions.register_type(_JSON_AS_TEXT, self._connection)
        extensions.register_type(_JSON_ARRAYS_AS_TEXT, self._connection)
        await self.execute(setup)

    def execute(self, sql: str, params: Sequence[object] = ()) -> Deferred[Rows]:
        # The caller gets a Deferred of ours: cancelling txpostgres's own calls the blocking PQcancel.
        done: Deferred[Rows] = Deferred(self._abandoned)

        def finish(result: Any) -> None:
            if not done.called:
                done.callback(result)

        try:
            statement = self.cursor().execute(sql, tuple(params) or None)
        except psycopg2.Error:
            return fail()
        statement.addCallback(_rows).addBoth(finish)
        return done

    def _abandoned(self, done: Deferred[Rows]) -> None:
        done.errback(CancelledError())
        self.close()

    def close(self) -> None:
        self._lost = None
        if self._connection is None:
            return
        for cursor in self._cursors:
            self.reactor.removeReader(cursor)
            self.reactor.removeWriter(cursor)
        super().close()
        self._connection.close()  # what psycopg2 itself found dead is left open by txpostgres

    # From here on: what txpostgres and the reactor call.

    def doRead(self) -> None:  # noqa: N802
        """Take in what came while no statement is under way; txpostgres would raise on a loss."""
        self.reactor.removeReader(self)
        opening = self._pollingD is not None
        try:
            self.continuePolling()
        except psycopg2.Error as error:
            self._tell_lost(first_line(error))
            return
        if not opening:
            self._watch()
            self.checkForNotifies()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw an error on the socket, or ``close`` closes it."""
        if self._pollingD is not None or self._connection.closed:
            super().connectionLost(reason)
            return
        try:
            self._connection.poll()
        except psycopg2.Error as error:
            self._tell_lost(first_line(error))
        else:
            self._tell_lost("connection lost")

    def cursorFinished(self, cursor: _Cursor) -> None:  # noqa: N802
        self._cursors.discard(cursor)
        self._watch()
        self.checkForNotifies()

    def checkForNotifies(self) -> None:  # noqa: N802
        if self._lost is not None and self._connection.notifies:
            self._connection.notifies.clear()
            self._notified()

    def _watch(self) -> None:
        if self._connection.closed:
            return
        if self._connection.fileno() < 0:  # libpq gave the socket up, psycopg2 has not noticed
            self._tell_lost("connection lost")
        else:
            self.reactor.addReader(self)

    def _tell_lost(self, reason: str) -> None:
        lost, self._lost = self._lost, None
        if lost is not None:
            lost(reason)


def _rows(cursor: Any) -> Rows:
    return [] if cursor.description is None else cursor.fetchall()
