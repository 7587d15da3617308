"""The end of a server, by real signals to a real process: who is told what, and what is waited for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import extensions

from flowtx.storage.cluster import cluster_directory
from flowtx.storage.postmaster import servers_of
from tests.integration.flow_process import FlowProcess, eventually
from tests.integration.proxy import Proxy
from tests.integration.rawclient import CLOSE, TEXT, frame, request

PATIENCE = 15.0


class Line:
    """A connection that blocks: to the clients' port, or to the admin endpoint."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._received = b""

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _more(self) -> bool:
        data = self.socket.recv(65_536)
        self._received += data
        return bool(data)

    def head(self) -> str:
        """The status line and the headers of an answer."""
        while b"\r\n\r\n" not in self._received:
            assert self._more(), f"the connection ended first: {self._received!r}"
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        return head.decode()

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """An answer of the admin endpoint: status, headers and body."""
        first, *lines = self.head().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._received) < length:
            assert self._more()
        body, self._received = self._received[:length], self._received[length:]
        return int(first.split()[1]), headers, body

    def close_code(self) -> int:
        """The code of the close frame, after whatever came before it; it is answered."""
        while True:
            data = self._received
            if len(data) >= 2:
                start = 4 if data[1] == 126 else 2
                length = int.from_bytes(data[2:4]) if data[1] == 126 else data[1]
                if len(data) >= start + length:
                    payload, self._received = data[start : start + length], data[start + length :]
                    if data[0] & 15 == CLOSE:
                        self.send(frame(CLOSE, payload[:2]))
                        return int.from_bytes(payload[:2])
                    continue
            assert self._more(), "the connection ended without a close frame"

    def ended(self) -> bool:
        """Wait for the end; whether it came without a reset."""
        try:
            while self._more():
                pass
        except ConnectionResetError:
            return False
        return True


def port_of(url: str) -> int:
    return int(url.removesuffix("/socket").rpartition(":")[2])


def opening(server: FlowProcess, user: str) -> bytes:
    return request(f"/socket/websocket?token={server.token(user)}&vsn=2.0.0")


def open_line(server: FlowProcess, user: str, *, join: bool = False) -> Line:
    """Connect a client."""
    line = Line(port_of(server.socket_url))
    line.send(opening(server, user))
    assert " 101 " in line.head()
    if join:
        line.send(frame(TEXT, json.dumps(["1", "1", f"user:{user}", "phx_join", {}]).encode()))
    return line


def http(server: FlowProcess, method: str, path: str, body: object = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port_of(server.admin_url)}\r\n"
        f"Authorization: Bearer {server.api_key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    ).encode() + data


@contextmanager
def locked(url: str, table: str) -> Iterator[None]:
    """Hold a table, so that whoever wants it waits."""
    with closing(psycopg2.connect(url)) as connection:
        connection.cursor().execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
        with suppress(psycopg2.OperationalError):  # the database may have gone
            connection.rollback()


def begin_to_stop(server: FlowProcess) -> None:
    """Send SIGTERM, and wait until the server has begun to stop."""
    os.kill(server.pid, signal.SIGTERM)
    eventually(lambda: server.request("GET", "/health/ready")[0] == 503, "it is not ready any more")


def finish(server: FlowProcess) -> int:
    """Wait for the end of a server that stops already; its exit status."""
    process, server._process = server._process, None
    assert process is not None
    return process.wait(30)


# --- who is told what -------------------------------------------------------------------------------------


def test_all_connections_are_closed_with_1012(tmp_path: Path) -> None:
    with FlowProcess(tmp_path) as server:
        users = [server.new_user() for _ in range(3)]
        lines = [
            open_line(server, users[0], join=True),
            open_line(server, users[0]),
            open_line(server, users[1]),
        ]
        os.kill(server.pid, signal.SIGTERM)
        assert [line.close_code() for line in lines] == [1012] * 3
        assert all(line.ended() for line in lines)
        assert finish(server) == -signal.SIGTERM
        assert "3 connections closed, 0 of them cut off" in server.log
        server.start()
        rows = server.sql("SELECT user_id, reason, connections FROM flow.sessions ORDER BY user_id")
        assert rows == [(users[0], "drain", 2), (users[1], "drain", 1)]


