"""The one table of close codes: what ends a connection, with what code, and what a client does then.

1000 means "stay away", all others "come back". Stock Phoenix clients come back after any code but 1000;
those from 1.8 on come back after 1000 too, unless the application disconnects them.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Close(NamedTuple):
    """Why a connection is closed.

    Attributes:
        code: the WebSocket close code.
        reason: a word for the client and the log; at most 123 bytes.
    """

    code: int
    reason: str


SESSION_STOPPED: Final = Close(1000, "session_stopped")
IDLE_TIMEOUT: Final = Close(1000, "idle_timeout")
CONNECTION_CLOSED: Final = Close(1000, "connection_closed")
TOKEN_ENDED: Final = Close(1000, "token_ended")
TOKEN_REVOKED: Final = Close(1000, "token_revoked")
REPLACED: Final = Close(1000, "replaced")
DISCONNECT: Final = Close(1001, "disconnect")
HEARTBEAT_TIMEOUT: Final = Close(1002, "heartbeat_timeout")
TOO_MANY_MALFORMED: Final = Close(1008, "too_many_malformed_frames")
TOO_MANY_FRAGMENTS: Final = Close(1008, "too_many_fragments")
MESSAGE_TIMEOUT: Final = Close(1008, "message_timeout")
INTERNAL_ERROR: Final = Close(1011, "internal_error")
DRAIN: Final = Close(1012, "drain")
SLOW_CONSUMER: Final = Close(1013, "slow_consumer")


def rate_limited(retry_after_ms: int) -> Close:
    """Close a client that asked for too much; the reason tells when it may come back."""
    return Close(1008, f"rate_limited retry_after_ms={retry_after_ms}")
