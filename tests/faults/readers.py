"""Reads notifications as clients do, on raw sockets and with npm ``phoenix``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tests.faults.history import Join, Reader, Seen
from tests.integration.rawclient import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    RawClient,
    close_frame,
    connect,
    frame,
    request,
)

SCRIPT: Final = Path(__file__).with_name("phoenix_readers.mjs")


class RawReader:
    """Reads on a socket of its own, to one node after the other.

    Args:
        record: where it records.
        token: of the record's user.
        ports: those of the nodes.
        random: chooses how long it waits before it comes back.
        reactor: connects it.

    Attributes:
        joined: how many of its joins were answered with ok.
        problem: what ended it, where that was not `stop`.
    """

    def __init__(
        self, record: Reader, token: str, ports: Sequence[int], *, random: Random, reactor: Any
    ) -> None:
        self.record = record
        self.joined = 0
        self.problem: str | None = None
        self._topic = f"user:{record.user}"
        self._target = f"/socket/websocket?token={token}&vsn=2.0.0"
        self._ports = cycle(random.sample(ports, len(ports)))
        self._random = random
        self._reactor = reactor
        self._forget = 0
        self._client: RawClient | None = None
        self._living: Deferred[None] | None = None

    def start(self) -> None:
        """Connect, and come back whenever the connection has ended."""
        self._living = Deferred.fromCoroutine(self._live())
        self._living.addErrback(self._ended)

    def stop(self) -> None:
        """End for good."""
        if self._living is not None:
            self._living.cancel()

    def _ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError, ConnectingCancelledError):
            self.problem = failure.getTraceback()

    def drop(self, forget: int = 0) -> None:
        """Cut the connection; all but the last ``forget`` notifications have been taken durably."""
        if self._client is not None:
            self._forget = forget
            self._client.reset()

    async def _live(self) -> None:
        while True:
            # Nobody is there, or the connection ended.
            with suppress(ConnectError, AssertionError):
                await self._connect()
            await deferLater(self._reactor, self._random.uniform(0.02, 0.2))

    async def _connect(self) -> None:
        endpoint = f"tcp:127.0.0.1:{next(self._ports)}:timeout=5"
        client = self._client = await connect(self._reactor, endpoint)
        try:
            client.send(request(self._target))
            if (await client.response()).status == 101:
                await self._read(client)
        finally:
            self._client = None
            client.reset()

    async def _read(self, client: RawClient) -> None:
        after = max(0, self.record.taken - self._forget)
        self._forget = 0
        join = Join(after)
        self.record.joins.append(join)
        client.text(json.dumps(["1", "1", self._topic, "phx_join", {"last_seq": after}]))
        asked = False
        while True:
            try:
                received = await client.frame()
            except AssertionError:
                if client.end is not None or asked:
                    raise
                # Silence may be rightful; only an answer tells.
                client.text('[null,"h","phoenix","heartbeat",{}]')
                asked = True
                continue
            asked = False
            if received.opcode == PING:
                client.send(frame(PONG, received.payload))
            elif received.opcode == CLOSE:
                client.send(close_frame(received.code))
                return
            elif received.opcode == TEXT:
                _, ref, topic, event, payload = json.loads(received.payload)
                if event == "notification" and topic == self._topic:
                    join.take(Seen.of(payload))
                elif event == "phx_reply" and ref == "1":
                    if payload["status"] != "ok":
                        return
                    self.joined += 1
                elif event in {"phx_error", "phx_close"}:
                    return


class PhoenixReader:
    """One client of `PhoenixReaders`; see `RawReader`."""

    def __init__(self, record: Reader, process: PhoenixReaders) -> None:
        self.record = record
        self.joined = 0
        self._process = process

    def drop(self, forget: int = 0) -> None:
        """Cut the connection, and have it resume lower by so much."""
        self._process.tell({"drop": self.record.name, "forget": forget})

    def take(self, event: Mapping[str, Any]) -> None:
        """Record what the client tells."""
        if "after" in event:
            self.record.joins.append(Join(event["after"]))
        elif "joined" in event:
            self.joined += 1
        else:
            self.record.joins[-1].take(Seen(event["seq"], event["id"], event["marker"]))


class PhoenixReaders(ProcessProtocol):
    """Clients of npm ``phoenix``, all in one process of node.

    Args:
        records: where they record, one each.
        tokens: by user.
        ports: those of the nodes, to which they connect by turns.
        reactor: runs the process.

    Attributes:
        readers: the clients.
        complaints: what the process wrote on stderr.
        ended: whether it has ended.
    """

    transport: Any

    def __init__(
        self, records: Sequence[Reader], tokens: Mapping[str, str], ports: Sequence[int], *, reactor: Any
    ) -> None:
        self.readers = {record.name: PhoenixReader(record, self) for record in records}
        self.complaints = ""
        self.ended = False
        self._partial = b""
        self._start = {
            "ports": list(ports),
            "readers": [
                {"name": record.name, "user": record.user, "token": tokens[record.user]} for record in records
            ],
        }
        self._reactor = reactor

    def start(self) -> None:
        """Connect them all."""
        node = shutil.which("node")
        assert node, "there is no node here to run npm phoenix"
        self._reactor.spawnProcess(self, node, [node, str(SCRIPT)], env=None)

    def stop(self) -> None:
        """End the process."""
        if not self.ended:
            self.transport.signalProcess("KILL")

    def connectionMade(self) -> None:
        self.tell(self._start)

    def tell(self, command: Mapping[str, Any]) -> None:
        """Give a command."""
        if not self.ended:
            self.transport.write(json.dumps(command).encode() + b"\n")

    def outReceived(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            self.readers[event["reader"]].take(event)

    def errReceived(self, data: bytes) -> None:
        self.complaints = (self.complaints + data.decode("utf-8", "replace"))[-2000:]

    def processEnded(self, reason: Any) -> None:
        self.ended = True
