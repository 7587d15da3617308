"""What the flight recorder is told of Sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zope.interface import implementer

from flowtx.interfaces import ISessionObserver
from flowtx.recorder import FlightRecorder

if TYPE_CHECKING:
    from flowtx.sessions.session import Session


@implementer(ISessionObserver)
class SessionNotes:
    """Notes when a user's Session is ready, when it is again after a crash, and when it ends.

    Args:
        recorder: keeps it.
    """

    def __init__(self, recorder: FlightRecorder) -> None:
        self._recorder = recorder

    async def session_ready(self, session: Session) -> None:
        event = "session_restarted" if session.restarts else "session_started"
        self._recorder.note(session.user_id, event, session=session.session_id, restarts=session.restarts)

    async def session_closing(self, session: Session) -> None:
        self._recorder.note(
            session.user_id,
            "session_ended",
            session=session.session_id,
            reason=session.reason,
            duration=round(session.age, 3),
            connections=session.connections,
            restarts=session.restarts,
        )
