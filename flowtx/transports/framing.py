"""Frames as a server writes them (RFC 6455, section 5.2)."""

from __future__ import annotations

from struct import pack
from typing import Final

from flowtx.protocol.message import Frame

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10


def framed(opcode: int, payload: bytes) -> bytes:
    """Write a frame: whole and not masked."""
    size = len(payload)
    if size < 126:
        return pack("!BB", 0x80 | opcode, size) + payload
    if size < 65_536:
        return pack("!BBH", 0x80 | opcode, 126, size) + payload
    return pack("!BBQ", 0x80 | opcode, 127, size) + payload


def wire_of(frame: Frame) -> bytes:
    """Write a frame for the first time, and keep that for the others who are sent it."""
    frame.wire = wire = framed(BINARY if frame.binary else TEXT, frame.payload)
    return wire
