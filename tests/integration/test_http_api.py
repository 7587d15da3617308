"""The HTTP API over a real TCP socket, on a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any, NamedTuple

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from flowtx.channels.router import Router
from flowtx.errors import Refused
from flowtx.interfaces import Principal, User
from flowtx.listening import Listening
from flowtx.metrics import Metrics
from flowtx.notifications.service import NotificationService
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.sessions.service import Claim, SessionService
from flowtx.storage.memory import MemoryRevocations, MemoryUserDirectory
from flowtx.storage.notifications import PostgresNotificationStore
from flowtx.storage.postgres import Database
from flowtx.testing.memory import MemoryTransport
from flowtx.testing.memory import connect as memory_connect
from flowtx.web.api import Api
from flowtx.web.inboxes import InboxCalls
from flowtx.web.keys import ApiKeys
from flowtx.web.operations import OperationCalls
from flowtx.web.sessions import SessionCalls
from flowtx.web.site import AdminSite, Page

KEY = "k" * 40
USERS = [User(name, name.title(), None) for name in ("alice", "bob", "carol")]
GOOD = {"user_ids": ["alice"], "type": "deal.won", "payload": {"title": "Acme"}}
JSON = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks the API, each time on a connection of its own."""

    def __init__(self, port: int, database: Database, sessions: SessionService) -> None:
        self.port = port
        self.database = database
        self.sessions = sessions
        self.ready = True

    async def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        return await deferToThread(self._ask, method, path, data, JSON if headers is None else headers)

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers)
            return _answer(connection.getresponse())
        finally:
            connection.close()

    async def raw(self, request: bytes) -> bytes:
        """Send bytes and read until the server closes."""
        return await deferToThread(self._raw, request)

    def _raw(self, request: bytes) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.connect()
            connection.sock.sendall(request)
            answer = b""
            while part := connection.sock.recv(65_536):
                answer += part
            return answer
        finally:
            connection.close()

    async def stored(self) -> list[tuple[Any, ...]]:
        return await self.database.query(
            "SELECT user_id, seq, type, payload FROM flow.notifications ORDER BY user_id, seq"
        )


def _answer(response: HTTPResponse) -> Answer:
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


@pytest_twisted.async_yield_fixture
async def client(database: Database) -> AsyncIterator[Client]:
    pubsub = MemoryPubSub()
    notifications = NotificationService(PostgresNotificationStore(database), pubsub, clock=reactor)
    sessions = SessionService(
        MemoryUserDirectory(USERS),
        pubsub=pubsub,
        clock=reactor,
        revocations=MemoryRevocations(),
    )
    sessions.startService()
    pages = {"index.html": Page("text/html; charset=utf-8", b"<title>flowtx</title>")}
    client: Client
    api = Api(
        [
            *InboxCalls(notifications).routes(),
            *SessionCalls(sessions, notifications, pubsub=pubsub, clock=reactor).routes(),
            *OperationCalls(Metrics(), lambda: client.ready, pages).routes(),
        ],
        ApiKeys(lambda: KEY),
    )
    site = AdminSite(api.resource(), reactor=reactor)
    listening = Listening("admin", "tcp:0:interface=127.0.0.1", site, reactor=reactor)
    await listening.startService()
    client = Client(listening.address.port, database, sessions)  # type: ignore[union-attr]
    yield client
    await listening.stopService()
    await sessions.stopService()


@pytest_twisted.ensureDeferred
async def test_a_push_is_on_disk_when_it_is_answered(client: Client) -> None:
    answer = await client.ask("POST", "/api/notifications", {**GOOD, "user_ids": ["bob", "alice"]})
    assert answer.status == 202
    assert answer.headers["content-type"] == "application/json"
    pushed = answer.json["notifications"]
    assert [(entry["user_id"], entry["seq"]) for entry in pushed] == [("bob", 1), ("alice", 1)]
    assert [row[:3] for row in await client.stored()] == [("alice", 1, "deal.won"), ("bob", 1, "deal.won")]
    rows = await client.database.query("SELECT id::text FROM flow.notifications WHERE user_id = 'bob'")
    assert rows == [(pushed[0]["id"],)]


@pytest_twisted.ensureDeferred
async def test_any_json_is_a_payload(client: Client) -> None:
    payload: Any
    for payload in ({}, [], None, 0, "text", {"a": [1, {"b": "'; DROP TABLE flow.users; --"}]}):
        answer = await client.ask("POST", "/api/notifications", {**GOOD, "payload": payload})
        assert answer.status == 202
        assert json.loads((await client.stored())[-1][3]) == payload


