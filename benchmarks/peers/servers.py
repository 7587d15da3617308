"""The servers that are measured, each behind the same face."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, Self

from benchmarks.inbox.server import Server, free_port
from benchmarks.load.generator import BUILD, build

HERE: Final = Path(__file__).parent
START_WITHIN: Final = 60.0
STOP_WITHIN: Final = 30.0

WHOLE_JOB: Final = (
    "--users-query=claims",
    # Limits are kept, and never reached: 100 clients in a closed loop send more than people do.
    "--rate-limit=100000/100000",
    "--join-rate=100000",
    "--max-sessions=100000",
)


class Subject(Protocol):
    """A server, from ``with`` to its end.

    Attributes:
        name: of the server, in tables.
        path: of the WebSocket; a token is put after it.
        port: where clients connect.
        api_port: where ``POST /api/broadcasts`` is.
        api_key: its key; "-" where it has none.
    """

    name: str
    path: str
    port: int
    api_port: int
    api_key: str

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    @property
    def pid(self) -> int:
        """The process whose use counts."""
        ...


class Flowtx:
    """flowtx, with all that it does."""

    path = "/socket/websocket?vsn=2.0.0&token="

    def __init__(
        self, reactor: str, secret_file: Path, options: Sequence[str] = (), database: str | None = None
    ) -> None:
        self.name = f"flowtx on {reactor}"
        self._arguments = reactor, secret_file, options
        self.server = Server(
            options=(*WHOLE_JOB, f"--secret-file={secret_file}", *options),
            reactor=None if reactor == "epoll" else reactor,
            database=database,
        )
        self.port, self.api_port = self.server.client_port, self.server.admin_port
        self.api_key = ""  # it is made when the server starts

    def second(self) -> Flowtx:
        """Make another one on the same database, while this one runs."""
        return Flowtx(*self._arguments, self.server.database_url)

    def __enter__(self) -> Self:
        self.server.__enter__()
        self.api_key = self.server.api_key
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    @property
    def pid(self) -> int:
        return self.server.pid


class Peer:
    """A server of another kind.

    Args:
        name: of the server.
        command: what starts it; "PORT" in it stands for the port.
        directory: where to start it.
        environ: what it is told besides.
    """

    path = "/?token="
    api_key = "-"

    def __init__(
        self, name: str, command: Sequence[str], directory: Path, environ: Mapping[str, str]
    ) -> None:
        self.name = name
        self.port = self.api_port = free_port()
        self._command = [part.replace("PORT", str(self.port)) for part in command]
        self._directory = directory
        self._environ = {**os.environ, **environ}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it ends
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=self._directory,
            env=self._environ,
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self) -> None:
        assert self._process is not None, "it was started"
        deadline = time.monotonic() + START_WITHIN
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                text = self._log.read()[-2_000:].decode("utf-8", "replace")
                raise RuntimeError(f"{self.name} did not start; it says:\n{text}")
            time.sleep(0.05)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it keeps nothing, and would wait for its clients
            process.wait(STOP_WITHIN)
        self._log.close()

    @property
    def pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.pid


def node_ws(secret_file: Path) -> Subject:
    """Node with ``ws``, which is installed if it is not there."""
    directory = BUILD / "peers" / "ws"
    _copy(HERE / "ws", directory)
    if not (directory / "node_modules" / ".package-lock.json").exists():
        command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=directory, check=True)
    return Peer("ws", ["node", "server.mjs", "PORT"], directory, {"SECRET_FILE": str(secret_file)})


def floor(_: Path) -> Subject:
    """A server in C that does the least."""
    return Peer("floor", [str(build("floor")), "PORT"], BUILD, {})


def uvicorn(secret_file: Path) -> Subject:
    """Start uvicorn with Starlette, which are installed if they are not there."""
    command = [
        "uvicorn",
        "server:app",
        "--host=127.0.0.1",
        "--port=PORT",
        "--no-access-log",
    ]
    return _on_python("uvicorn", "starlette", command, secret_file)


def daphne(secret_file: Path) -> Subject:
    """Start Django Channels on Daphne, which are installed if they are not there."""
    command = ["daphne", "--bind=127.0.0.1", "--port=PORT", "--verbosity=0"]
    command += ["--websocket_connect_timeout=60", "server:app"]  # 5 s are too short for it under this load
    return _on_python("channels", "channels", command, secret_file)


def _on_python(name: str, source: str, command: Sequence[str], secret_file: Path) -> Subject:
    directory = BUILD / "peers" / source
    _copy(HERE / source, directory)
    environment = directory / "venv"
    mark = environment / "installed"
    if not mark.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        install = ["-m", "pip", "install", "--quiet", "--requirement=requirements.txt"]
        subprocess.run([str(environment / "bin" / "python"), *install], cwd=directory, check=True)
        mark.touch()
    program = str(environment / "bin" / command[0])
    environ = {"SECRET_FILE": str(secret_file), "PYTHONPATH": str(directory)}
    return Peer(name, [program, *command[1:]], directory, environ)


def _copy(source: Path, to: Path) -> None:
    """Copy a peer to where it is installed; what has changed since is installed anew."""
    names = [path.name for path in source.iterdir() if path.is_file()]
    for name in names:
        if name.startswith(("package", "requirements")):
            here = to / name
            if not here.exists() or here.read_bytes() != (source / name).read_bytes():
                shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(source / name, to / name)


FLOWTX: Final = {"flowtx": "epoll", "flowtx-uvloop": "uvloop"}
"""The reactor by the name in the table."""

PEERS: Final[dict[str, Callable[[Path], Subject]]] = {
    "ws": node_ws,
    "uvicorn": uvicorn,
    "channels": daphne,
    "floor": floor,
}

SERVERS: Final = (*FLOWTX, *PEERS)


def make_server(name: str, secret_file: Path, options: Sequence[str] = ()) -> Subject:
    """Make a server, which is not started yet.

    Args:
        name: one of `SERVERS`.
        secret_file: the key of the tokens.
        options: of ``twistd flow``.
    """
    if name in FLOWTX:
        return Flowtx(FLOWTX[name], secret_file, options)
    return PEERS[name](secret_file)
