"""Autobahn's protocol with what it lacks once a connection is open: bounds, and an orderly end.

Each guard is for a trap of Autobahn 26.10 that a real connection can fall into (`flowtx.transports.reading`
has those of what comes in):

- ``sendClose`` takes no close code of RFC 6455 but 1000.
- A client that answers a close frame, or whose own is malformed, would be sent a reset, which may
  overtake what was sent before.
- Timers are rounded down to whole seconds: one second to answer a close frame may be none.
- What is sent, answers to pings too, would pile up for a client that does not read.
- The kernel takes megabytes for a client that does not read.
"""

from __future__ import annotations

from contextlib import suppress
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any, ClassVar, Final

from autobahn.twisted.websocket import WebSocketServerFactory

from flowtx.bursts import Bursts
from flowtx.protocol.close import INTERNAL_ERROR, SLOW_CONSUMER, Close
from flowtx.protocol.message import Frame
from flowtx.transports.framing import PING, PONG, framed, wire_of
from flowtx.transports.lean import configured
from flowtx.transports.outbox import Bounds, Outbox
from flowtx.transports.reading import OUTBOX, ReadingProtocol
from flowtx.transports.writer import TransportWriter

SEND_BUFFER: Final = 65_536


class GuardedProtocol(ReadingProtocol):
    """See the module.

    Attributes:
        close_timeout: seconds that a client has to answer a close frame, or to take what was
            written before the connection is dropped.
    """

    close_timeout: ClassVar[float] = 1.0

    _outbox: Outbox | None = None

    def connectionMade(self) -> None:
        super().connectionMade()
        # A unix socket has no such thing.
        with suppress(AttributeError, OSError):
            self.transport.socket.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)

    def broke_down(self) -> None:
        """End the connection after an exception."""
        self.close(INTERNAL_ERROR)
        # What follows would be read from the middle of a frame.
        self.dropConnection()

    def onPing(self, payload: bytes) -> None:
        if self._outbox is not None:
            self._outbox.send_pong(framed(PONG, payload))

    # What goes out

    def open_outbox(self, bounds: Bounds) -> None:
        """Begin to send, within bounds."""
        self._outbox = Outbox(TransportWriter(self.transport, self.factory.bursts), self, bounds)
        self.transport.registerProducer(self._outbox, True)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait in the outbox."""
        return 0 if self._outbox is None else self._outbox.waiting_bytes

    def send(self, frame: Frame) -> None:
        """Send, or queue within the limit; without effect once closed."""
        if self._outbox is not None:
            self._outbox.send(frame.wire or wire_of(frame), frame.key)

    def ping(self, payload: bytes) -> None:
        """Send a Ping after what was sent before."""
        if self._outbox is not None:
            self._outbox.send(framed(PING, payload))

    # What the outbox calls

    def piled_up(self, *, high: bool) -> None:
        """Stop to read, or go on: what waits may be answers to what was read."""
        if high:
            self.stop_reading(OUTBOX)
        else:
            self.go_on_reading(OUTBOX)

    def overflowed(self, waited: int) -> None:  # noqa: ARG002 - for those who note it
        """Close the connection of a client that is slow."""
        self._log.warn("Closing {address}: {code} {reason}", **self.named, **SLOW_CONSUMER._asdict())
        self.close(SLOW_CONSUMER)

    # The end

    def close(self, close: Close) -> None:
        """Close with a code and a reason; what still waits to be sent is given up."""
        self.sendCloseFrame(close.code, close.reason.encode())

    def sendCloseFrame(
        self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False
    ) -> None:
        if self.state != self.STATE_OPEN:
            return
        if self._outbox is not None:
            self._outbox.stopProducing()
        super().sendCloseFrame(code, reasonUtf8, isReply)
        # The answer is wanted even where nothing more was to be read.
        self._unread_for = 0
        self._next_turn()
        self.wait(self.close_timeout, self._abort)

    def _fail_connection(self, code: int, reason: str) -> None:
        # A second fault would drop the connection while the first one's close frame is on its way.
        if self.state == self.STATE_OPEN:
            self._log.info("Closing {address}: {code} {reason}", **self.named, code=code, reason=reason)
            super()._fail_connection(code, reason)

    def dropConnection(self, abort: bool = False) -> None:  # noqa: ARG002
        if self.state == self.STATE_CLOSED:
            return
        # Never at once: what was written would be lost with it.
        super().dropConnection(abort=False)
        # A client that does not read, or holds a TLS connection open, is not waited for.
        self.wait(self.close_timeout, self._abort)

    def _abort(self) -> None:
        self.transport.abortConnection()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:  # noqa: ARG002
        self.stop_waiting()
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.cancel()
        self._outbox = None


class GuardedFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Makes such protocols.

    Args:
        max_size: bytes of a message.
        reactor: the reactor.
    """

    protocol = GuardedProtocol
    noisy = False
    bursts: Bursts | None = None
    _configured: type[GuardedProtocol] | None = None

    def __init__(self, max_size: int, *, reactor: Any) -> None:
        super().__init__(server="", reactor=reactor)
        self.clock = reactor
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            maxMessagePayloadSize=max_size,
            failByDrop=False,
            echoCloseCodeReason=True,
            # The timers of `GuardedProtocol` take their place.
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            # Origins are checked by `flowtx.transports.handshake`.
            allowedOrigins=["*"],
            allowNullOrigin=True,
        )

    def buildProtocol(self, addr: Any) -> Any:  # noqa: ARG002
        if self._configured is None or self._configured.__base__ is not self.protocol:
            self._configured = configured(self.protocol, self)
        connection = self._configured()
        connection.factory = self
        return connection
