"""A Phoenix client that is as lean as a load needs it to be."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from flowtx.errors import FlowtxError

_TEXT, _CLOSE, _PING, _PONG = 0x81, 0x88, 0x89, 0x8A
_JOIN_REF: Final = "1"
_MAX_HEAD: Final = 16_384


class BenchError(FlowtxError):
    """The load cannot go on."""


class TurnedAway(BenchError):  # noqa: N818 - what happened, as `Refused`
    """The server lets the client not in.

    Attributes:
        status: of its HTTP answer.
        retry_after: seconds after which to come again; 0 where it does not say.
    """

    def __init__(self, status: int, retry_after: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after


class Client(Protocol):
    """A connection of a user.

    Args:
        user_id: who it is.
        request: the target of the opening handshake, with the token.
        host: the header Host.
        on_event: told of an event that is no answer, and of its payload.

    Attributes:
        opened: fires when the server has let it in; `TurnedAway` or `BenchError` where it has not.
        topic: the user's own.
    """

    transport: ITCPTransport

    def __init__(self, user_id: str, request: str, host: str, on_event: Callable[[str, Any], None]) -> None:
        self.opened: Deferred[None] = Deferred()
        self.topic = f"user:{user_id}"
        self._user_id = user_id
        self._request = request
        self._host = host
        self._on_event = on_event
        self._buffer = b""
        self._is_open = False
        self._refs = 1
        self._calls: dict[str, Deferred[Any]] = {}

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(
            f"GET {self._request} HTTP/1.1\r\nHost: {self._host}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )

    def join(self) -> Deferred[Any]:
        """Join the user's own topic; fires with the answer's response."""
        return self._call(_JOIN_REF, self.topic, "phx_join", {})

    def heartbeat(self) -> Deferred[Any]:
        """Say that the client lives; fires when the server has said so too."""
        self._refs += 1
        return self._call(None, "phoenix", "heartbeat", {})

    def activity(self) -> Deferred[Any]:
        """Say that the user does something; fires when the server knows."""
        self._refs += 1
        return self._call(_JOIN_REF, self.topic, "activity", {})

    def close(self) -> None:
        """End the connection; the user does not come back."""
        self._is_open = False
        self._send(_CLOSE, (1000).to_bytes(2))
        self.transport.loseConnection()

    def _call(self, join_ref: str | None, topic: str, event: str, payload: object) -> Deferred[Any]:
        ref = str(self._refs)
        reply: Deferred[Any] = Deferred()
        self._calls[ref] = reply
        self._send(_TEXT, msgspec.json.encode([join_ref, ref, topic, event, payload]))
        return reply

    def _send(self, opcode: int, payload: bytes) -> None:
        # Clients have to mask; a key of zeros is one, and leaves the payload as it is.
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
        self.transport.write(bytes((opcode,)) + length + bytes(4) + payload)

    # What comes

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        if not self.opened.called:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end and len(head) < _MAX_HEAD:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._turned_away(head.decode("latin-1"), rest)
                return
            self._buffer = rest
            self._is_open = True
            self.opened.callback(None)
        while (frame := self._take()) is not None:
            self._frame(*frame)

    def _turned_away(self, head: str, body: bytes) -> None:
        status, *fields = head.split("\r\n")
        headers = {name.lower(): text.strip() for name, _, text in (field.partition(":") for field in fields)}
        after = headers.get("retry-after", "")
        code = status.split(" ")[1:2]
        said = " ".join([*code, body.decode("utf-8", "replace")[:200].strip()])
        number = int(code[0]) if code and code[0].isdigit() else 0
        wait = int(after) if after.isdigit() else 0
        self.opened.errback(TurnedAway(number, wait, f"{self._user_id} is turned away: {said}"))
        self.transport.loseConnection()

    def _take(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, start = buffer[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(buffer) < start:
                return None
            length = int.from_bytes(buffer[2:start])
        if len(buffer) < start + length:
            return None
        self._buffer = buffer[start + length :]
        return buffer[0], buffer[start : start + length]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self._send(_PONG, payload)
        elif opcode == _TEXT:
            _, ref, _, event, content = msgspec.json.decode(payload)
            if event != "phx_reply":
                self._on_event(event, content)
            elif (reply := self._calls.pop(ref, None)) is not None:
                if content["status"] == "ok":
                    reply.callback(content["response"])
                else:
                    reply.errback(BenchError(f"{self._user_id} is refused: {content['response']}"))
        elif opcode == _CLOSE:
            self._lost(f"{self._user_id} is sent away with {int.from_bytes(payload[:2])}")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost(f"{self._user_id} lost the connection: {reason.getErrorMessage()}")

    def _lost(self, text: str) -> None:
        self._is_open = False
        waiting, self._calls = list(self._calls.values()), {}
        if not self.opened.called:
            waiting.append(self.opened)
        for one in waiting:
            one.errback(BenchError(text))
