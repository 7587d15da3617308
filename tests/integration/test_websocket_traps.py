"""Each trap that an opening handshake can fall into, with its guard, and what happens without it.

``Without…`` are `FlowProtocol` with one guard taken out. A test that takes both shows that it would
fail if the guard were lost.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import pytest_twisted
import txaio
from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.python.failure import Failure

from flowtx.transports.websocket import MAX_HEAD, MAX_HELD, FlowProtocol
from tests.integration.rawclient import TEXT, frame, request
from tests.integration.test_websocket import BrokenVerifier, assert_refused
from tests.integration.websocket_server import (
    HEARTBEAT,
    HEARTBEAT_REPLY,
    JOIN,
    JOINED,
    Server,
    SlowDirectory,
    StubbornVerifier,
    until,
    users,
)


class Counting(FlowProtocol):
    """Counts the calls of Autobahn's hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def onConnect(self, request: Any) -> Any:
        self.calls.append("connect")
        return super().onConnect(request)

    def onOpen(self) -> None:
        self.calls.append("open")
        super().onOpen()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: N803 - Autobahn's
        self.calls.append("message")
        super().onMessage(payload, isBinary)

    def onClose(self, *args: Any) -> None:
        self.calls.append("close")
        super().onClose(*args)


def calls(server: Server) -> list[str]:
    [protocol] = server.protocols
    assert isinstance(protocol, Counting)
    return protocol.calls


# --- what comes while onConnect waits --------------------------------------------------------------


class WithoutHold(Counting):
    def _hold(self, data: bytes) -> None:
        WebSocketServerProtocol._dataReceived(self, data)


@pytest.mark.parametrize("protocol", [Counting, WithoutHold])
@pytest_twisted.ensureDeferred
async def test_a_second_request_is_not_a_second_handshake(protocol: type[Counting]) -> None:
    directory = SlowDirectory(users())
    async with Server(protocol=protocol, directory=directory, guarded=protocol is Counting) as server:
        client = await server.connect()
        client.send(request(server.target("alice")))
        await until(lambda: directory.asked)
        client.send(request(server.target("bob")))
        if protocol is WithoutHold:
            await until(lambda: calls(server) == ["connect", "connect"])
            assert server.sessions.session_exists("bob")
            return
        await until(lambda: server.protocols[0].data)
        assert calls(server) == ["connect"]
        assert not server.sessions.session_exists("bob")
        directory.answer()
        assert (await client.response()).status == 101
        # As frames, it makes no sense.
        assert (await client.frame()).code == 1002
        await client.ended()
        assert calls(server) == ["connect", "open", "close"]


@pytest.mark.parametrize("protocol", [Counting, WithoutHold])
@pytest_twisted.ensureDeferred
async def test_frames_behind_the_request_come_after_its_answer_in_order(protocol: type[Counting]) -> None:
    directory = SlowDirectory(users())
    async with Server(protocol=protocol, directory=directory, guarded=protocol is Counting) as server:
        client = await server.connect()
        head = request(server.target())
        client.send(head + frame(TEXT, JOIN.encode()))
        await until(lambda: directory.asked)
        later = frame(TEXT, b'["1","2","room:1","echo",{"n":2}]') + frame(TEXT, HEARTBEAT.encode())
        client.send(later + (head if protocol is WithoutHold else b""))
        if protocol is WithoutHold:
            # Taken for a request: at best a bad one.
            assert (await client.response()).status == 400
            return
        await until(lambda: len(server.protocols[0].data) > len(later))
        assert client.received == b""
        directory.answer()
        assert (await client.response()).status == 101
        answers = [(await client.frame()).payload for _ in range(3)]
        reply = b'["1","2","room:1","phx_reply",{"response":{"n":2},"status":"ok"}]'
        assert answers == [JOINED, reply, HEARTBEAT_REPLY]


class Forgetful(Counting):
    """Goes on after a refusal."""

    def dropConnection(self, abort: bool = False) -> None:
        self.transport.loseConnection()
        self.state = self.STATE_OPEN
        self.inside_message, self.current_frame = False, None
        WebSocketServerProtocol.consumeData(self)


