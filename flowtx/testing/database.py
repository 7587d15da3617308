"""What the stores of a server in memory stand on: a database that may be down, or not answer."""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from flowtx.errors import Unavailable, UnknownOutcome

DEADLINE: Final = 5.0
"""Seconds after which a question that is not answered fails, as it does with PostgreSQL."""

T = TypeVar("T")


class MemoryDatabase:
    """Stands between stores and those who ask them.

    Args:
        clock: the time.

    Attributes:
        is_down: whether every question fails with `Unavailable`.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.is_down = False
        self._asked: list[Deferred[None]] | None = None

    def go_down(self) -> None:
        """Fail from now on."""
        self.is_down = True

    def hang(self) -> None:
        """Answer nothing from now on; who asks is told so after five seconds."""
        if self._asked is None:
            self._asked = []

    def come_back(self) -> None:
        """Answer again, also those who still wait."""
        self.is_down = False
        asked, self._asked = self._asked or (), None
        for waiting in asked:
            if not waiting.called:
                waiting.callback(None)

    def serve(self, store: T) -> T:
        """Put this between a store and those who ask it; the store as they get it."""
        return cast("T", _Served(self, store))

    async def reach(self) -> None:
        """Wait until the database answers.

        Raises:
            Unavailable: it is down.
            UnknownOutcome: it does not.
        """
        if self._asked is not None:
            waiting: Deferred[None] = Deferred()
            late = UnknownOutcome(f"the database has not answered for {DEADLINE:.0f} s")
            timeout = self._clock.callLater(DEADLINE, waiting.errback, late)
            self._asked.append(waiting)
            try:
                await waiting
            finally:
                if timeout.active():
                    timeout.cancel()
        if self.is_down:
            raise Unavailable("the database is down")


class _Served:
    """A store whose every answer needs the database."""

    def __init__(self, database: MemoryDatabase, store: object) -> None:
        self._database = database
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def ask(*arguments: Any, **options: Any) -> Any:
            await self._database.reach()
            return await method(*arguments, **options)

        return ask
