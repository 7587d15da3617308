"""A backend that pushes by HTTP, on one connection that is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

import msgspec

from benchmarks.inbox.server import Server

ANSWER_WITHIN = 30.0


class Backend:
    """A connection to the HTTP API; made by `connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        self._reader = reader
        self._writer = writer
        self._head = head

    @classmethod
    async def connect(cls, server: Server) -> Self:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.admin_port)
        head = (
            f"POST /api/notifications HTTP/1.1\r\nHost: 127.0.0.1:{server.admin_port}\r\n"
            f"Authorization: Bearer {server.api_key}\r\nContent-Type: application/json\r\nContent-Length: "
        )
        return cls(reader, writer, head)

    async def push(self, user_ids: Sequence[str]) -> None:
        """Push a notification to users, and wait until it is on disk.

        Raises:
            RuntimeError: it was refused.
        """
        body = msgspec.json.encode({"user_ids": user_ids, "type": "deal.won", "payload": {"deal": 7}})
        self._writer.write(f"{self._head}{len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(ANSWER_WITHIN):
            head = await self._reader.readuntil(b"\r\n\r\n")
            answer = await self._body(head.lower())
        if not head.startswith(b"HTTP/1.1 202 "):
            raise RuntimeError(f"a push was answered {head.splitlines()[0].decode()!r}: {answer[:200]!r}")

    async def _body(self, head: bytes) -> bytes:
        _, length, rest = head.partition(b"\r\ncontent-length:")
        if length:
            return await self._reader.readexactly(int(rest.partition(b"\r\n")[0]))
        parts = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):  # chunked, then
            parts.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return b"".join(parts)

    def close(self) -> None:
        self._writer.close()
