"""Clients that do not read, over real TCP sockets: what they cost, and how they end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from resource import getpagesize
from typing import Any

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.task import deferLater

from flowtx.protocol.message import Broadcast
from flowtx.transports.websocket import FlowProtocol
from tests.integration.rawclient import CLOSE, PING, PONG, TEXT, RawClient, frame
from tests.integration.websocket_server import HEARTBEAT, Server, reactor, until

LIMIT = 262_144
UNLIMITED = "1000000/1000000"


def held(protocol: FlowProtocol) -> int:
    """How many bytes this process holds for a client, and of what it sent."""
    transport = protocol.transport
    unsent = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    return int(unsent + protocol.waiting_bytes + len(protocol.data))


def resident() -> int:
    """How much memory this process has, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


def metric(server: Server, name: str) -> float | None:
    return server.factory.metrics.registry.get_sample_value(name)


def broadcast(server: Server, payload: dict[str, Any], key: str | None = None) -> None:
    server.pubsub.publish(Broadcast("room:1", "news", payload, key))


async def fill(server: Server) -> None:
    """Fill all that lies between the first connection's outbox and its client, who does not read."""
    [protocol, *_] = server.protocols
    while not protocol.waiting_bytes:
        broadcast(server, {"pad": "x" * 10_000})
        # Until the kernel takes no more.
        await deferLater(reactor, 0.01)


async def drain(client: RawClient) -> list[Any]:
    """Read all that comes before the answer to a heartbeat."""
    client.text(HEARTBEAT)
    found: list[Any] = []
    while not found or found[-1][1] != "h":
        found.append(json.loads((await client.message()).payload))
    return found[:-1]


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_nothing_costs_little_and_is_cut() -> None:
    async with Server(outbox_limit=LIMIT, rate_limit=UNLIMITED) as server:
        client, bystander = await server.open(join=True), await server.open("bob", join=True)
        client.stop_reading()
        [protocol, _] = server.protocols
        most, sent, before = 0, 0, resident()
        while sent < 20_000_000:
            for _ in range(10):
                broadcast(server, {"pad": "x" * 10_000})
                sent += 10_000
            most = max(most, held(protocol))
            bystander.text(HEARTBEAT)
            for _ in range(10):
                assert b'"news"' in (await bystander.frame()).payload
            assert b'"phx_reply"' in (await bystander.frame()).payload
        assert LIMIT - 10_100 < most < LIMIT + 2 * 65_536
        assert resident() - before < 10_000_000
        await until(lambda: protocol.transport is None or not protocol.transport.connected)
        assert metric(server, "flowtx_slow_consumers_total") == 1
        assert metric(server, "flowtx_outbox_bytes") == 0
        assert len(server.lines("1013 slow_consumer")) == 1
        await until(lambda: not server.sessions.session_exists("alice"))


@pytest_twisted.ensureDeferred
async def test_a_client_that_is_sent_little_is_cut_for_what_has_waited_too_long() -> None:
    async with Server(outbox_max_age=0.5) as server:
        client, bystander = await server.open(join=True), await server.open("bob")
        client.stop_reading()
        [protocol, _] = server.protocols
        await fill(server)
        before = time.monotonic()
        await until(lambda: protocol.state != protocol.STATE_OPEN)
        assert time.monotonic() - before > 0.45
        assert protocol.waiting_bytes == 0
        assert metric(server, "flowtx_slow_consumers_total") == 1
        # It may read what is on its way, and why it was closed.
        client.go_on_reading()
        last = await client.frame()
        while last.opcode == TEXT:
            last = await client.frame()
        assert (last.opcode, last.code) == (CLOSE, 1013)
        assert await server.is_alive(bystander)


class Reading(FlowProtocol):
    """Reads on, whatever waits."""

    def piled_up(self, *, high: bool) -> None:
        pass


