"""``flowtx why`` beside a real server, for connections that real causes have ended."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.integration.blocking_client import connected
from tests.integration.flow_process import FlowProcess, Outcome, eventually, run
from tests.integration.rawclient import TEXT, close_frame, frame, request

FLOWTX = (sys.executable, str(Path(sys.executable).with_name("flowtx")))
OPTIONS = (
    "--users-query=claims",
    "--idle-timeout=3",
    "--reconnect-window=1",
    "--ping-interval=0.4",
    "--pong-timeout=0.8",
    "--outbox-limit=20000",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowProcess]:
    with FlowProcess(tmp_path_factory.mktemp("why"), *OPTIONS) as server:
        yield server


def why(server: FlowProcess, user_id: str, *options: str) -> Outcome:
    admin = "tcp:" + server.admin_url.rpartition(":")[2]
    where = (f"--data-dir={server.data_dir}", f"--admin={admin}")
    return run([*FLOWTX, "why", user_id, *where, *options], server.directory)


def conclusion(server: FlowProcess, user_id: str) -> str:
    outcome = why(server, user_id)
    assert (outcome.status, outcome.stderr) == (0, ""), outcome
    return outcome.stdout.splitlines()[-1]


@contextmanager
def deaf_client(server: FlowProcess, user_id: str) -> Iterator[socket.socket]:
    """A client that joins its topic and reads nothing from then on."""
    port = int(server.socket_url.removesuffix("/socket").rpartition(":")[2])
    topic = f"user:{user_id}"
    join = json.dumps(["1", "1", topic, "phx_join", {"device": "old phone"}]).encode()
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(10)
        client.connect(("127.0.0.1", port))
        headers = ("User-Agent", "Deaf/1.0"), ("X-Request-Id", f"call-{user_id}")
        client.sendall(
            request(f"/socket/websocket?token={server.token(user_id)}&vsn=2.0.0", *headers)
            + frame(TEXT, join)
        )
        received = b""
        while b"reconnect_jitter_max_ms" not in received:
            received += client.recv(4096)
        yield client


def ends(server: FlowProcess, user_id: str) -> list[dict[str, object]]:
    status, answer = server.request("GET", f"/api/users/{user_id}/recorder", {})
    assert status == 200
    found: list[dict[str, object]] = answer["ends"]
    return found


def wait_for_end(server: FlowProcess, user_id: str) -> None:
    eventually(lambda: ends(server, user_id), f"{user_id} is gone")


def test_client_that_answers_no_pings(server: FlowProcess) -> None:
    with deaf_client(server, "silent"):
        server.push("silent")
        server.push("silent")
        wait_for_end(server, "silent")
    outcome = why(server, "silent")
    last = outcome.stdout.splitlines()[-1]
    assert outcome.status == 0
    assert last.startswith("Last closed ")
    assert "the client did not answer Pings (1002 pong timeout); 2 notifications wait." in last
    # The time line above it.
    lines = outcome.stdout.splitlines()[:-1]
    events = [line.split("  ")[1] for line in lines]
    assert events[:4] == ["session started", "connected", "inbox opened", "joined"]
    assert events[4] == "closed"
    assert "user_agent=Deaf/1.0" in lines[1]
    assert "request_id=call-silent" in lines[1]
    assert "device=old phone" in lines[3]
    assert "by=silence" in lines[4]


def test_idle_user(server: FlowProcess) -> None:
    with connected(server.socket_url, server.token("idle")) as client:
        client.join("user:idle")
        assert client.closed_with() == (1000, "idle_timeout")
    wait_for_end(server, "idle")
    assert "the user did nothing for the idle timeout (1000 idle_timeout)" in conclusion(server, "idle")


def test_slow_consumer(server: FlowProcess) -> None:
    with deaf_client(server, "slow"):
        for _ in range(40):
            body = {"topic": "user:slow", "event": "news", "payload": {"text": "x" * 50_000}}
            server.request("POST", "/api/broadcasts", body)
        wait_for_end(server, "slow")
    outcome = why(server, "slow")
    assert "slow consumer  connection=" in outcome.stdout
    assert "the client did not read what was sent to it (1013 slow_consumer)" in outcome.stdout


def test_revoked_token(server: FlowProcess) -> None:
    token = server.token("thief")
    with connected(server.socket_url, token) as client:
        client.join("user:thief")
        server.request("POST", "/api/tokens/revoke", {"user_id": "thief"})
        assert client.closed_with() == (1000, "token_revoked")
    wait_for_end(server, "thief")
    assert "403" in server.handshake(token)
    said = conclusion(server, "thief")
    assert "the token was revoked (1000 token_revoked)" in said
    assert "refused once since, last 0 seconds ago: its token is revoked (revoked_token)" in said.replace(
        "1 second ", "0 seconds "
    )


def test_expired_token_is_refused(server: FlowProcess) -> None:
    assert "403" in server.handshake(server.token("late", ttl=-100))
    said = conclusion(server, "late")
    assert said.startswith("late was not connected as far back as is known; refused once since, last ")
    assert said.endswith("its token has expired (expired_token).")


def test_client_that_closes(server: FlowProcess) -> None:
    with deaf_client(server, "leaver") as client:
        client.sendall(close_frame(1001, b"page \x1b[31mleft"))
        wait_for_end(server, "leaver")
    # What a client gave as its reason does not get to speak to the terminal.
    assert "the client closed it (1001 page \\x1b[31mleft)" in conclusion(server, "leaver")


def test_client_that_vanishes(server: FlowProcess) -> None:
    with deaf_client(server, "vanished"):
        pass
    wait_for_end(server, "vanished")
    assert "the connection was lost without a word" in conclusion(server, "vanished")


def test_who_is_here_now(server: FlowProcess) -> None:
    with connected(server.socket_url, server.token("here")) as client:
        client.join("user:here")
        assert conclusion(server, "here") == "here is connected now, 1 connection."


def test_nobody_knows_them(server: FlowProcess) -> None:
    outcome = why(server, "nobody")
    assert (outcome.status, outcome.stdout, outcome.stderr) == (1, "Nothing is known of nobody.\n", "")


def test_wrong_use(server: FlowProcess) -> None:
    outcome = why(server, "a b")
    assert (outcome.status, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith("flowtx: USER: got 'a b'; it takes ")
    outcome = why(server, "alice", "--admin=systemd:domain=INET:index=0")
    assert outcome.status == 1
    assert "to be asked, the server takes tcp:PORT" in outcome.stderr


def test_server_that_was_started_anew_or_is_down(tmp_path: Path) -> None:
    server = FlowProcess(tmp_path / "server", *OPTIONS)
    with server:
        with connected(server.socket_url, server.token("alice")) as client:
            client.join("user:alice")
            server.stop()
        # The recorder is gone with the process; the history of Sessions is not.
        server.start()
        outcome = why(server, "alice")
        assert (outcome.status, outcome.stderr) == (0, "")
        heading, row, said = outcome.stdout.splitlines()
        assert heading == "Sessions that have ended, the last one first:"
        assert "  drain  after " in row
        assert said.startswith("The last Session ended ")
        assert said.endswith("the server stopped, or was started anew (drain).")
    outcome = why(server, "alice")
    assert outcome.status == 0
    assert outcome.stderr.startswith("flowtx: the server does not answer: ")
    assert outcome.stdout.splitlines()[-1].endswith("the server stopped, or was started anew (drain).")
    assert server.postgres_processes == []
