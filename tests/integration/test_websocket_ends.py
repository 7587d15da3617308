"""How open connections end over a real TCP socket, and what a client that does not read can do."""

from __future__ import annotations

import time
from typing import Any

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from flowtx.channels import callbacks
from flowtx.channels.channel import Channel
from flowtx.channels.router import Router
from flowtx.protocol.close import DISCONNECT, Close
from flowtx.sessions.service import Claim
from flowtx.transports.websocket import FlowProtocol
from tests.integration.rawclient import CLOSE, PING, PONG, TEXT, RawClient, close_frame, frame, request
from tests.integration.websocket_server import JOIN, Server, reactor, until

FLOOD = '["1",null,"room:1","flood",{"n":%d,"size":%d}]'


async def assert_closes(client: RawClient, code: int, reason: str) -> None:
    """The server closes; the client answers, and is let go in order."""
    received = await client.frame()
    assert (received.opcode, received.code, received.payload[2:]) == (CLOSE, code, reason.encode()), received
    client.send(close_frame(code))
    assert await client.ended() == "fin"


# --- the server closes -----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_end_of_a_session_closes_its_connections_alone() -> None:
    async with Server() as server:
        joined, silent = await server.open(join=True), await server.open()
        other = await server.open("bob")
        stopped = Deferred.fromCoroutine(server.sessions.stop_session("alice"))
        await assert_closes(joined, 1000, "session_stopped")
        await assert_closes(silent, 1000, "session_stopped")
        assert await stopped is True
        assert not server.sessions.session_exists("alice")
        assert await server.is_alive(other)


@pytest_twisted.ensureDeferred
async def test_the_end_of_the_server_closes_all_joined_or_not() -> None:
    async with Server() as server:
        clients = [await server.open(join=True), await server.open(), await server.open("bob", vsn="1.0.0")]
        stopped = server.sessions.stopService()
        for client in clients:
            await assert_closes(client, 1012, "drain")
        await stopped
        assert not server.sessions.namedServices


@pytest_twisted.ensureDeferred
async def test_a_session_that_ends_while_a_client_is_let_in() -> None:
    class Ending(FlowProtocol):
        def onOpen(self) -> None:
            assert self._opened is not None
            assert isinstance(self._opened.claim, Claim)
            self._opened.claim.session.end("test")
            super().onOpen()

    async with Server(protocol=Ending) as server:
        client = await server.connect()
        client.send(request(server.target()))
        assert (await client.response()).status == 101
        await assert_closes(client, 1012, "drain")
        await until(lambda: not server.sessions.namedServices)


class WithoutOtherCodes(FlowProtocol):
    def close(self, close: Close) -> None:
        self.sendClose(close.code, close.reason)


@pytest.mark.parametrize("protocol", [FlowProtocol, WithoutOtherCodes])
@pytest_twisted.ensureDeferred
async def test_codes_other_than_1000_can_be_sent(protocol: type[FlowProtocol]) -> None:
    async with Server(protocol=protocol) as server:
        client = await server.open()
        if protocol is WithoutOtherCodes:
            with pytest.raises(Exception, match="invalid close code 1001"):
                server.protocols[0].close(DISCONNECT)
            return
        server.protocols[0].close(DISCONNECT)
        # A second time has no effect.
        server.protocols[0].close(DISCONNECT)
        await assert_closes(client, 1001, "disconnect")
        assert client.received == b""


class WithReset(FlowProtocol):
    def dropConnection(self, abort: bool = False) -> None:
        WebSocketServerProtocol.dropConnection(self, abort)


@pytest.mark.parametrize("protocol", [FlowProtocol, WithReset])
@pytest_twisted.ensureDeferred
async def test_a_close_that_is_answered_ends_without_a_reset(protocol: type[FlowProtocol]) -> None:
    async with Server(protocol=protocol) as server:
        client = await server.open()
        server.protocols[0].close(DISCONNECT)
        assert (await client.frame()).code == 1001
        client.send(close_frame(1001))
        assert await client.ended() == ("fin" if protocol is FlowProtocol else "reset")


@pytest_twisted.ensureDeferred
async def test_a_close_that_is_not_answered_is_waited_for_one_whole_second() -> None:
    async with Server() as server:
        clients = []
        for _ in range(4):
            clients.append(await server.open())
            server.protocols[-1].close(DISCONNECT)
            # Autobahn's own timer would round some of these down.
            await deferLater(reactor, 0.2)
        before = time.monotonic()
        for client in clients:
            assert (await client.frame()).code == 1001
        assert await clients[-1].ended() == "reset"
        assert 0.75 < time.monotonic() - before < 5
        assert all(client.end == "reset" for client in clients)


