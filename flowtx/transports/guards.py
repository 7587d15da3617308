"""Autobahn's protocol with what it lacks once a connection is open: bounds, and an orderly end.

Each guard is for a trap of Autobahn 26.10 that a real connection can fall into:

- ``sendClose`` takes no close code of RFC 6455 but 1000.
- A client that answers a close frame, or whose own is malformed, would be sent a reset, which may
  overtake what was sent before.
- Timers are rounded down to whole seconds: one second to answer a close frame may be none.
- An exception would leave the connection open and deaf, or end it without a word.
- What arrives of a frame that broke the protocol would be kept, whatever its length.
- A message in endlessly many empty fragments would never reach a limit, and one that never ends would
  be waited for.
- Ten thousand small frames that arrive together would be handled in one go, while all others wait; and
  whatever has arrived would be handled although reading has been paused.
- What is sent, answers to pings too, would pile up for a client that does not read.
- Nagle's algorithm stays on, since the setting is read before it is there; and the kernel takes
  megabytes for a client that does not read.
- Log lines quote requests with their tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any, ClassVar, Final, cast

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from flowtx.bursts import Bursts
from flowtx.protocol.close import (
    INTERNAL_ERROR,
    MESSAGE_TIMEOUT,
    SLOW_CONSUMER,
    TOO_MANY_FRAGMENTS,
    Close,
)
from flowtx.protocol.message import Frame
from flowtx.tracing import Call, call_of
from flowtx.transports.framing import CLOSE, PING, PONG, framed, wire_of
from flowtx.transports.lean import configured
from flowtx.transports.outbox import Bounds, Outbox
from flowtx.transports.short import whole_frame
from flowtx.transports.writer import TransportWriter

MAX_FRAGMENTS: Final = 64
SEND_BUFFER: Final = 65_536
STEPS_A_TURN: Final = 128
"""Steps of Autobahn's parser before others get their turn: a frame takes two."""
FRAMES_A_TURN: Final = 64
"""The same on the short road."""

# Why nothing is read for now.
MAILBOXES: Final = 1
OUTBOX: Final = 2
TURN: Final = 4


class _Silent:
    """Takes the place of Autobahn's log."""

    def debug(self, *_: object, **__: object) -> None: ...

    info = warn = error = failure = trace = debug


