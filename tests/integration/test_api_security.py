"""What the admin endpoint withstands, byte by byte on a real socket of a real process."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.flow_process import FlowProcess, environment, eventually

KEYS = {
    scope: f"{scope}-Qm9vZ2llLXdvb2dpZS1idWdsZS1ib3ktMTk0MQ-{scope}" for scope in ("notify", "read", "admin")
}
PUSH = {"user_ids": ["alice"], "type": "note", "payload": {}}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowProcess]:
    directory = tmp_path_factory.mktemp("security")
    keys = directory / "api-keys"
    keys.touch(0o600)
    digest = sha256(KEYS["notify"].encode()).hexdigest()
    keys.write_text(
        f"# NAME SCOPES KEY\n\nbilling notify sha256:{digest}\n"
        f"  dashboard\tread   {KEYS['read']}\noperator admin {KEYS['admin']}\n"
    )
    with FlowProcess(directory, f"--api-keys={keys}") as process:
        yield process


def port_of(server: FlowProcess) -> int:
    return int(server.admin_url.rpartition(":")[2])


def ask(
    server: FlowProcess, method: str, path: str, body: object = None, key: str | None = None, **headers: str
) -> Answer:
    """Send one request on a connection of its own; names of headers have _ for -."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        given["Authorization"] = f"Bearer {key}"
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        given.setdefault("Content-Type", "application/json")
    with closing(HTTPConnection("127.0.0.1", port_of(server), timeout=20)) as connection:
        connection.request(method, path, data, given)
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def send(
    server: FlowProcess, request: bytes, *, slowly: bytes = b"", seconds: float = 20
) -> tuple[bytes, float]:
    """Send bytes, then a byte of others each second; what came until the server closed, and when."""
    began = time.monotonic()
    answer = b""
    with closing(socket.create_connection(("127.0.0.1", port_of(server)), 10)) as connection:
        connection.sendall(request)
        connection.settimeout(1)
        rest = iter(slowly)
        while time.monotonic() - began < seconds:
            try:
                part = connection.recv(65_536)
                if not part:
                    return answer, time.monotonic() - began
                answer += part
            except TimeoutError:
                connection.send(bytes([next(rest)]) if slowly else b"")
            except ConnectionResetError:
                return answer, time.monotonic() - began
    raise AssertionError(f"not closed within {seconds} s, after {answer!r}")


def head(method: str, path: str, *lines: str, key: str = KEYS["admin"]) -> bytes:
    usual = ["Host: localhost", f"Authorization: Bearer {key}"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *usual, *lines, "", ""]).encode()


# --- who may call -------------------------------------------------------------------------------------


def test_each_key_does_what_its_scope_says(server: FlowProcess) -> None:
    description = ask(server, "GET", "/api/openapi.json").json
    tried = {"notify": 0, "read": 0, "admin": 0}
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            if "security" not in operation:
                continue
            [[wanted]] = [one["key"] for one in operation["security"]]
            tried[wanted] += 1
            place = path.replace("{", "a").replace("}", "")
            for scope, key in KEYS.items():
                answer = ask(server, method.upper(), place, {"no": 1}, key=key)
                assert (answer.status != 401) == (scope in (wanted, "admin")), (method, path, scope)
            for key in ("", "x", KEYS["read"][:-1], f"{KEYS['admin']}x", f"sha256:{'0' * 64}"):
                answer = ask(server, method.upper(), place, key=key)
                assert (answer.status, answer.json["error"]) == (401, "unauthorized"), (method, path, key)
                assert answer.headers["www-authenticate"] == "Bearer"
            assert ask(server, method.upper(), place).status == 401
    assert all(tried.values())
    assert ask(server, "GET", "/api/sessions", key=server.api_key).status == 200


def test_the_digest_of_a_key_is_no_key(server: FlowProcess) -> None:
    digest = sha256(KEYS["notify"].encode()).hexdigest()
    for key in (digest, f"sha256:{digest}"):
        assert ask(server, "POST", "/api/notifications", PUSH, key=key).status == 401


