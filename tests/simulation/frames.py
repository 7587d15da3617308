"""A client's side of WebSocket (RFC 6455), as little of it as the simulation's clients need."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

from tests.integration.rawclient import CLOSE, CONTINUATION, PING, PONG, TEXT

__all__ = ["CLOSE", "CONTINUATION", "PING", "PONG", "TEXT", "Incoming", "masked"]

_MASK = b"\x37\xfa\x21\x3d"


def masked(opcode: int, payload: bytes) -> bytes:
    """Write a frame."""
    size = len(payload)
    head = pack("!BB", 0x80 | opcode, 0x80 | size) if size < 126 else pack("!BBH", 0x80 | opcode, 0xFE, size)
    repeated = (_MASK * (size // 4 + 1))[:size]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return head + _MASK + mixed.to_bytes(size, "big")


class Incoming:
    """Takes apart what a server sends: first the answer to the handshake, then frames."""

    def __init__(self) -> None:
        self._data = b""
        self.status: int | None = None

    def add(self, data: bytes) -> None:
        """Take what has arrived."""
        self._data = self._data + data if self._data else data

    def answer(self) -> int | None:
        """Tell the status of the answer to the handshake, once its head has arrived."""
        if self.status is None:
            head, found, rest = self._data.partition(b"\r\n\r\n")
            if found:
                self.status = int(head.split(None, 2)[1])
                self._data = rest
        return self.status

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Give the frames that have arrived whole, as opcode and payload."""
        while len(self._data) >= 2:
            data = self._data
            size, start = data[1], 2
            if size & 0x80:
                raise ValueError("a server's frame must not be masked")
            if not data[0] & 0x80:
                raise ValueError("the server has no reason to split its messages")
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            elif size == 127:
                size, start = int.from_bytes(data[2:10], "big"), 10
            if len(data) < start or len(data) < start + size:
                return
            self._data = data[start + size :]
            yield data[0] & 15, data[start : start + size]
