"""What tests of the inbox share: a whole server on a real PostgreSQL, its HTTP API, and other programs.

async with running(database_url, tmp_path) as server:
    member = await server.member("alice")
    await member.join()
    assert (await server.post("alice"))[0] == 202
    await member.seen(1)
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from flowtx.config import Settings
from flowtx.interfaces import User
from flowtx.storage.postgres import Database
from flowtx.storage.users import add_user
from tests.integration.rawclient import PING, PONG, connect, frame
from tests.integration.test_session_life import Phone, Server, until

__all__ = ["InboxServer", "Member", "Program", "fill", "program", "running", "until"]

T = TypeVar("T")


class Member(Phone):
    """A client that keeps what it is given while it waits for something else.

    Attributes:
        events: all that it was given, with payloads.
        answers: whether it answers Pings.
        pings: the payloads of those that it did not answer.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.events: list[tuple[str, Any]] = []
        self.answers = True
        self.pings: list[bytes] = []

    async def event(self) -> tuple[str, Any]:
        while (received := await self.raw.frame()).opcode == PING:
            self.pings.append(received.payload)
            if self.answers:
                self.answer()
        event, payload = json.loads(received.payload)[3:]
        self.events.append((event, payload))
        return event, payload

    def answer(self) -> None:
        """Answer the Pings that wait for it, and those to come."""
        self.answers = True
        for payload in self.pings:
            self.raw.send(frame(PONG, payload))
        self.pings.clear()

    async def reply(self) -> dict[str, Any]:
        while True:
            event, payload = await self.event()
            if event == "phx_reply":
                assert payload["status"] == "ok", payload
                response: dict[str, Any] = payload["response"]
                return response

    async def refusal(self, event: str, **payload: object) -> dict[str, Any]:
        """Ask for something that is refused, and give the reason."""
        self.raw.text(json.dumps(["1", "2", self.topic, event, payload]))
        answer = await self.told("phx_reply")
        assert answer["status"] == "error", answer
        response: dict[str, Any] = answer["response"]
        return response

    async def seen(self, seq: int) -> None:
        """Wait until it was given the notification with a seq."""
        if seq not in self.seqs and seq not in self.undeliverable:
            while (await self.told("notification", "undeliverable"))["seq"] != seq:
                pass

    async def told(self, *events: str) -> Any:
        """Wait for one of some events, and give its payload."""
        while True:
            event, payload = await self.event()
            if event in events:
                return payload

    @property
    def seqs(self) -> list[int]:
        """The seqs that it was given, in order."""
        return [payload["seq"] for event, payload in self.events if event == "notification"]

    @property
    def undeliverable(self) -> dict[int, str]:
        return {
            payload["seq"]: payload["reason"] for event, payload in self.events if event == "undeliverable"
        }


class InboxServer(Server):
    """A whole server, its clients and its HTTP API."""

    async def member(self, user_id: str = "alice") -> Member:
        return Member((await self.phone(user_id)).raw, user_id)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        content_type: str = "application/json",
    ) -> Deferred[tuple[int, Any]]:
        """Ask the HTTP API; fires with the status and the answer."""
        key = key or (Path(self.settings.data_dir) / "api-key").read_text().strip()
        lines = [f"Authorization: Bearer {key}", f"Content-Type: {content_type}"]
        return Deferred.fromCoroutine(self._ask(f"{method} {path} HTTP/1.0", lines, body))

    async def _ask(self, line: str, headers: list[str], body: object) -> tuple[int, Any]:
        address: Any = self.admin.address
        raw = await connect(reactor, f"tcp:127.0.0.1:{address.port}")
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        raw.send("\r\n".join([line, *headers, f"Content-Length: {len(data)}", "", ""]).encode() + data)
        await raw.ended()
        head, _, answer = raw.received.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(answer)

    def post(self, *user_ids: str, **more: object) -> Deferred[tuple[int, Any]]:
        """Push by HTTP."""
        return self.ask(
            "POST", "/api/notifications", {"user_ids": user_ids, "type": "t", "payload": {}, **more}
        )

    async def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        return await self.database.query(sql, params)


@asynccontextmanager
async def running(database_url: str, directory: Path, **settings: Any) -> AsyncIterator[InboxServer]:
    """Run a server for alice and bob as long as an ``async with`` lasts."""
    server = InboxServer(
        Settings(
            database=database_url,
            data_dir=str(directory / "data"),
            listen=("tcp:0:interface=127.0.0.1",),
            admin="tcp:0:interface=127.0.0.1",
            **settings,
        ),
        reactor=reactor,
    )
    await server.startService()
    try:
        for name in ("alice", "bob"):
            await add_user(server.database, User(name, name.title(), None))
        yield server
    finally:
        await server.stopService()


async def fill(database: Database, user_id: str, count: int, payload: str = "{}") -> None:
    """Append many notifications to an inbox."""
    for start in range(0, count, 5_000):
        some = min(5_000, count - start)
        await database.query(
            "SELECT count(*) FROM flow.append((SELECT array_agg(n) FROM generate_series(1, %s) n),"
            " array_fill(%s::text, ARRAY[%s]), array_fill('t'::text, ARRAY[%s]),"
            " array_fill(%s::jsonb, ARRAY[%s]), '{}', '{}', '{}', true)",
            [some, user_id, some, some, payload, some],
        )


class Program:
    """Another program's connection; what may have to wait is run in a thread."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def run(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, params)
            return [] if cursor.description is None else cursor.fetchall()

    def notify(self, *user_ids: str) -> None:
        self.run("SELECT flow.notify_many(%s, 't', '{}')", list(user_ids))

    def hold(self, user_id: str) -> None:
        """Hold an inbox until the transaction ends."""
        self.run("SELECT FROM flow.inboxes WHERE user_id = %s FOR UPDATE", user_id)

    def later(self, work: Callable[[], T]) -> Deferred[T]:
        return deferToThread(work)

    def notify_and_commit(self, *user_ids: str) -> None:
        self.notify(*user_ids)
        self.connection.commit()


@contextmanager
def program(database_url: str) -> Iterator[Program]:
    """Connect another program to the database; what it has not committed goes."""
    with closing(psycopg2.connect(database_url)) as connection:
        yield Program(connection)
