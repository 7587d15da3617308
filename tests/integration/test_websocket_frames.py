"""Frames over a real TCP socket: what breaks the rules of RFC 6455 ends the connection, and tells why."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from flowtx.channels.channel import Channel, ok
from flowtx.channels.router import Router
from flowtx.transports.reading import MAX_FRAGMENTS
from flowtx.transports.websocket import FlowProtocol
from tests.integration.rawclient import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawClient,
    close_frame,
    frame,
    request,
)
from tests.integration.websocket_server import HEARTBEAT, HEARTBEAT_REPLY, Server, reactor, until

HELLO = HEARTBEAT.encode()


async def assert_closed(client: RawClient, code: int | None, *, end: str = "fin") -> None:
    """The next frame is a close frame; answered, it is the last there is."""
    received = await client.frame()
    assert (received.opcode, received.code) == (CLOSE, code), received
    if client.end is None:
        client.send(close_frame(code))
    assert await client.ended() == end
    assert client.received == b""


BROKEN = {
    "not masked": (frame(TEXT, HELLO, masked=False), 1002),
    "a reserved bit": (frame(TEXT, HELLO, rsv=4), 1002),
    "all reserved bits": (frame(TEXT, HELLO, rsv=7), 1002),
    "opcode 3": (frame(3, b"x"), 1002),
    "opcode 7": (frame(7), 1002),
    "opcode 11": (frame(11), 1002),
    "opcode 15": (frame(15, b"x"), 1002),
    "a ping in fragments": (frame(PING, b"a", fin=False), 1002),
    "a close in fragments": (frame(CLOSE, fin=False), 1002),
    "a ping of 126 bytes": (frame(PING, bytes(126)), 1002),
    "a continuation of nothing": (frame(CONTINUATION, HELLO), 1002),
    "a message within a message": (frame(TEXT, b"[", fin=False) + frame(TEXT, HELLO), 1002),
    "a short length in 16 bits": (frame(TEXT, HELLO, size=16), 1002),
    "a short length in 64 bits": (frame(TEXT, HELLO, size=64), 1002),
    "a length of 2^63": (frame(TEXT, length=1 << 63), 1002),
    "a length of 2^62": (frame(TEXT, length=1 << 62), 1009),
    "text that is no UTF-8": (frame(TEXT, b"\xff"), 1007),
    "text that ends within a character": (frame(TEXT, b"\xc3"), 1007),
    "a surrogate in UTF-8": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "no UTF-8 in a later fragment": (frame(TEXT, b"[", fin=False) + frame(CONTINUATION, b"\xff"), 1007),
    "a frame that is too large": (frame(TEXT, bytes(65_537)), 1009),
    "a binary frame that is too large": (frame(BINARY, bytes(65_537)), 1009),
    "fragments that are": (frame(TEXT, bytes(65_536), fin=False) + frame(CONTINUATION, b"x"), 1009),
    "too many fragments": (
        frame(BINARY, fin=False) + frame(CONTINUATION, fin=False) * (MAX_FRAGMENTS - 1) + frame(CONTINUATION),
        1008,
    ),
    "a frame of garbage": (b"\xff" * 200, 1002),
}


@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN.keys())
@pytest_twisted.ensureDeferred
async def test_broken_frames(data: bytes, code: int) -> None:
    async with Server() as server:
        client, other = await server.open(), await server.open()
        client.send(data)
        received = await client.frame()
        assert (received.opcode, received.code) == (CLOSE, code), received
        client.send(close_frame(code))
        # The end of a frame that was not sent whole is not found.
        assert await client.ended() in (["fin", "reset"] if b"\xff" in data[:2] else ["fin"])
        assert client.received == b""
        assert await server.is_alive(other)
        # However much is wrong.
        assert len(server.lines("Closing 127.0.0.1")) == 1


CLOSES = {
    "1000 and a reason": (close_frame(1000, b"bye"), 1000),
    "no code": (close_frame(), None),
    "1001": (close_frame(1001), 1001),
    "1012": (close_frame(1012), 1012),
    "3000 and a reason": (close_frame(3000, "é".encode()), 3000),
    "4999": (close_frame(4999), 4999),
    "1005, which is not for the wire": (close_frame(1005), 1002),
    "1006, which is not either": (close_frame(1006), 1002),
    "999": (close_frame(999), 1002),
    "2999": (close_frame(2999), 1002),
    "5000": (close_frame(5000), 1002),
    "a code of one byte": (frame(CLOSE, b"\x03"), 1002),
    "a reason that is no UTF-8": (close_frame(1000, b"\xff"), 1007),
    "a reason that ends within a character": (close_frame(1000, b"\xc3"), 1007),
}


@pytest.mark.parametrize(("data", "code"), CLOSES.values(), ids=CLOSES.keys())
@pytest_twisted.ensureDeferred
async def test_the_client_closes(data: bytes, code: int | None) -> None:
    async with Server() as server:
        client = await server.open(join=True)
        client.send(data + frame(TEXT, HELLO))
        received = await client.frame()
        assert (received.opcode, received.code) == (CLOSE, code), received
        assert await client.ended() == "fin"
        # What it sent after its close frame is not answered.
        assert client.received == b""
        await until(lambda: not server.sessions.namedServices)


GOOD = {
    "whole": frame(TEXT, HELLO),
    "with its length in 16 bits": frame(TEXT, HELLO[:-3] + b'{"a":"' + b"x" * 200 + b'"}]'),
    "in two": frame(TEXT, HELLO[:9], fin=False) + frame(CONTINUATION, HELLO[9:]),
    "around empty fragments": frame(TEXT, fin=False)
    + frame(CONTINUATION, HELLO, fin=False)
    + frame(CONTINUATION),
    "with a pong in it": frame(TEXT, HELLO[:9], fin=False) + frame(PONG) + frame(CONTINUATION, HELLO[9:]),
    "in as many fragments as may be": frame(TEXT, HELLO, fin=False)
    + frame(CONTINUATION, fin=False) * (MAX_FRAGMENTS - 2)
    + frame(CONTINUATION),
    "with a character in two fragments": frame(TEXT, HELLO[:-3] + b'{"a":"\xc3', fin=False)
    + frame(CONTINUATION, b'\xa9"}]'),
    "of the largest size": frame(TEXT, HELLO[:-3] + b'{"a":"' + b"x" * (65_536 - len(HELLO) - 6) + b'"}]'),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
@pytest_twisted.ensureDeferred
async def test_good_frames(data: bytes) -> None:
    async with Server() as server:
        client = await server.open()
        # In two pieces, so that some part comes later.
        client.send(data[:1])
        await deferLater(reactor, 0)
        client.send(data[1:])
        assert (await client.frame()).payload == HEARTBEAT_REPLY
        assert await server.is_alive(client)


@pytest_twisted.ensureDeferred
async def test_the_server_writes_all_three_forms_of_length() -> None:
    async with Server() as server:
        client = await server.open(join=True)
        for size in (10, 1000, 60_000):
            client.text(f'["1","2","room:1","echo","{"x" * size}"]')
            assert len((await client.frame()).payload) > size
        client.text('["1",null,"room:1","flood",{"n":1,"size":70000}]')
        received = await client.frame()
        assert len(received.payload) > 70_000
        assert (received.opcode, received.fin, received.rsv) == (TEXT, True, 0)


@pytest_twisted.ensureDeferred
async def test_binary_goes_both_ways() -> None:
    async with Server() as server:
        client = await server.open(join=True)
        client.send(frame(BINARY, b"\x00\x01\x01\x06\x04" + b"1" + b"2" + b"room:1" + b"echo" + b"\x00\xff"))
        assert await client.frame() == (
            BINARY,
            b"\x01\x01\x01\x06\x02" + b"1" + b"2" + b"room:1" + b"ok" + b"\x00\xff",
            True,
            0,
        )


@pytest_twisted.ensureDeferred
async def test_pings_are_answered() -> None:
    async with Server() as server:
        client = await server.open()
        for payload in (b"", b"abc", bytes(125)):
            client.send(frame(PING, payload))
            assert await client.frame() == (PONG, payload, True, 0)
        client.send(frame(PONG, b"never asked for"))
        assert await server.is_alive(client)


class Slow(Channel):
    """Answers when it may."""

    gate: Deferred[None]

    async def handle_in(self, event: str, payload: Any) -> Any:
        waiting: Deferred[None] = Deferred()
        Slow.gate.addCallback(lambda _: waiting.callback(None))
        await waiting
        return ok(payload)


@pytest_twisted.ensureDeferred
async def test_no_more_is_read_than_can_be_handled() -> None:
    Slow.gate = Deferred()
    async with Server(router=Router().channel("room:*", Slow)) as server:
        client = await server.open(join=True)
        client.transport.setTcpNoDelay(True)
        [protocol] = server.protocols
        sent = 0
        while protocol.transport in reactor.getReaders() and sent < 1000:
            client.text(f'["1","{sent}","room:1","echo",{sent}]')
            sent += 1
            await deferLater(reactor, 0)
        assert 60 < sent < 500
        client.text(f'["1","{sent}","room:1","echo",{sent}]')
        await deferLater(reactor, 0.05)
        assert protocol.transport not in reactor.getReaders()
        Slow.gate.callback(None)
        for number in range(sent + 1):
            reply = f'["1","{number}","room:1","phx_reply",{{"response":{number},"status":"ok"}}]'
            assert (await client.frame()).payload.decode() == reply
        assert await server.is_alive(client)


# --- silence ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_silent_client_is_closed() -> None:
    async with Server(heartbeat_timeout=0.5) as server:
        client = await server.open(join=True)
        await assert_closed(client, 1002)
        await until(lambda: not server.sessions.namedServices)


@pytest.mark.parametrize("sign", [frame(PING), frame(PONG), frame(TEXT, HELLO)])
@pytest_twisted.ensureDeferred
async def test_any_frame_is_a_sign_of_life(sign: bytes) -> None:
    async with Server(heartbeat_timeout=0.5) as server:
        client = await server.open()
        for _ in range(6):
            client.send(sign)
            await deferLater(reactor, 0.2)
        assert client.end is None
        client.received = b""
        await assert_closed(client, 1002)


# --- the traps, with their guards and without ------------------------------------------------------


class WithoutFragmentLimit(FlowProtocol):
    def onMessageFrameBegin(self, length: int) -> None:
        WebSocketServerProtocol.onMessageFrameBegin(self, length)


@pytest.mark.parametrize("protocol", [FlowProtocol, WithoutFragmentLimit])
@pytest_twisted.ensureDeferred
async def test_endlessly_many_empty_fragments(protocol: type[FlowProtocol]) -> None:
    async with Server(protocol=protocol) as server:
        client = await server.open()
        client.send(frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) * 5000 + frame(PING, b"alive"))
        received = await client.frame()
        if protocol is FlowProtocol:
            assert (received.opcode, received.code) == (CLOSE, 1008)
        else:
            assert (received.opcode, received.payload) == (PONG, b"alive")


class KeepingAll(FlowProtocol):
    def onFrameData(self, payload: bytes) -> Any:
        return WebSocketServerProtocol.onFrameData(self, payload)


@pytest.mark.parametrize("protocol", [FlowProtocol, KeepingAll])
@pytest_twisted.ensureDeferred
async def test_a_broken_frame_is_not_kept(protocol: type[FlowProtocol]) -> None:
    async with Server(protocol=protocol) as server:
        client = await server.open()
        client.send(frame(PING, bytes(10), length=1 << 40) + bytes(1_000_000))
        assert (await client.frame()).code == 1002
        [made] = server.protocols
        await until(lambda: made.current_frame_masker.pointer() == 1_000_010)
        kept = sum(len(part) for part in made.control_frame_data) + len(made.data)
        assert (kept == 0) == (protocol is FlowProtocol)


class Breaking(FlowProtocol):
    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: N803 - Autobahn's
        raise RuntimeError("canary")


class BreakingUnguarded(Breaking):
    def dataReceived(self, data: bytes) -> None:
        WebSocketServerProtocol.dataReceived(self, data)

    def consumeData(self) -> None:
        WebSocketServerProtocol.consumeData(self)


@pytest.mark.parametrize("protocol", [Breaking, BreakingUnguarded])
@pytest_twisted.ensureDeferred
async def test_an_exception_in_onmessage(protocol: type[FlowProtocol]) -> None:
    async with Server(protocol=protocol, failures=1) as server:
        client = await server.open()
        client.send(frame(TEXT, HELLO) * 3)
        if protocol is BreakingUnguarded:
            # Without a word.
            assert await client.ended() == "fin"
            assert client.received == b""
            return
        received = await client.frame()
        assert (received.code, received.payload[2:]) == (1011, b"internal_error")
        assert await client.ended() == "fin"
        await until(lambda: not server.sessions.namedServices)


class BreakingOpen(FlowProtocol):
    def onOpen(self) -> None:
        super().onOpen()
        raise RuntimeError("canary")


class BreakingOpenUnguarded(BreakingOpen):
    def guard(self, call: Any, *arguments: object) -> None:
        call(*arguments)


@pytest.mark.parametrize("protocol", [BreakingOpen, BreakingOpenUnguarded])
@pytest_twisted.ensureDeferred
async def test_an_exception_in_onopen(protocol: type[FlowProtocol]) -> None:
    async with Server(protocol=protocol, failures=1, guarded=protocol is BreakingOpen) as server:
        client = await server.connect()
        client.send(request(server.target()))
        assert (await client.response()).status == 101
        if protocol is BreakingOpenUnguarded:
            await deferLater(reactor, 0.1)
            assert client.end is None, "open, as if nothing were wrong"
            return
        assert (await client.frame()).code == 1011
        assert await client.ended() == "fin"
        await until(lambda: not server.sessions.namedServices)