@pytest_twisted.ensureDeferred
async def test_a_client_may_leave_instead_of_answering() -> None:
    async with Server() as server:
        client = await server.open()
        server.protocols[0].close(DISCONNECT)
        assert (await client.frame()).code == 1001
        client.finish()
        assert await client.ended() == "fin"


@pytest_twisted.ensureDeferred
async def test_what_comes_after_the_servers_close_frame_is_not_handled() -> None:
    async with Server() as server:
        client = await server.open()
        server.protocols[0].close(DISCONNECT)
        assert (await client.frame()).code == 1001
        socket = server.protocols[0]._socket
        assert socket is not None
        client.send(frame(TEXT, JOIN.encode()) * 20 + frame(PING))
        client.send(close_frame(1001))
        assert await client.ended() == "fin"
        assert client.received == b""
        assert socket.topics == ()
        assert not server.lines("malformed")


@pytest_twisted.ensureDeferred
async def test_a_close_is_answered_even_where_reading_was_paused() -> None:
    async with Server() as server:
        client = await server.open()
        [protocol] = server.protocols
        protocol.pause_reading()
        protocol.close(DISCONNECT)
        await assert_closes(client, 1001, "disconnect")


# --- the client leaves -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["finish", "reset"])
@pytest_twisted.ensureDeferred
async def test_a_client_leaves_without_a_word(how: str) -> None:
    async with Server() as server:
        client = await server.open(join=True)
        getattr(client, how)()
        await until(lambda: not server.sessions.namedServices)


class Lasting(Channel):
    """Does not end."""

    def terminate(self, reason: str) -> Any:
        return Deferred(lambda _: None)


class Failing(Channel):
    def terminate(self, reason: str) -> Any:
        raise RuntimeError("canary")


@pytest_twisted.ensureDeferred
async def test_a_channel_that_does_not_end_holds_its_session_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert callbacks.STOP_TIMEOUT == 5
    monkeypatch.setattr(callbacks, "STOP_TIMEOUT", 0.3)
    async with Server(router=Router().channel("room:*", Lasting)) as server:
        client = await server.open(join=True)
        client.reset()
        await until(lambda: server.protocols[0]._opened is None)
        assert server.sessions.session_exists("alice")
        await until(lambda: not server.sessions.namedServices, within=1)


@pytest_twisted.ensureDeferred
async def test_a_channel_that_fails_to_end_releases_its_session() -> None:
    async with Server(router=Router().channel("room:*", Failing), failures=1) as server:
        client = await server.open(join=True)
        client.reset()
        await until(lambda: not server.sessions.namedServices)


@pytest_twisted.ensureDeferred
async def test_a_socket_that_fails_to_end_releases_its_session() -> None:
    async with Server(failures=1) as server:
        client = await server.open(join=True)
        socket = server.protocols[0]._socket
        assert socket is not None
        end = socket.connection_lost

        def broken() -> Any:
            end()
            raise RuntimeError("canary")

        socket.connection_lost = broken  # type: ignore[method-assign]
        client.reset()
        await until(lambda: not server.sessions.namedServices)


# --- clients that do not read ----------------------------------------------------------------------


def waiting(protocol: FlowProtocol) -> int:
    """How many bytes wait for a client in this process."""
    transport, outbox = protocol.transport, protocol._outbox
    queued = 0 if outbox is None else outbox.waiting_bytes
    return int(len(transport.dataBuffer) - transport.offset + transport._tempDataLen + queued)


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_nothing_is_closed() -> None:
    limit = 200_000
    async with Server(outbox_limit=limit) as server:
        client, other = await server.open(join=True), await server.open("alice", join=True)
        client.stop_reading()
        [protocol, _] = server.protocols
        most = 0
        while protocol.state == protocol.STATE_OPEN:
            client.text(FLOOD % (10, 10_000))
            await deferLater(reactor, 0)
            most = max(most, waiting(protocol))
        [waited] = [
            event["waiting_bytes"]
            for event in protocol.factory.recorder.events("alice")
            if event["event"] == "slow_consumer"
        ]
        # Nothing more was read of a client for whom a quarter of the limit waited; its age closed it.
        assert limit // 4 < waited < limit + 10_100
        assert most < limit + 2 * 65_536 + 10_100
        assert len(server.lines("1013 slow_consumer")) == 1
        # The close frame is behind what the kernel and the transport hold already.
        client.go_on_reading()
        last = await client.frame()
        while last.opcode == TEXT:
            last = await client.frame()
        assert (last.code, last.payload[2:]) == (1013, b"slow_consumer")
        # The Session and its other connection live on.
        assert await server.is_alive(other)
        assert server.sessions.session_exists("alice")


