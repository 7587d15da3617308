"""The console's WebSocket on the port of the admin endpoint, by clients that misbehave."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor

from tests.integration.async_flow_process import AsyncFlowProcess, until
from tests.integration.rawclient import (
    BINARY,
    CLOSE,
    PATIENCE,
    TEXT,
    RawClient,
    Received,
    connect,
    frame,
    request,
)

reactor: Any = global_reactor

PATH = "/console/websocket?vsn=2.0.0"
HEARTBEAT = '[null,"1","phoenix","heartbeat",{}]'
HEARTBEAT_REPLY = b'[null,"1","phoenix","phx_reply",{"response":{},"status":"ok"}]'
JOIN = '["1","2","console:commands","phx_join",{}]'
GET = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

Module = pytest_twisted.async_yield_fixture(scope="module")


@Module
async def flow() -> AsyncIterator[AsyncFlowProcess]:
    async with AsyncFlowProcess("--ping-interval=0") as flow:
        yield flow


def keyed(key: str) -> tuple[str, str]:
    """The header by which phoenix.js gives a key."""
    text = base64.b64encode(key.encode()).decode().rstrip("=")
    return "Sec-WebSocket-Protocol", f"phoenix, base64url.bearer.phx.{text}"


async def knock(flow: AsyncFlowProcess) -> RawClient:
    return await connect(reactor, f"tcp:127.0.0.1:{flow.admin_port}")


async def come_in(flow: AsyncFlowProcess, *extra: tuple[str, str]) -> RawClient:
    """Open the console."""
    client = await knock(flow)
    client.send(request(PATH, keyed(flow.api_key), *extra))
    response = await client.response()
    assert (response.status, response.headers["sec-websocket-protocol"]) == (101, "phoenix")
    return client


async def refusal(flow: AsyncFlowProcess, data: bytes) -> tuple[int, str]:
    """The status and the reason that some bytes are answered, before the connection is closed."""
    client = await knock(flow)
    client.send(data)
    response = await client.response()
    assert await client.ended() in ("fin", "reset")
    return response.status, json.loads(response.body)["reason"]


@pytest_twisted.ensureDeferred
async def test_a_key_opens_it_and_what_it_may_do_is_told(flow: AsyncFlowProcess) -> None:
    client = await come_in(flow)
    client.text(JOIN)
    reply = json.loads((await client.message()).payload)
    assert reply[3:] == ["phx_reply", reply[4]]
    assert reply[4]["response"]["scopes"] == ["admin", "notify", "read"]
    assert reply[4]["response"]["key"] == "api-key"
    client.reset()


@pytest_twisted.ensureDeferred
async def test_the_same_port_serves_http_as_before(flow: AsyncFlowProcess) -> None:
    console = await come_in(flow)
    client = await knock(flow)
    # A byte at a time, and the next request behind it.
    for byte in GET:
        client.send(bytes([byte]))
    client.send(GET)
    for _ in range(2):
        assert (await client.response()).body == b'{"status":"ok"}'
    console.text(HEARTBEAT)
    assert (await console.message()).payload == HEARTBEAT_REPLY
    # On a connection that has been used for HTTP there is no console.
    client.send(request(PATH, keyed(flow.api_key)))
    assert (await client.response()).status == 404
    for one in (client, console):
        one.reset()


@pytest_twisted.ensureDeferred
async def test_what_comes_behind_the_handshake_is_not_lost(flow: AsyncFlowProcess) -> None:
    for size in (1, 100, 10_000):
        client = await knock(flow)
        data = (
            request(PATH, keyed(flow.api_key)) + frame(TEXT, JOIN.encode()) + frame(TEXT, HEARTBEAT.encode())
        )
        for first in range(0, len(data), size):
            client.send(data[first : first + size])
        assert (await client.response()).status == 101
        assert b'"scopes"' in (await client.message()).payload
        assert (await client.message()).payload == HEARTBEAT_REPLY
        client.reset()


@pytest_twisted.ensureDeferred
async def test_who_has_no_key_or_comes_from_elsewhere_is_refused(flow: AsyncFlowProcess) -> None:
    key = flow.api_key
    own = ("Origin", f"http://127.0.0.1:{flow.admin_port}")
    host = {"Host": f"127.0.0.1:{flow.admin_port}"}
    token = await flow.token("alice")
    for data, expected in (
        (request(PATH), (403, "missing_token")),
        (request(PATH, keyed("x" * 64)), (403, "invalid_token")),
        # A user's token is no key, and a key is none in a URL.
        (request(PATH, keyed(token)), (403, "invalid_token")),
        (request(f"{PATH}&token={key}"), (403, "missing_token")),
        (request(PATH, keyed(key), ("Origin", "http://evil.example.com")), (403, "forbidden_origin")),
        (request(PATH, keyed(key), ("Origin", "null")), (403, "forbidden_origin")),
        (request(PATH, keyed(key), own, own, replace=host), (403, "forbidden_origin")),
        (
            request(
                PATH,
                keyed(key),
                ("Origin", "http://rebound.example.com"),
                replace={"Host": "rebound.example.com"},
            ),
            (403, "forbidden_origin"),
        ),
        (request(PATH.replace("2.0.0", "9.0.0"), keyed(key)), (403, "unsupported_version")),
        (request("/console/websockets", keyed(key)), (404, "not_found")),
    ):
        assert await refusal(flow, data) == expected
    client = await knock(flow)
    client.send(request(PATH, keyed(key), own, replace=host))
    assert (await client.response()).status == 101
    client.reset()
    assert key not in flow.log


@pytest_twisted.ensureDeferred
async def test_what_is_no_upgrade_is_refused(flow: AsyncFlowProcess) -> None:
    key = keyed(flow.api_key)
    for data, status in (
        (request(PATH, key, without=["Upgrade"]), 426),
        (request(PATH, key, without=["Connection"]), 400),
        (request(PATH, key, without=["Sec-WebSocket-Key"]), 400),
        (request(PATH, key, replace={"Sec-WebSocket-Version": "8"}), 400),
        (request(PATH, key, ("X-Folded", "a\r\n b")), 400),
        (request(PATH, key, ("X-Large", "x" * 20_000)), 431),
        (b"GET /console/websocket" + b"x" * 20_000, 431),
    ):
        client = await knock(flow)
        client.send(data)
        assert (await client.response()).status == status, data[:200]
        assert await client.ended() in ("fin", "reset")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"x" * 70_000), 1009),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"{}", masked=False), 1002),
        (frame(BINARY, b"\x00") * 10, 1008),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_connection_has_the_bounds_of_every_other(
    flow: AsyncFlowProcess, data: bytes, code: int
) -> None:
    client = await come_in(flow)
    client.send(data)
    end: Received = await client.message()
    assert (end.opcode, end.code) == (CLOSE, code)
    client.send(frame(CLOSE, end.payload))
    assert await client.ended() == "fin"


@pytest_twisted.ensureDeferred
async def test_its_page_runs_and_asks_nothing_but_its_own(flow: AsyncFlowProcess) -> None:
    for path, connect_to in (("/", "connect-src 'self';"), ("/demo", "connect-src 'self' ws: wss:;")):
        answer = await flow.call("GET", path, headers={"Authorization": ""})
        assert answer.status == 200
        [policy] = answer.headers.getRawHeaders("content-security-policy") or []
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert connect_to in policy
        assert "unsafe" not in policy
        assert re.findall(rb"<script(?![^>]* src=)| style=| on[a-z]+=|<style", answer.body) == []


@pytest_twisted.ensureDeferred
async def test_the_stop_of_the_server_closes_it(flow: AsyncFlowProcess) -> None:
    client = await come_in(flow)
    client.text(JOIN)
    await client.message()
    stopping = flow.stop()
    ended = await stopping
    end = await client.message()
    assert (end.opcode, end.code) == (CLOSE, 1012)
    assert ended.status == 0 or ended.signal == 15
    await until(lambda: client.end, PATIENCE)
    await flow.start()
