"""Whether a client is still there, and for how long its connection may last.

A connection ends with its token, after ``heartbeat_timeout`` seconds without a frame, or where a Ping
gets no Pong. Frames that arrive prove only that the client can send. So every ``ping_interval``
seconds without a Pong a Ping goes out, and if no Pong comes within ``pong_timeout`` seconds, the
client does not read, or is not there any more: with the defaults, it is gone 35 seconds after its
last Pong.

Any Pong will do: a client may answer the latest of several Pings only (RFC 6455, section 5.5.3), and
`flowtx.notifications` sends some too. While nothing is read from the client, or something waits for
it, its silence proves nothing; the outbox has bounds of its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from twisted.internet.interfaces import IDelayedCall

from flowtx.protocol.close import HEARTBEAT_TIMEOUT, TOKEN_ENDED

if TYPE_CHECKING:
    from flowtx.channels.socket import Socket
    from flowtx.channels.tokens import Renewal

PING: Final = b"alive?"

# Which silence it was that closed a connection.
NO_PONG: Final = "no_pong"
NO_FRAME: Final = "no_frame"


class Timeouts(NamedTuple):
    """See the module; in seconds.

    Attributes:
        heartbeat: without any frame.
        ping_interval: from a Pong to the next Ping; 0 for no Pings.
        pong: for a Pong.
    """

    heartbeat: float
    ping_interval: float = 0.0
    pong: float = 10.0


#: The same for all connections of a server, so that there is one of it.
timeouts_of: Final = lru_cache(8)(Timeouts)


class Liveness:
    """See the module.

    One timer a connection, set anew only when it fires: a message costs it nothing.
    """

    __slots__ = ("_pinged_at", "_ponged_at", "_renewal", "_socket", "_timeouts", "_timer")

    def __init__(self, socket: Socket, renewal: Renewal, timeouts: Timeouts) -> None:
        self._socket = socket
        self._renewal = renewal
        self._timeouts = timeouts
        self._ponged_at = socket.connected_at
        self._pinged_at: float | None = None
        self._timer: IDelayedCall | None = None
        self.reset()

    def ponged(self, now: float) -> None:
        """Note a Pong."""
        self._ponged_at = now
        self._pinged_at = None

    def read_again(self, now: float) -> None:
        """Note that the client is heard again: what it sent meanwhile is still to be read."""
        if self._pinged_at is not None:
            self._pinged_at = now

    def reset(self) -> None:
        """Set the timer: something ends at another time now."""
        self.cancel()
        clock = self._socket.clock
        timeouts = self._timeouts
        due = min(self._socket.last_received_at + timeouts.heartbeat, self._renewal.ends_at)
        if self._pinged_at is not None:
            due = min(due, self._pinged_at + timeouts.pong)
        elif timeouts.ping_interval:
            due = min(due, self._ponged_at + timeouts.ping_interval)
        self._timer = clock.callLater(max(0.0, due - clock.seconds()), self._check)

    def cancel(self) -> None:
        """Unset the timer."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _check(self) -> None:
        self._timer = None
        socket, timeouts = self._socket, self._timeouts
        now = socket.clock.seconds()
        if self._renewal.ends_at <= now:
            socket.close(TOKEN_ENDED)
            return
        if not socket.transport.reading:
            socket.touched()
            self.read_again(now)
        elif socket.last_received_at + timeouts.heartbeat <= now:
            socket.cause = NO_FRAME
            socket.close(HEARTBEAT_TIMEOUT)
            return
        if self._pinged_at is not None:
            if socket.transport.waiting_bytes:
                self._pinged_at = now
            elif self._pinged_at + timeouts.pong <= now:
                socket.cause = NO_PONG
                socket.close(HEARTBEAT_TIMEOUT)
                return
        elif timeouts.ping_interval and self._ponged_at + timeouts.ping_interval <= now:
            self._pinged_at = now
            socket.ping(PING)
        self.reset()