@pytest_twisted.ensureDeferred
async def test_a_client_that_never_reads_again_is_cut() -> None:
    async with Server(outbox_limit=100_000) as server:
        client = await server.open(join=True)
        client.stop_reading()
        [protocol] = server.protocols
        client.text(FLOOD % (1000, 10_000))
        await until(lambda: protocol.state != protocol.STATE_OPEN)
        before = time.monotonic()
        await until(lambda: not server.sessions.namedServices)
        assert time.monotonic() - before < 5
        client.reset()


@pytest_twisted.ensureDeferred
async def test_nothing_is_lost_or_reordered_over_a_pause() -> None:
    async with Server(outbox_limit=50_000_000) as server:
        client = await server.open(join=True)
        client.stop_reading()
        [protocol] = server.protocols
        client.text(FLOOD % (2000, 10_000))
        await until(lambda: protocol._outbox is not None and protocol._outbox.waiting_bytes > 1_000_000)
        client.send(frame(PING, b"first") + frame(PING, b"last"))
        await deferLater(reactor, 0.05)
        client.go_on_reading()
        numbers: list[int] = []
        pongs: list[bytes] = []
        while len(numbers) < 2000 or not pongs:
            received = await client.frame()
            if received.opcode == PONG:
                pongs.append(received.payload)
            else:
                numbers.append(int(received.payload.split(b'"number":')[1].split(b",")[0].rstrip(b"}]")))
        assert numbers == list(range(2000))
        # Only the last of several pings need be answered.
        assert pongs == [b"last"]
        assert await server.is_alive(client)


class PilingPongs(FlowProtocol):
    def onPing(self, payload: bytes) -> None:
        WebSocketServerProtocol.onPing(self, payload)


@pytest.mark.parametrize("protocol", [FlowProtocol, PilingPongs])
@pytest_twisted.ensureDeferred
async def test_answers_to_pings_do_not_pile_up(protocol: type[FlowProtocol]) -> None:
    pings = frame(PING, bytes(125)) * 500
    async with Server(protocol=protocol, ping_rate=1_000_000) as server:
        client = await server.open()
        client.stop_reading()
        [made] = server.protocols
        sent = 0
        # Some megabytes fill what the kernel takes.
        while sent < 16_000_000 and waiting(made) < 1_000_000:
            client.send(pings)
            sent += len(pings)
            await until(lambda: client.transport._tempDataLen + len(client.transport.dataBuffer) < 200_000)
        assert (waiting(made) < 200_000) == (protocol is FlowProtocol)
        if protocol is FlowProtocol:
            client.go_on_reading()
            await until(lambda: waiting(made) == 0)
            client.received = b""
        else:
            client.reset()


class PausingBreaks(FlowProtocol):
    """Does not stop its outbox when Autobahn closes."""

    def sendCloseFrame(self, *args: Any, **options: Any) -> None:
        WebSocketServerProtocol.sendCloseFrame(self, *args, **options)


@pytest.mark.parametrize("protocol", [FlowProtocol, PausingBreaks])
@pytest_twisted.ensureDeferred
async def test_nothing_follows_a_close_frame(protocol: type[FlowProtocol]) -> None:
    async with Server(protocol=protocol, outbox_limit=50_000_000) as server:
        client = await server.open(join=True)
        client.stop_reading()
        [made] = server.protocols
        client.text(FLOOD % (1000, 10_000))
        await until(lambda: made._outbox is not None and made._outbox.waiting_bytes > 1_000_000)
        client.send(frame(3))
        await until(lambda: made.state != made.STATE_OPEN)
        client.go_on_reading()
        codes: list[int] = []
        while not codes or client.received:
            received = await client.frame()
            codes += [received.opcode] if received.opcode == CLOSE or codes else []
            if received.opcode == CLOSE:
                await deferLater(reactor, 0.1)
        assert (codes == [CLOSE]) == (protocol is FlowProtocol)
