"""Clients that send too much, or never end, over real TCP sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.task import deferLater

from flowtx.protocol.close import Close
from flowtx.transports.reading import STEPS_A_TURN
from flowtx.transports.websocket import FlowProtocol
from tests.integration.rawclient import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    RawClient,
    Received,
    Response,
    close_frame,
    frame,
    request,
)
from tests.integration.test_slow_consumers import UNLIMITED
from tests.integration.websocket_server import HEARTBEAT, Server, reactor, until

HELLO = HEARTBEAT.encode()
MADE_UP = Close(4000, "made up")


async def until_closed(client: RawClient) -> tuple[list[Received], Received]:
    """Read up to the close frame."""
    frames = [await client.frame()]
    while frames[-1].opcode != CLOSE:
        frames.append(await client.frame())
    client.send(close_frame(frames[-1].code))
    assert await client.ended() == "fin"
    assert client.received == b""
    return frames[:-1], frames[-1]


def limited(server: Server, limit: str) -> float | None:
    registry = server.factory.metrics.registry
    return registry.get_sample_value("flowtx_rate_limited_total", {"limit": limit})


# --- over a limit ----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_flood_of_messages_is_refused_and_closed() -> None:
    async with Server() as server:
        client, bystander = await server.open(join=True), await server.open("bob")
        client.send(frame(TEXT, b'["1","7","room:1","echo",{}]') * 1_000)
        answers, closed = await until_closed(client)
        bodies = [json.loads(answer.payload)[4] for answer in answers]
        refused = [body["response"] for body in bodies if body["status"] == "error"]
        assert 100 <= len(bodies) - len(refused) < 110
        assert [response["reason"] for response in refused] == ["rate_limited"] * 3
        assert all(0 < response["retry_after_ms"] <= 20 for response in refused)
        assert (closed.code, closed.payload[2:]) == (1008, b"rate_limited retry_after_ms=2000")
        assert limited(server, "messages") == 3
        assert len(server.lines("Closing 127.0.0.1: 1008 rate_limited")) == 1
        assert await server.is_alive(bystander)


@pytest_twisted.ensureDeferred
async def test_a_flood_of_joins_is_refused_and_closed() -> None:
    async with Server() as server:
        client, bystander = await server.open(), await server.open("bob")
        for number in range(1_000):
            client.text(f'["{number}","{number}","room:{number}","phx_join",{{}}]')
        answers, closed = await until_closed(client)
        reasons = [json.loads(answer.payload)[4]["response"].get("reason") for answer in answers]
        assert reasons[:100] == [None] * 100
        assert reasons[100:110] == ["too many channels joined"] * 10
        assert reasons[-3:] == ["rate_limited"] * 3
        assert len(reasons) < 130
        assert closed.code == 1008
        assert limited(server, "joins") == 3
        assert await server.is_alive(bystander)


@pytest_twisted.ensureDeferred
async def test_a_flood_of_pings_is_closed() -> None:
    async with Server() as server:
        client, bystander = await server.open(), await server.open("bob")
        client.send(frame(PING, b"x") * 1_000)
        answers, closed = await until_closed(client)
        assert [answer.opcode for answer in answers] == [PONG] * len(answers)
        assert 10 <= len(answers) < 15
        assert (closed.code, closed.payload[2:]) == (1008, b"rate_limited retry_after_ms=2000")
        assert limited(server, "pings") == 1
        assert await server.is_alive(bystander)


@pytest_twisted.ensureDeferred
async def test_a_flood_of_pings_from_a_client_that_does_not_read_ends() -> None:
    async with Server() as server:
        client = await server.open()
        client.stop_reading()
        client.send(frame(PING, bytes(125)) * 50_000)
        await until(lambda: not server.sessions.namedServices)
        client.reset()


# --- turns -----------------------------------------------------------------------------------------


class Recording(FlowProtocol):
    """Notes what is handled, on all connections; ``first`` is called at the first of it."""

    handled: list[bytes]
    first: Any = None

    def onPong(self, payload: bytes) -> None:
        self._note(payload)
        super().onPong(payload)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: N803 - Autobahn's
        self._note(b"message")
        super().onMessage(payload, isBinary)

    def _note(self, what: bytes) -> None:
        cls = type(self)
        cls.handled.append(what)
        if len(cls.handled) == 1:
            cls.first()


class InOneGo(Recording):
    def dataReceived(self, data: bytes) -> None:
        WebSocketServerProtocol.dataReceived(self, data)

    def consumeData(self) -> None:
        WebSocketServerProtocol.consumeData(self)


@pytest.mark.parametrize("protocol", [Recording, InOneGo])
@pytest_twisted.ensureDeferred
async def test_many_small_frames_do_not_keep_others_from_their_turn(protocol: type[Recording]) -> None:
    numbers = [b"%d" % number for number in range(6_000)]
    async with Server(protocol=protocol) as server:
        client, bystander = await server.open(), await server.open("bob")
        protocol.handled = []
        protocol.first = lambda: bystander.text(HEARTBEAT)
        # As if they had come in one segment.
        reactor.callLater(
            0, server.protocols[0].dataReceived, b"".join(frame(PONG, each) for each in numbers)
        )
        await bystander.frame()
        before = protocol.handled.index(b"message")
        if protocol is InOneGo:
            assert before == len(numbers)
            return
        assert STEPS_A_TURN // 2 <= before < 20 * STEPS_A_TURN
        await until(lambda: len(protocol.handled) == len(numbers) + 1)
        protocol.handled.remove(b"message")
        assert protocol.handled == numbers
        assert await server.is_alive(client)


@pytest_twisted.ensureDeferred
async def test_many_small_messages_are_all_answered_in_order() -> None:
    async with Server(rate_limit=UNLIMITED) as server:
        client = await server.open(join=True)
        for half in (0, 5_000):
            client.send(
                b"".join(
                    frame(TEXT, f'["1","{number}","room:1","echo",{{}}]'.encode())
                    for number in range(half, half + 5_000)
                )
            )
        client.send(frame(PING, b"last") + close_frame(1000))
        answers, _ = await until_closed_by_client(client)
        assert [json.loads(each.payload)[1] for each in answers if each.opcode == TEXT] == [
            f"{number}" for number in range(10_000)
        ]


async def until_closed_by_client(client: RawClient) -> tuple[list[Received], Received]:
    """Read up to the answer to the client's close frame."""
    frames = [await client.frame()]
    while frames[-1].opcode != CLOSE:
        frames.append(await client.frame())
    assert await client.ended() == "fin"
    return frames[:-1], frames[-1]