@pytest_twisted.ensureDeferred
async def test_an_idempotency_key_stores_once(client: Client) -> None:
    body = {**GOOD, "idempotency_key": "order-7"}
    answers = [await client.ask("POST", "/api/notifications", body) for _ in range(3)]
    assert {answer.status for answer in answers} == {202}
    assert len({answer.body for answer in answers}) == 1
    other = await client.ask("POST", "/api/notifications", {**body, "payload": {"other": 1}})
    assert (other.status, other.json["error"]) == (409, "conflict")
    assert len(await client.stored()) == 1


@pytest_twisted.ensureDeferred
async def test_ten_thousand_users_in_a_call(client: Client) -> None:
    users = [f"user-{number}" for number in range(10_000)]
    answer = await client.ask("POST", "/api/notifications", {**GOOD, "user_ids": users})
    assert answer.status == 202
    assert [entry["user_id"] for entry in answer.json["notifications"]] == users
    answer = await client.ask("POST", "/api/notifications", {**GOOD, "user_ids": [*users, "one-more"]})
    assert (answer.status, answer.json["error"]) == (413, "too_many_users")


@pytest_twisted.ensureDeferred
async def test_the_key_is_asked_for(client: Client) -> None:
    for value in (
        "",
        "Bearer",
        "Bearer ",
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[1:]}",
        "Bearer \xff",
    ):
        headers = {**JSON, "Authorization": value}
        answer = await client.ask("POST", "/api/notifications", GOOD, headers)
        assert (answer.status, answer.json["error"]) == (401, "unauthorized"), value
        assert answer.headers["www-authenticate"] == "Bearer"
    answer = await client.ask("POST", "/api/notifications", GOOD, {"Content-Type": "application/json"})
    assert answer.status == 401
    assert await client.stored() == []


def nested(depth: int) -> bytes:
    return json.dumps({**GOOD, "payload": "@"}).encode().replace(b'"@"', b"[" * depth + b"]" * depth)


BAD: list[tuple[object, str]] = [
    ({**GOOD, "user_ids": []}, "user_ids: "),
    ({**GOOD, "user_ids": "alice"}, "user_ids: "),
    ({**GOOD, "user_ids": ["alice", 7]}, "user_ids[1]: "),
    ({**GOOD, "user_ids": ["alice", "a b"]}, "user_ids[1]: "),
    ({**GOOD, "user_ids": ["alice\n"]}, "user_ids[0]: "),
    ({**GOOD, "user_ids": ["a" * 129]}, "user_ids[0]: "),
    ({**GOOD, "user_ids": ["a%b"]}, "user_ids[0]: "),
    ({**GOOD, "user_ids": ["\u202ea"]}, "user_ids[0]: "),
    ({**GOOD, "type": ""}, "type: "),
    ({**GOOD, "type": "t" * 129}, "type: "),
    ({**GOOD, "type": "t\n"}, "type: "),
    ({**GOOD, "type": None}, "type: "),
    ({**GOOD, "idempotency_key": ""}, "idempotency_key: "),
    ({**GOOD, "idempotency_key": "k" * 256}, "idempotency_key: "),
    ({**GOOD, "idempotency_key": "k\x00"}, "idempotency_key: "),
    ({**GOOD, "idempotency_key": 7}, "idempotency_key: "),
    ({**GOOD, "nonsense": 1}, "nonsense"),
    ({"user_ids": ["alice"], "type": "t"}, "payload"),
    ({"type": "t", "payload": {}}, "user_ids"),
    ({**GOOD, "payload": {"a": "\x00"}}, "payload"),
    ({**GOOD, "payload": "x" * 65_535}, "payload"),
    (nested(33), "payload"),
    (nested(100_000), "deep"),
    (b"", "truncated"),
    (b"{", "truncated"),
    (b"[]", "object"),
    (b"\xef\xbb\xbf{}", "malformed"),
    (b'{"user_ids": ["alice"], "type": "t", "payload": NaN}', "payload: got nan"),
    (b'{"user_ids": ["alice"], "type": "t", "payload": 1e999}', "payload"),
    (b'{"user_ids": ["alice"], "type": "t", "payload": "\\ud800"}', "payload: has a lone"),
    (b'{"user_ids": ["alice"], "type": "t", "payload": "\xff"}', "payload"),
    (b'{"user_ids": ["alice"], "type": "t", "payload": ' + b"9" * 5_000 + b"}", "payload"),
    (b'{"user_ids": ["alice"], "type": "t", "payload": {}} x', "trailing"),
]


