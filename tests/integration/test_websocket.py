"""Opening handshakes over a real TCP socket: who is let in, who is not, and what they are told."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import pytest_twisted

from flowtx.errors import Refused, Unavailable
from flowtx.interfaces import Principal, User
from flowtx.storage.memory import MemoryUserDirectory
from flowtx.transports.guards import SEND_BUFFER
from flowtx.transports.origin import OriginRule
from tests.integration.rawclient import ACCEPT, TEXT, Response, frame, request
from tests.integration.websocket_server import (
    HEARTBEAT,
    HEARTBEAT_REPLY,
    FailingDirectory,
    Server,
    token,
    until,
)

PATH = "/socket/websocket"
BEARER = "base64url.bearer.phx."
V1_HEARTBEAT = '{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"h"}'
V1_REPLY = b'{"event":"phx_reply","payload":{"response":{},"status":"ok"},"ref":"h","topic":"phoenix"}'


def assert_refused(response: Response, status: int, reason: str) -> None:
    """A refusal has a fixed form, and no word of the request."""
    assert (response.status, json.loads(response.body)) == (status, {"reason": reason}), response
    assert response.headers["content-type"] == "application/json"
    assert "close" in response.headers["connection"].lower()
    assert "server" not in response.headers
    assert b"Traceback" not in response.head


def subprotocols(*names: str) -> tuple[str, str]:
    return ("Sec-WebSocket-Protocol", ", ".join(names))


# --- let in ----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_token_comes_in_the_query() -> None:
    async with Server() as server:
        client = await server.connect()
        client.send(request(server.target()))
        response = await client.response()
        assert response.status == 101
        assert response.headers["sec-websocket-accept"] == ACCEPT
        assert response.headers["upgrade"].lower() == "websocket"
        assert not {"server", "sec-websocket-protocol", "sec-websocket-extensions"} & response.headers.keys()
        assert await server.is_alive(client)
        assert server.sessions.session_exists("alice")


@pytest.mark.parametrize("with_phoenix", [True, False])
@pytest_twisted.ensureDeferred
async def test_the_token_comes_as_a_subprotocol(with_phoenix: bool) -> None:
    async with Server() as server:
        encoded = BEARER + base64.b64encode(server.token().encode()).decode().rstrip("=")
        offered = subprotocols("phoenix", encoded) if with_phoenix else subprotocols(encoded)
        client = await server.connect()
        client.send(request(f"{PATH}?vsn=2.0.0", offered))
        response = await client.response()
        assert response.status == 101
        assert response.headers.get("sec-websocket-protocol") == ("phoenix" if with_phoenix else None)
        assert await server.is_alive(client)


@pytest_twisted.ensureDeferred
async def test_the_token_comes_as_a_header() -> None:
    async with Server() as server:
        client = await server.connect()
        client.send(request(f"{PATH}?vsn=2.0.0", ("Authorization", f"bearer {server.token()}")))
        assert (await client.response()).status == 101
        assert await server.is_alive(client)


@pytest.mark.parametrize(
    ("vsn", "sent", "answer"),
    [
        ("", V1_HEARTBEAT, V1_REPLY),
        ("&vsn=1.0.0", V1_HEARTBEAT, V1_REPLY),
        ("&vsn=2.0.0", HEARTBEAT, HEARTBEAT_REPLY),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_version_that_is_asked_for_is_spoken(vsn: str, sent: str, answer: bytes) -> None:
    async with Server() as server:
        client = await server.connect()
        client.send(request(f"{PATH}?token={server.token()}{vsn}"))
        assert (await client.response()).status == 101
        client.text(sent)
        assert (await client.frame()).payload == answer


@pytest.mark.parametrize(
    "extra",
    [
        ("Origin", "http://localhost:9999"),
        ("Cookie", "name=\xc3\x85ke"),
        ("Cookie", "name=\x85Sec-WebSocket-Key: 1"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
        ("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=8; bogus=1"),
        ("Sec-WebSocket-Extensions", "x" * 10_000),
        ("X-Forwarded-For", "6.6.6.6"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_else_a_request_may_have(extra: tuple[str, str]) -> None:
    async with Server(origins=OriginRule(None, ["127.0.0.1"])) as server:
        client = await server.connect()
        client.send(request(server.target(), extra))
        response = await client.response()
        assert response.status == 101
        assert "sec-websocket-extensions" not in response.headers
        assert await server.is_alive(client)
        assert server.protocols[0].address == "127.0.0.1"


@pytest_twisted.ensureDeferred
async def test_a_request_may_come_in_pieces_and_its_path_end_in_a_slash() -> None:
    async with Server() as server:
        client = await server.connect()
        data = request(f"{PATH}/?token={server.token()}&vsn=2.0.0&redirect=http://evil.example&after=abc")
        for byte in data[:-1]:
            client.transport.write(bytes([byte]))
            client.transport.doWrite()
        await until(lambda: server.protocols and server.protocols[0].data == data[:-1])
        client.send(data[-1:])
        assert (await client.response()).status == 101


@pytest_twisted.ensureDeferred
async def test_small_frames_leave_at_once_and_large_ones_do_not_fill_the_kernel() -> None:
    async with Server() as server:
        await server.open()
        handle = server.protocols[0].transport.getHandle()
        assert handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        # Linux doubles what it is given.
        assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * SEND_BUFFER


@pytest_twisted.ensureDeferred
async def test_an_open_connection_keeps_nothing_of_its_request() -> None:
    async with Server() as server:
        secret = server.token()
        encoded = BEARER + base64.b64encode(secret.encode()).decode().rstrip("=")
        client = await server.connect()
        client.send(request(f"{PATH}?token={secret}&vsn=2.0.0", subprotocols("phoenix", encoded)))
        await client.response()
        assert server.protocols[0]._deciding is None
        kept = repr(vars(server.protocols[0]))
        assert secret not in kept
        assert encoded not in kept


# --- refused ---------------------------------------------------------------------------------------

OTHER_SECRET = b"another key than the server's, of 64 bytes or more: 0123456789 abcdefghij"
FORBIDDEN = {
    "no token": (f"{PATH}?vsn=2.0.0", "missing_token"),
    "a blank token": (f"{PATH}?vsn=2.0.0&token=", "missing_token"),
    "a token in brackets": (f"{PATH}?vsn=2.0.0&token[]=TOKEN", "missing_token"),
    "no token at all": (f"{PATH}?vsn=2.0.0&token=garbage", "invalid_token"),
    "two tokens, the last one wrong": (f"{PATH}?vsn=2.0.0&token=TOKEN&token=x", "invalid_token"),
    "a token of another key": (f"{PATH}?vsn=2.0.0&token=FOREIGN", "invalid_token"),
    "a token that was good": (f"{PATH}?vsn=2.0.0&token=EXPIRED", "expired_token"),
    "a user nobody knows": (f"{PATH}?vsn=2.0.0&token=STRANGER", "unknown_user"),
    "a version to come": (f"{PATH}?vsn=3.0.0&token=TOKEN", "unsupported_version"),
    "no full version": (f"{PATH}?vsn=2.0&token=TOKEN", "unsupported_version"),
    "a version in brackets": (f"{PATH}?vsn[]=2.0.0&token=TOKEN", "unsupported_version"),
}


@pytest.mark.parametrize(("target", "reason"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
@pytest_twisted.ensureDeferred
async def test_refusals_with_403(target: str, reason: str) -> None:
    async with Server() as server:
        for word, made in {
            "TOKEN": server.token(),
            "FOREIGN": token(secret=OTHER_SECRET),
            "EXPIRED": server.token(ttl=-60),
            "STRANGER": server.token("mallory"),
        }.items():
            target = target.replace(word, made)
        assert_refused(await server.ask(request(target)), 403, reason)
        assert len(server.lines("Refused 127.0.0.1: 403")) == 1
        await until(lambda: not server.sessions.namedServices)


ORIGINS = {
    "another": [("Origin", "http://evil.example")],
    "null": [("Origin", "null")],
    "no URL": [("Origin", "127.0.0.1")],
    "two": [("Origin", "http://127.0.0.1"), ("Origin", "http://127.0.0.1")],
}


@pytest.mark.parametrize("origins", ORIGINS.values(), ids=ORIGINS.keys())
@pytest_twisted.ensureDeferred
async def test_origins_that_are_refused(origins: list[tuple[str, str]]) -> None:
    async with Server(origins=OriginRule(None, ["127.0.0.1"])) as server:
        assert_refused(await server.ask(request(server.target(), *origins)), 403, "forbidden_origin")


TARGET = "TARGET"
FAULTS: dict[str, tuple[bytes, int, dict[str, str]]] = {
    "another path": (request("/canary?token=canary"), 404, {}),
    "the mount point": (request("/socket?token=canary"), 404, {}),
    "a longer path": (request(f"{PATH}/canary"), 404, {}),
    "the URL of another host": (request(f"http://canary.example{PATH}"), 404, {}),
    "two blanks before another path": (request("", line="GET  /canary HTTP/1.1"), 400, {}),
    "no upgrade": (request(TARGET, without=["Upgrade"]), 426, {"upgrade": "websocket"}),
    "no upgrade, with a redirect": (
        request(f"{TARGET}&redirect=http://canary.example&after=canary", without=["Upgrade"]),
        426,
        {"upgrade": "websocket"},
    ),
    "another upgrade": (request(TARGET, replace={"Upgrade": "canary"}), 400, {}),
    "POST": (request("", line=f"POST {TARGET} HTTP/1.1"), 405, {"allow": "GET"}),
    "HTTP/1.0": (request("", line=f"GET {TARGET} HTTP/1.0"), 505, {}),
    "a fragment": (request(f"{TARGET}#canary"), 400, {}),
    "no host": (request(TARGET, without=["Host"]), 400, {}),
    "two hosts": (request(TARGET, ("Host", "canary")), 400, {}),
    "a port that is none": (request(TARGET, replace={"Host": "127.0.0.1:canary"}), 400, {}),
    "version 8": (
        request(TARGET, replace={"Sec-WebSocket-Version": "8"}),
        400,
        {"sec-websocket-version": "13"},
    ),
    "version 0": (
        request(TARGET, replace={"Sec-WebSocket-Version": "0"}),
        400,
        {"sec-websocket-version": "13"},
    ),
    "version canary": (request(TARGET, replace={"Sec-WebSocket-Version": "canary"}), 400, {}),
    "no version": (request(TARGET, without=["Sec-WebSocket-Version"]), 400, {}),
    "no key": (request(TARGET, without=["Sec-WebSocket-Key"]), 400, {}),
    "a short key": (request(TARGET, replace={"Sec-WebSocket-Key": "canary"}), 400, {}),
    "two keys": (request(TARGET, ("Sec-WebSocket-Key", "canary")), 400, {}),
    "a subprotocol twice": (request(TARGET, subprotocols("phoenix", "phoenix")), 400, {}),
    "a thousand subprotocols": (request(TARGET, subprotocols(*map(str, range(1000)))), 400, {}),
    "a folded header": (request(TARGET, ("X-Canary", "1\r\n canary")), 400, {}),
    "a bare line feed": (request(TARGET, ("X-Canary", "1\nOrigin: canary")), 400, {}),
    "a header without a colon": (request(TARGET).replace(b"\r\n\r\n", b"\r\ncanary\r\n\r\n"), 400, {}),
    "an empty line": (b"\r\n\r\n", 400, {}),
    "not HTTP": (b"\x16\x03\x01canary\r\n\r\n", 400, {}),
}


@pytest.mark.parametrize(("data", "status", "headers"), FAULTS.values(), ids=FAULTS.keys())
@pytest_twisted.ensureDeferred
async def test_faults_of_http(data: bytes, status: int, headers: Mapping[str, str]) -> None:
    async with Server() as server:
        response = await server.ask(data.replace(TARGET.encode(), server.target().encode()))
        assert_refused(response, status, "not_found" if status == 404 else "bad_request")
        assert headers.items() <= response.headers.items()
        assert b"canary" not in response.head.lower() + response.body.lower()
        assert not server.sessions.namedServices
        # One line, which quotes nothing.
        assert len(server.lines("Refused")) == 1
        assert not server.lines("canary")


@pytest_twisted.ensureDeferred
async def test_frames_behind_a_request_that_is_refused_are_dropped() -> None:
    async with Server() as server:
        await server.ask(request(f"{PATH}?token=x&vsn=2.0.0") + frame(TEXT, HEARTBEAT.encode()))
        [protocol] = server.protocols
        kept = len(protocol.data)
        # As TLS may deliver it, though nothing more is read.
        protocol.dataReceived(bytes(1000))
        assert len(protocol.data) == kept


# --- no decision -----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_storage_that_is_down_is_an_overload() -> None:
    async with Server(directory=FailingDirectory(Unavailable("dsn=canary"))) as server:
        response = await server.ask(request(server.target()))
        assert_refused(response, 503, "unavailable")
        assert response.headers["retry-after"] == "1"
        await until(lambda: not server.sessions.namedServices)


@pytest_twisted.ensureDeferred
async def test_a_server_that_stops_lets_nobody_in() -> None:
    async with Server() as server:
        await server.sessions.stopService()
        response = await server.ask(request(server.target()))
        assert_refused(response, 503, "unavailable")
        assert response.headers["retry-after"] == "1"


class BrokenVerifier:
    async def verify(self, token: str) -> Principal:
        raise RuntimeError("dsn=canary\r\nX-Canary: 1")


class RefusingVerifier:
    async def verify(self, token: str) -> Principal:
        raise Refused("revoked_token")


@pytest.mark.parametrize(
    ("where", "status", "reason"),
    [("directory", 503, "unavailable"), ("verifier", 500, "internal_error")],
)
@pytest_twisted.ensureDeferred
async def test_an_exception_is_logged_and_not_told(where: str, status: int, reason: str) -> None:
    parts: dict[str, Any] = {
        "directory": {"directory": FailingDirectory(RuntimeError("dsn=canary\r\nX-Canary: 1"))},
        "verifier": {"verifier": BrokenVerifier()},
    }
    async with Server(failures=1, **parts[where]) as server:
        response = await server.ask(request(server.target()))
        assert_refused(response, status, reason)
        assert b"canary" not in response.head.lower()
        assert "canary" in server.log.failures[0]
        assert len(server.lines("Refused")) == (where == "directory")
        await until(lambda: not server.sessions.namedServices)


@pytest_twisted.ensureDeferred
async def test_whatever_refuses_may_say_why() -> None:
    async with Server(verifier=RefusingVerifier()) as server:
        assert_refused(await server.ask(request(server.target())), 403, "revoked_token")


# --- Sessions -------------------------------------------------------------------------------------


class CountingDirectory(MemoryUserDirectory):
    asked = 0

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        self.asked += 1
        return await super().load(principals)


@pytest_twisted.ensureDeferred
async def test_many_connections_of_one_user_share_a_session() -> None:
    directory = CountingDirectory([User("alice", "Alice", None)])
    async with Server(directory=directory) as server:
        clients = [await server.open() for _ in range(5)]
        assert directory.asked == 1
        for client in clients[:-1]:
            client.finish()
            await client.ended()
        session = server.sessions.get_session("alice")
        assert session is not None
        await until(lambda: len(session.sockets) == 1)
        assert await server.is_alive(clients[-1])


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_quick() -> None:
    async with Server() as server:
        before = time.monotonic()
        for _ in range(20):
            await server.ask(request(f"{PATH}?token=x&vsn=2.0.0"))
        assert time.monotonic() - before < 4
