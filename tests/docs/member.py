"""A connection of a user who has joined their own topic, as a stock client holds it."""

from __future__ import annotations

import json
from typing import Any, Self

from twisted.internet import reactor

from tests.integration.flow_process import FlowProcess
from tests.integration.rawclient import PING, PONG, RawClient, connect, frame, request


class Member:
    """One connection; made by `join`.

    Attributes:
        reply: the response to the join.
    """

    def __init__(self, client: RawClient) -> None:
        self.reply: dict[str, Any] = {}
        self._client = client
        self._notifications: list[dict[str, Any]] = []

    @classmethod
    async def join(cls, server: FlowProcess, user_id: str, **payload: object) -> Self:
        """Connect and join ``user:<id>``.

        Args:
            server: where.
            user_id: who.
            payload: of the join.
        """
        endpoint = server.socket_url.removeprefix("ws://").removesuffix("/socket")
        client = await connect(reactor, f"tcp:{endpoint}")
        client.send(request(f"/socket/websocket?token={server.token(user_id)}&vsn=2.0.0"))
        assert (await client.response()).status == 101
        client.text(json.dumps(["1", "1", f"user:{user_id}", "phx_join", payload]))
        member = cls(client)
        while not member.reply:
            await member._read()
        return member

    async def notification(self) -> dict[str, Any]:
        """Wait for the next notification."""
        while not self._notifications:
            await self._read()
        return self._notifications.pop(0)

    async def _read(self) -> None:
        received = await self._client.frame()
        if received.opcode == PING:
            self._client.send(frame(PONG, received.payload))
            return
        _, _, _, event, payload = json.loads(received.payload)
        if event == "notification":
            self._notifications.append(payload)
        elif event == "phx_reply":
            assert payload["status"] == "ok", payload
            self.reply = payload["response"]

    def leave(self) -> None:
        """End the connection."""
        self._client.reset()
