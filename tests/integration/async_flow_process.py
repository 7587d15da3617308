"""`FlowProcess` for tests that do something else on the reactor meanwhile, such as to drive a browser."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple, Self

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.protocol import ProcessProtocol, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool, ResponseDone, ResponseFailed
from twisted.web.http_headers import Headers

from flowtx.storage.cluster import cluster_directory, socket_directory
from flowtx.storage.postmaster import servers_of, signal_server

reactor: Any = global_reactor

START_PATIENCE = 60.0
STOP_PATIENCE = 30.0
CALL_PATIENCE = 10.0


class Answer(NamedTuple):
    """An answer of the admin endpoint."""

    status: int
    headers: Headers
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Ended(NamedTuple):
    """How a process ended: one of the two is None."""

    status: int | None
    signal: int | None


class Child(ProcessProtocol):
    """A process whose output is kept.

    Attributes:
        output: its standard output.
        log: its standard output and standard error, as they came.
        ended: None while it runs.
    """

    transport: Any

    def __init__(self, *command: str, environment: dict[str, str], directory: Path) -> None:
        self.output = b""
        self.log = b""
        self.ended: Ended | None = None
        self._waiting: list[Deferred[Ended]] = []
        reactor.spawnProcess(self, command[0], command, environment, str(directory))

    def outReceived(self, data: bytes) -> None:
        self.output += data
        self.log += data

    def errReceived(self, data: bytes) -> None:
        self.log += data

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        self.ended = Ended(value.exitCode, value.signal)
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(self.ended)

    def signal(self, number: signal.Signals) -> None:
        """Signal it, unless it has ended."""
        if self.ended is None:
            self.transport.signalProcess(number.value)

    async def when_ended(self, within: float) -> Ended:
        """Wait for its end.

        Raises:
            twisted.internet.defer.TimeoutError: it still runs.
        """
        if self.ended is not None:
            return self.ended
        deferred: Deferred[Ended] = Deferred(self._waiting.remove)
        self._waiting.append(deferred)
        return await deferred.addTimeout(within, reactor)


class AsyncFlowProcess:
    """``twistd flow`` on free ports of 127.0.0.1, with a data directory of its own.

        async with AsyncFlowProcess("--demo") as flow:
            await flow.push("alice", "deal.won", {"title": "Acme signed"})

    Leaving the block ends the process, and its embedded PostgreSQL, whatever happened in it.

    Args:
        options: options of ``twistd flow``, for every start.
        environment: further variables of the environment.

    Attributes:
        data_dir: the data directory; it stays over a stop.
        port: where clients connect.
        admin_port: where the backend and the operators do.
    """

    def __init__(self, *options: str, environment: dict[str, str] | None = None) -> None:
        self._directory = Path(mkdtemp(prefix="ftx-", dir="/tmp"))
        self.data_dir = self._directory / "data"
        self.port, self.admin_port = free_ports(2)
        self._options = options
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("FLOWTX_", "PG"))
        }
        self._environment = {**inherited, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._agent = Agent(reactor, connectTimeout=CALL_PATIENCE, pool=HTTPConnectionPool(reactor, False))
        self._child: Child | None = None
        self._earlier = b""

    @property
    def url(self) -> str:
        """Of the clients' endpoint, as `new Socket(…)` takes it."""
        return f"ws://127.0.0.1:{self.port}/socket"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def api_key(self) -> str:
        return (self.data_dir / "api-key").read_text().strip()

    @property
    def log(self) -> str:
        """What all of its processes printed and logged."""
        return (self._earlier + (self._child.log if self._child else b"")).decode("utf-8", "replace")

    @property
    def pid(self) -> int:
        assert self._child is not None
        pid: int = self._child.transport.pid
        return pid

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self, *options: str) -> None:
        """Start it and wait until it is ready.

        Args:
            options: for this start only.
        """
        assert self._child is None or self._child.ended is not None, "it runs already"
        self._earlier = self.log.encode()
        child = self._child = self._spawn(
            *("twistd", "--nodaemon", "--pidfile=", "flow"),
            *("--listen", f"tcp:{self.port}:interface=127.0.0.1"),
            *("--admin", f"tcp:{self.admin_port}:interface=127.0.0.1"),
            *("--data-dir", str(self.data_dir), *self._options, *options),
        )

        async def ready() -> bool:
            assert child.ended is None, f"the server ended while it started: {child.ended}\n{self.log}"
            try:
                return (await self.call("GET", "/health/ready")).status == 200
            except (ConnectError, ResponseFailed):
                return False

        await until_async(ready, START_PATIENCE, lambda: f"the server is not ready\n{self.log}")

    async def stop(self, within: float = STOP_PATIENCE) -> Ended:
        """End it as an operator does, with SIGTERM, and wait for that."""
        assert self._child is not None
        self._child.signal(signal.SIGTERM)
        return await self._child.when_ended(within)

    async def kill(self) -> Ended:
        """End it with SIGKILL, and wait for its PostgreSQL to have ended too."""
        assert self._child is not None
        self._child.signal(signal.SIGKILL)
        ended = await self._child.when_ended(STOP_PATIENCE)
        await self._no_database()
        return ended

    async def close(self) -> None:
        """Leave nothing behind: no process, no file."""
        try:
            if self._child is not None:
                try:
                    await self.stop()
                except BaseException:
                    await self.kill()
                    raise
            await self._no_database()
        finally:
            sockets = socket_directory(self.data_dir)
            if sockets.parent == Path("/tmp"):
                shutil.rmtree(sockets, ignore_errors=True)
            shutil.rmtree(self._directory, ignore_errors=True)

    async def _no_database(self) -> None:
        cluster = cluster_directory(self.data_dir)
        try:
            await until(lambda: not servers_of(cluster), STOP_PATIENCE, lambda: "PostgreSQL still runs")
        except BaseException:
            for pid in servers_of(cluster):
                signal_server(pid, cluster, signal.SIGKILL)
            raise

    def _spawn(self, program: str, *arguments: str, **environment: str) -> Child:
        # The scripts of the environment that the tests run in, wherever the PATH leads.
        script = Path(sys.executable).with_name(program)
        command = [sys.executable, str(script), *arguments]
        setpriv = shutil.which("setpriv")
        if setpriv:  # nothing outlives the tests, even if they are killed
            command = [setpriv, "--pdeathsig", "TERM", "--", *command]
        return Child(*command, environment=self._environment | environment, directory=self._directory)

    async def command(self, *arguments: str) -> str:
        """Run the console command ``flowtx`` on the data directory; what it prints."""
        child = self._spawn("flowtx", *arguments, FLOWTX_DATA_DIR=str(self.data_dir))
        try:
            ended = await child.when_ended(STOP_PATIENCE)
        finally:
            child.signal(signal.SIGKILL)
        assert ended.status == 0, f"flowtx {arguments[0]}: {ended}\n{child.log.decode()}"
        return child.output.decode()

    async def token(self, user_id: str, *options: str) -> str:
        """Make a token with ``flowtx token``; ``options`` such as ``--ttl 60``."""
        return (await self.command("token", user_id, *options)).strip()

    async def call(
        self, method: str, path: str, body: object = None, *, headers: dict[str, str] | None = None
    ) -> Answer:
        """Call the admin endpoint, with the API key once there is one.

        Args:
            method: e.g. ``POST``.
            path: with the query.
            body: sent as JSON; None for none.
            headers: further ones, or others in place of ours.
        """
        sent = {"Content-Type": "application/json"} if body is not None else {}
        with contextlib.suppress(FileNotFoundError):
            sent["Authorization"] = f"Bearer {self.api_key}"
        sent |= headers or {}
        asking: Deferred[Any] = self._agent.request(
            method.encode(),
            f"{self.admin_url}{path}".encode(),
            Headers({name: [value] for name, value in sent.items()}),
            None if body is None else FileBodyProducer(BytesIO(json.dumps(body).encode())),
        )
        response = await asking.addTimeout(CALL_PATIENCE, reactor)
        body_read: Deferred[bytes] = Deferred()
        response.deliverBody(_Body(body_read))
        return Answer(response.code, response.headers, await body_read.addTimeout(CALL_PATIENCE, reactor))

    async def push(self, user_id: str, type_: str, payload: object) -> dict[str, Any]:
        """Push a notification to one user; its id and seq."""
        body = {"user_ids": [user_id], "type": type_, "payload": payload}
        answer = await self.call("POST", "/api/notifications", body)
        assert answer.status == 202, answer
        pushed: dict[str, Any] = answer.json["notifications"][0]
        return pushed


class _Body(Protocol):
    """Reads a body; Twisted's own readBody warns of Twisted's own transport."""

    def __init__(self, finished: Deferred[bytes]) -> None:
        self._finished = finished
        self._body = b""

    def dataReceived(self, data: bytes) -> None:
        self._body += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._finished.called:
            return
        if reason.check(ResponseDone):
            self._finished.callback(self._body)
        else:
            self._finished.errback(reason)


def free_ports(count: int) -> list[int]:
    """Find ports of 127.0.0.1 that nothing has, outside the range that connections take theirs from."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


async def until(
    condition: Callable[[], object], within: float, otherwise: Callable[[], str] = lambda: ""
) -> None:
    """Wait for it to be true, and fail with a text where it is not in so many seconds."""

    async def ask() -> object:
        return condition()

    await until_async(ask, within, otherwise)


async def until_async(
    condition: Callable[[], Any], within: float, otherwise: Callable[[], str] = lambda: ""
) -> None:
    """`until` of a condition that is awaited."""
    give_up = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < give_up, f"not within {within} s: {otherwise()}"
        await deferLater(reactor, 0.03)
