"""A client that writes HTTP and WebSocket frames by hand, so that it can misbehave in any way.

    client = await connect(reactor, "tcp:127.0.0.1:4000")
    client.send(request("/socket/websocket?token=…&vsn=2.0.0"))
    response = await client.response()
    client.send(frame(TEXT, b'[null,"1","phoenix","heartbeat",{}]'))
    answer = await client.frame()
    end = await client.ended()

Whatever is awaited fails where it has not come within `PATIENCE` seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from struct import pack
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

PATIENCE: Final = 10.0
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT: Final = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""What RFC 6455, section 1.3, answers to that key."""

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10


class Response(NamedTuple):
    """An answer of HTTP; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    head: bytes


class Received(NamedTuple):
    """A frame from the server."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0

    @property
    def code(self) -> int | None:
        """The code of a close frame."""
        return int.from_bytes(self.payload[:2], "big") if len(self.payload) >= 2 else None


def request(
    target: str,
    *extra: tuple[str, str],
    line: str | None = None,
    without: Sequence[str] = (),
    replace: Mapping[str, str] | None = None,
) -> bytes:
    """Write an opening handshake.

    Args:
        target: path and query.
        extra: further headers.
        line: the request line, in the place of the usual one.
        without: names of usual headers to leave out.
        replace: values of usual headers.
    """
    usual = {
        "Host": "127.0.0.1",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
        **(replace or {}),
    }
    headers = [(name, value) for name, value in usual.items() if name not in without]
    lines = [line or f"GET {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in [*headers, *extra]]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
    size: int | None = None,
) -> bytes:
    """Write a frame.

    Args:
        opcode: its opcode, also a reserved one.
        payload: its payload.
        fin: whether it is the last one of its message.
        rsv: its reserved bits.
        masked: whether it is masked, as a client's must be.
        length: the length that it claims; that of the payload where it is None.
        size: how many bits the length is written in: 7, 16 or 64; as few as will do where it is None.
    """
    claimed = len(payload) if length is None else length
    if size is None:
        size = 7 if claimed < 126 else 16 if claimed < 65_536 else 64
    first, mask_bit = fin << 7 | rsv << 4 | opcode, masked << 7
    if size == 7:
        head = pack("!BB", first, mask_bit | claimed)
    elif size == 16:
        head = pack("!BBH", first, mask_bit | 126, claimed)
    else:
        head = pack("!BBQ", first, mask_bit | 127, claimed)
    if not masked:
        return head + payload
    mask = b"\x37\xfa\x21\x3d"
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def close_frame(code: int | None = None, reason: bytes = b"") -> bytes:
    """Write a close frame."""
    return frame(CLOSE, b"" if code is None else pack("!H", code) + reason)


class RawClient(Protocol):
    """One connection.

    Attributes:
        transport: to pause, half-close or abort.
        received: what came and has not been taken.
        end: None while connected, then how it ended: ``fin`` or ``reset``.
    """

    transport: Any

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.received = b""
        self.end: str | None = None
        self._waiting: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    # Twisted's

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.end = "fin" if reason.check(ConnectionDone) else "reset"
        self._look()

    # To the server

    def send(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        self.transport.write(data)

    def text(self, text: str) -> None:
        """Send a text frame."""
        self.send(frame(TEXT, text.encode()))

    def finish(self) -> None:
        """Send a FIN, after what is still to be sent."""
        self.transport.loseWriteConnection()

    def reset(self) -> None:
        """Send a reset."""
        self.transport.abortConnection()

    def stop_reading(self) -> None:
        """Take nothing more from the kernel, whose buffer then fills."""
        self.transport.pauseProducing()

    def go_on_reading(self) -> None:
        """Undo `stop_reading`."""
        self.transport.resumeProducing()

    # From the server

    def response(self) -> Deferred[Response]:
        """Wait for an answer of HTTP; a body is read where it has a Content-Length."""
        return self._wait("a response", self._take_response)

    def frame(self) -> Deferred[Received]:
        """Wait for a frame."""
        return self._wait("a frame", self._take_frame)

    async def message(self) -> Received:
        """Wait for a frame that is no Ping; Pings are answered."""
        while (received := await self.frame()).opcode == PING:
            self.send(frame(PONG, received.payload))
        return received

    def ended(self, within: float = PATIENCE) -> Deferred[str]:
        """Wait for the end of the connection, and tell how it ended: ``fin`` or ``reset``."""
        return self._wait("the end", lambda: self.end, within)

    def _wait(self, what: str, take: Callable[[], Any], within: float = PATIENCE) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred()
        entry = (take, deferred)
        self._waiting.append(entry)

        def give_up() -> None:
            self._waiting.remove(entry)
            deferred.errback(AssertionError(f"{what} did not come in {within} s; {self._state()}"))

        timeout = self._clock.callLater(within, give_up)

        def over(result: Any) -> Any:
            if timeout.active():
                timeout.cancel()
            return result

        deferred.addBoth(over)
        self._look()
        return deferred

    def _look(self) -> None:
        while self._waiting:
            take, deferred = self._waiting[0]
            found = take()
            if found is not None:
                self._waiting.pop(0)
                deferred.callback(found)
            elif self.end is not None:
                self._waiting.pop(0)
                deferred.errback(AssertionError(f"the connection ended first; {self._state()}"))
            else:
                return

    def _state(self) -> str:
        return f"end: {self.end}, not taken: {self.received[:500]!r}"

    def _take_response(self) -> Response | None:
        head, found, rest = self.received.partition(b"\r\n\r\n")
        if not found:
            return None
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return None
        self.received = rest[length:]
        return Response(int(status_line.split()[1]), headers, rest[:length], head)

    def _take_frame(self) -> Received | None:
        data = self.received
        if len(data) < 2:
            return None
        assert not data[1] & 0x80, f"a server's frame must not be masked: {data[:20]!r}"
        length, start = data[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(data) < start:
                return None
            length = int.from_bytes(data[2:start], "big")
        if len(data) < start + length:
            return None
        self.received = data[start + length :]
        return Received(data[0] & 15, data[start : start + length], bool(data[0] & 0x80), data[0] >> 4 & 7)


async def connect(reactor: Any, endpoint: str) -> RawClient:
    """Connect to an endpoint such as ``tcp:127.0.0.1:4000`` or ``unix:/path``."""
    client: RawClient = await connectProtocol(clientFromString(reactor, endpoint), RawClient(reactor))
    return client