@pytest.mark.parametrize("protocol", [Counting, Forgetful])
@pytest_twisted.ensureDeferred
async def test_frames_behind_a_refused_request_are_no_messages(protocol: type[Counting]) -> None:
    directory = SlowDirectory([])
    async with Server(protocol=protocol, directory=directory, guarded=protocol is Counting) as server:
        client = await server.connect()
        client.send(request(server.target()) + frame(TEXT, HEARTBEAT.encode()))
        await until(lambda: directory.asked)
        client.send(frame(TEXT, HEARTBEAT.encode()))
        await until(lambda: len(server.protocols[0].data) > 60)
        directory.answer()
        assert_refused(await client.response(), 403, "unknown_user")
        await client.ended()
        await until(lambda: "close" in calls(server))
        assert ("message" in calls(server)) == (protocol is Forgetful)


@pytest_twisted.ensureDeferred
async def test_what_is_held_is_bounded() -> None:
    directory = SlowDirectory(users())
    async with Server(directory=directory) as server:
        client = await server.connect()
        client.send(request(server.target()))
        await until(lambda: directory.asked)
        client.send(bytes(MAX_HELD))
        [protocol] = server.protocols
        await until(lambda: len(protocol.data) == MAX_HELD)
        assert client.end is None
        client.send(b"x")
        assert_refused(await client.response(), 400, "bad_request")
        await client.ended()
        directory.answer()
        await until(lambda: not server.sessions.namedServices)
        assert len(server.lines("Refused")) == 1


# --- clients that leave ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["finish", "reset"])
@pytest.mark.parametrize("more", [b"", frame(TEXT, HEARTBEAT.encode())])
@pytest_twisted.ensureDeferred
async def test_a_client_leaves_while_its_user_is_looked_up(how: str, more: bytes) -> None:
    directory = SlowDirectory(users())
    async with Server(protocol=Counting, directory=directory) as server:
        client = await server.connect()
        client.send(request(server.target()))
        await until(lambda: directory.asked)
        if more:
            client.send(more)
            await until(lambda: server.protocols[0].data == more)
        getattr(client, how)()
        # Noticed at once, not when the look-up ends.
        await until(lambda: calls(server) == ["connect", "close"])
        directory.answer()
        await until(lambda: not server.sessions.namedServices)
        assert calls(server) == ["connect", "close"]


class WithoutLateCheck(Counting):
    def _is_late(self) -> bool:
        return False


@pytest.mark.parametrize("protocol", [Counting, WithoutLateCheck])
@pytest.mark.parametrize("how", ["finish", "reset"])
@pytest_twisted.ensureDeferred
async def test_a_decision_that_comes_late_opens_nothing(protocol: type[Counting], how: str) -> None:
    verifier = StubbornVerifier()
    server = Server(protocol=protocol, verifier=verifier, guarded=protocol is Counting)
    async with server:
        client = await server.connect()
        client.send(request(server.target()))
        await until(lambda: calls(server) == ["connect"])
        getattr(client, how)()
        await until(lambda: verifier.cancelled)
        verifier.done.callback(None)
        await until(lambda: verifier.answered)
        if protocol is WithoutLateCheck:
            assert calls(server) == ["connect", "close", "open"]
            session = server.sessions.get_session("alice")
            assert session is not None
            assert session.sockets, "a zombie"
            # To leave the reactor clean.
            server.protocols[0].onClose(False, None, None)
        await until(lambda: not server.sessions.namedServices)
        assert calls(server)[:2] == ["connect", "close"]
        assert (len(calls(server)) == 2) == (protocol is Counting)


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n"])
@pytest_twisted.ensureDeferred
async def test_closed_before_it_was_asked_to_connect(data: bytes) -> None:
    async with Server(protocol=Counting) as server:
        client = await server.connect()
        client.send(data)
        client.finish()
        await client.ended()
        await until(lambda: calls(server) == ["close"])