@pytest_twisted.ensureDeferred
async def test_a_turn_does_not_undo_a_pause() -> None:
    async with Server() as server:
        client = await server.open()
        [made] = server.protocols
        made.dataReceived(frame(PONG) * STEPS_A_TURN)
        assert made.transport not in reactor.getReaders()
        made.pause_reading()
        await deferLater(reactor, 0.05)
        assert made.transport not in reactor.getReaders()
        made.resume_reading()
        assert await server.is_alive(client)
        assert made.data == b""


@pytest_twisted.ensureDeferred
async def test_a_close_frame_behind_much_else_is_found() -> None:
    async with Server() as server:
        client = await server.open()
        [made] = server.protocols
        made.pause_reading()
        client.send(frame(PONG) * 5_000 + close_frame(1000))
        await deferLater(reactor, 0.05)
        made.close(MADE_UP)
        received = await client.frame()
        assert received.code == 4000
        assert await client.ended() == "fin"


# --- half-open clients -----------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_client_that_sends_and_does_not_answer_pings_is_closed() -> None:
    async with Server(ping_interval=0.3, pong_timeout=0.4) as server:
        client, other = await server.open(), await server.open("bob")
        seen: list[Received] = []
        while not seen or seen[-1].opcode != CLOSE:
            client.text(HEARTBEAT)
            while (await_one := await client.frame()).opcode == PING:
                seen.append(await_one)
            seen.append(await_one)
            other.text(HEARTBEAT)
            await other.message()
            await deferLater(reactor, 0.02)
        assert [each.payload for each in seen if each.opcode == PING] == [b"alive?"]
        assert (seen[-1].code, seen[-1].payload[2:]) == (1002, b"heartbeat_timeout")
        await until(lambda: not server.sessions.session_exists("alice"))
        assert server.sessions.session_exists("bob")


# --- messages without an end -----------------------------------------------------------------------


class Impatient(FlowProtocol):
    message_timeout = 0.5


BEGUN = {
    "a fragment": frame(TEXT, b"[", fin=False),
    "a fragment and pings": frame(TEXT, b"[", fin=False) + frame(PING) * 2,
    "half a frame": frame(TEXT, HELLO)[:-3],
    "half a header": frame(TEXT, HELLO)[:1],
    "a whole message and half of one": frame(TEXT, HELLO) + frame(TEXT, HELLO)[:9],
    "half a ping": frame(PING, b"abc")[:-1],
}


