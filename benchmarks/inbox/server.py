"""The server under load: ``twistd flow`` in a process of its own, in a directory that is removed."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import psycopg2

from benchmarks.inbox.figures import Load
from flowtx.auth import mint

START_WITHIN = 60.0
STOP_WITHIN = 30.0
STATEMENT_WITHIN = 120.0
TOKEN_TTL = 3_600.0

_PROGRAMS = Path(sys.executable).parent
_TICKS = os.sysconf("SC_CLK_TCK")


class _Used(NamedTuple):
    """Seconds of processor time, and of time."""

    server: float
    postgres: float
    generator: float
    at: float


class Meter:
    """Gives the load of a stretch of time once it is over."""

    def __init__(self, before: _Used) -> None:
        self._before = before
        self._after = before

    def stop(self, after: _Used) -> None:
        self._after = after

    @property
    def load(self) -> Load:
        spans = [end - start for start, end in zip(self._before, self._after, strict=True)]
        return Load(*(span / spans[-1] for span in spans[:-1]))


class Server:
    """A server, from ``with`` to its end.

    Args:
        profile: where twistd is to leave a profile of its whole run; it makes everything slower.
        options: further options of ``twistd flow``.
        reactor: the one to take, by its name; twistd's own where it is None.
        database: of another server that runs already; None for one of its own.

    Attributes:
        client_port: where WebSocket clients connect.
        admin_port: where the HTTP API is.
        api_key: its key.
        database_url: what psycopg2 and pgbench connect to.
    """

    api_key: str
    database_url: str

    def __init__(
        self,
        profile: Path | None = None,
        options: Sequence[str] = (),
        reactor: str | None = None,
        database: str | None = None,
    ) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="flowtx-benchmark-"))
        self._data_dir = self._directory / "data"
        self._log = self._directory / "log"
        self._postmaster = 0
        self.client_port, self.admin_port = free_port(), free_port()
        profiled = [] if profile is None else [f"--profile={profile.absolute()}", "--savestats"]
        self._command = [
            sys.executable,
            str(_PROGRAMS / "twistd"),
            "--nodaemon",
            "--pidfile=",
            *([] if reactor is None else [f"--reactor={reactor}"]),
            *profiled,
            "flow",
            f"--data-dir={self._data_dir}",
            f"--listen=tcp:{self.client_port}:interface=127.0.0.1:backlog=4096",
            f"--admin=tcp:{self.admin_port}:interface=127.0.0.1",
            "--users-query=claims",
            # What is measured is neither the gate for handshakes nor how the clients' heartbeats do.
            "--handshake-rate=100000",
            "--heartbeat-timeout=3600",
            *options,
        ]
        self._environ = {name: text for name, text in os.environ.items() if not name.startswith("FLOWTX_")}
        self._environ["FLOWTX_DATA_DIR"] = str(self._data_dir)
        if database is not None:
            self._environ["FLOWTX_DATABASE"] = database
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def end(self, *, kill: bool = False) -> None:
        """Stop it as an operator does, or have it crash."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        self._end()

    def start_again(self) -> None:
        """Start it with what it has kept, on its ports."""
        self._start()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env=self._environ,
            )
        deadline = time.monotonic() + START_WITHIN
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start; its log ends:\n{self.log_end()}")
            time.sleep(0.05)
        self.api_key = (self._data_dir / "api-key").read_text().strip()
        self.database_url = self.flowtx("database-url").strip()
        with closing(psycopg2.connect(self.database_url)) as connection:
            backend = connection.get_backend_pid()
            self._postmaster = _parent(backend)

    def _is_ready(self) -> bool:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=5)) as connection:
                connection.request("GET", "/health/ready")
                return connection.getresponse().status == 200
        except OSError:
            return False

    def _stop(self) -> None:
        self._end()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()  # its PostgreSQL ends with it
                process.wait()

    def log_end(self) -> str:
        """The last lines that the server wrote."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-20:])

    def flowtx(self, *arguments: str) -> str:
        """Run the command ``flowtx``; what it prints."""
        command = [str(_PROGRAMS / "flowtx"), *arguments]
        done = subprocess.run(
            command, env=self._environ, stdout=subprocess.PIPE, text=True, timeout=60, check=True
        )
        return done.stdout

    @cached_property
    def _secret(self) -> bytes:
        return (self._data_dir / "secret").read_bytes().strip()

    def token(self, user_id: str, **claims: object) -> str:
        """Sign a token for a user."""
        return mint(self._secret, "HS512", user_id, ttl=TOKEN_TTL, now=time.time(), claims=claims)

    @property
    def used(self) -> float:
        """Seconds of processor time that the server has used, without PostgreSQL's."""
        return self._used().server

    @property
    def resident(self) -> int:
        """Bytes of memory that the server has of its own and shares with nobody."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return 1024 * sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))

    def metric(self, name: str) -> float:
        """Read a metric, summed over its labels."""
        return sum(value for _, value in self._samples(name))

    def quantile(self, name: str, share: float) -> float:
        """Find the bound that a share of a histogram's observations has kept, since the server started."""
        buckets = [
            (float(labels.partition('le="')[2].partition('"')[0]), value)
            for labels, value in self._samples(f"{name}_bucket")
        ]
        return min(bound for bound, count in buckets if count >= share * buckets[-1][1])

    def _samples(self, name: str) -> list[tuple[str, float]]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=30)) as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        split = (line.rpartition(" ") for line in lines if line.startswith(name))
        return [(labels, float(value)) for labels, _, value in split]

    def second_database(self) -> str:
        """Make a database with the same schema, of which this server knows nothing; its URL."""
        with closing(psycopg2.connect(self.database_url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("CREATE DATABASE alone")
        url = self.database_url.replace("/flow?", "/alone?")
        self.flowtx("migrate", f"--database={url}")
        return url

    @contextmanager
    def metered(self) -> Iterator[Meter]:
        """Find what the server, PostgreSQL and this process use meanwhile."""
        meter = Meter(self._used())
        yield meter
        meter.stop(self._used())

    def _used(self) -> _Used:
        own = _stat(self.pid)
        postgres = sum(_stat(self._postmaster)[11:15]) + sum(
            sum(child[11:13]) for child in _children(self._postmaster)
        )
        return _Used(sum(own[11:13]) / _TICKS, postgres / _TICKS, time.process_time(), time.monotonic())


def seed(url: str, users: Sequence[str], each: int) -> None:
    """Put as many notifications into the inbox of each user, by SQL."""
    with session(url) as cursor:
        for _ in range(each):
            cursor.execute(
                "SELECT count(*) FROM flow.notify_many(%s, 'deal.won', '{\"deal\": 7}')", [list(users)]
            )


def vacuum(url: str) -> None:
    """Have PostgreSQL look over its tables, as it does by itself within a minute."""
    with session(url) as cursor:
        cursor.execute("VACUUM ANALYZE")


@contextmanager
def session(url: str) -> Iterator[Any]:
    """Open a connection on which each statement is a transaction; its cursor."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = '{STATEMENT_WITHIN} s'")
            yield cursor


def free_port() -> int:
    while True:  # below the ports that the system gives to clients
        port = random.randrange(20_000, 32_000)
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _stat(pid: int) -> list[int]:
    """Read the numbers of proc(5)'s ``stat`` that follow the name; the state becomes 0."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [0, *map(int, fields[1:])]


def _parent(pid: int) -> int:
    return _stat(pid)[1]


def _children(pid: int) -> Iterator[list[int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it may have ended just now
                fields = _stat(int(entry.name))
                if fields[1] == pid:
                    yield fields
