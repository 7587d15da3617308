"""Broadcasts, presence and clients that do not read: run ``python -m benchmarks.live [--quick]``.

A server process of its own, on its embedded database; the load comes from this process over loopback. All
figures are processor time (user and system) and memory of the server's process alone, so that they hold on
a machine that has other things to do.

fan-out   one broadcast to a group of 1,000 and of 10,000; the ratio is to a bare loop of ``send`` that puts
          the same bytes on as many sockets, in the same rounds: what the kernel takes of anybody
online    1,000 users connect and join ``users:online`` one after another, all of them watching, and then
          the last 100 of 10,000; processor time and memory of each
silent    200 clients that read nothing while a group is sent 1 MiB a second, and one that does read
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Final, Self

from benchmarks.inbox.server import Server

WITHIN: Final = 120.0
JOIN_REF: Final = "1"  # which is on every frame of the topic
ROUNDS: Final = 5
BROADCASTS: Final = 20
"""In each round, sent one by one."""

FLOOR: Final = 2_000
"""Sockets of the bare loop; two ends of each are open in this process."""

PHOENIX_JOIN_MS: Final = 5.2
PHOENIX_JOIN_KIB: Final = 890.0
SILENT: Final = 200
OUTBOX_LIMIT: Final = 262_144
SILENT_SECONDS: Final = 15


@dataclass(frozen=True)
class Line:
    """One line of the table; an aim of None is none."""

    name: str
    value: float
    unit: str
    aim: float | None = None
    beside: str = ""

    @property
    def kept(self) -> bool:
        return self.aim is None or self.value <= self.aim

    def __str__(self) -> str:
        aim = "" if self.aim is None else f"aim <= {self.aim:g}: {'kept' if self.kept else 'MISSED'}"
        return f"{self.name:<58}{self.value:>10.2f} {self.unit:<14}{aim:<24}{self.beside}".rstrip()


class Crowd:
    """Clients on plain sockets; what comes is counted in bytes and thrown away.

    Attributes:
        received: bytes that came to all of them since their handshakes.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._sockets: dict[int, socket.socket] = {}
        self._epoll = select.epoll()
        self.received = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._sockets.values():
            client.close()
        self._epoll.close()

    def enter(self, user_id: str, topic: str, *, reads: bool = True) -> socket.socket:
        """Connect a user and have them join; one who does not read has little room for what comes."""
        client = socket.socket()
        client.settimeout(WITHIN)
        if not reads:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", self._server.client_port))
        token = self._server.token(user_id, groups=["live"])
        key = base64.b64encode(os.urandom(16)).decode()
        client.sendall(
            f"GET /socket/websocket?vsn=2.0.0&token={token} HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{self._server.client_port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        answer = _read_until(client, b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 101"):
            raise RuntimeError(f"the server refused {user_id}: {answer[:80]!r}")
        client.sendall(_masked(json.dumps([JOIN_REF, "1", topic, "phx_join", {}]).encode()))
        _read_until(client, b'"ok"')
        client.setblocking(False)
        if reads:
            self._sockets[client.fileno()] = client
            self._epoll.register(client, select.EPOLLIN)
        return client

    def drain(self, seconds: float = 0.0) -> bool:
        """Read what has come; whether there was something within ``seconds``."""
        ready = self._epoll.poll(seconds, 4096)
        for number, _ in ready:
            data = self._sockets[number].recv(1 << 20)
            if not data:
                raise RuntimeError("the server closed the connection of a client that reads")
            self.received += len(data)
        return bool(ready)

    def settle(self, quiet: float = 0.5) -> None:
        """Read until nothing has come for a while."""
        deadline = time.monotonic() + WITHIN
        while self.drain(quiet):
            if time.monotonic() > deadline:
                raise RuntimeError(f"what the server sends does not end within {WITHIN:g} s")

    def until(self, received: int) -> None:
        """Read until that many bytes have come in all."""
        deadline = time.monotonic() + WITHIN
        while self.received < received:
            self.drain(1.0)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.received:,} of {received:,} bytes came within {WITHIN:g} s")
        if self.received > received:
            raise RuntimeError(f"{self.received:,} bytes came in the place of {received:,}")


