"""A client that joins any topics over a real socket, and a caller of the HTTP API."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.threads import deferToThread

from tests.integration.rawclient import RawClient
from tests.integration.test_session_life import Server


class Event(NamedTuple):
    """What was sent to a client, other than replies."""

    topic: str
    event: str
    payload: Any


class Member:
    """One connection of a user, which knows what came on which topic."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw
        self._refs = 0
        self._joins: dict[str, str] = {}
        self._events: list[Event] = []

    @classmethod
    async def connect(cls, server: Server, user_id: str, *topics: str, **claims: Any) -> Member:
        """Connect and join topics that let the client in."""
        raw = await server.open(user_id, **claims)
        response = await raw.response()
        assert response.status == 101, response
        member = cls(raw)
        for topic in topics:
            assert (await member.join(topic))[0] == "ok"
        return member

    async def join(self, topic: str) -> tuple[str, Any]:
        """Join; status and response."""
        self._joins[topic] = str(self._refs + 1)
        return await self.ask(topic, "phx_join")

    async def ask(self, topic: str, event: str, payload: object = None) -> tuple[str, Any]:
        """Send a message; status and response of its reply."""
        self._refs += 1
        ref = str(self._refs)
        message = [self._joins.get(topic), ref, topic, event, {} if payload is None else payload]
        self.raw.text(json.dumps(message))
        while True:
            got, answer = await self._next()
            if got == ref:
                return answer["status"], answer["response"]

    async def events(self) -> list[Event]:
        """Take all that has come; the reply to a heartbeat tells that there is no more."""
        assert (await self.ask("phoenix", "heartbeat"))[0] == "ok"
        taken, self._events = self._events, []
        return taken

    async def event(self) -> Event:
        """Wait for what comes next."""
        while not self._events:
            await self._next()
        return self._events.pop(0)

    async def _next(self) -> tuple[str | None, Any]:
        frame = await self.raw.message()
        _, ref, topic, event, payload = json.loads(frame.payload)
        if event == "phx_reply":
            return ref, payload
        self._events.append(Event(topic, event, payload))
        return None, None

    async def leave(self) -> None:
        """Cut the connection."""
        self.raw.reset()
        await self.raw.ended()


class Answer(NamedTuple):
    """An answer of the API."""

    status: int
    body: Any


async def ask(
    server: Server, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> Answer:
    """Ask the API on a connection of its own; a body that is bytes is sent as it is."""
    key = (Path(server.settings.data_dir) / "api-key").read_text().strip()
    usual = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    address: Any = server.admin.address
    return await deferToThread(_ask, address.port, method, path, data, usual if headers is None else headers)


def _ask(port: int, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, json.loads(response.read()))
    finally:
        connection.close()
