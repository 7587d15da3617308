"""Ids of calls from outside: HTTP and WebSocket, in the answers and in the log of a real process."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.blocking_client import connected
from tests.integration.flow_process import FlowProcess, eventually
from tests.integration.rawclient import TEXT, frame, request

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
OPTIONS = ("--users-query=claims", "--rate-limit=5/10", "--log-format=json")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowProcess]:
    with FlowProcess(tmp_path_factory.mktemp("tracing"), *OPTIONS) as server:
        yield server


def port_of(url: str) -> int:
    return int(url.removesuffix("/socket").rpartition(":")[2])


def events(server: FlowProcess, **wanted: object) -> list[dict[str, Any]]:
    """The events of the log in which some keys have some values."""
    found = [json.loads(line) for line in server.log.splitlines()]
    return [event for event in found if wanted.items() <= event.items()]


def call(
    server: FlowProcess, method: str, path: str, body: bytes | None = None, **headers: str
) -> http.client.HTTPResponse:
    with closing(
        http.client.HTTPConnection("127.0.0.1", port_of(server.admin_url), timeout=10)
    ) as connection:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            given = {"Content-Type": "application/json", **given}
        connection.request(method, path, body, {"Authorization": f"Bearer {server.api_key}", **given})
        answer = connection.getresponse()
        answer.read()
        return answer


def raw(port: int, data: bytes) -> bytes:
    with closing(socket.create_connection(("127.0.0.1", port), 10)) as connection:
        connection.sendall(data)
        connection.settimeout(10)
        received = b""
        while b"\r\n\r\n" not in received:
            more = connection.recv(4096)
            if not more:
                break
            received += more
        return received


def test_every_line_is_one_object(server: FlowProcess) -> None:
    # The earliest ones too, which are logged before the server is made.
    lines = server.log.splitlines()
    first = json.loads(lines[0])
    assert first["message"].startswith("twistd ")
    for line in lines:
        assert {"time", "level", "namespace", "message"} <= json.loads(line).keys()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/sessions", 200),
        ("GET", "/api/sessions/nobody", 404),
        ("GET", "/nowhere", 404),
        ("PUT", "/api/sessions", 405),
        ("TRACE", "/", 405),
        ("POST", "/api/notifications", 415),
        ("GET", "/health/live", 200),
    ],
)
def test_id_is_in_the_answer_and_in_the_log(server: FlowProcess, method: str, path: str, status: int) -> None:
    request_id = f"{method}.{path.replace('/', '_')}"
    answer = call(server, method, path, X_Request_Id=request_id, traceparent=TRACEPARENT)
    assert (answer.status, answer.headers.get_all("X-Request-Id")) == (status, [request_id])
    eventually(lambda: events(server, request_id=request_id), "it is logged")
    [event] = events(server, request_id=request_id)
    assert (event["status"], event["traceparent"]) == (status, TRACEPARENT)


def test_id_is_made_where_none_is_good(server: FlowProcess) -> None:
    made = set()
    for given in (None, "a b", "x" * 129, "${jndi}"):
        headers = {} if given is None else {"X_Request_Id": given}
        answer = call(server, "GET", "/health/live", None, **headers)
        made.add(answer.headers["X-Request-Id"])
    assert len(made) == 4
    assert {len(request_id) for request_id in made} == {16}


def test_refusals_below_the_calls_have_one_too(server: FlowProcess) -> None:
    port = port_of(server.admin_url)
    head = "POST /api/notifications HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: too-large\r\n"
    answer = raw(port, f"{head}Content-Length: 2000000\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nX-Request-Id: too-large\r\n" in answer
    answer = raw(port, b"NONSENSE\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nX-Request-Id: " in answer


def test_id_outlives_what_is_awaited(server: FlowProcess) -> None:
    # The call waits for the database; what is logged after that still has its id.
    body = json.dumps({"user_ids": ["traced"], "type": "note", "payload": {}}).encode()
    with connected(server.socket_url, server.token("traced")) as client:
        client.join("user:traced")
        given = {"X_Request_Id": "push-1", "traceparent": TRACEPARENT}
        assert call(server, "POST", "/api/notifications", body, **given).status == 202
        eventually(
            lambda: events(server, message="Gave notification 1 to a client of traced"), "it is delivered"
        )
    [pushed] = events(server, message="Pushed 1 notifications, the first to traced")
    [given_out] = events(server, message="Gave notification 1 to a client of traced")
    for event in (pushed, given_out):
        assert (event["request_id"], event["traceparent"]) == ("push-1", TRACEPARENT)
    assert pushed["id"] == given_out["id"]


def test_push_that_nobody_traces_is_not_logged(server: FlowProcess) -> None:
    body = json.dumps({"user_ids": ["quiet"], "type": "note", "payload": {}}).encode()
    with connected(server.socket_url, server.token("quiet")) as client:
        client.join("user:quiet")
        for given in ({}, {"traceparent": TRACEPARENT[:-1] + "0"}):
            assert (
                call(server, "POST", "/api/notifications", body, X_Request_Id="quiet", **given).status == 202
            )
    assert {event["path"] for event in events(server, request_id="quiet")} == {"/api/notifications"}


def test_refused_handshake_has_its_id(server: FlowProcess) -> None:
    answer = raw(
        port_of(server.socket_url),
        request("/socket/websocket?vsn=2.0.0", ("X-Request-Id", "hs-1"), ("traceparent", TRACEPARENT)),
    )
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"\r\nX-Request-Id: hs-1\r\n" in answer
    eventually(lambda: events(server, request_id="hs-1"), "it is logged")
    [event] = events(server, request_id="hs-1")
    assert (event["reason"], event["traceparent"]) == ("missing_token", TRACEPARENT)
    assert b"\r\nX-Request-Id: " in raw(port_of(server.socket_url), b"x" * 20_000)


def test_what_a_connection_does_has_its_id(server: FlowProcess) -> None:
    token = server.token("noisy")
    handshake = request(f"/socket/websocket?vsn=2.0.0&token={token}", ("X-Request-Id", "conn-1"))
    heartbeats = b"".join(
        frame(TEXT, f'["1","{number}","user:noisy","activity",{{}}]'.encode()) for number in range(20)
    )
    with closing(socket.create_connection(("127.0.0.1", port_of(server.socket_url)), 10)) as connection:
        connection.sendall(handshake)
        assert b" 101 " in connection.recv(4096)
        connection.sendall(heartbeats)
        connection.settimeout(10)
        # What it has not read when it closes makes it send a reset.
        with suppress(ConnectionResetError):
            while connection.recv(65_536):
                pass
    eventually(lambda: len(events(server, request_id="conn-1")) >= 2, "it is logged")
    told = [event["message"] for event in events(server, request_id="conn-1")]
    assert told[0] == "Starting session for user: noisy"
    assert told[-1].startswith("Closing 127.0.0.1: 1008 rate_limited")
    _, recorded = server.request("GET", "/api/users/noisy/recorder", {})
    noted = [event["event"] for event in recorded["events"]]
    assert noted.count("rate_limited") == 3
    assert recorded["ends"][-1]["code"] == 1008
    assert token not in server.log


def test_hostile_path_stays_in_its_line(server: FlowProcess) -> None:
    path = "/api/sessions/%1b[31m{user_id}%0d%0a\\" + "y" * 3_000
    call(server, "GET", path, X_Request_Id="hostile-1", User_Agent="\x1b[2J{agent}" + "z" * 3_000)
    eventually(lambda: events(server, request_id="hostile-1"), "it is logged")
    [line] = [line for line in server.log.splitlines() if "hostile-1" in line]
    assert line.isprintable()
    assert "{user_id}" in line
    assert len(line) < 512


def test_level_and_text(tmp_path: Path) -> None:
    with FlowProcess(tmp_path, "--users-query=claims", "--log-level=warn") as quiet:
        call(quiet, "GET", "/api/sessions")
        quiet.handshake("nonsense")
        quiet.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        eventually(lambda: "#warn] " in quiet.log, "it warns")
        assert "#info] " not in quiet.log