class Backend:
    """Broadcasts by the HTTP API, over one connection."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.admin_port, timeout=WITHIN)
        self._headers = {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"}

    def broadcast(self, payload: dict[str, str]) -> int:
        """Send to the group; the bytes of the frame that each of its members is given."""
        body = {"topic": "group:live", "event": "news", "payload": payload}
        self._connection.request("POST", "/api/broadcasts", json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 202:
            raise RuntimeError(f"the broadcast was answered {answer.status}: {text[:200]!r}")
        message = json.dumps([JOIN_REF, None, "group:live", "news", payload], separators=(",", ":"))
        return _framed_length(len(message))


def fan_out(size: int, rounds: int) -> Iterator[Line]:
    """One broadcast to ``size`` members of a group."""
    with (
        Server(options=("--ping-interval=0",)) as server,
        Crowd(server) as crowd,
        _floor(min(size, FLOOR)) as floor,
    ):
        backend = Backend(server)
        for number in range(size):
            crowd.enter(f"user-{number}", "group:live")
        crowd.settle()
        backend.broadcast({"text": "warm"})
        crowd.settle()
        ours, bare, expected = [], [], crowd.received
        for turn in range(rounds):
            before, length = server.used, 0
            for _ in range(BROADCASTS):
                length = backend.broadcast({"text": f"round {turn}".ljust(64)})
                expected += size * length
                crowd.until(expected)
            ours.append((server.used - before) / (size * BROADCASTS) * 1e6)
            bare.append(floor(length))
        ratio = median(one / other for one, other in zip(ours, bare, strict=True))
        beside = f"{ratio:.2f} x a loop of send ({median(bare):.1f} us)"
        yield Line(f"fan-out to {size:,}: a frame", median(ours), "us", beside=beside)


def online(size: int, measured: int) -> Iterator[Line]:
    """The last ``measured`` of ``size`` users join ``users:online``, one after another, all watching."""
    with Server(options=("--ping-interval=0",)) as server, Crowd(server) as crowd:
        for number in range(size - measured):
            crowd.enter(f"user-{number}", "users:online")
            crowd.drain()
        crowd.settle()
        used, resident = server.used, server.resident
        peak = resident
        for number in range(size - measured, size):
            crowd.enter(f"user-{number}", "users:online")
            crowd.drain()
            if number % 50 == 49:
                peak = max(peak, server.resident)
        crowd.settle()
        each = (server.used - used) / measured * 1e3
        grown = (peak - resident) / measured / 1024
        whole = size == measured
        what = (
            f"users:online: each of {size:,}" if whole else f"users:online: the last {measured} of {size:,}"
        )
        beside = f"Phoenix took {PHOENIX_JOIN_MS:g} ms" if whole else ""
        yield Line(f"{what}, connect and join", each, "ms", PHOENIX_JOIN_MS / 10 if whole else None, beside)
        if whole:
            beside = f"Phoenix took up to {PHOENIX_JOIN_KIB:g} KiB"
            yield Line(f"{what}, memory at the peak", grown, "KiB a user", PHOENIX_JOIN_KIB / 10, beside)


def silent(seconds: int) -> Iterator[Line]:
    """Clients that read nothing under 1 MiB of broadcasts a second."""
    options = ("--ping-interval=0", f"--outbox-limit={OUTBOX_LIMIT}")
    with Server(options=options) as server, Crowd(server) as crowd:
        backend = Backend(server)
        crowd.enter("bystander", "group:live")
        still = [crowd.enter(f"user-{number}", "group:live", reads=False) for number in range(SILENT)]
        crowd.settle()
        resident = peak = server.resident
        started, sent, expected = time.monotonic(), 0, crowd.received
        text = "x" * 16_000
        while (passed := time.monotonic() - started) < seconds:
            if sent < passed * 2**20:
                expected += (length := backend.broadcast({"text": text}))
                sent += length
            crowd.drain(0.005)
            peak = max(peak, server.resident)
        crowd.until(expected)
        cut = server.metric("flowtx_slow_consumers_total")
        for client in still:
            client.close()
        beside = f"{cut:.0f} of them cut; the one that reads missed nothing of {sent / 2**20:.1f} MiB"
        grown = (peak - resident) / SILENT / 1024
        yield Line(f"{SILENT} clients that read nothing: memory at the peak", grown, "KiB each", 512, beside)


@contextmanager
def _floor(size: int) -> Iterator[Callable[[int], float]]:
    """Make as many loopback connections; a function that sends a frame to each and tells us a frame."""
    with socket.create_server(("127.0.0.2", 0), backlog=4096) as listening:
        ends: list[socket.socket] = []
        pairs: list[socket.socket] = []
        try:
            for _ in range(size):
                ends.append(socket.create_connection(listening.getsockname()))
                pairs.append(listening.accept()[0])

            def send(length: int) -> float:
                frame = bytes(length)
                used = time.process_time()
                for _ in range(BROADCASTS):
                    for pair in pairs:
                        pair.send(frame)
                used = time.process_time() - used
                for end in ends:
                    left = BROADCASTS * length
                    while left:
                        left -= len(end.recv(left))
                return used / (size * BROADCASTS) * 1e6

            yield send
        finally:
            for one in (*ends, *pairs):
                one.close()


def _read_until(client: socket.socket, mark: bytes) -> bytes:
    got = b""
    while mark not in got:
        data = client.recv(65_536)
        if not data:
            raise RuntimeError(f"the server closed the connection after {got[-80:]!r}")
        got += data
    return got


def _masked(text: bytes) -> bytes:
    """Frame a short text as a client does; the mask is of zeros."""
    assert len(text) < 126
    return bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text


def _framed_length(length: int) -> int:
    return length + (2 if length < 126 else 4 if length < 65_536 else 10)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 where an aim is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description="Broadcasts and presence.")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    quick = parser.parse_args(arguments).quick
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    kept = True
    many, few = (1_000, 100) if quick else (10_000, 1_000)
    runs = [
        fan_out(few, ROUNDS),
        fan_out(many, 1 if quick else 3),
        online(few, few),
        online(many, few // 10),
        silent(3 if quick else SILENT_SECONDS),
    ]
    for run in runs:
        for line in run:
            print(line, flush=True)
            kept = kept and line.kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
