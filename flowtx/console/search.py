"""Which Sessions an operator is shown: a page of those that match a search, in some order.

Without a search and by age, a page is taken from an end of the registry and costs what it holds. Any
other one needs a look at all Sessions: that is done a few hundred at a time, so that nothing waits
for it, and the next look is put off so that all of them together take a twentieth of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from heapq import nsmallest
from itertools import islice
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, cast

import msgspec
from msgspec import Meta
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Session

MAX_ROWS: Final = 100
SLICE: Final = 500
"""Sessions that are looked at before others get their turn."""
PAUSE: Final = 20.0
"""How many times the time that a look took must pass before the next one."""
MAX_DEVICES_NAMED: Final = 3

Sort: TypeAlias = Literal["newest", "oldest", "user_id", "active", "devices", "queue"]


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator wants to see.

    Attributes:
        search: a part of the user's id, name or e-mail address; in any case. Empty for all.
        sort: by the beginning of the Session, the user's id, the latest activity, the number of
            connections, or the bytes that wait for them.
        limit: how many.
    """

    search: Annotated[str, Meta(max_length=128)] = ""
    sort: Sort = "newest"
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 50


class Row(msgspec.Struct, frozen=True):
    """A Session in the list; times are whole seconds since the epoch.

    Attributes:
        user_id: whose it is.
        name: the user's, or an empty text.
        state: a word of `flowtx.sessions.machine.State`.
        connected_at: when it began.
        active_at: when one of the user's clients last did anything.
        connections: how many are open.
        devices: what the first of them call their devices.
        queue: bytes that wait for them.
    """

    user_id: str
    name: str
    state: str
    connected_at: int
    active_at: int
    connections: int
    devices: tuple[str, ...]
    queue: int


class Found(NamedTuple):
    """What a query found.

    Attributes:
        sessions: the page.
        matched: how many match in all.
        spent: seconds that finding them took.
    """

    sessions: list[Session]
    matched: int
    spent: float


class Search:
    """See the module.

    Args:
        sessions: the Sessions of this node.
        clock: the time.
        timer: seconds, to measure what a look takes.

    Attributes:
        watchers: how many ask again and again.
    """

    def __init__(
        self,
        sessions: SessionService,
        *,
        clock: IReactorTime,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._timer = timer
        self.watchers = 0

    def __len__(self) -> int:
        """How many Sessions there are."""
        return len(self._sessions.namedServices)

    def pause_after(self, found: Found) -> float:
        """How many seconds one of the watchers should wait before it asks again; at least one."""
        return max(1.0, PAUSE * found.spent * self.watchers)

    async def find(self, query: Query) -> Found:
        """Find the Sessions that a query is for, as they are while it looks."""
        by_age = query.sort in ("newest", "oldest")
        if by_age and not query.search:
            started = self._timer()
            page = list(islice(self._by_age(query.sort), query.limit))
            return Found(page, len(self), self._timer() - started)
        return await self._look(query, list(self._by_age(query.sort)))

    def _by_age(self, sort: Sort) -> Iterable[Session]:
        sessions = cast("dict[str, Session]", self._sessions.namedServices).values()
        return sessions if sort == "oldest" else reversed(sessions)

    async def _look(self, query: Query, sessions: list[Session]) -> Found:
        wanted = query.search.casefold()
        best: list[Session] = []
        matched = 0
        spent = 0.0
        for first in range(0, len(sessions), SLICE):
            if first:
                await deferLater(self._clock, 0)
            started = self._timer()
            part = sessions[first : first + SLICE]
            if wanted:
                part = [session for session in part if wanted in _text(session)]
            matched += len(part)
            best = _first(query, best + part)
            spent += self._timer() - started
        return Found(best, matched, spent)


def _text(session: Session) -> str:
    """What a search looks at."""
    user = session.user
    if user is None:
        return session.user_id.casefold()
    return f"{session.user_id}\n{user.name}\n{user.email or ''}".casefold()


def _first(query: Query, sessions: list[Session]) -> list[Session]:
    """The first of some Sessions in the order of a query."""
    if query.sort in _KEYS:
        return nsmallest(query.limit, sessions, key=_KEYS[query.sort])
    return sessions[: query.limit]


def _queue(session: Session) -> int:
    return sum(socket.transport.waiting_bytes for socket in session.sockets)


_KEYS: Final[dict[str, Callable[[Session], tuple[float, str]]]] = {
    "user_id": lambda session: (0, session.user_id),
    "active": lambda session: (-session.last_activity_at, session.user_id),
    "devices": lambda session: (-len(session.sockets), session.user_id),
    "queue": lambda session: (-_queue(session), session.user_id),
}


def row(session: Session, ahead: float) -> Row:
    """Describe a Session.

    Args:
        session: the Session.
        ahead: by how much the wall clock is ahead of the Session's, in seconds.
    """
    named = dict.fromkeys(socket.device for socket in session.sockets if socket.device is not None)
    return Row(
        user_id=session.user_id,
        name="" if session.user is None else session.user.name,
        state=session.state.value,
        connected_at=round(session.started_at + ahead),
        active_at=round(session.last_activity_at + ahead),
        connections=len(session.sockets),
        devices=tuple(islice(named, MAX_DEVICES_NAMED)),
        queue=_queue(session),
    )
