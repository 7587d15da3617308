"""Autobahn's protocol with what it lacks where frames come in.

Each guard is for a trap of Autobahn 26.10 that a real connection can fall into:

- An exception would leave the connection open and deaf, or end it without a word.
- What arrives of a frame that broke the protocol would be kept, whatever its length.
- A message in endlessly many empty fragments would never reach a limit, and one that never ends would
  be waited for.
- Ten thousand small frames that arrive together would be handled in one go, while all others wait; and
  whatever has arrived would be handled although reading has been paused.
- Log lines quote requests with their tokens.

Frames that come whole take a short road past Autobahn's parser; see `flowtx.transports.short`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final, cast

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from flowtx.protocol.close import MESSAGE_TIMEOUT, TOO_MANY_FRAGMENTS
from flowtx.tracing import CALL, Call, call_of
from flowtx.transports.framing import CLOSE
from flowtx.transports.short import SMALL, whole_frame

MAX_FRAGMENTS: Final = 64
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


class ReadingProtocol(WebSocketServerProtocol):  # type: ignore[misc]
    """See the module.

    Attributes:
        message_timeout: seconds that a message may take from its first byte to its last.
    """

    message_timeout: ClassVar[float] = 30.0

    log = _Silent()
    _log = Logger()
    _call: Call | None = None
    _timer: IDelayedCall | None = None
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

    @abstractmethod
    def broke_down(self) -> None:
        """End the connection after an exception."""

    def dataReceived(self, data: bytes) -> None:
        handled = CALL.set(self._call)
        try:
            # Only between frames, and with nothing before it.
            if (
                self.state == self.STATE_OPEN
                and not (self.data or self._unread_for or self.inside_message)
                and self.current_frame is None
            ):
                data = self._take_whole_frames(data)
            if data:
                self._dataReceived(data)
        except Exception:
            self._could_not_handle()
        finally:
            CALL.reset(handled)

    def _take_whole_frames(self, data: bytes) -> bytes:
        """Handle the frames at the beginning that come whole; what is left for Autobahn."""
        at, size, most = 0, len(data), min(SMALL, self.maxMessagePayloadSize)
        for _ in range(FRAMES_A_TURN):
            frame = whole_frame(data, at, most)
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
        handled = CALL.set(self._call)
        try:
            self.consumeData()
        finally:
            CALL.reset(handled)
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

    # Time

    def wait(self, seconds: float, call: Callable[[], None]) -> None:
        """Make ``call`` later, in the place of what was waited for before."""
        self.stop_waiting()
        self._timer = self.factory.clock.callLater(seconds, call)

    def stop_waiting(self) -> None:
        """Undo `wait`."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
