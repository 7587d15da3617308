"""``twistd flow`` in a process of its own, as an operator runs it, for tests that look on from outside."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

import jwt
import psycopg2

from flowtx.storage.cluster import cluster_directory, embedded_url
from flowtx.storage.postmaster import servers_of, signal_server

TWISTD: Sequence[str] = (sys.executable, str(Path(sys.executable).with_name("twistd")))
START_PATIENCE = 30.0
STOP_PATIENCE = 20.0

_numbers = count(1)


class Outcome(NamedTuple):
    """How a process ended."""

    status: int
    stdout: str
    stderr: str
    seconds: float


class FlowProcess:
    """A server with ports and a data directory of its own.

    Args:
        directory: where it runs; its data directory is ``data`` in there.
        options: further options of ``flow``.
        reactor: which one twistd takes; None for the default.
        environ: variables besides those of `environment`.
        twistd: the command that runs twistd.
        database: its ``--database``; None for the embedded one.

    Attributes:
        socket_url: what a Phoenix client connects to.
        admin_url: the HTTP API's.
        started_in: seconds from the process's start to ``/health/ready``.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        reactor: str | None = None,
        environ: Mapping[str, str] | None = None,
        twistd: Sequence[str] = TWISTD,
        database: str | None = None,
    ) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        client_port, admin_port = free_port(), free_port()
        self.socket_url = f"ws://127.0.0.1:{client_port}/socket"
        self.admin_url = f"http://127.0.0.1:{admin_port}"
        self.started_in = 0.0
        self._database = database
        self._environ = environment(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [
            *twistd,
            "--nodaemon",
            "--pidfile=",
            *([f"--reactor={reactor}"] if reactor else []),
            "flow",
            f"--data-dir={self.data_dir}",
            f"--listen=tcp:{client_port}:interface=127.0.0.1",
            f"--admin=tcp:{admin_port}:interface=127.0.0.1",
            *([f"--database={database}"] if database else []),
            *options,
        ]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: object, *_: object) -> None:
        if self._process is None:
            return
        if kind is not None:
            self.kill()
            sys.stdout.write(f"--- the log of {self.directory}\n{self.log}")
        else:
            self.stop()

    @property
    def pid(self) -> int:
        """Its process's id, while it runs."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process is not None and self._process.poll() is not None

    @property
    def log(self) -> str:
        """What it has written so far, in all its runs: the log, then what came on stderr."""
        return "".join(
            path.read_text("utf-8", "replace")
            for path in (self.directory / "stdout", self.directory / "stderr")
            if path.exists()
        )

    @property
    def api_key(self) -> str:
        return (self.data_dir / "api-key").read_text().strip()

    @property
    def database_url(self) -> str:
        """What psycopg2 connects to."""
        return self._database or embedded_url(self.data_dir)

    @property
    def postgres_processes(self) -> list[int]:
        """The ids of the processes of its embedded PostgreSQL."""
        cluster = cluster_directory(self.data_dir)
        return servers_of(cluster) if cluster.exists() else []

    # Its life

    def spawn(self) -> None:
        """Start the process and do not wait."""
        assert self._process is None, "it runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "stdout").open("ab") as out, (self.directory / "stderr").open("ab") as err:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.directory,
                env=self._environ,
            )

    def start(self) -> Self:
        """Start, and wait until it takes work."""
        began = time.monotonic()
        self.spawn()
        try:
            eventually(self._is_ready, "it becomes ready", START_PATIENCE, 0.02)
        except BaseException as problem:
            self.kill()
            raise AssertionError(f"{problem}; its log:\n{self.log}") from None
        self.started_in = time.monotonic() - began
        return self

    def _is_ready(self) -> bool:
        if self.has_ended:
            raise AssertionError("it has ended")
        try:
            return self.request("GET", "/health/ready")[0] == 200
        except OSError:
            return False

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it in order.

        Returns:
            Its exit status, as `subprocess` has it: minus the signal's number where a signal ended it.
        """
        process, self._process = self._process, None
        assert process is not None, "it does not run"
        process.send_signal(number)
        try:
            status = process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process = process
            self.kill()
            raise AssertionError(f"it did not end within {STOP_PATIENCE} s; its log:\n{self.log}") from None
        assert self.postgres_processes == []
        assert "Traceback" not in self.log, self.log
        return status

    def kill(self) -> None:
        """Kill -9 it, and wait until its PostgreSQL has noticed."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        try:
            eventually(lambda: not self.postgres_processes, "PostgreSQL ends with it", STOP_PATIENCE)
        except AssertionError:
            for pid in self.postgres_processes:
                signal_server(pid, cluster_directory(self.data_dir), signal.SIGQUIT)
            raise

    # What a backend does with it

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send a request to the admin endpoint, with the API key where there is a body.

        Returns:
            The status, and what the JSON of the answer says.
        """
        request = urllib.request.Request(self.admin_url + path, method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
            request.add_header("Authorization", f"Bearer {self.api_key}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as problem:
            with problem:
                return problem.code, json.load(problem)

    def push(self, user_id: str, type_: str = "note", payload: object = None) -> int:
        """Push a notification by HTTP; its seq."""
        body = {"user_ids": [user_id], "type": type_, "payload": payload or {}}
        status, answer = self.request("POST", "/api/notifications", body)
        assert status == 202, answer
        seq: int = answer["notifications"][0]["seq"]
        return seq

    def handshake(self, token: str) -> str:
        """Ask for a WebSocket; the first line of the answer."""
        port = self.socket_url.removesuffix("/socket").rpartition(":")[2]
        request = (
            f"GET /socket/websocket?token={token}&vsn=2.0.0 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        with closing(socket.create_connection(("127.0.0.1", int(port)), 10)) as connection:
            connection.sendall(request.encode())
            with connection.makefile("rb") as answer:
                return answer.readline().decode().strip()

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement in its database."""
        return run_sql(self.database_url, statement, *parameters)

    def new_user(self) -> str:
        """Add a user of a name that no other test has."""
        user_id = f"user-{next(_numbers)}"
        self.sql("INSERT INTO flow.users VALUES (%s, %s)", user_id, user_id.title())
        return user_id

    def token(self, user_id: str, ttl: float = 600, **claims: object) -> str:
        """Sign a token as another program would, with the text of the file ``secret``."""
        secret = (self.data_dir / "secret").read_text().strip()
        return jwt.encode({"sub": user_id, "exp": int(time.time() + ttl), **claims}, secret, "HS512")


def environment(further: Mapping[str, str] | None = None) -> dict[str, str]:
    """Make an environment that says nothing to flowtx or Python but what is given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWTX_", "PYTHON"))}
    return {**kept, **(further or {})}


def run(
    command: Sequence[str], cwd: Path, environ: Mapping[str, str] | None = None, seconds: float = 60
) -> Outcome:
    """Run a program to its end."""
    began = time.monotonic()
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(environ),
        timeout=seconds,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def run_sql(url: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run one statement in a transaction of its own."""
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def eventually(is_so: Callable[[], object], what: str, seconds: float = 10.0, pause: float = 0.01) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(pause)


def free_port() -> int:
    """Find a TCP port that nobody listens on, below those that the system gives to clients."""
    while True:
        port = random.randrange(20_000, 32_000)
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