def test_those_in_their_handshake(tmp_path: Path, database_url: str) -> None:
    with FlowProcess(tmp_path, database=database_url) as server:
        user, port = server.new_user(), port_of(server.socket_url)
        with Line(port) as silent, Line(port) as partial, Line(port) as waiting:
            partial.send(opening(server, user)[:50])
            with locked(database_url, "flow.users"):
                waiting.send(opening(server, user))
                eventually(lambda: f"Starting session for user: {user}" in server.log, "its Session starts")
                begin_to_stop(server)
                # The one has asked for nothing, the other one not to the end: there is nothing to wait for.
                assert silent.head().startswith("HTTP/1.1 503")
                refused = partial.head()
                assert (refused.startswith("HTTP/1.1 503"), "Retry-After: 1" in refused) == (True, True)
            assert " 101 " in waiting.head()
            assert waiting.close_code() == 1012
            assert waiting.ended()
        assert finish(server) == -signal.SIGTERM


def test_who_does_not_read_is_cut_off(tmp_path: Path) -> None:
    with FlowProcess(tmp_path) as server:
        user = server.new_user()
        with open_line(server, user) as line:
            # It does not answer the close frame, and does not close either.
            assert server.stop() == -signal.SIGTERM
            assert line.socket.recv(2) == b"\x88\x07"


def test_a_database_that_does_not_answer_does_not_keep_it(tmp_path: Path, database_url: str) -> None:
    with closing(Proxy(database_url)) as proxy:
        parts = extensions.parse_dsn(proxy.url)
        url = f"postgresql://{parts['user']}@127.0.0.1:{parts['port']}/{parts['dbname']}"
        with FlowProcess(tmp_path, "--users-query=claims", database=url) as server:
            line = open_line(server, "alice", join=True)
            eventually(lambda: "Session initialized for user: alice" in server.log, "alice is there")
            proxy("hole")
            os.kill(server.pid, signal.SIGTERM)
            assert line.close_code() == 1012
            assert line.ended()
            assert finish(server) == -signal.SIGTERM
            assert "1 ended Sessions could not be written" in server.log
            assert "Traceback" not in server.log


def test_many_are_closed_in_batches(tmp_path: Path) -> None:
    with FlowProcess(tmp_path, "--users-query=claims") as server:
        lines = [open_line(server, f"user-{number % 50}") for number in range(450)]
        closed: list[int] = []
        threads = [
            threading.Thread(target=lambda line=line: closed.append(line.close_code())) for line in lines
        ]
        for thread in threads:
            thread.start()
        os.kill(server.pid, signal.SIGTERM)
        eventually(lambda: len(closed) >= 200, "the first batch is closed", PATIENCE, 0.001)
        # The next one comes half a second later, and the third after another one.
        status, body = server.request("GET", "/health/ready")
        assert status == 503, body
        assert finish(server) == -signal.SIGTERM
        for thread in threads:
            thread.join(PATIENCE)
        assert closed == [1012] * 450
        for line in lines:
            line.socket.close()
        (drained,) = (entry for entry in server.log.splitlines() if "Drained within" in entry)
        seconds = float(drained.partition("within ")[2].partition(" s")[0])
        assert seconds >= 1.0, drained


# --- what is waited for -----------------------------------------------------------------------------------


def test_new_clients_and_new_work_are_refused(tmp_path: Path, database_url: str) -> None:
    with FlowProcess(tmp_path, database=database_url) as server:
        user, other = server.new_user(), server.new_user()
        port, admin = port_of(server.socket_url), port_of(server.admin_url)
        push = http(server, "POST", "/api/notifications", {"user_ids": [user], "type": "t", "payload": {}})
        with Line(admin) as kept, Line(admin) as busy, Line(port) as waiting:
            kept.send(push)
            assert kept.answer()[0] == 202
            with locked(database_url, "flow.users"):
                waiting.send(opening(server, other))  # keeps the drain from its end
                eventually(lambda: f"Starting session for user: {other}" in server.log, "its Session starts")
                with locked(database_url, "flow.notifications"):
                    busy.send(push)
                    eventually(lambda: _waits(database_url, "flow.notif"), "a push is under way")
                    begin_to_stop(server)
                    kept.send(push)
                    status, headers, body = kept.answer()
                    assert (status, headers["retry-after"]) == (503, "2")
                    assert json.loads(body)["error"] == "unavailable"
                    with pytest.raises(ConnectionRefusedError):
                        socket.create_connection(("127.0.0.1", port), PATIENCE)
                assert busy.answer()[0] == 202
            assert " 101 " in waiting.head()
            assert waiting.close_code() == 1012
            assert waiting.ended()
        assert finish(server) == -signal.SIGTERM
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM flow.notifications WHERE user_id = %s", [user])
        assert cursor.fetchall() == [(2,)]