def test_the_log_names_the_key(server: FlowProcess) -> None:
    path = "/api/sessions/somebody-in-the-log"
    ask(server, "GET", path, key=KEYS["read"])
    ask(server, "GET", f"{path}-too", key="nonsense-but-long-enough-to-be-a-key")
    eventually(lambda: f"{path}-too" in server.log, "the line is in the log")
    [line] = [line for line in server.log.splitlines() if f"GET {path} " in line]
    assert " 404 dashboard" in line
    [line] = [line for line in server.log.splitlines() if f"GET {path}-too " in line]
    assert " 401 -" in line
    assert not any(key in server.log for key in KEYS.values())


CROSS = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://localhost"},  # another port
    {"Origin": "http://127.0.0.1:PORT.evil.example"},
    {"Origin": "http://127.0.0.1:PORT/"},
    {"Origin": "file://127.0.0.1:PORT"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "Cross-Site"},
    {"Sec-Fetch-Site": "something-new"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
]
OWN = [
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:PORT"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "https://127.0.0.1:PORT"},  # a proxy has taken the TLS off
]


def test_pages_of_other_sites_are_refused(server: FlowProcess) -> None:
    port = str(port_of(server))
    for given, status in [(given, 403) for given in CROSS] + [(given, 202) for given in OWN]:
        headers = {name.replace("-", "_"): value.replace("PORT", port) for name, value in given.items()}
        answer = ask(server, "POST", "/api/notifications", PUSH, key=KEYS["notify"], **headers)
        assert answer.status == status, given
        assert status == 202 or answer.json["error"] == "cross_site"
    got, _ = send(
        server,
        head(
            "GET",
            "/api/sessions",
            f"Origin: http://127.0.0.1:{port}",
            "Origin: https://evil",
            "Connection: close",
        ),
    )
    assert got.startswith(b"HTTP/1.1 403 ")
    assert "access-control-allow-origin" not in ask(server, "GET", "/metrics", Origin="https://evil").headers


def test_a_name_that_somebody_points_here_is_refused(server: FlowProcess) -> None:
    port = port_of(server)
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "[::1",
        "",
    ):
        for path in ("/metrics", "/", "/health/ready", "/api/sessions"):
            answer = ask(server, "GET", path, key=KEYS["admin"], Host=host)
            assert (answer.status, answer.json["error"]) == (403, "forbidden_host"), (host, path)
    for host in ("localhost", f"LOCALHOST:{port}", "flow.localhost", "127.0.0.1", "[::1]:4001", "10.0.0.7"):
        assert ask(server, "GET", "/metrics", Host=host).status == 200, host


# --- what is no request that can be taken -------------------------------------------------------------