@pytest_twisted.ensureDeferred
async def test_onclose_may_come_twice() -> None:
    async with Server() as server:
        first, second = await server.open(), await server.open()
        session = server.sessions.get_session("alice")
        assert session is not None
        server.protocols[0].onClose(True, 1000, None)
        server.protocols[0].onClose(True, 1000, None)
        assert session._claims == 1
        assert await server.is_alive(second)
        first.reset()


# --- heads without an end --------------------------------------------------------------------------


class WithoutHeadLimit(FlowProtocol):
    def processHandshake(self) -> None:
        WebSocketServerProtocol.processHandshake(self)


@pytest.mark.parametrize("protocol", [FlowProtocol, WithoutHeadLimit])
@pytest_twisted.ensureDeferred
async def test_an_endless_head(protocol: type[FlowProtocol]) -> None:
    size = 1_000_000
    async with Server(protocol=protocol) as server:
        client = await server.connect()
        before = time.monotonic()
        client.send(request(server.target())[:-2] + b"X-Pad: " + bytes([120]) * size)
        if protocol is WithoutHeadLimit:
            await until(lambda: server.protocols and len(server.protocols[0].data) > size)
            return
        await client.ended()
        assert time.monotonic() - before < 4
        assert len(server.protocols[0].data) <= MAX_HEAD + 65_536
        assert len(server.lines("431 request_too_large")) == 1


@pytest.mark.parametrize("ends", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_head_that_is_too_large_is_told_so(ends: bool) -> None:
    async with Server() as server:
        head = request(server.target(), ("X-Pad", "x" * MAX_HEAD))
        assert_refused(await server.ask(head if ends else head[:-4]), 431, "request_too_large")


@pytest_twisted.ensureDeferred
async def test_a_head_of_just_the_largest_size() -> None:
    async with Server() as server:
        target = server.target()
        size = MAX_HEAD + 4 - len(request(target, ("X-Pad", "")))
        client = await server.connect()
        client.send(request(target, ("X-Pad", "x" * size)))
        assert (await client.response()).status == 101
        response = await server.ask(request(target, ("X-Pad", "x" * (size + 1))))
        assert response.status == 431


@pytest.mark.parametrize(("extra", "status"), [(95, 101), (96, 431)])
@pytest_twisted.ensureDeferred
async def test_a_hundred_header_lines_will_do(extra: int, status: int) -> None:
    async with Server() as server:
        client = await server.connect()
        client.send(request(server.target(), *[("X-Pad", "1")] * extra))
        assert (await client.response()).status == status


# --- the text of exceptions ------------------------------------------------------------------------


class WithoutFixedWords(FlowProtocol):
    def _denied(self, failure: Failure) -> Any:
        return failure

    def failHandshake(self, *args: Any) -> None:
        WebSocketServerProtocol.failHandshake(self, *args)


@pytest.mark.parametrize("protocol", [FlowProtocol, WithoutFixedWords])
@pytest_twisted.ensureDeferred
async def test_the_text_of_an_exception_is_not_told(protocol: type[FlowProtocol]) -> None:
    guarded = protocol is FlowProtocol
    async with Server(protocol=protocol, verifier=BrokenVerifier(), failures=int(guarded)) as server:
        client = await server.connect()
        client.send(request(server.target()))
        response = await client.response()
        assert response.status == 500
        assert (b"canary" in response.head) != guarded


class Talking(FlowProtocol):
    log = WebSocketServerProtocol.log


@pytest.mark.parametrize("protocol", [FlowProtocol, Talking])
@pytest_twisted.ensureDeferred
async def test_autobahn_says_nothing(protocol: type[FlowProtocol]) -> None:
    txaio.set_global_log_level("debug")
    try:
        async with Server(protocol=protocol, guarded=protocol is FlowProtocol) as server:
            client = await server.open()
            client.send(frame(3))
            assert (await client.frame()).code == 1002
            assert (await server.ask(request("/nothing?token=canary"))).status == 404
            told = server.lines("Sec-WebSocket-Key")
    finally:
        txaio.set_global_log_level("info")
    assert (told == []) == (protocol is FlowProtocol)
    assert (server.lines("autobahn") == []) == (protocol is FlowProtocol)