@pytest_twisted.ensureDeferred
async def test_what_is_wrong_with_a_body_is_named_and_nothing_is_stored(client: Client) -> None:
    for body, named in BAD:
        answer = await client.ask("POST", "/api/notifications", body)
        assert (answer.status, answer.json["error"]) == (422, "invalid_payload"), (body, answer)
        assert named in answer.json["detail"], (named, answer.json)
    assert await client.stored() == []
    assert (await client.ask("POST", "/api/notifications", nested(32))).status == 202


@pytest_twisted.ensureDeferred
async def test_only_json_is_taken(client: Client) -> None:
    for kind, status in (
        ("application/json", 202),
        ("application/json; charset=utf-8", 202),
        ('Application/JSON;charset="UTF-8"', 202),
        ("application/json; charset=utf-16", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ):
        answer = await client.ask("POST", "/api/notifications", GOOD, {**JSON, "Content-Type": kind})
        assert answer.status == status, kind
        assert status == 202 or answer.json["error"] == "unsupported_media_type"


@pytest_twisted.ensureDeferred
async def test_a_body_too_large_is_refused_before_it_is_read(client: Client) -> None:
    head = b"POST /api/notifications HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    answer = await client.raw(head + b"Content-Length: 1048577\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"error":"body_too_large"' in answer
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    answer = await client.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 17)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert await client.stored() == []


@pytest_twisted.ensureDeferred
async def test_other_paths_and_methods(client: Client) -> None:
    for path in (
        "/nope",
        "/api",
        "/api/nope",
        "/static/nope.js",
        "/static/..%2f..%2fetc%2fpasswd",
        "/%00",
    ):
        answer = await client.ask("GET", path)
        assert (answer.status, answer.json["error"]) == (404, "not_found"), path
    for method in ("GET", "PUT", "DELETE", "TRACE"):
        answer = await client.ask(method, "/api/notifications")
        assert (answer.status, answer.json["error"]) == (405, "method_not_allowed"), method


@pytest_twisted.ensureDeferred
async def test_health(client: Client) -> None:
    assert (await client.ask("GET", "/health/live", headers={})).json == {"status": "ok"}
    assert (await client.ask("GET", "/health/ready", headers={})).status == 200
    client.ready = False
    answer = await client.ask("GET", "/health/ready", headers={})
    assert (answer.status, answer.json) == (503, {"status": "unavailable"})
    assert (await client.ask("GET", "/health/live", headers={})).status == 200


@pytest_twisted.ensureDeferred
async def test_the_page_runs_nothing_but_its_own_scripts(client: Client) -> None:
    answer = await client.ask("GET", "/", headers={})
    assert (answer.status, answer.body) == (200, b"<title>flowtx</title>")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY"


