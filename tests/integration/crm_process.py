"""The example application as one starts it: ``python -m examples.crm``, on free ports."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Self

from flowtx.storage.cluster import cluster_directory, embedded_url, socket_directory
from flowtx.storage.postmaster import servers_of
from tests.integration.async_flow_process import START_PATIENCE, STOP_PATIENCE, Child, free_ports, until
from tests.integration.flow_process import environment

ROOT = Path(__file__).resolve().parents[2]


class CrmProcess:
    """The command, from the start of the block to its end.

    Args:
        settings: settings of flowtx, as its environment variables name them: ``RECONNECT_WINDOW="5"``.

    Attributes:
        settings: those, and those of its own, as environment variables.
        links: what it printed to open, by the name of the user.
    """

    def __init__(self, **settings: str) -> None:
        self._directory = Path(mkdtemp(prefix="ftx-", dir="/tmp"))
        self.data_dir = self._directory / "data"
        self.port, admin, clients = free_ports(3)
        own = {
            "DATA_DIR": str(self.data_dir),
            "ADMIN": f"tcp:{admin}:interface=127.0.0.1",
            "LISTEN": f"tcp:{clients}:interface=127.0.0.1",
            **settings,
        }
        self.settings = {f"FLOWTX_{name}": value for name, value in own.items()}
        self._child: Child | None = None

    @property
    def database_url(self) -> str:
        return embedded_url(self.data_dir)

    @property
    def log(self) -> str:
        assert self._child is not None
        return self._child.log.decode("utf-8", "replace")

    @property
    def links(self) -> Mapping[str, str]:
        assert self._child is not None
        return dict(re.findall(r"^  (\S.*?) +(http\S+)$", self._child.output.decode(), re.MULTILINE))

    def command(self, port: int) -> list[str]:
        """The command, with the page on a port."""
        command = [sys.executable, "-m", "examples.crm", "--port", str(port)]
        setpriv = shutil.which("setpriv")
        if setpriv:  # nothing outlives the tests, even if they are killed
            return [setpriv, "--pdeathsig", "TERM", "--", *command]
        return command

    async def __aenter__(self) -> Self:
        environ = environment(self.settings)
        child = self._child = Child(*self.command(self.port), environment=environ, directory=ROOT)
        try:
            await until(lambda: child.ended or self.links, START_PATIENCE, lambda: self.log)
            assert child.ended is None, self.log
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._child is not None
        try:
            self._child.signal(signal.SIGTERM)
            ended = await self._child.when_ended(STOP_PATIENCE)
            assert ended.status == 0, self.log
            assert "Traceback" not in self.log, self.log
            cluster = cluster_directory(self.data_dir)
            await until(lambda: not servers_of(cluster), STOP_PATIENCE, lambda: "PostgreSQL still runs")
        finally:
            self._child.signal(signal.SIGKILL)
            self.clear()

    def clear(self) -> None:
        """Leave no file behind."""
        sockets = socket_directory(self.data_dir)
        if sockets.parent == Path("/tmp"):
            shutil.rmtree(sockets, ignore_errors=True)
        shutil.rmtree(self._directory, ignore_errors=True)
