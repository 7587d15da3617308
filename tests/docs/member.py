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
        self._events: list[tuple[str, str, Any]] = []

    @classmethod
    async def join(cls, server: FlowProcess, user_id: str, **payload: object) -> Self:
        """Connect and join ``user:<id>``.

        Args:
            server: where.
            user_id: who.
            payload: of the join.
        """
        return await cls.connect(server.socket_url, server.token(user_id), user_id, **payload)

    @classmethod
    async def connect(cls, url: str, token: str, user_id: str, **payload: object) -> Self:
        """Do so with the URL of a socket and a token."""
        endpoint = url.removeprefix("ws://").removesuffix("/socket")
        client = await connect(reactor, f"tcp:{endpoint}")
        client.send(request(f"/socket/websocket?token={token}&vsn=2.0.0"))
        assert (await client.response()).status == 101
        client.text(json.dumps(["1", "1", f"user:{user_id}", "phx_join", payload]))
        member = cls(client)
        while not member.reply:
            await member._read()
        member.reply = member.reply["response"]
        return member

    async def join_topic(self, topic: str) -> None:
        """Join a further topic."""
        self.reply = {}
        self._client.text(json.dumps(["2", "2", topic, "phx_join", {}]))
        while not self.reply:
            await self._read()

    async def notification(self) -> dict[str, Any]:
        """Wait for the next notification."""
        found: dict[str, Any] = await self.event("notification")
        return found

    async def event(self, event: str, topic: str | None = None) -> Any:
        """Wait for the next event of that name, on any topic or one; its payload."""
        while True:
            for place, (on, name, payload) in enumerate(self._events):
                if name == event and topic in (None, on):
                    del self._events[place]
                    return payload
            await self._read()

    async def _read(self) -> None:
        received = await self._client.frame()
        if received.opcode == PING:
            self._client.send(frame(PONG, received.payload))
            return
        _, _, topic, event, payload = json.loads(received.payload)
        if event == "phx_reply":
            assert payload["status"] == "ok", payload
            self.reply = payload
        else:
            self._events.append((topic, event, payload))

    def leave(self) -> None:
        """End the connection."""
        self._client.reset()
