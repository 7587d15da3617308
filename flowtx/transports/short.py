"""The short road for what clients mostly send: whole, small frames of text, and Pongs.

Autobahn's parser takes a frame in two steps, each with a dozen calls, for it must be able to stop at any
byte. Most frames come whole. `whole_frame` reads such a one where it lies, by RFC 6455, section 5.2, and
tells whatever it is not sure of by None: a frame that is not whole, not masked, longer than `SMALL`, of
another kind, not written in the shortest way or no UTF-8. All that goes to Autobahn, which has the say.
"""

from __future__ import annotations

from typing import Final

from flowtx.transports.framing import PONG, TEXT

SMALL: Final = 4_096
"""Bytes of payload: past it the time goes into the payload itself."""

_WHOLE_TEXT: Final = 0x80 | TEXT
_WHOLE_PONG: Final = 0x80 | PONG
_MASKED: Final = 0x80


def whole_frame(data: bytes, at: int, most: int = SMALL) -> tuple[bool, bytes, int] | None:  # noqa: PLR0911 - a rule each
    """Read the frame that begins at a place.

    Args:
        data: what has come.
        at: where the frame begins.
        most: bytes of payload that it may have.

    Returns:
        Whether it is text, or else a Pong; its payload; and where it ends. None where Autobahn is to
        look at it.
    """
    try:
        kind = data[at]
        size = data[at + 1] - _MASKED
        body = at + 6
        if size > 125:
            if size != 126 or kind != _WHOLE_TEXT:
                return None
            size = data[at + 2] << 8 | data[at + 3]
            if size < 126:
                return None
            body += 2
        elif size < 0 or (kind not in (_WHOLE_TEXT, _WHOLE_PONG)):
            return None
    except IndexError:
        return None
    end = body + size
    if size > most or end > len(data):
        return None
    masked = data[body:end]
    mask = data[body - 4 : body] * (size + 3 >> 2)
    # As one number each: the interpreter's fastest way to combine so many bytes.
    number = int.from_bytes(masked, "little") ^ int.from_bytes(mask[:size], "little")
    payload = number.to_bytes(size, "little")
    if kind == _WHOLE_PONG:
        return False, payload, end
    if not payload.isascii():
        try:
            payload.decode()
        except UnicodeDecodeError:
            return None
    return True, payload, end
