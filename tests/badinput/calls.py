"""The HTTP API: 107 to 122."""

from __future__ import annotations

import json
import signal
import socket
import time
from contextlib import closing
from http.client import HTTPConnection

from tests.badinput.ground import KEYS, PATIENCE, Ground, read_answer
from tests.badinput.table import row
from tests.integration.flow_process import eventually

PUSH = {"user_ids": ["alice"], "type": "note", "payload": {}}


def head(method: str, path: str, *lines: str) -> bytes:
    """Write the head of a request with the right key."""
    usual = ["Host: 127.0.0.1", f"Authorization: Bearer {KEYS['admin']}"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *usual, *lines, "", ""]).encode("latin-1")


@row(107, "no key, a wrong one, one for something else")
def _(ground: Ground) -> None:
    for key in (None, "wrong", "", KEYS["admin"][:-1], f"{KEYS['admin']}x", KEYS["read"]):
        answer = ground.api("POST", "/api/notifications", PUSH, key=key)
        assert (answer.status, answer.json["error"]) == (401, "unauthorized"), key
    assert ground.api("GET", "/api/sessions", key=KEYS["notify"]).status == 401


@row(108, "a body of more than 1 MiB is refused by its header, unread")
def _(ground: Ground) -> None:
    data = head("POST", "/api/notifications", "Content-Type: application/json", "Content-Length: 314572800")
    assert ground.knock(data, ground.admin_port).status == 413


@row(109, "a body that comes slowly, or never ends")
def _(ground: Ground) -> None:
    ground.tried += 2
    open_ended = (
        head("POST", "/api/notifications", "Content-Type: application/json", "Content-Length: 100") + b"{",
        head("POST", "/api/notifications", "Content-Type: application/json", "Transfer-Encoding: chunked")
        + b"1\r\n{\r\n",
    )
    connections = [socket.create_connection(("127.0.0.1", ground.admin_port), PATIENCE) for _ in open_ended]
    for connection, data in zip(connections, open_ended, strict=True):
        connection.sendall(data)
    for connection in connections:
        connection.settimeout(PATIENCE)
        assert read_answer(connection).status in (0, 408)
        connection.close()


@row(110, "two lengths, a length and chunks, +5, folded lines")
def _(ground: Ground) -> None:
    for lines in (
        ("Content-Length: 2", "Content-Length: 3"),
        ("Content-Length: 2", "Transfer-Encoding: chunked"),
        ("Content-Length: +5",),
        ("Content-Length: 0x2",),
        ("X: a\r\n b",),
    ):
        data = head("POST", "/api/notifications", "Content-Type: application/json", *lines)
        assert ground.knock(data + b"{}\r\n0\r\n\r\n", ground.admin_port).status in (400, 422), lines


@row(111, "a hundred requests in one go are answered in order")
def _(ground: Ground) -> None:
    with closing(socket.create_connection(("127.0.0.1", ground.admin_port), PATIENCE)) as connection:
        connection.settimeout(PATIENCE)
        paths = [f"/api/sessions/user-{number}-111" for number in range(100)]
        last = head("GET", "/health/live", "Connection: close")
        connection.sendall(b"".join(head("GET", path) for path in paths) + last)
        got = b""
        while data := connection.recv(65_536):
            got += data
    ground.tried += 101
    places = [got.find(f"user-{number}-111".encode()) for number in range(100)]
    assert got.count(b"HTTP/1.1 404") == 100
    assert got.count(b"HTTP/1.1 200") == 1
    assert all(place == -1 for place in places) or places == sorted(places)


@row(112, "another type of content, or none")
def _(ground: Ground) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", ""):
        data = json.dumps(PUSH).encode()
        lines = [f"Content-Length: {len(data)}", *([f"Content-Type: {kind}"] if kind else [])]
        answer = ground.knock(head("POST", "/api/notifications", *lines) + data, ground.admin_port)
        assert answer.status == 415, kind


@row(113, "a page of another site")
def _(ground: Ground) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        assert ground.api("POST", "/api/notifications", PUSH, **headers).status == 403


