"""Opening handshakes, and what comes before them: 38 to 62."""

from __future__ import annotations

import socket
import time
from contextlib import closing, suppress

import psycopg2

from tests.badinput.ground import PATIENCE, Ground, read_answer
from tests.badinput.table import row
from tests.integration.flow_process import eventually, free_port
from tests.integration.rawclient import TEXT, frame, request
from tests.integration.test_websocket_endpoints import make_certificate


@row(38, "an origin that is not listed")
def _(ground: Ground) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
        target = f"/socket/websocket?vsn=2.0.0&token={ground.token()}"
        answer = ground.knock(request(target, ("Origin", origin)))
        assert (answer.status, answer.reason) == (403, "forbidden_origin")


@row(39, "no origin: a program, which is let in by its token")
def _(ground: Ground) -> None:
    ground.enter().leave()


@row(40, "two origins, and names that end like ours")
def _(ground: Ground) -> None:
    target = f"/socket/websocket?vsn=2.0.0&token={ground.token()}"
    good = ("Origin", f"http://127.0.0.1:{ground.port}")
    for headers in (
        [good, ("Origin", "https://evil.example")],
        [("Origin", "http://evil127.0.0.1")],
        [("Origin", "http://127.0.0.1@evil.example")],
        [("Origin", "http://127.0.0.1, https://evil.example")],
    ):
        assert ground.knock(request(target, *headers)).status in (400, 403)


@row(41, "two hosts, or none")
def _(ground: Ground) -> None:
    target = f"/socket/websocket?vsn=2.0.0&token={ground.token()}"
    assert ground.knock(request(target, ("Host", "evil.example"))).status == 400
    assert ground.knock(request(target, without=["Host"])).status == 400


@row(42, "a header without an end")
def _(ground: Ground) -> None:
    assert ground.knock(b"GET /socket/websocket HTTP/1.1\r\nX: " + b"y" * 40_000).status == 431


@row(43, "500 header lines")
def _(ground: Ground) -> None:
    lines = [(f"X-{number}", "y") for number in range(500)]
    assert ground.knock(request("/socket/websocket", *lines)).status == 431


@row(44, "one byte a second")
def _(ground: Ground) -> None:
    ground.tried += 1
    with closing(socket.create_connection(("127.0.0.1", ground.port), PATIENCE)) as connection:
        connection.settimeout(0.4)
        began, got = time.monotonic(), b""
        for octet in request(f"/socket/websocket?token={ground.token()}"):
            try:
                connection.sendall(bytes([octet]))
                got += connection.recv(4_096)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if got:
                break
        assert b" 408 " in got.partition(b"\r\n")[0], got
        assert time.monotonic() - began < PATIENCE


@row(45, "sockets that say nothing")
def _(ground: Ground) -> None:
    ground.tried += 500
    silent = [socket.create_connection(("127.0.0.1", ground.port), PATIENCE) for _ in range(500)]
    ground.enter("dave").leave()
    for connection in silent:
        connection.settimeout(PATIENCE)
        assert read_answer(connection).status == 408
        connection.close()


@row(46, "a second request while the first is decided")
def _(ground: Ground) -> None:
    one = ground.handshake(ground.token("erin-46"))
    with closing(socket.create_connection(("127.0.0.1", ground.port), PATIENCE)) as connection:
        ground.tried += 1
        connection.sendall(one + one)
        connection.settimeout(PATIENCE)
        answer = read_answer(connection)
        # The second one is no frame; the first one opened the connection, once.
        assert answer.status in (101, 400)
        with suppress(ConnectionError):
            while connection.recv(4_096):
                pass
    # By now the connection has ended, and whoever comes behind it is let in after it.
    ground.enter("behind-46").leave()
    assert ground.server.log.count("Starting session for user: erin-46") <= 1


@row(47, "frames behind the request are handled after it")
def _(ground: Ground) -> None:
    beat = frame(TEXT, b'[null,"early","phoenix","heartbeat",{}]')
    with closing(socket.create_connection(("127.0.0.1", ground.port), PATIENCE)) as connection:
        connection.sendall(ground.handshake() + beat)
        connection.settimeout(PATIENCE)
        got = b""
        while b'"early"' not in got:
            got += connection.recv(4_096)
        assert got.startswith(b"HTTP/1.1 101")


@row(48, "frames behind a request that is refused are dropped")
def _(ground: Ground) -> None:
    join = frame(TEXT, b'["1","1","room:1","phx_join",{}]')
    answer = ground.knock(ground.handshake("a.b.c") + join * 3)
    assert (answer.status, answer.reason) == (403, "invalid_token")


@row(49, "gone while its token is checked")
def _(ground: Ground) -> None:
    for _ in range(20):
        with closing(socket.create_connection(("127.0.0.1", ground.port), PATIENCE)) as connection:
            connection.sendall(ground.handshake(ground.token("ghost")))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    # Whoever comes behind them is let in after they have been looked at.
    ground.enter("behind-49").leave()
    eventually(lambda: _connections(ground, "ghost") == 0, "nothing of them is left")
    ground.tried += 20


def _connections(ground: Ground, user_id: str) -> int:
    answer = ground.api("GET", f"/api/sessions/{user_id}")
    return 0 if answer.status == 404 else len(answer.json["connections"])