@pytest.mark.parametrize("data", BEGUN.values(), ids=BEGUN.keys())
@pytest_twisted.ensureDeferred
async def test_a_message_must_end(data: bytes) -> None:
    assert FlowProtocol.message_timeout == 30
    async with Server(protocol=Impatient) as server:
        client = await server.open()
        client.send(data)
        answers, closed = await until_closed_even_so(client)
        assert (closed.code, closed.payload[2:]) == (1008, b"message_timeout")
        assert all(answer.opcode in (PONG, TEXT) for answer in answers)


async def until_closed_even_so(client: RawClient) -> tuple[list[Received], Received]:
    """Read up to the close frame, which cannot be answered within a frame."""
    frames = [await client.frame()]
    while frames[-1].opcode != CLOSE:
        frames.append(await client.frame())
    await client.ended()
    return frames[:-1], frames[-1]


@pytest_twisted.ensureDeferred
async def test_messages_that_end_in_time_may_go_on_for_ever() -> None:
    """Each piece ends one message and begins another."""
    async with Server(protocol=Impatient) as server:
        client = await server.open()
        data = frame(TEXT, HELLO)
        client.send(data[:10])
        for _ in range(8):
            await deferLater(reactor, 0.2)
            client.send(data[10:] + data[:10])
            assert (await client.frame()).opcode == TEXT
        client.send(data[10:])
        assert (await client.frame()).opcode == TEXT
        await deferLater(reactor, 0.8)
        assert await server.is_alive(client)


@pytest_twisted.ensureDeferred
async def test_while_nothing_is_read_a_message_cannot_end() -> None:
    async with Server(protocol=Impatient) as server:
        client = await server.open()
        [made] = server.protocols
        data = frame(TEXT, HELLO)
        made.dataReceived(data[:10])
        made.pause_reading()
        await deferLater(reactor, 0.9)
        made.resume_reading()
        await deferLater(reactor, 0.3)
        client.send(data[10:])
        assert (await client.frame()).opcode == TEXT


# --- addresses -------------------------------------------------------------------------------------


async def come_from(server: Server, *addresses: str) -> tuple[RawClient, Response]:
    """Connect by way of a proxy."""
    client = await server.connect()
    client.send(request(server.target(), *(("X-Forwarded-For", address) for address in addresses)))
    return client, await client.response()


@pytest_twisted.ensureDeferred
async def test_one_address_has_so_many_connections() -> None:
    async with Server(max_connections_per_address=2, trusted_proxies=("127.0.0.0/8",)) as server:
        first, response = await come_from(server, "8.8.8.8")
        assert response.status == 101
        assert server.protocols[0].address == "8.8.8.8"
        assert (await come_from(server, "6.6.6.6, 8.8.8.8"))[1].status == 101
        for _ in range(3):
            _, response = await come_from(server, "8.8.8.8")
            assert (response.status, json.loads(response.body)) == (429, {"reason": "rate_limited"})
            assert response.headers["retry-after"] == "1"
        assert limited(server, "addresses") == 3
        assert len(server.lines("Refused 8.8.8.8: 429 rate_limited")) == 3
        assert (await come_from(server, "8.8.4.4"))[1].status == 101
        assert (await come_from(server, "2606:4700::1"))[1].status == 101
        assert (await come_from(server, "2606:4700::2"))[1].status == 101
        assert (await come_from(server, "2606:4700::3"))[1].status == 429
        # Whose address is not public are not counted.
        for _ in range(4):
            assert (await come_from(server))[1].status == 101
            assert (await come_from(server, "10.1.2.3"))[1].status == 101
        first.reset()
        await until(lambda: server.protocols[0].counted_as is None)
        assert (await come_from(server, "8.8.8.8"))[1].status == 101


@pytest_twisted.ensureDeferred
async def test_one_address_has_so_many_handshakes_good_or_bad() -> None:
    async with Server(handshake_rate_per_address=1, trusted_proxies=("127.0.0.1",)) as server:
        for _ in range(2):
            client = await server.connect()
            client.send(request("/nothing", ("X-Forwarded-For", "8.8.8.8")))
            assert (await client.response()).status == 404
        assert (await come_from(server, "8.8.8.8"))[1].status == 429
        assert (await come_from(server, "8.8.4.4"))[1].status == 101


@pytest_twisted.ensureDeferred
async def test_without_a_trusted_proxy_nobody_can_claim_an_address() -> None:
    async with Server(max_connections_per_address=1) as server:
        for _ in range(3):
            assert (await come_from(server, "8.8.8.8"))[1].status == 101
        assert {protocol.address for protocol in server.protocols} == {"127.0.0.1"}
