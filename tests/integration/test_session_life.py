"""A Session's whole life on real parts: real sockets, the whole server, a real PostgreSQL."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from flowtx.application import Flow
from flowtx.auth import mint
from flowtx.config import Settings
from flowtx.interfaces import User
from flowtx.protocol.message import Broadcast
from flowtx.sessions.machine import State
from flowtx.storage.users import add_user
from tests.integration.rawclient import PATIENCE, RawClient, connect, request

CLOSE = 8


class Phone:
    """A client that speaks Phoenix by hand."""

    def __init__(self, raw: RawClient, user_id: str) -> None:
        self.raw = raw
        self.topic = f"user:{user_id}"

    async def join(self, **payload: object) -> dict[str, Any]:
        self.raw.text(json.dumps(["1", "1", self.topic, "phx_join", payload]))
        return await self.reply()

    async def ask(self, event: str, **payload: object) -> dict[str, Any]:
        self.raw.text(json.dumps(["1", "2", self.topic, event, payload]))
        return await self.reply()

    async def reply(self) -> dict[str, Any]:
        event, payload = await self.event()
        assert (event, payload["status"]) == ("phx_reply", "ok"), (event, payload)
        response: dict[str, Any] = payload["response"]
        return response

    async def event(self) -> tuple[str, Any]:
        frame = await self.raw.message()
        event, payload = json.loads(frame.payload)[3:]
        return event, payload

    async def close_code(self) -> int | None:
        while True:
            frame = await self.raw.message()
            if frame.opcode == CLOSE:
                return frame.code

    async def leave(self) -> None:
        self.raw.reset()
        await self.raw.ended()


class Server(Flow):
    """A whole server, and clients for it."""

    async def open(self, user_id: str = "alice", ttl: float = 600, **claims: object) -> RawClient:
        raw = await connect(reactor, f"tcp:127.0.0.1:{self.port}")
        raw.send(request(f"/socket/websocket?vsn=2.0.0&token={self.token(user_id, ttl, **claims)}"))
        return raw

    def token(self, user_id: str, ttl: float = 600, **claims: object) -> str:
        return mint(self.secret, "HS256", user_id, ttl=ttl, now=time.time(), claims=claims)

    async def phone(self, user_id: str = "alice", ttl: float = 600, **claims: object) -> Phone:
        raw = await self.open(user_id, ttl, **claims)
        response = await raw.response()
        assert response.status == 101, response
        return Phone(raw, user_id)

    @property
    def port(self) -> int:
        address: Any = self.clients[0].address
        return int(address.port)

    @property
    def secret(self) -> bytes:
        return (Path(self.settings.data_dir) / "secret").read_bytes().strip()

    async def finished_sessions(self) -> list[tuple[Any, ...]]:
        return await self.database.query(
            "SELECT user_id, reason FROM flow.sessions ORDER BY ended_at, user_id"
        )


Run = Callable[..., Any]


@pytest.fixture
def run(database_url: str, tmp_path: Path) -> Run:
    """Runs a server with some settings for as long as an ``async with`` lasts."""

    @asynccontextmanager
    async def run(**settings: Any) -> AsyncIterator[Server]:
        server = Server(
            Settings(
                database=database_url,
                data_dir=str(tmp_path / "data"),
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

    return run


async def until(condition: Callable[[], object | Awaitable[object]], within: float = PATIENCE) -> None:
    """Wait for something to become true."""
    give_up = time.monotonic() + within
    while True:
        result = condition()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return
        assert time.monotonic() < give_up, "it did not become true"
        await deferLater(reactor, 0.02)


@pytest_twisted.ensureDeferred
async def test_a_return_within_the_window(run: Run) -> None:
    async with run() as server:
        phone = await server.phone()
        first = await phone.join()
        assert not first["resumed"]
        await phone.leave()
        session = server.sessions.get_session("alice")
        assert session is not None
        await until(lambda: session.state is State.AWAY)
        for number in range(3):
            server.pubsub.publish(Broadcast("user:alice", "hello", {"n": number}))
        await server.notifications.push_notification("alice", "deal.won", {})
        phone = await server.phone()
        again = await phone.join(last_seq=0)
        assert (again["session_id"], again["resumed"]) == (first["session_id"], True)
        events = [await phone.event() for _ in range(4)]
        assert [event for event, _ in events] == ["notification", "hello", "hello", "hello"]
        assert [payload["n"] for _, payload in events[1:]] == [0, 1, 2]
        await phone.leave()


@pytest_twisted.ensureDeferred
async def test_after_the_window_there_is_a_new_session_and_one_row(run: Run) -> None:
    async with run(reconnect_window=0.2) as server:
        phone = await server.phone()
        first = await phone.join()
        await phone.leave()
        await until(lambda: not server.sessions.session_exists("alice"))
        phone = await server.phone()
        again = await phone.join()
        assert again["session_id"] != first["session_id"]
        assert not again["resumed"]

        async def written() -> bool:
            return bool(await server.finished_sessions() == [("alice", "window_expired")])

        await until(written)
        await phone.leave()


@pytest_twisted.ensureDeferred
async def test_a_crash_keeps_the_sockets_and_others_notice_nothing(run: Run) -> None:
    async with run() as server:
        alice, bob = await server.phone(), await server.phone("bob")
        await alice.join()
        await bob.join()
        session = server.sessions.get_session("alice")
        assert session is not None
        for _ in range(3):
            session.crashed(Failure(RuntimeError("planted")))
            assert await alice.event() == ("phx_error", {"reason": "channel_crash"})
            await alice.join()
        session.crashed(Failure(RuntimeError("planted")))
        assert await alice.close_code() == 1011
        refused = await (await server.open()).response()
        assert (refused.status, refused.headers["retry-after"]) == (503, "60")
        await bob.ask("activity")
        await bob.leave()


@pytest_twisted.ensureDeferred
async def test_timeouts_end_connections_with_their_codes(run: Run) -> None:
    async with run(idle_timeout=0.4, reconnect_window=0.1) as server:
        phone = await server.phone()
        await phone.join()
        assert await phone.close_code() == 1000
    async with run(heartbeat_timeout=0.4) as server:
        phone = await server.phone()
        await phone.join()
        assert await phone.close_code() == 1002


@pytest_twisted.ensureDeferred
async def test_a_token_ends_its_connection_unless_it_is_renewed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tokens are good for seconds past their end: here their connections end before them.
    monkeypatch.setattr("flowtx.transports.factory.TOKEN_GRACE", -2.0)
    async with run() as server:
        ending, renewed = await server.phone(ttl=4), await server.phone(ttl=4)
        await ending.join()
        await renewed.join()
        renewed.raw.text(
            json.dumps(["1", "3", "user:alice", "access_token", {"access_token": server.token("bob")}])
        )
        _, payload = await renewed.event()
        assert payload == {"status": "error", "response": {"reason": "invalid_token"}}
        assert await renewed.ask("access_token", access_token=server.token("alice")) == {}
        assert await ending.close_code() == 1000
        assert await renewed.ask("activity") == {}
        await renewed.leave()


@pytest_twisted.ensureDeferred
async def test_past_max_devices(run: Run) -> None:
    async with run(max_devices=2) as server:
        phones = [await server.phone() for _ in range(3)]
        assert await phones[0].close_code() == 1000
        await phones[2].join()
        for phone in phones[1:]:
            await phone.leave()
    async with run(max_devices=2, device_policy="refuse") as server:
        phones = [await server.phone() for _ in range(2)]
        refused = await (await server.open()).response()
        assert (refused.status, json.loads(refused.body)) == (403, {"reason": "too_many_devices"})
        for phone in phones:
            await phone.leave()


@pytest_twisted.ensureDeferred
async def test_a_revoked_token_is_closed_and_refused(run: Run) -> None:
    async with run() as server:
        phone, other = await server.phone(jti="one"), await server.phone(jti="two")
        await server.sessions.revoke(token_id="one")
        assert await phone.close_code() == 1000
        refused = await (await server.open(jti="one")).response()
        assert (refused.status, json.loads(refused.body)) == (403, {"reason": "revoked_token"})
        await other.join()
        await server.sessions.revoke(user_id="alice")
        assert await other.close_code() == 1000


@pytest_twisted.ensureDeferred
async def test_stop_and_disconnect(run: Run) -> None:
    async with run() as server:
        phone = await server.phone()
        stopping = Deferred.fromCoroutine(server.sessions.stop_session("alice"))
        assert await phone.close_code() == 1000
        phone.raw.reset()
        assert await stopping
        phones = [await server.phone(), await server.phone()]
        server.pubsub.publish(Broadcast("users_socket:alice", "disconnect", {}))
        assert [await phone.close_code() for phone in phones] == [1001, 1001]


@pytest_twisted.ensureDeferred
async def test_a_full_server_and_too_many_handshakes(run: Run) -> None:
    async with run(max_sessions=1) as server:
        phone = await server.phone()
        refused = await (await server.open("bob")).response()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        await phone.leave()
    async with run(handshake_rate=1.0) as server:
        phone = await server.phone()
        refused = await (await server.open()).response()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        await phone.leave()


@pytest_twisted.ensureDeferred
async def test_the_stop_of_the_server_loses_no_row(run: Run, database_url: str) -> None:
    async with run() as server:
        phones = await gatherResults(
            [Deferred.fromCoroutine(server.phone(name)) for name in ("alice", "bob")]
        )
        stopping = server.stopService()
        assert [await phone.close_code() for phone in phones] == [1012, 1012]
        await stopping
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT user_id, reason, connections FROM flow.sessions ORDER BY user_id")
        assert cursor.fetchall() == [("alice", "drain", 1), ("bob", "drain", 1)]


@pytest_twisted.ensureDeferred
async def test_a_user_who_is_gone_at_a_restart(run: Run) -> None:
    async with run() as server:
        phone = await server.phone()
        await phone.join()
        await server.database.query("DELETE FROM flow.users WHERE id = 'alice'")
        session = server.sessions.get_session("alice")
        assert session is not None
        # What is remembered of users is remembered for seconds only.
        await until(lambda: _restarts_and_ends(session, server), within=20)
        assert await phone.close_code() == 1011


def _restarts_and_ends(session: Any, server: Server) -> bool:
    if not server.sessions.session_exists("alice"):
        return True
    if session.state is State.READY:
        session.crashed(Failure(RuntimeError("planted")))
    return False


@pytest_twisted.ensureDeferred
async def test_the_metrics_count_it_all(run: Run) -> None:
    async with run(reconnect_window=0.1) as server:
        phone = await server.phone()
        await phone.join()
        await server.notifications.push_notification("alice", "deal.won", {})
        await phone.event()
        bad = await connect(reactor, f"tcp:127.0.0.1:{server.port}")
        bad.send(request("/socket/websocket?vsn=2.0.0&token=x"))
        assert (await bad.response()).status == 403
        raw = await connect(reactor, f"tcp:127.0.0.1:{server.admin.address.port}")
        raw.send(b"GET /metrics HTTP/1.0\r\n\r\n")
        await raw.ended()
        shown = {
            line.rpartition(b" ")[0].decode(): float(line.rpartition(b" ")[2])
            for line in raw.received.splitlines()
            if line.startswith(b"flowtx_")
        }
        expected = {
            "flowtx_sessions": 1,
            "flowtx_connections": 1,
            'flowtx_connects_total{result="ok"}': 1,
            'flowtx_connects_total{result="invalid_token"}': 1,
            "flowtx_messages_received_total": 1,
            "flowtx_frames_sent_total": 2,
            "flowtx_notifications_pushed_total": 1,
            "flowtx_notifications_delivered_total": 1,
            "flowtx_notify_latency_seconds_count": 1,
            "flowtx_slow_consumers_total": 0,
            "flowtx_session_restarts_total": 0,
            "flowtx_outbox_bytes": 0,
        }
        assert {name: shown[name] for name in expected} == expected
        await phone.leave()
        await until(lambda: not server.sessions.session_exists("alice"))
        durations = server.metrics.expose().decode()
        assert 'flowtx_session_duration_seconds_count{reason="window_expired"} 1.0' in durations


@pytest_twisted.ensureDeferred
async def test_a_client_that_did_not_read_is_not_told_that_it_missed_nothing(run: Run) -> None:
    async with run(outbox_limit=65_536) as server:
        phone = await server.phone()
        first = await phone.join()
        phone.raw.stop_reading()
        session = server.sessions.get_session("alice")
        assert session is not None
        large = Broadcast("user:alice", "large", {"text": "x" * 60_000})

        def flood() -> bool:
            server.pubsub.publish(large)
            return not session.sockets

        await until(flood)
        phone.raw.reset()
        phone = await server.phone()
        again = await phone.join()
        assert (again["session_id"], again["resumed"]) == (first["session_id"], False)
        await phone.leave()