@row(50, "a check of the token that takes longer than it may")
def _(ground: Ground) -> None:
    # The database does not answer while its table is locked.
    with closing(psycopg2.connect(ground.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK flow.revoked_tokens IN ACCESS EXCLUSIVE MODE")
        answer = ground.knock(ground.handshake(ground.token("patient")))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        connection.rollback()
    ground.tried += 2
    eventually(lambda: _let_in(ground, "patient"), "they are let in again")


def _let_in(ground: Ground, user_id: str) -> bool:
    try:
        ground.enter(user_id).leave()
    except AssertionError:
        return False
    return True


@row(51, "another version of WebSocket")
def _(ground: Ground) -> None:
    for version in ("7", "8", "0", "x", "14"):
        answer = ground.knock(ground.handshake(replace={"Sec-WebSocket-Version": version}))
        assert answer.status in (400, 426)
        if version != "x":
            assert answer.headers.get("sec-websocket-version") == "13"


@row(52, "a key that is short, no base64, or there twice")
def _(ground: Ground) -> None:
    for key in ("short", "!" * 24, "dGhlIHNhbXBsZSBub25jZQ=", ""):
        assert ground.knock(ground.handshake(replace={"Sec-WebSocket-Key": key})).status == 400
    again = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
    assert ground.knock(ground.handshake(ground.token(), again)).status == 400


@row(53, "HTTP/1.0, POST, another host's URI, a fragment")
def _(ground: Ground) -> None:
    path = f"/socket/websocket?vsn=2.0.0&token={ground.token()}"
    for line in (f"GET {path} HTTP/1.0", f"POST {path} HTTP/1.1", f"GET {path}#here HTTP/1.1"):
        assert 400 <= ground.knock(request(path, line=line)).status < 600
    assert ground.knock(request(path, line=f"GET http://evil.example{path} HTTP/1.1")).status in (400, 404)


@row(54, "a plain GET, and one that wants to be redirected")
def _(ground: Ground) -> None:
    for target in (
        "/socket",
        "/socket/websocket",
        "/socket/websocket?redirect=https://evil.example",
        "/socket/websocket?redirect=https://evil.example&after=abc",
    ):
        answer = ground.knock(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer.status in (400, 403, 404, 426)
        assert "location" not in answer.headers
        assert b"evil" not in answer.body


@row(55, "what goes wrong inside is told without its text")
def _(ground: Ground) -> None:
    # It goes wrong for ids of five letters, with a text of the database's.
    query = "SELECT u, u, u FROM unnest(%s::text[]) u WHERE 1 / (length(u) - 5) < 9"
    with ground.another("broken-55", f"--users-query={query}") as server:
        port = int(server.socket_url.removesuffix("/socket").rpartition(":")[2])
        token = server.token("alice")
        answer = ground.knock(request(f"/socket/websocket?vsn=2.0.0&token={token}"), port)
        assert answer.status in (403, 500, 503)
        assert set(answer.json) == {"reason"}
        assert b"division" not in answer.body


@row(56, "line ends in what a refusal might quote")
def _(ground: Ground) -> None:
    for target in ("/socket/websocket?token=%0d%0aX-Evil:%201", "/%0d%0aX-Evil:%201"):
        answer = ground.knock(request(target))
        assert answer.status in (403, 404)
        assert "x-evil" not in answer.headers
    assert ground.knock(request("/socket/websocket", ("X\r\nX-Evil", "1"))).status in (400, 403)


@row(57, "the server does not tell what it is")
def _(ground: Ground) -> None:
    assert "server" not in ground.knock(ground.handshake("a.b.c")).headers
    assert "server" not in ground.knock(ground.handshake()).headers


@row(58, "extensions: many, odd, and all of them ignored")
def _(ground: Ground) -> None:
    for value in (
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; client_max_window_bits=99; x=y",
        ", ".join(f"x-{number}" for number in range(1_000)),
        "=;=;,,;",
    ):
        answer = ground.knock(ground.handshake(ground.token(), ("Sec-WebSocket-Extensions", value)))
        assert answer.status in (101, 400)
        assert "sec-websocket-extensions" not in answer.headers


@row(59, "a thousand subprotocols, or one twice")
def _(ground: Ground) -> None:
    for value in (", ".join(f"p{number}" for number in range(1_000)), "phoenix, phoenix"):
        answer = ground.knock(ground.handshake(ground.token(), ("Sec-WebSocket-Protocol", value)))
        assert answer.status == 400


@row(60, "X-Forwarded-For from somebody who is no proxy")
def _(ground: Ground) -> None:
    with ground.another("direct") as server:
        port = int(server.socket_url.removesuffix("/socket").rpartition(":")[2])
        target = f"/socket/websocket?vsn=2.0.0&token={server.token('alice')}"
        with closing(socket.create_connection(("127.0.0.1", port), PATIENCE)) as connection:
            connection.sendall(request(target, ("X-Forwarded-For", "8.8.8.8")))
            assert read_answer(connection).status == 101
            status, session = server.request("GET", "/api/sessions/alice", {})
            assert status == 200
            assert [one["address"] for one in session["connections"]] == ["127.0.0.1"]
        ground.tried += 1


@row(61, "plain HTTP to a port with TLS, half a handshake")
def _(ground: Ground) -> None:
    pem, port = make_certificate(ground.directory), free_port()
    with ground.another("tls-61", f"--listen=ssl:{port}:interface=127.0.0.1:privateKey={pem}:certKey={pem}"):
        assert ground.knock(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", port).status == 0
        assert ground.knock(b"\x16\x03\x01\x02\x00\x01", port).status == 0


@row(62, "more connections than the server takes")
def _(ground: Ground) -> None:
    with ground.another("full", "--max-sessions=2") as server:
        port = int(server.socket_url.removesuffix("/socket").rpartition(":")[2])
        inside = [ground.enter(token=server.token(f"user-{n}"), port=port) for n in range(2)]
        answer = ground.knock(request(f"/socket/websocket?vsn=2.0.0&token={server.token('third')}"), port)
        assert (answer.status, answer.reason) == (503, "overloaded")
        assert "retry-after" in answer.headers
        for wire in inside:
            assert wire.beats()
            wire.leave()