def _waits(url: str, what: str) -> bool:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool(cursor.fetchall()[0][0] >= 2)


# --- a second signal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals) -> None:
    with FlowProcess(tmp_path) as server:
        user = server.new_user()
        with locked(server.database_url, "flow.users"), Line(port_of(server.socket_url)) as waiting:
            waiting.send(opening(server, user))
            eventually(lambda: f"Starting session for user: {user}" in server.log, "its Session starts")
            begin_to_stop(server)
            os.kill(server.pid, second)
            assert finish(server) == 1
        said = f"ended at once by a second {second.name}; what was not yet written is lost"
        assert f"flowtx: {said}\n" in (tmp_path / "stderr").read_text()
        assert f"flowtx {said}" in (tmp_path / "stdout").read_text()
        cluster = cluster_directory(server.data_dir)
        eventually(lambda: servers_of(cluster) == [], "its PostgreSQL ends", 20)
        server.start()
        assert server.push(user) == 1


def test_the_port_is_free_as_soon_as_it_has_ended(tmp_path: Path) -> None:
    with FlowProcess(tmp_path) as server:
        user = server.new_user()
        lines = [open_line(server, user) for _ in range(5)]
        server.stop()
        server.start()
        assert server.push(user) == 1
        for line in lines:
            line.socket.close()


def test_hundreds_who_come_at_once_are_queued(tmp_path: Path) -> None:
    """Whom the system cannot queue waits for minutes: it takes its connection for made."""
    with FlowProcess(tmp_path, "--users-query=claims") as server, ExitStack() as stack:
        port = port_of(server.socket_url)
        os.kill(server.pid, signal.SIGSTOP)
        lines = [stack.enter_context(Line(port)) for _ in range(300)]
        for number, line in enumerate(lines):
            line.send(opening(server, f"user-{number % 50}"))
        eventually(lambda: queued(port) == 300, "all are queued")
        os.kill(server.pid, signal.SIGCONT)
        assert all(" 101 " in line.head() for line in lines)


def queued(port: int) -> int:
    """Tell how many connections to a port wait to be accepted."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if state == "0A" and local.endswith(f":{port:04X}"):
            return int(queues.partition(":")[2], 16)
    return 0


# --- the listening socket that systemd keeps --------------------------------------------------------------


def test_clients_wait_for_the_next_process_at_a_socket_of_systemd(tmp_path: Path, database_url: str) -> None:
    """With socket activation nobody is refused between two processes."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        port = listening.getsockname()[1]
        server = Activated(tmp_path, listening, database_url)
        with server:
            user = server.new_user()
            with Line(port) as line:
                line.send(opening(server, user))
                assert " 101 " in line.head()
                os.kill(server.pid, signal.SIGTERM)
                assert line.close_code() == 1012
                assert line.ended()
            assert finish(server) == -signal.SIGTERM
            with Line(port) as early:  # nobody is there to accept it
                early.send(opening(server, user))
                server.start()
                assert " 101 " in early.head()


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="clients")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Activated(FlowProcess):
    """A server that is given its listening socket, as systemd does it."""

    def __init__(self, directory: Path, listening: socket.socket, database_url: str) -> None:
        super().__init__(directory, database=database_url)
        self._fd = listening.fileno()
        given = "--listen=systemd:domain=INET:index=0"
        command = [given if word.startswith("--listen=") else word for word in self._command]
        self._command = [sys.executable, "-c", ACTIVATE, str(self._fd), *command]

    def spawn(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "stdout").open("ab") as out, (self.directory / "stderr").open("ab") as err:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.directory,
                env=self._environ,
                pass_fds=(self._fd,),
            )