PLAIN = "Content-Type: application/json"
BROKEN = [
    head("POST", "/api/notifications", PLAIN, "Content-Length: 5", "Transfer-Encoding: chunked")
    + b"0\r\n\r\n",
    head("POST", "/api/notifications", PLAIN, "Transfer-Encoding: chunked", "Content-Length: 5")
    + b"0\r\n\r\n",
    head("POST", "/api/notifications", PLAIN, "Content-Length: 5", "Content-Length: 5") + b"{}   ",
    head("POST", "/api/notifications", PLAIN, "Content-Length: 5", "Content-Length: 6") + b"{}   ",
    head("POST", "/api/notifications", PLAIN, "Content-Length: 5, 5") + b"{}   ",
    head("POST", "/api/notifications", PLAIN, "Content-Length: +5") + b"{}   ",
    head("POST", "/api/notifications", PLAIN, "Content-Length: -5") + b"{}   ",
    head("POST", "/api/notifications", PLAIN, "Content-Length: 0x5") + b"{}   ",
    head("POST", "/api/notifications", PLAIN, "Content-Length: 5 ", " 6") + b"{}   ",
    head("GET", "/api/sessions", "X-Folded: one", " two"),
    head("GET", "/api/sessions", "X-Folded: one", "\ttwo"),
    head("GET", "/api/sessions", "X-Space : one"),
    head("GET", "/api/sessions", "no colon", "X-Other: y"),
    head("GET", "/api/sessions", "X-Nul: a\0b"),
    head("GET", "/api/sessions", "Host: another"),
    b"GET /api/sessions HTTP/1.1\r\n\r\n",
    b"GET /api/sessions HTTP/2.0\r\nHost: x\r\n\r\n",
    b"GET  /api/sessions HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /api/sessions\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    head("POST", "/api/notifications", PLAIN, "Transfer-Encoding: gzip") + b"x",
    head("POST", "/api/notifications", PLAIN, "Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
    head("POST", "/api/notifications", PLAIN, "Transfer-Encoding: chunked") + b"+5\r\n{}   \r\n0\r\n\r\n",
    head("POST", "/api/notifications", PLAIN, "Transfer-Encoding: chunked") + b"2\r\n{}xx0\r\n\r\n",
]


def test_what_is_not_http_is_refused_once_and_nothing_after_it_is_read(server: FlowProcess) -> None:
    smuggled = head("DELETE", "/api/sessions/smuggled")
    for request in BROKEN:
        answer, seconds = send(server, request + smuggled)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), (request, answer)
        assert b'"error":"bad_request"' in answer
        assert answer.count(b"\r\nContent-Length: ") == 1, request
        assert seconds < 5
    assert "smuggled" not in server.log


def test_a_large_body_is_refused_by_its_header(server: FlowProcess) -> None:
    for lines in ([], ["Expect: 100-continue"]):
        request = head("POST", "/api/notifications", PLAIN, "Content-Length: 1048577", *lines)
        answer, seconds = send(server, request)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"Connection: close" in answer
        assert b"100 Continue" not in answer
        assert seconds < 5
    # One who goes on sending gets to read it too.
    answer, _ = send(server, request + b"x" * 1_048_577)
    assert b'"error":"body_too_large"' in answer


@pytest.mark.parametrize("key", ["", KEYS["admin"]])
def test_an_endless_header_is_refused(server: FlowProcess, key: str) -> None:
    start = f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n".encode()
    for rest in (b"X: " + b"y" * 20_000, b"X: y\r\n" * 4_000, b"X: " + b"y" * 16_384 + b"\r\n\r\n"):
        answer, _ = send(server, start + rest)
        assert answer.startswith(b"HTTP/1.1 431 "), (rest[:10], answer)
    answer, _ = send(server, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_what_is_not_whole_in_ten_seconds_is_given_up(server: FlowProcess) -> None:
    post = ("POST", "/api/notifications", PLAIN)
    chunked = head(*post, "Transfer-Encoding: chunked")
    requests = [
        (b"GET /api/sess", b"ions HTTP/1.1\r\nHost: localhost"),
        (b"GET /api/sessions HTTP/1.1\r\nX: ", b"y" * 30),
        (head(*post, "Content-Length: 100"), b'{"user_ids": ["alice"], "type": "a", "payload": {}}'),
        (chunked, b""),
        (chunked + b"2\r\n{}\r\n", b"1\r\n \r\n" * 5),
        (head("GET", "/metrics") + b"GET / HT", b""),
    ]
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda it: send(server, it[0], slowly=it[1], seconds=25), requests))
    for (request, _), (answer, seconds) in zip(requests, answers, strict=True):
        assert b"HTTP/1.1 408 Request Timeout\r\n" in answer, (request, answer)
        assert 9 < seconds < 15, (request, seconds)
    assert answers[-1][0].startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_order(server: FlowProcess) -> None:
    wanted = [f"user-{number:03}" for number in range(100)]
    body = json.dumps({**PUSH, "type": "pipelined"})
    # Those that wait for the database among those that do not.
    requests = [
        head("GET", f"/api/sessions/{name}")
        if number % 10
        else head("POST", "/api/notifications", PLAIN, f"Content-Length: {len(body)}") + body.encode()
        for number, name in enumerate(wanted)
    ]
    got, _ = send(server, b"".join(requests) + head("GET", "/health/live", "Connection: close"))
    pieces = got.split(b"HTTP/1.1 ")[1:]
    assert len(pieces) == 101
    stored = []
    for number, (name, piece) in enumerate(zip(wanted, pieces, strict=False)):
        answer = json.loads(piece.partition(b"\r\n\r\n")[2])
        if number % 10:
            assert (piece[:3], name in answer["detail"]) == (b"404", True)
        else:
            stored.append(answer["notifications"][0]["seq"])
    assert stored == list(range(stored[0], stored[0] + 10))


