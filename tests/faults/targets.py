"""What is killed: nodes of flowtx, and their PostgreSQL."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from flowtx.storage.cluster import (
    PORT,
    Launcher,
    embedded_url,
    ensure_cluster,
    find_launcher,
)
from flowtx.storage.postmaster import servers_of, signal_server
from flowtx.storage.program import Program, Programs
from tests.integration.flow_process import FlowProcess

ROOT: Final = Path(__file__).resolve().parents[2]
KILL_PATIENCE: Final = 60.0
"""Seconds in which PostgreSQL must have ended."""


class Life:
    """Tells the lives of a process apart, and whether the present one has served somebody.

    Attributes:
        number: of the present life, from 1.
        serving: whether work begun in this life was done in it.
    """

    def __init__(self) -> None:
        self.number = 0
        self.serving = False

    def begin(self) -> None:
        """Begin the next one."""
        self.serving = False
        self.number += 1

    def served(self, number: int) -> None:
        """Note work that began in a life; it counts if that is the present one."""
        if number == self.number:
            self.serving = True


class Target(Protocol):
    """Something that can be killed and started again."""

    name: str
    kind: str
    life: Life

    @property
    def has_ended(self) -> bool:
        """Whether it ended by itself."""

    @property
    def last_words(self) -> str:
        """The end of its log."""

    def spawn(self) -> None:
        """Start it, and do not wait until it serves."""

    async def kill(self) -> None:
        """End it at once, without a chance to do anything more, and wait for that."""


class FlowNode:
    """A node of flowtx on a database that others use too.

    Args:
        name: for the report.
        directory: as for `FlowProcess`.
        database: the URL of the database.
        secret_file: has the secret of the tokens, the same for all nodes.
        launch: the arguments of Python that run twistd, e.g. with a bug planted.

    Attributes:
        process: what runs it.
        port: where clients connect.
    """

    kind = "flowtx"

    def __init__(
        self, name: str, directory: Path, *, database: str, secret_file: Path, launch: Sequence[str]
    ) -> None:
        # Nothing outlives the process that runs the test, even if that is killed.
        bound = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()
        self.process = FlowProcess(
            directory,
            f"--secret-file={secret_file}",
            database=database,
            twistd=(*bound, sys.executable, *launch),
            environ={"PYTHONPATH": str(ROOT)},
        )
        self.port = int(self.process.socket_url.removesuffix("/socket").rpartition(":")[2])
        self.name = name
        self.life = Life()

    @property
    def has_ended(self) -> bool:
        return self.process.has_ended

    @property
    def last_words(self) -> str:
        return self.process.log[-2000:]

    def spawn(self) -> None:
        self.life.begin()
        self.process.spawn()

    async def kill(self) -> None:
        self.life.serving = False
        self.process.kill()


class PostgresServer:
    """A PostgreSQL 18 with a cluster of its own, whose ``fsync`` stays on.

    Args:
        directory: holds the cluster; its path is short, as it holds the socket too.
        reactor: runs it.

    Attributes:
        url: the URL of its database ``flow``.
    """

    kind = "postgres"
    name = "postgres"

    def __init__(self, directory: Path, *, reactor: Any) -> None:
        self._directory = directory
        self._cluster = directory / "postgresql"
        self._programs = Programs(reactor, lambda _: None)
        self._reactor = reactor
        self._launcher: Launcher | None = None
        self._server: Program | None = None
        self.url = embedded_url(directory)
        self.life = Life()

    @property
    def has_ended(self) -> bool:
        return self._server is not None and self._server.exited.fired

    @property
    def last_words(self) -> str:
        return "\n".join(self._server.lines if self._server else ())

    async def create(self) -> None:
        """Make the cluster."""
        self._launcher = await find_launcher(self._programs, self._directory)
        await ensure_cluster(self._programs, self._launcher, self._directory)

    def spawn(self) -> None:
        assert self._launcher is not None, "create() comes first"
        self.life.begin()
        # "." is the cluster, which its own user can name in no other way.
        settings = ("listen_addresses=", "unix_socket_directories=.", f"port={PORT}")
        options = [word for setting in settings for word in ("-c", setting)]
        argv = self._launcher.command("postgres", self._cluster, *options)
        self._server = self._programs.spawn(argv, self._cluster)

    async def kill(self) -> None:
        """Stop it as ``pg_ctl stop -m immediate`` does: SIGQUIT, on which nothing more is written."""
        server, self._server = self._server, None
        self.life.serving = False
        if server is not None and not server.exited.fired:
            signal_server(server.pid, self._cluster, signal.SIGQUIT)
            await server.exited.when_fired().addTimeout(KILL_PATIENCE, self._reactor)

    def leave_nothing(self) -> None:
        """End what is left of it, whatever has happened."""
        for pid in servers_of(self._cluster):
            signal_server(pid, self._cluster, signal.SIGKILL)
