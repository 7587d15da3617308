"""What there is to see of a Session, in the form of the HTTP API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from flowtx.channels.socket import Socket
from flowtx.sessions.session import Session


class ConnectionInfo(msgspec.Struct, frozen=True):
    """One open connection; times are ISO 8601, UTC.

    Attributes:
        id: names it.
        device: what the client calls its device, or None.
        address: the client's.
        user_agent: what the client calls itself, or an empty text.
        connected_at: when it was opened.
        last_activity_at: when anything but a heartbeat last came.
        topics: those joined.
        outbox_bytes: how much waits to be sent.
    """

    id: str
    device: str | None
    address: str
    user_agent: str
    connected_at: str
    last_activity_at: str
    topics: Sequence[str]
    outbox_bytes: int


class SessionInfo(msgspec.Struct, frozen=True):
    """A Session; times are ISO 8601, UTC.

    Attributes:
        user_id: whose it is.
        session_id: names it.
        state: a word of `flowtx.sessions.machine.State`.
        connected_at: when it began.
        last_activity_at: when one of the user's clients last did anything.
        notification_subscriptions: the types of notifications that the user has asked for.
        metadata: what the application keeps with it.
        connections: those that are open, the oldest first.
    """

    user_id: str
    session_id: str
    state: str
    connected_at: str
    last_activity_at: str
    notification_subscriptions: Sequence[str]
    metadata: Mapping[str, object]
    connections: Sequence[ConnectionInfo]


def describe(session: Session, clock: float, wall: float, types: Sequence[str] = ()) -> SessionInfo:
    """Describe a Session.

    Args:
        session: the Session.
        clock: what its clock says now.
        wall: the time now, in seconds since the epoch.
        types: the types of notifications that the user has asked for.
    """
    ahead = wall - clock
    return SessionInfo(
        user_id=session.user_id,
        session_id=session.session_id,
        state=session.state.value,
        connected_at=_iso(session.started_at + ahead),
        last_activity_at=_iso(session.last_activity_at + ahead),
        notification_subscriptions=types,
        metadata={},
        connections=[_describe_connection(socket, ahead) for socket in session.sockets],
    )


def _describe_connection(socket: Socket, ahead: float) -> ConnectionInfo:
    transport = socket.transport
    return ConnectionInfo(
        id=socket.id,
        device=socket.device,
        address=transport.address,
        user_agent=transport.user_agent,
        connected_at=_iso(socket.connected_at + ahead),
        last_activity_at=_iso(socket.last_activity_at + ahead),
        topics=socket.topics,
        outbox_bytes=transport.waiting_bytes,
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
