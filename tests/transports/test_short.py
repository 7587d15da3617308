"""The short road of frames leads where Autobahn's long one does, for any bytes in any pieces."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from flowtx.metrics import Metrics
from flowtx.transports.framing import BINARY, CLOSE, PING, PONG, TEXT
from flowtx.transports.guards import GuardedFactory, GuardedProtocol
from flowtx.transports.outbox import Bounds
from flowtx.transports.reading import FRAMES_A_TURN
from flowtx.transports.short import SMALL, whole_frame

MAX_SIZE = 6_000

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Recording(GuardedProtocol):
    """Keeps what comes in."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.seen: list[tuple[str, bytes]] = []

    def onOpen(self) -> None:
        self.open_outbox(Bounds(1 << 20, 10.0, self.factory.clock, Metrics()))

    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: N803
        self.seen.append(("binary" if isBinary else "text", bytes(payload)))

    def onPong(self, payload: bytes) -> None:
        self.seen.append(("pong", bytes(payload)))


class LongRoad(Recording):
    """Leaves everything to Autobahn."""

    def dataReceived(self, data: bytes) -> None:
        WebSocketServerProtocol.dataReceived(self, data)


class Connection:
    """One connection, after its handshake."""

    def __init__(self, protocol: type[Recording], most: int = MAX_SIZE) -> None:
        self.clock = Clock()
        factory = GuardedFactory(most, reactor=self.clock)
        factory.protocol = protocol
        self.protocol: Any = factory.buildProtocol(None)
        self.transport: Any = StringTransport()
        self.transport._lenient = True  # about being told to go on after the end
        self.protocol.makeConnection(self.transport)
        self.protocol.dataReceived(REQUEST)
        self.transport.clear()

    def take(self, *pieces: bytes) -> tuple[list[tuple[str, bytes]], bytes, int]:
        """Have it take some bytes; what it saw, what it answered, and whether it is still open."""
        for piece in pieces:
            self.protocol.dataReceived(piece)
            # What is left for later turns.
            while self.clock.getDelayedCalls() and self.clock.getDelayedCalls()[0].getTime() <= 0.0:
                self.clock.advance(0)
        return self.protocol.seen, self.transport.value(), self.protocol.state


def masked(opcode: int, payload: bytes, *, mask: bytes, fin: bool = True) -> bytes:
    """Write a frame with a mask of one's own, so that a failure can be told again."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    body = bytes(octet ^ mask[place % 4] for place, octet in enumerate(payload))
    return bytes([0x80 * fin | opcode]) + length + mask + body


MASKS = st.binary(min_size=4, max_size=4)
TEXTS = st.text(max_size=40).map(str.encode) | st.sampled_from(
    [
        b"x" * 125,
        b"x" * 126,
        b"x" * 127,
        b"x" * SMALL,
        b"x" * (SMALL + 1),
        b"x" * MAX_SIZE,
        b"\xff",
        b"\xed\xa0\x80",
    ]
)
FRAMES = st.builds(masked, st.just(TEXT), TEXTS, mask=MASKS) | st.builds(
    masked,
    st.sampled_from([0, TEXT, BINARY, 3, CLOSE, PING, PONG, 11]),
    st.binary(max_size=130),
    mask=MASKS,
    fin=st.booleans(),
)
STREAMS = st.lists(FRAMES | st.binary(max_size=12), max_size=8).map(b"".join)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(bounds) if begin < end]


class ShortRoadTests(SynchronousTestCase):
    @settings(max_examples=300, deadline=None)
    @given(STREAMS, st.lists(st.integers(0, 30_000), max_size=6), st.sampled_from([MAX_SIZE, 2_000, 100]))
    @example(masked(TEXT, b"a", mask=b"abcd") + masked(TEXT, b"\xff", mask=b"abcd"), [], MAX_SIZE)
    @example(masked(TEXT, b"a", mask=b"abcd", fin=False) + masked(TEXT, b"b", mask=b"abcd"), [], MAX_SIZE)
    @example(masked(TEXT, b"a", mask=b"abcd") * (2 * FRAMES_A_TURN + 3), [5], MAX_SIZE)
    @example(masked(TEXT, b"x" * 2_001, mask=b"abcd"), [], 2_000)
    def test_it_gives_what_autobahn_gives(self, stream: bytes, places: list[int], most: int) -> None:
        pieces = cut(stream, places)
        self.assertEqual(Connection(Recording, most).take(*pieces), Connection(LongRoad, most).take(*pieces))

    def test_whole_frames_never_see_the_parser(self) -> None:
        connection = Connection(Recording)
        connection.protocol.processData = None
        mask = b"\x01\x02\x03\x04"
        texts = [b"", b"a", "é".encode(), b"x" * 125, b"x" * 126, b"x" * SMALL]
        stream = b"".join(masked(TEXT, text, mask=mask) for text in texts) + masked(PONG, b"64", mask=mask)
        seen, answered, _ = connection.take(stream)
        self.assertEqual(seen, [*(("text", text) for text in texts), ("pong", b"64")])
        self.assertEqual(answered, b"")

    def test_others_get_their_turn(self) -> None:
        connection = Connection(Recording)
        connection.protocol.dataReceived(masked(TEXT, b"a", mask=b"abcd") * (FRAMES_A_TURN + 1))
        self.assertEqual(len(connection.protocol.seen), FRAMES_A_TURN)
        connection.clock.advance(0)
        self.assertEqual(len(connection.protocol.seen), FRAMES_A_TURN + 1)

    def test_what_it_leaves_to_autobahn(self) -> None:
        mask = b"abcd"
        for left, why in (
            (b"", "nothing"),
            (masked(TEXT, b"abc", mask=mask)[:-1], "not whole"),
            (masked(TEXT, b"x" * (SMALL + 1), mask=mask), "not small"),
            (b"\x81\xfe\x00\x01" + mask + b"a", "not in the shortest form"),
            (b"\x81\x01a", "not masked"),
            (masked(TEXT, b"a", mask=mask, fin=False), "a fragment"),
            (masked(BINARY, b"a", mask=mask), "binary"),
            (masked(CLOSE, b"", mask=mask), "a close"),
            (masked(PING, b"", mask=mask), "a ping"),
            (b"\xc1\x81" + mask + b"a", "a reserved bit"),
            (masked(TEXT, b"\xff", mask=mask), "no UTF-8"),
        ):
            self.assertIsNone(whole_frame(left, 0), why)