class GuardedProtocol(WebSocketServerProtocol):  # type: ignore[misc]
    """See the module.

    Attributes:
        close_timeout: seconds that a client has to answer a close frame, or to take what was
            written before the connection is dropped.
        message_timeout: seconds that a message may take from its first byte to its last.
    """

    close_timeout: ClassVar[float] = 1.0
    message_timeout: ClassVar[float] = 30.0

    log = _Silent()
    _log = Logger()
    _call: Call | None = None
    _timer: IDelayedCall | None = None
    _outbox: Outbox | None = None
    _fragments = 0
    _unread_for = 0
    _turn: IDelayedCall | None = None
    _begun_at: float | None = None

    @property
    def address(self) -> str:
        """The client's address, for people to read."""
        return str(getattr(self.transport.getPeer(), "host", "unix"))

    @property
    def call(self) -> Call:
        """What names the connection in the log."""
        if self._call is None:
            self._call = call_of(None)
        return self._call

    @property
    def named(self) -> dict[str, Any]:
        """What a log event says of which connection it is about."""
        return {"address": self.address, "request_id": self.call.request_id}

    def connectionMade(self) -> None:
        super().connectionMade()
        # A unix socket has no such thing.
        with suppress(AttributeError, OSError):
            self.transport.socket.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)

    # What comes in

    def dataReceived(self, data: bytes) -> None:
        # Only between frames, and with nothing before it.
        if (
            self.state == self.STATE_OPEN
            and not (self.data or self._unread_for or self.inside_message)
            and self.current_frame is None
        ):
            try:
                data = self._take_whole_frames(data)
            except Exception:
                self._could_not_handle()
                return
            if not data:
                return
        self._dataReceived(data)

    def _take_whole_frames(self, data: bytes) -> bytes:
        """Handle the frames at the beginning that come whole; what is left for Autobahn."""
        at, size = 0, len(data)
        for _ in range(FRAMES_A_TURN):
            frame = whole_frame(data, at)
            if frame is None:
                return data[at:]
            is_text, payload, at = frame
            if is_text:
                self.onMessage(payload, False)
            else:
                self.onPong(payload)
            if at == size:
                return b""
            if self._unread_for or self.state != self.STATE_OPEN:
                return data[at:]
        self.stop_reading(TURN)
        self._next_turn()
        return data[at:]

    def consumeData(self) -> None:
        if self.state in (self.STATE_OPEN, self.STATE_CLOSING):
            self.guard(self._consume_frames)
        else:
            self.guard(super().consumeData)

    def _consume_frames(self) -> None:
        """Handle what has arrived, as far as that may be now; the rest stays in ``data``."""
        for _ in range(STEPS_A_TURN):
            if self.state == self.STATE_CLOSED or (self._unread_for and self.state == self.STATE_OPEN):
                return
            if not self.processData():
                self._look_for_end()
                return
        self.stop_reading(TURN)
        self._next_turn()

    def stop_reading(self, why: int) -> None:
        """Take nothing more from the client, and handle nothing more of what has arrived."""
        self._unread_for |= why
        self.transport.pauseProducing()

    def go_on_reading(self, why: int) -> None:
        """Undo `stop_reading`, where nothing else is in the way."""
        if self._unread_for & why:
            self._unread_for &= ~why
            if self._begun_at is not None:
                # The client could not end its message meanwhile.
                self._begun_at = self.factory.clock.seconds()
            if not self._unread_for:
                self._next_turn()

    def _next_turn(self) -> None:
        if self._turn is None:
            self._turn = self.factory.clock.callLater(0, self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        self._unread_for &= ~TURN
        self.consumeData()
        if not self._unread_for:
            self.transport.resumeProducing()

    @property
    def reading(self) -> bool:
        """Whether what the client sends is read now."""
        return not self._unread_for

    def _look_for_end(self) -> None:
        """See to it that a message which has begun will end."""
        if self.state != self.STATE_OPEN or not (self.data or self.inside_message or self.current_frame):
            self._begun_at = None
        elif self._begun_at is None:
            self._begun_at = self.factory.clock.seconds()
            if self._timer is None:
                self.wait(self.message_timeout, self._check_message)

    def _check_message(self) -> None:
        self._timer = None
        if self._begun_at is None:
            return
        now = self.factory.clock.seconds()
        if self._unread_for:
            # The end may have come, and only we have not looked.
            self._begun_at = now
        left = self._begun_at + self.message_timeout - now
        if left > 0:
            self.wait(left, self._check_message)
        else:
            self._fail_connection(*MESSAGE_TIMEOUT)

    def guard(self, call: Callable[..., None], *arguments: object) -> None:
        """Answer for what goes wrong in a call: at this boundary nobody else does."""
        try:
            call(*arguments)
        except Exception:
            self._could_not_handle()

    def _could_not_handle(self) -> None:
        self._log.failure("Closing {address}: its data could not be handled", **self.named)
        self.broke_down()

    def broke_down(self) -> None:
        """End the connection after an exception."""
        self.close(INTERNAL_ERROR)
        # What follows would be read from the middle of a frame.
        self.dropConnection()

    def onMessageBegin(self, isBinary: bool) -> None:
        self._fragments = 0
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        self._fragments += 1
        if self._fragments > MAX_FRAGMENTS:
            self._fail_connection(*TOO_MANY_FRAGMENTS)
        super().onMessageFrameBegin(length)

    def onMessageEnd(self) -> None:
        self._begun_at = None
        super().onMessageEnd()

    def onFrameData(self, payload: bytes) -> bool | None:
        frame = self.current_frame
        # While closing, only the client's own close frame is waited for.
        if self.state != self.STATE_OPEN and (frame.opcode != CLOSE or frame.length > 125):
            return None
        return cast("bool | None", super().onFrameData(payload))

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

    def overflowed(self) -> None:
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

    def wait(self, seconds: float, call: Callable[[], None]) -> None:
        """Make ``call`` later, in the place of what was waited for before."""
        self.stop_waiting()
        self._timer = self.factory.clock.callLater(seconds, call)

    def stop_waiting(self) -> None:
        """Undo `wait`."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

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

    def buildProtocol(self, addr: Any) -> Any:
        if self._configured is None or self._configured.__base__ is not self.protocol:
            self._configured = configured(self.protocol, self)
        connection = self._configured()
        connection.factory = self
        return connection