# --- what is a request, and gets nothing --------------------------------------------------------------


def test_odd_paths_lead_nowhere(server: FlowProcess) -> None:
    for path in (
        "/api/users/..%2f..%2fetc%2fpasswd/notifications",
        "/api/users/../../etc/passwd",
        "/api/users/a%00b/notifications",
        "/api/users/%E2%80%AEa/notifications",
        "/api/users/%ff/notifications",
        "/api/users/a%0d%0ab/notifications",
        f"/api/users/{'a' * 1_024}/notifications",
        "/api//sessions",
        "//api/sessions",
        "/api/sessions/",
        "/static/..%2f..%2f..%2fetc%2fpasswd",
        "/static/%00",
        "/static//index.html",
        f"/{'a' * 8_192}",
        f"/api/sessions/{'a' * 8_192}",
        "/v1/users",
        "http://evil.example/metrics",
    ):
        answer, _ = send(server, head("GET", path, "Connection: close"))
        status, body = answer.split(b" ")[1], json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (status, body["error"]) == (b"404", "not_found"), path
        assert b"ocation:" not in answer
        assert len(body["detail"]) < 300


def test_ids_that_no_user_can_have_are_not_there(server: FlowProcess) -> None:
    tried = 0
    for path, operations in ask(server, "GET", "/api/openapi.json").json["paths"].items():
        for method in operations if "{user_id}" in path else ():
            for user_id in ("%C2%84", "a%20b", "a%0a", "x" * 129):
                place = path.replace("{user_id}", user_id).replace("{group}", "g").replace("{", "a")
                body = {"all": True} if method == "post" else None
                answer = ask(server, method.upper(), place.replace("}", ""), body, key=KEYS["admin"])
                assert (answer.status, answer.json["error"]) == (404, "not_found"), (method, place)
                tried += 1
    assert tried > 30


