"""WebSocket frames: 63 to 84."""

from __future__ import annotations

import time
import zlib
from contextlib import suppress

from tests.badinput.ground import PATIENCE, Ground
from tests.badinput.table import row
from tests.integration.rawclient import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame

BEAT = b'[null,"1","phoenix","heartbeat",{}]'


def closes(ground: Ground, data: bytes, *codes: int) -> None:
    """Send bytes on an open connection, which must be closed with one of the codes."""
    with ground.joined() as wire:
        wire.send(data)
        code = wire.closed()
        assert code in codes, (code, codes)


@row(63, "a length of 2^62")
def _(ground: Ground) -> None:
    closes(ground, frame(TEXT, b"x", length=2**62, size=64), 1009)


@row(64, "a text of 65,537 bytes")
def _(ground: Ground) -> None:
    closes(ground, frame(TEXT, b"x" * 65_537), 1009)


@row(65, "fragments of one byte, for ever")
def _(ground: Ground) -> None:
    closes(ground, frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", fin=False) * 70_000, 1008, 1009)


@row(66, "empty fragments, for ever")
def _(ground: Ground) -> None:
    closes(ground, frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 10_000, 1008)


@row(67, "a message that does not end")
def _(ground: Ground) -> None:
    # Its 30 seconds are those of a Clock in the tests of the connection; here, it does no harm meanwhile.
    with ground.joined() as wire:
        wire.send(frame(TEXT, b'["1","1","room', fin=False))
        wire.send(frame(PING, b"?"))
        assert wire.frame() == (PONG, b"?")


@row(68, "text that is no UTF-8")
def _(ground: Ground) -> None:
    for data in (b"\xff", b'["1","1","room:1","\xed\xa0\x80",{}]', b"\xc0\xaf"):
        closes(ground, frame(TEXT, data), 1007)


@row(69, "a character split over two frames is whole again")
def _(ground: Ground) -> None:
    text = '["1","split","room:1","echo",{"é":1}]'.encode()
    cut = text.index(b"\xc3") + 1
    with ground.joined() as wire:
        wire.send(frame(TEXT, text[:cut], fin=False) + frame(CONTINUATION, text[cut:]))
        assert wire.message()[4] == {"status": "ok", "response": {"é": 1}}


@row(70, "a frame that is not masked")
def _(ground: Ground) -> None:
    closes(ground, frame(TEXT, BEAT, masked=False), 1002)


@row(71, "reserved bits")
def _(ground: Ground) -> None:
    for bits in (1, 2, 4, 7):
        closes(ground, frame(TEXT, BEAT, rsv=bits), 1002)


@row(72, "reserved opcodes")
def _(ground: Ground) -> None:
    for opcode in (3, 7, 11, 15):
        closes(ground, frame(opcode, b"x"), 1002)


@row(73, "a control frame that is fragmented, or of 126 bytes")
def _(ground: Ground) -> None:
    for data in (frame(PING, b"x", fin=False), frame(PING, b"x" * 126), frame(CLOSE, b"x" * 126)):
        closes(ground, data, 1002)


@row(74, "a continuation of nothing")
def _(ground: Ground) -> None:
    closes(ground, frame(CONTINUATION, b"x"), 1002)


@row(75, "a length that is not in its shortest form")
def _(ground: Ground) -> None:
    for size in (16, 64):
        closes(ground, frame(TEXT, b"x", size=size), 1002)


@row(76, "close frames that are broken")
def _(ground: Ground) -> None:
    for data in (frame(CLOSE, b"x"), close_frame(999), close_frame(1005), close_frame(1000, b"\xff")):
        closes(ground, data, 1002, 1006, 1007)


@row(77, "a bomb of deflate: nothing is ever inflated")
def _(ground: Ground) -> None:
    bomb = zlib.compress(bytes(2**24))[:60_000]
    closes(ground, frame(BINARY, bomb, rsv=4), 1002)


@row(78, "a flood of Pings, whose Pongs are read")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        wire.send(frame(PING, b"x") * 200)
        assert wire.closed() == 1008


@row(79, "a flood of Pings, whose Pongs are not read")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        with suppress(OSError):
            for _ in range(100):
                wire.send(frame(PING, bytes(125)) * 500)
        assert wire.closed() in (1006, 1008)


@row(80, "Pongs that nobody asked for")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        wire.send(frame(PONG, b"64") * 100 + frame(PONG, b"x" * 125) + frame(PONG))
        assert wire.beats()


@row(81, "data after the close frame")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        wire.send(close_frame(1000) + frame(TEXT, b'["1","late","room:1","echo",{}]') * 10)
        assert wire.closed() == 1000
        assert wire.frame() is None


@row(82, "binary pushes whose sizes lead past their end")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        for data in (b"", b"\0", b"\0\xff\xff\xff\xff", b"\0\1\1\6\4" + b"1", b"\5\1\1\1\1abcd"):
            wire.send(frame(BINARY, data))
        assert wire.beats()
        wire.send(frame(BINARY, b"\xff") * 10)
        assert wire.closed() == 1008


@row(83, "10,000 small frames in one go")
def _(ground: Ground) -> None:
    with ground.joined() as wire, ground.joined("room:2", "bob") as other:
        wire.send(frame(TEXT, b"{}") * 5 + frame(PONG) * 10_000)
        assert other.beats()
        assert wire.beats()


@row(84, "a client that sends, and never answers a Ping")
def _(ground: Ground) -> None:
    with ground.another("deaf", "--ping-interval=1", "--pong-timeout=1") as server:
        port = int(server.socket_url.removesuffix("/socket").rpartition(":")[2])
        wire = ground.enter(token=server.token("deaf"), port=port)
        ended = False
        deadline = time.monotonic() + PATIENCE
        while not ended and time.monotonic() < deadline:
            wire.send(frame(TEXT, BEAT))
            found = wire.frame()
            ended = found is None or found[0] == CLOSE
            time.sleep(0.05)  # a client's own pace
        assert ended
        wire.leave()