@pytest.mark.parametrize("protocol", [FlowProtocol, Reading])
@pytest_twisted.ensureDeferred
async def test_a_client_that_asks_and_does_not_read_is_not_heard(protocol: type[FlowProtocol]) -> None:
    async with Server(protocol=protocol, outbox_limit=LIMIT, rate_limit=UNLIMITED) as server:
        client = await server.open(join=True)
        client.stop_reading()
        [made] = server.protocols
        number, most = 0, 0
        while made.state == made.STATE_OPEN and number < 3_000 and made.reading:
            client.text(f'["1","{number}","room:1","echo","{"x" * 10_000}"]')
            number += 1
            await deferLater(reactor, 0)
            most = max(most, held(made))
        if protocol is Reading:
            assert made.state != made.STATE_OPEN, "its own answers have cut it"
            client.reset()
            return
        assert made.state == made.STATE_OPEN
        assert most < LIMIT // 4 + 4 * 65_536
        for _ in range(20):
            client.text(f'["1","{number}","room:1","echo","{"x" * 10_000}"]')
            number += 1
        client.send(frame(PING, b"too"))
        waiting = made.waiting_bytes
        await deferLater(reactor, 0.1)
        assert made.waiting_bytes == waiting, "nothing more is handled"
        client.go_on_reading()
        frames = [await client.frame() for _ in range(number + 1)]
        refs = [int(json.loads(each.payload)[1]) for each in frames if each.opcode == TEXT]
        assert refs == list(range(number))
        assert [each.payload for each in frames if each.opcode == PONG] == [b"too"]
        assert made.reading
        assert await server.is_alive(client)


@pytest_twisted.ensureDeferred
async def test_two_frames_larger_than_the_limit_reach_a_client_that_reads() -> None:
    async with Server(outbox_limit=100_000) as server:
        client = await server.open(join=True)
        [protocol] = server.protocols
        for _ in range(2):
            broadcast(server, {"pad": "x" * 1_200_000})
        broadcast(server, {"pad": "small"})
        assert protocol.waiting_bytes > 1_200_000
        sizes = [len(found[4]["pad"]) for found in await drain(client)]
        assert sizes == [1_200_000, 1_200_000, 5]
        assert protocol.waiting_bytes == 0


@pytest_twisted.ensureDeferred
async def test_of_droppable_frames_a_slow_client_gets_the_newest() -> None:
    async with Server() as server:
        client = await server.open(join=True)
        client.stop_reading()
        await fill(server)
        for number in range(1_000):
            broadcast(server, {"cursor": number}, f"cursor:{number % 2}")
            broadcast(server, {"kept": number})
        client.go_on_reading()
        found = [frame[4] for frame in await drain(client)]
        # The answer to the heartbeat goes before what may be dropped.
        found += [json.loads((await client.message()).payload)[4] for _ in range(2)]
        assert [each["kept"] for each in found if "kept" in each] == list(range(1_000))
        assert [each["cursor"] for each in found if "cursor" in each] == [998, 999]
        assert metric(server, "flowtx_frames_dropped_total") == 998


class Deaf(FlowProtocol):
    """Handles all that has arrived in one go, paused or not."""

    def dataReceived(self, data: bytes) -> None:
        WebSocketServerProtocol.dataReceived(self, data)

    def consumeData(self) -> None:
        WebSocketServerProtocol.consumeData(self)


@pytest.mark.parametrize("protocol", [FlowProtocol, Deaf])
@pytest_twisted.ensureDeferred
async def test_what_has_arrived_waits_too_while_reading_is_paused(protocol: type[FlowProtocol]) -> None:
    async with Server(protocol=protocol, rate_limit=UNLIMITED) as server:
        client = await server.open(join=True)
        [made] = server.protocols
        made.pause_reading()
        made._dataReceived(frame(TEXT, b'["1","2","room:1","echo",{}]') * 3)
        await deferLater(reactor, 0.05)
        assert bool(client.received) == (protocol is Deaf)
        made.resume_reading()
        for _ in range(3):
            assert json.loads((await client.frame()).payload)[1] == "2"
        assert await server.is_alive(client)