def test_methods_that_nothing_takes(server: FlowProcess) -> None:
    for method in ("TRACE", "CONNECT", "OPTIONS", "PATCH", "PROPFIND"):
        for path, allowed in (
            ("/metrics", "GET, HEAD"),
            ("/api/notifications", "POST"),
            ("/nowhere", "DELETE, GET, HEAD, POST, PUT"),
            ("example.com:443", "DELETE, GET, HEAD, POST, PUT"),
        ):
            got, _ = send(server, head(method, path, "Connection: close"))
            assert got.startswith(b"HTTP/1.1 405 "), (method, path, got)
            assert f"Allow: {allowed}\r\n".encode() in got, (method, path, got)
    for method in ("get", "Get", "deletE"):
        got, _ = send(server, head(method, "/api/sessions", "Connection: close"))
        assert got.startswith(b"HTTP/1.1 400 "), (method, got)
    for method, path, allowed in (
        ("DELETE", "/api/notifications", "POST"),
        ("POST", "/api/sessions/alice", "DELETE, GET, HEAD"),
        ("PUT", "/metrics", "GET, HEAD"),
    ):
        answer = ask(server, method, path, key=KEYS["admin"])
        assert (answer.status, answer.json["error"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == allowed


def test_no_header_changes_the_method(server: FlowProcess) -> None:
    for name in ("X_HTTP_Method_Override", "X_HTTP_Method", "X_Method_Override"):
        answer = ask(
            server, "POST", "/api/sessions/alice?_method=DELETE", {}, key=KEYS["admin"], **{name: "DELETE"}
        )
        assert answer.status == 405


def test_answers_say_nothing_of_what_made_them(server: FlowProcess) -> None:
    for path in ("/", "/metrics", "/nowhere", "/api/sessions", "/static/%ff"):
        answer = ask(server, "GET", path)
        assert "server" not in answer.headers
        assert b"Traceback" not in answer.body
        assert b"twisted" not in answer.body.lower() or path == "/metrics"


def test_a_form_is_not_parsed(server: FlowProcess) -> None:
    form = "application/x-www-form-urlencoded"
    for kind in (form, "multipart/form-data; boundary=x", "multipart/form-data", "text/plain"):
        answer = ask(server, "POST", "/api/notifications", {}, key=KEYS["notify"], Content_Type=kind)
        assert (answer.status, answer.json["error"]) == (415, "unsupported_media_type"), kind


def test_a_flood_of_wrong_keys_stops_nobody(server: FlowProcess) -> None:
    def storm(number: int) -> int:
        return ask(server, "GET", "/api/sessions", key=f"wrong-{number}").status

    with ThreadPoolExecutor(8) as pool:
        storming = pool.map(storm, range(400))
        assert ask(server, "POST", "/api/notifications", PUSH, key=KEYS["notify"]).status == 202
        assert set(storming) == {401}


# --- the file of keys ---------------------------------------------------------------------------------


def flowtx(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("flowtx")), *arguments]
    return subprocess.run(
        command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command_adds_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    made = flowtx(tmp_path, "api-key", "add", "billing", "--scope=notify", f"--api-keys={file}")
    assert (made.returncode, made.stderr) == (0, "")
    key = made.stdout.strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in file.read_text()
    assert sha256(key.encode()).hexdigest() in file.read_text()
    again = flowtx(tmp_path, "api-key", "add", "billing", "--scope=read", f"--api-keys={file}")
    assert again.returncode == 1
    assert again.stderr.startswith("flowtx: --api-keys: ")
    assert again.stderr.count("\n") == 1
    both = flowtx(tmp_path, "api-key", "add", "both", "--scope=read", "--scope=notify", f"--api-keys={file}")
    with FlowProcess(tmp_path / "server", f"--api-keys={file}") as server:
        assert ask(server, "POST", "/api/notifications", PUSH, key=key).status == 202
        assert ask(server, "GET", "/api/sessions", key=key).status == 401
        assert ask(server, "GET", "/api/sessions", key=both.stdout.strip()).status == 200
        assert ask(server, "POST", "/api/tokens/revoke", {"jti": "x"}, key=both.stdout.strip()).status == 401


def test_the_command_needs_a_file_and_a_scope(tmp_path: Path) -> None:
    for arguments, said in (
        (["add", "billing", "--scope=notify"], "--api-keys"),
        (["add", "a b", "--scope=notify", "--api-keys=keys"], "NAME"),
        (["add", "api-key", "--scope=notify", "--api-keys=keys"], "NAME"),
    ):
        made = flowtx(tmp_path, "api-key", *arguments)
        assert (made.returncode, made.stdout) == (1, ""), arguments
        assert said in made.stderr
    for arguments in (["add", "billing", "--api-keys=keys"], ["add", "billing", "--scope=all"], []):
        assert flowtx(tmp_path, "api-key", *arguments).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_others_read_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"billing notify {KEYS['notify']}\n")
    file.chmod(0o644)
    server = FlowProcess(tmp_path / "server", f"--api-keys={file}")
    server.spawn()
    try:
        eventually(lambda: server.has_ended, "it ends", 30)
        assert "chmod 600" in server.log
        assert KEYS["notify"] not in server.log
        assert "Traceback" not in server.log
    finally:
        server.kill()