@row(114, "odd paths")
def _(ground: Ground) -> None:
    for path in (
        "/api/users/..%2f..%2fetc/notifications",
        "/api/users/%00/notifications",
        "/api//sessions",
        "/../etc/passwd",
        f"/api/sessions/{'x' * 8_192}",
        "/api/sessions/a%20b",
        "/api/sessions/%ff",
    ):
        assert ground.api("GET", path).status in (400, 404, 414, 422), path


@row(115, "methods that nothing takes")
def _(ground: Ground) -> None:
    for method in ("TRACE", "CONNECT", "PATCH", "OPTIONS"):
        assert ground.knock(head(method, "/api/notifications"), ground.admin_port).status == 405
    override = head("GET", "/api/sessions/alice", "X-HTTP-Method-Override: DELETE")
    assert ground.knock(override, ground.admin_port).status in (200, 404)


@row(116, "JSON that cannot be read")
def _(ground: Ground) -> None:
    for text in (
        b"",
        b"nonsense",
        b"[]",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"user_ids":["alice"],"type":"t","payload":NaN}',
        b'{"user_ids":["alice"],"type":"t","payload":1e999}',
        b'{"user_ids":["alice"],"type":7,"payload":{}}',
        json.dumps({**PUSH, "more": 1}).encode(),
        json.dumps({**PUSH, "payload": [[]] * 20_000}).encode() * 2,
    ):
        answer = ground.push(text)
        assert (answer.status, answer.json["error"]) == (422, "invalid_payload"), text[:60]
        assert answer.json["detail"]


@row(117, "10,001 users in one call, and one of many that is bad")
def _(ground: Ground) -> None:
    answer = ground.push(user_ids=[f"u{number}" for number in range(10_001)])
    assert answer.status == 413
    answer = ground.push(user_ids=["ivan", "a b"])
    assert answer.status == 422
    assert "user_ids[1]" in answer.json["detail"]
    assert ground.inbox("ivan") == []


@row(118, "an end that is no time")
def _(ground: Ground) -> None:
    for when in (-1, 10**12, "soon", "", True, "2026-13-01T00:00:00Z", "9999999-01-01T00:00:00Z"):
        assert ground.push(expires_at=when).status == 422, when


@row(119, "an idempotency key that is long, or has control characters")
def _(ground: Ground) -> None:
    odd: tuple[object, ...] = ("k" * 100_000, "a\nb", "a\0b", "", 7, [])
    for key in odd:
        assert ground.push(idempotency_key=key).status == 422, str(key)[:20]
    assert ground.push(idempotency_key="k" * 1_100_000).status == 413


@row(120, "user ids of other characters")
def _(ground: Ground) -> None:
    for user_id in ("a%b", "a\r\nb", "\u202eabc", "x" * 1_024, "", "a b", "a/b", 7, None):
        assert ground.push(user_ids=[user_id]).status == 422, user_id


@row(121, "a push while the server stops")
def _(ground: Ground) -> None:
    with ground.another("stopping") as server:
        port = int(server.socket_url.removesuffix("/socket").rpartition(":")[2])
        wire = ground.enter(token=server.token("slow"), port=port)
        admin = int(server.admin_url.rpartition(":")[2])
        with closing(HTTPConnection("127.0.0.1", admin, timeout=PATIENCE)) as connection:
            headers = {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"}
            connection.request("GET", "/api/sessions", headers=headers)
            connection.getresponse().read()
            server.send_signal(signal.SIGTERM)
            # The client does not answer the close frame at once, which keeps the server for a while.
            eventually(lambda: "1012" in server.log or "drain" in server.log.lower(), "it stops")
            connection.request("POST", "/api/notifications", json.dumps(PUSH), headers)
            answer = connection.getresponse()
            assert answer.status == 503, answer.read()
            assert int(answer.headers["Retry-After"]) >= 1
        wire.leave()
        eventually(lambda: server.has_ended, "it has ended", 20)


@row(122, "a long list is paged")
def _(ground: Ground) -> None:
    for limit in (101, 0, -1, "x", 10**9):
        assert ground.api("GET", f"/api/users/judy/notifications?limit={limit}").status == 422, limit
    big = {"text": "x" * 60_000}
    for _ in range(12):
        assert ground.push(user_ids=["judy"], payload=big).status == 202
    began = time.monotonic()
    assert len(ground.inbox("judy")) <= 12
    assert time.monotonic() - began < PATIENCE