@pytest_twisted.ensureDeferred
async def test_a_database_that_is_down_is_a_503(client: Client) -> None:
    await client.database.stopService()
    answer = await client.ask("POST", "/api/notifications", GOOD)
    assert (answer.status, answer.json["error"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    restarted: Deferred[None] = client.database.startService()
    await restarted
    assert (await client.ask("POST", "/api/notifications", GOOD)).status == 202


@pytest_twisted.ensureDeferred
async def test_an_error_of_ours_says_nothing_of_itself(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("postgresql://user:password@host")

    monkeypatch.setattr(PostgresNotificationStore, "push", fail)
    answer = await client.ask("POST", "/api/notifications", GOOD)
    assert (answer.status, answer.json["error"]) == (500, "internal_error")
    assert b"password" not in answer.body


async def connect(client: Client, user_id: str, jti: str | None = None) -> tuple[Claim, MemoryTransport]:
    """Connect a user; the connection goes as soon as it is closed."""
    principal = Principal(user_id, expires_at=4e9, token_id=jti)
    claim = await client.sessions.claim(principal)
    connection = memory_connect(Router(), user_id, reactor)  # type: ignore[arg-type]
    connection.socket.principal = principal
    connection.on_close = lambda: connection.lose().addCallback(lambda _: claim.release())
    claim.attach(connection.socket)
    return claim, connection


@pytest_twisted.ensureDeferred
async def test_sessions_are_listed_by_pages(client: Client) -> None:
    for user in ("carol", "alice", "bob"):
        await connect(client, user)
    answer = (await client.ask("GET", "/api/sessions?limit=2")).json
    assert [session["user_id"] for session in answer["sessions"]] == ["alice", "bob"]
    assert answer["next"] == "bob"
    answer = (await client.ask("GET", "/api/sessions?limit=2&after=bob")).json
    assert [session["user_id"] for session in answer["sessions"]] == ["carol"]
    assert answer["next"] is None
    for query in ("limit=0", "limit=101", "limit=x", "limit=-1", "limit=", "limit=%31%30%30%30"):
        answer = await client.ask("GET", f"/api/sessions?{query}")
        assert (answer.status, answer.json["error"]) == (422, "invalid_parameter"), query


@pytest_twisted.ensureDeferred
async def test_a_session_is_inspected(client: Client) -> None:
    claim, connection = await connect(client, "alice")
    shown = (await client.ask("GET", "/api/sessions/alice")).json
    assert set(shown) == {
        "user_id",
        "session_id",
        "state",
        "connected_at",
        "last_activity_at",
        "notification_subscriptions",
        "metadata",
        "connections",
    }
    assert (shown["user_id"], shown["session_id"], shown["state"]) == (
        "alice",
        claim.session.session_id,
        "ready",
    )
    [device] = shown["connections"]
    assert set(device) == {
        "id",
        "device",
        "address",
        "user_agent",
        "connected_at",
        "last_activity_at",
        "topics",
        "outbox_bytes",
    }
    assert (device["id"], device["address"]) == (connection.socket.id, "memory")
    assert (await client.ask("GET", "/api/sessions/nobody")).status == 404


@pytest_twisted.ensureDeferred
async def test_a_session_is_stopped(client: Client) -> None:
    _, connection = await connect(client, "alice")
    answer = await client.ask("DELETE", "/api/sessions/alice")
    assert (answer.status, answer.json) == (200, {"stopped": True})
    assert connection.closed == (1000, "session_stopped")
    assert (await client.ask("DELETE", "/api/sessions/alice")).status == 404


@pytest_twisted.ensureDeferred
async def test_one_connection_is_closed(client: Client) -> None:
    _, first = await connect(client, "alice")
    _, second = await connect(client, "alice")
    path = f"/api/sessions/alice/connections/{first.socket.id}"
    assert (await client.ask("DELETE", path)).json == {"closed": True}
    assert first.closed is not None
    assert second.closed is None
    assert (await client.ask("DELETE", path)).status == 404


@pytest_twisted.ensureDeferred
async def test_a_user_is_disconnected(client: Client) -> None:
    _, connection = await connect(client, "alice")
    assert (await client.ask("POST", "/api/users/alice/disconnect")).status == 202
    assert connection.closed == (1001, "disconnect")


@pytest_twisted.ensureDeferred
async def test_tokens_are_revoked_and_their_connections_closed(client: Client) -> None:
    _, one = await connect(client, "alice", "token-1")
    _, other = await connect(client, "alice", "token-2")
    answer = await client.ask("POST", "/api/tokens/revoke", {"jti": "token-1"})
    assert (answer.status, answer.json) == (200, {"revoked": True, "closed": 1})
    assert one.closed == (1000, "token_revoked")
    assert other.closed is None
    with pytest.raises(Refused, match="revoked_token"):
        await connect(client, "alice", "token-1")
    answer = await client.ask("POST", "/api/tokens/revoke", {"user_id": "alice"})
    assert answer.json["closed"] == 1
    assert other.closed == (1000, "token_revoked")
    for body in ({}, {"jti": "x", "user_id": "alice"}, {"jti": 1}, {"jti": ""}, {"user_id": "a b"}, {"x": 1}):
        answer = await client.ask("POST", "/api/tokens/revoke", body)
        assert (answer.status, answer.json["error"]) == (422, "invalid_payload"), body


@pytest_twisted.ensureDeferred
async def test_the_key_is_asked_for_everywhere(client: Client) -> None:
    for method, path in (
        ("GET", "/api/sessions"),
        ("GET", "/api/sessions/alice"),
        ("DELETE", "/api/sessions/alice"),
        ("DELETE", "/api/sessions/alice/connections/1"),
        ("POST", "/api/users/alice/disconnect"),
        ("POST", "/api/tokens/revoke"),
    ):
        assert (await client.ask(method, path, headers={})).status == 401, path


@pytest_twisted.ensureDeferred
async def test_metrics(client: Client) -> None:
    await connect(client, "alice")
    answer = await client.ask("GET", "/metrics", headers={})
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    names = {line.split(b"{")[0].split()[0] for line in answer.body.splitlines() if line[:1] != b"#"}
    assert b"flowtx_session_restarts_total" in names
    assert b"alice" not in answer.body
