"""How long an opening handshake may take, over a real TCP socket."""

from __future__ import annotations

import time
from typing import Any

import pytest_twisted
from twisted.internet.task import deferLater

from flowtx.transports.websocket import FlowProtocol
from tests.integration.rawclient import request
from tests.integration.test_websocket import assert_refused
from tests.integration.websocket_server import Server, SlowDirectory, StubbornVerifier, reactor, until, users


class Hasty(FlowProtocol):
    head_timeout = 0.6
    decision_timeout = 0.5


@pytest_twisted.ensureDeferred
async def test_a_request_must_come_within_five_seconds() -> None:
    async with Server() as server:
        before = time.monotonic()
        silent, slow = await server.connect(), await server.connect()
        head = request(server.target())
        for number in range(8):
            slow.send(head[number : number + 1])
            await deferLater(reactor, 0.5)
        for client in (silent, slow):
            assert_refused(await client.response(), 408, "handshake_timeout")
            assert await client.ended() == "fin"
        assert 4.9 < time.monotonic() - before < 9
        assert len(server.lines("Refused")) == 2


@pytest_twisted.ensureDeferred
async def test_a_decision_must_come_within_three_seconds() -> None:
    directory = SlowDirectory(users())
    async with Server(directory=directory) as server:
        before = time.monotonic()
        response = await server.ask(request(server.target()))
        assert_refused(response, 503, "unavailable")
        assert response.headers["retry-after"] == "1"
        assert 2.9 < time.monotonic() - before < 6
        assert len(server.lines("Refused")) == 1
        directory.answer()
        await until(lambda: not server.sessions.namedServices)


@pytest_twisted.ensureDeferred
async def test_a_decision_has_its_own_time_however_slow_the_request_was() -> None:
    directory = SlowDirectory(users())
    async with Server(protocol=Hasty, directory=directory) as server:
        client = await server.connect()
        before = time.monotonic()
        head = request(server.target())
        client.send(head[:-2])
        await deferLater(reactor, 0.4)
        client.send(head[-2:])
        assert_refused(await client.response(), 503, "unavailable")
        assert time.monotonic() - before > 0.85
        directory.answer()


@pytest_twisted.ensureDeferred
async def test_a_check_that_cannot_be_cancelled_is_not_waited_for() -> None:
    verifier = StubbornVerifier()
    async with Server(protocol=Hasty, verifier=verifier) as server:
        assert_refused(await server.ask(request(server.target())), 503, "unavailable")
        assert verifier.cancelled
        verifier.done.callback(None)
        await until(lambda: verifier.answered)
        await until(lambda: not server.sessions.namedServices)
        assert len(server.lines("Refused")) == 1


@pytest_twisted.ensureDeferred
async def test_an_open_connection_has_no_time_to_keep() -> None:
    async with Server(protocol=Hasty) as server:
        client = await server.open()
        assert server.protocols[0]._timer is None
        await deferLater(reactor, 0.8)
        assert await server.is_alive(client)


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_take_its_refusal_is_not_waited_for() -> None:
    class Stuck(FlowProtocol):
        """Its transport never gets to the end of what it has to write."""

        def _answer(self, refused: Any) -> None:
            super()._answer(refused)
            self.transport.stopWriting()

    async with Server(protocol=Stuck) as server:
        client = await server.connect()
        client.send(request("/nothing"))
        before = time.monotonic()
        assert await client.ended() == "reset"
        assert 0.9 < time.monotonic() - before < 5
