"""What the flight recorder is told of a connection: its beginning, its refusal and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from flowtx.protocol.close import HEARTBEAT_TIMEOUT

if TYPE_CHECKING:
    from flowtx.channels.socket import Socket
    from flowtx.errors import Refused
    from flowtx.transports.websocket import FlowProtocol

LOST: Final = "connection_lost"


class End(NamedTuple):
    """How a connection ended.

    Attributes:
        by: who ended it; ``silence`` for a client that no sign of life came from, ``network`` where the
            connection has gone without a word of either side.
        code: the close code; None where there was none.
        reason: the server's word, or what the client gave as such.
    """

    by: Literal["client", "server", "silence", "network"]
    code: int | None
    reason: str


def end_of(protocol: FlowProtocol, socket: Socket) -> End:
    """Tell how a connection ended, once it has."""
    close = socket.closed_with
    if close is not None:
        return End("silence" if close == HEARTBEAT_TIMEOUT else "server", *close)
    if protocol.closedByMe:
        reason = protocol.localCloseReason or b""
        return End("server", protocol.localCloseCode, reason.decode("utf-8", "replace"))
    if protocol.wasClean:
        return End("client", protocol.remoteCloseCode, protocol.remoteCloseReason or "closed")
    return End("network", None, LOST)


def note_opened(protocol: FlowProtocol, socket: Socket) -> None:
    """Keep that a client has connected."""
    socket.note(
        "connected",
        address=protocol.address,
        user_agent=protocol.user_agent,
        request_id=protocol.call.request_id,
    )


def note_refused(protocol: FlowProtocol, refused: Refused, user_id: str | None) -> None:
    """Keep that a handshake was refused, where it is known whose it was."""
    if user_id is not None:
        protocol.factory.recorder.note(
            user_id,
            "refused",
            reason=refused.reason,
            status=refused.status,
            address=protocol.address,
            user_agent=protocol.user_agent,
            request_id=protocol.call.request_id,
        )


def note_ended(protocol: FlowProtocol, socket: Socket) -> None:
    """Keep that a connection has ended, and how."""
    by, code, reason = end_of(protocol, socket)
    protocol.factory.recorder.ended(
        socket.principal.user_id,
        by=by,
        code=code,
        reason=reason,
        duration=socket.clock.seconds() - socket.connected_at,
        connection=socket.id,
        device=socket.device,
        address=protocol.address,
        cause=socket.cause,
    )
