"""The start of a Session: its user is looked up, its observers are told; and how they are told its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx import faultpoints
from flowtx.errors import FlowtxError, Refused
from flowtx.interfaces import ISessionObserver, Principal, User
from flowtx.sessions.surroundings import Surroundings

if TYPE_CHECKING:
    from flowtx.sessions.session import Session


START_TIMEOUT: Final = 5.0
"""Seconds that the start, or a restart, may take."""

_log = Logger()


class Start:
    """One attempt, which a crash or the end of the Session may overtake at any moment.

    Args:
        session: the Session; its ``user`` and ``told`` are set.
        principal: whom to look up.
        surroundings: the directory and the observers.
        over: called with None, or with the failure, unless the attempt is cancelled before.
    """

    __slots__ = ("_around", "_cancelled", "_over", "_principal", "_running", "_session")

    def __init__(
        self,
        session: Session,
        principal: Principal,
        surroundings: Surroundings,
        over: Callable[[Failure | None], None],
    ) -> None:
        self._session = session
        self._principal = principal
        self._around = surroundings
        self._over = over
        self._cancelled = False
        self._running: Deferred[None] | None = None

    def begin(self) -> None:
        """Start; it may be over, or cancelled, when this returns."""
        running = Deferred.fromCoroutine(self._run())
        if not running.called:
            self._running = running
        running.addBoth(self._ended)
        if self._cancelled:
            running.cancel()

    def cancel(self) -> None:
        """Give it up: nobody is told of its outcome."""
        self._cancelled = True
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        user = await self._look_up()
        if self._cancelled:
            return
        session = self._session
        session.user = user
        for number, observer in enumerate(self._around.observers, 1):
            session.told = max(session.told, number)
            await observer.session_ready(session)
            if faultpoints.active:
                await faultpoints.active.stall("session.ready")
            if self._cancelled:
                return
        _log.info(
            "Session initialized for user: {name} ({email})",
            name=user.name,
            email=user.email,
            user_id=session.user_id,
            session_id=session.session_id,
        )

    async def _look_up(self) -> User:
        try:
            users = await self._around.directory.load([self._principal])
            if faultpoints.active:
                await faultpoints.active.stall("session.user")
        except FlowtxError:
            raise
        except Exception:
            if not self._cancelled:
                _log.failure("The user directory failed for {user}", user=self._principal.user_id)
            raise Refused("unavailable", 503, {"Retry-After": "1"}) from None
        user = users.get(self._principal.user_id)
        if user is None:
            raise Refused("unknown_user")
        return user

    def _ended(self, result: Failure | None) -> None:
        self._running = None
        if not self._cancelled:
            self._over(result)


async def tell_closing(session: Session, observers: Sequence[ISessionObserver]) -> None:
    """Tell the observers, the last first, that a Session ends; one that fails does not keep it."""
    _log.info(
        "Session terminating for user {user_id}: {reason}",
        user_id=session.user_id,
        reason=session.reason,
        session_id=session.session_id,
        duration=round(session.age, 3),
        connections=session.connections,
        restarts=session.restarts,
    )
    if faultpoints.active:
        await faultpoints.active.stall("session.closing")
    for observer in reversed(observers):
        try:
            await observer.session_closing(session)
        except Exception:
            _log.failure("Session of {user_id} did not end cleanly", user_id=session.user_id)
