"""Many users with a connection each, on lean WebSocket clients.

They know as much of RFC 6455 and of Phoenix's protocol as a client of this server needs. A client checks
that its notifications come once, in order and without a hole.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from benchmarks.inbox.server import Server

ANSWER_WITHIN = 10.0
ALL_WITHIN = 60.0
AT_ONCE = 50
"""Handshakes under way at once."""

_EVENT: Final = b',"notification",{'
_SEQ: Final = re.compile(rb'"seq":(\d+)')
_TEXT, _CLOSE, _PING = 0x81, 0x88, 0x89  # each the last frame of its message


class ClientError(Exception):
    """A client was given what it should not, or has lost its connection."""


class RefusedError(Exception):
    """The server answered an event with an error, or not at all."""


class Arrival(NamedTuple):
    """A notification that a client has; the time is monotonic."""

    user_id: str
    seq: int
    at: float


class Crowd:
    """Users and their connections.

    Args:
        server: what they connect to.
        users: the highest seq that each of them has.

    Attributes:
        clients: by user, those who are connected.
        received: how many notifications came, to all of them.
        last_at: when the last one came; monotonic.
        arrivals: what came, while it is a list.
    """

    def __init__(self, server: Server, users: Mapping[str, int]) -> None:
        self._port = server.client_port
        self._users = dict(users)
        self._tokens = {user_id: server.token(user_id) for user_id in users}
        self._failure: ClientError | None = None
        self._awaited: tuple[int, asyncio.Future[None]] | None = None
        self.clients: dict[str, Client] = {}
        self.received = 0
        self.last_at = 0.0
        self.arrivals: list[Arrival] | None = None

    async def connect(self) -> None:
        """Connect all of them, and have each join its topic."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def enter(user_id: str, last_seq: int) -> None:
            async with gate:
                client = await self.open(user_id, last_seq)
                await client.join()

        async with asyncio.TaskGroup() as group:
            for user_id, last_seq in self._users.items():
                group.create_task(enter(user_id, last_seq))

    async def open(self, user_id: str, last_seq: int) -> Client:
        """Connect a user, who then has to join."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(ANSWER_WITHIN):
            _, client = await loop.create_connection(
                lambda: Client(self, user_id, last_seq), "127.0.0.1", self._port
            )
            self.clients[user_id] = client
            await client.handshake(self._tokens[user_id], self._port)
        return client

    async def leave(self) -> None:
        """Close all connections and wait until they are."""
        clients = list(self.clients.values())
        self.clients.clear()
        for client in clients:
            client.close()
        async with asyncio.timeout(ANSWER_WITHIN):
            await asyncio.gather(*(client.ended for client in clients))

    async def until(self, received: int, seconds: float = ALL_WITHIN) -> None:
        """Wait until that many notifications have come in all.

        Raises:
            ClientError: a client failed, or they have not come within ``seconds``.
        """
        if self._failure is None and self.received < received:
            reached = asyncio.get_running_loop().create_future()
            self._awaited = received, reached
            try:
                async with asyncio.timeout(seconds):
                    await reached
            except TimeoutError:
                raise ClientError(
                    f"{self.received:,} of {received:,} notifications came within {seconds:g} s"
                ) from None
            finally:
                self._awaited = None
        if self._failure is not None:
            raise self._failure
        if self.received > received:
            raise ClientError(f"{self.received:,} notifications came where {received:,} were pushed")

    # For the clients

    def came(self, user_id: str, seq: int) -> None:
        self.received += 1
        self.last_at = time.monotonic()
        if self.arrivals is not None:
            self.arrivals.append(Arrival(user_id, seq, self.last_at))
        if self._awaited is not None and self.received >= self._awaited[0]:
            _set(self._awaited[1])

    def failed(self, failure: ClientError) -> None:
        self._failure = self._failure or failure
        if self._awaited is not None:
            _set(self._awaited[1])


class Client(asyncio.Protocol):
    """A connection of a user.

    Attributes:
        ended: fires when the connection has.
    """

    _transport: asyncio.Transport

    def __init__(self, crowd: Crowd, user_id: str, last_seq: int) -> None:
        loop = asyncio.get_running_loop()
        self._crowd = crowd
        self._user_id = user_id
        self._last_seq = last_seq
        self._buffer = b""
        self._opening: asyncio.Future[None] | None = loop.create_future()
        self._replies: dict[str, asyncio.Future[Any]] = {}
        self._refs = 0
        self._leaving = False
        self.ended: asyncio.Future[None] = loop.create_future()

    # What a user does

    async def handshake(self, token: str, port: int) -> None:
        """Ask for a WebSocket, and wait for it."""
        self._transport.write(
            f"GET /socket/websocket?token={token}&vsn=2.0.0 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert self._opening is not None
        await self._opening

    async def join(self) -> Any:
        """Join the user's own topic with the highest seq that the user has; the answer."""
        return await self.call("phx_join", {"last_seq": self._last_seq})

    async def call(self, event: str, payload: object) -> Any:
        """Send an event and wait for its answer.

        Raises:
            RefusedError: it is an error, or does not come.
            ClientError: the connection ended first.
        """
        self._refs += 1
        ref = str(self._refs)
        reply = self._replies[ref] = asyncio.get_running_loop().create_future()
        message = msgspec.json.encode(["1", ref, f"user:{self._user_id}", event, payload])
        self._send(_TEXT, message)
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                answer = await reply
        except TimeoutError:
            raise RefusedError(f"{event}: no answer within {ANSWER_WITHIN:g} s") from None
        if answer["status"] != "ok":
            raise RefusedError(f"{event}: {answer['response']}")
        return answer["response"]

    def close(self) -> None:
        """End the connection."""
        self._leaving = True
        self._send(_CLOSE, (1000).to_bytes(2))
        self._transport.close()

    def _send(self, opcode: int, payload: bytes) -> None:
        # Clients have to mask; a key of zeros is one, and leaves the payload as it is.
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
        self._transport.write(bytes((opcode,)) + length + b"\0\0\0\0" + payload)

    # What comes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        if self._opening is not None:
            head, end, rest = buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = buffer
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._fail(f"the handshake was answered {head.splitlines()[0].decode()!r}")
                return
            _set(self._opening)
            self._opening = None
            buffer = rest
        self._buffer = buffer[self._read(buffer) :]

    def _read(self, buffer: bytes) -> int:
        """Take the frames that are complete; how many bytes they are."""
        at, size = 0, len(buffer)
        while size - at >= 2:
            length, start = buffer[at + 1], at + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                if size < start:
                    break
                length = int.from_bytes(buffer[at + 2 : start])
            end = start + length
            if size < end:
                break
            self._frame(buffer[at], buffer[start:end])
            at = end
        return at

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == _TEXT:
            if _EVENT in payload[:256]:
                self._notification(payload)
            else:
                self._message(payload)
        elif opcode == _PING:
            self._send(0x8A, payload)
        elif opcode == _CLOSE:
            self._fail(f"closed by the server: {payload!r:.80}")
        else:
            self._fail(f"a frame of an unknown kind: 0x{opcode:02x}")

    def _notification(self, payload: bytes) -> None:
        found = _SEQ.search(payload)
        seq = int(found[1]) if found else 0
        if seq != self._last_seq + 1:
            self._fail(f"seq {seq} came after {self._last_seq}")
        self._last_seq = seq
        self._crowd.came(self._user_id, seq)

    def _message(self, payload: bytes) -> None:
        _, ref, _, event, content = msgspec.json.decode(payload)
        if event == "phx_reply" and ref in self._replies:
            reply = self._replies.pop(ref)
            if not reply.done():
                reply.set_result(content)

    def connection_lost(self, exc: Exception | None) -> None:
        _set(self.ended)
        if not self._leaving:
            self._fail(f"lost its connection: {exc}")

    def _fail(self, why: str) -> None:
        failure = ClientError(f"the client of {self._user_id}: {why}")
        if not self._leaving:
            self._crowd.failed(failure)
        waiting = [*self._replies.values(), *([self._opening] if self._opening else [])]
        self._replies.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(failure)
        self._leaving = True
        self._transport.abort()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
