"""The inbox by HTTP, on a whole server: keys, expiry, many users, and every wrong value there is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults

from tests.integration.inbox_server import InboxServer, fill, program, running
from tests.storage.inbox_contract import later

GOOD: dict[str, Any] = {"user_ids": ["alice"], "type": "deal.won", "payload": {"deal": 7}}
UUID = "00000000-0000-4000-8000-000000000000"
READ = "/api/users/alice/notifications/read"
LIST = "/api/users/alice/notifications"


@pytest_twisted.async_yield_fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[InboxServer]:
    async with running(database_url, tmp_path) as server:
        yield server


async def stored(server: InboxServer) -> int:
    """How many rows there are of anything that a push or a mark could have stored."""
    rows = await server.rows(
        "SELECT (SELECT count(*) FROM flow.notifications) + (SELECT count(*) FROM flow.inboxes)"
        " + (SELECT count(*) FROM flow.idempotency_keys)"
    )
    return int(rows[0][0])


# Keys


@pytest_twisted.ensureDeferred
async def test_200_posts_with_one_key_store_once(server: InboxServer) -> None:
    body = {**GOOD, "user_ids": ["alice", "bob"], "idempotency_key": "order-7"}
    answers = []
    for _ in range(2):
        asked = [server.ask("POST", "/api/notifications", body) for _ in range(100)]
        answers += await gatherResults(asked)
    assert {status for status, _ in answers} == {202}
    assert len({json.dumps(answer) for _, answer in answers}) == 1
    assert await server.rows("SELECT user_id, seq FROM flow.notifications ORDER BY 1") == [
        ("alice", 1),
        ("bob", 1),
    ]
    for change in ({"payload": {"deal": 8}}, {"type": "deal.lost"}, {"collapse_key": "c"}):
        status, answer = await server.ask("POST", "/api/notifications", {**body, **change})
        assert (status, answer["error"]) == (409, "conflict")
    # The same content written otherwise is the same.
    again = json.dumps(body, indent=3).encode()
    assert (await server.ask("POST", "/api/notifications", again))[1] == answers[0][1]
    assert await stored(server) == 6


@pytest_twisted.ensureDeferred
async def test_two_bodies_at_once_under_one_key(server: InboxServer) -> None:
    bodies = [{**GOOD, "payload": n % 2, "idempotency_key": "k"} for n in range(60)]
    answers = await gatherResults([server.ask("POST", "/api/notifications", body) for body in bodies])
    assert sorted(status for status, _ in answers) == [202] * 30 + [409] * 30
    winners = {body["payload"] for body, (status, _) in zip(bodies, answers, strict=True) if status == 202}
    assert len(winners) == 1
    assert await stored(server) == 3


@pytest_twisted.ensureDeferred
async def test_a_key_is_forgotten_after_a_day(server: InboxServer) -> None:
    body = {**GOOD, "idempotency_key": "k"}
    first = (await server.ask("POST", "/api/notifications", body))[1]["notifications"][0]
    await server.rows("UPDATE flow.idempotency_keys SET inserted_at = now() - interval '23 hours 59 minutes'")
    assert (await server.ask("POST", "/api/notifications", body))[1]["notifications"][0] == first
    await server.rows("UPDATE flow.idempotency_keys SET inserted_at = now() - interval '24 hours 1 minute'")
    other = {**body, "payload": "other"}
    status, answer = await server.ask("POST", "/api/notifications", other)
    assert (status, answer["notifications"][0]["seq"]) == (202, 2)
    # From now on the key is the later one's.
    assert (await server.ask("POST", "/api/notifications", other))[1] == answer
    assert (await server.ask("POST", "/api/notifications", body))[0] == 409
    store = server.notifications._store
    assert await store.sweep(0, 0) == 0
    await server.rows("UPDATE flow.idempotency_keys SET inserted_at = now() - interval '24 hours 1 minute'")
    assert await store.sweep(0, 0) == 1
    assert await server.rows("SELECT FROM flow.idempotency_keys") == []
    assert len(await server.rows("SELECT FROM flow.notifications")) == 2


# Many users


@pytest_twisted.ensureDeferred
async def test_ten_thousand_users_all_or_none(server: InboxServer) -> None:
    users = [f"user-{n}" for n in range(10_000)]
    status, answer = await server.ask("POST", "/api/notifications", {**GOOD, "user_ids": users})
    assert status == 202
    assert [(entry["user_id"], entry["seq"]) for entry in answer["notifications"]] == [
        (user, 1) for user in users
    ]
    before = await stored(server)
    status, answer = await server.ask("POST", "/api/notifications", {**GOOD, "user_ids": [*users, "x"]})
    assert (status, answer["error"]) == (413, "too_many_users")
    status, answer = await server.ask("POST", "/api/notifications", {**GOOD, "user_ids": [*users[1:], "a b"]})
    assert (status, "user_ids[9999]: " in answer["detail"]) == (422, True)
    # One of them is held: none is stored, and the rest is not held up for long.
    with program(server.database_url) as holder:
        holder.hold("user-5000")
        large = server.ask("POST", "/api/notifications", {**GOOD, "user_ids": users})
        assert (await server.post("user-1"))[0] == 202
        assert (await large)[0] == 503
    assert await stored(server) == before + 1
    # Who is named twice gets one.
    status, answer = await server.ask("POST", "/api/notifications", {**GOOD, "user_ids": ["alice"] * 3})
    assert (status, len(answer["notifications"])) == (202, 1)


# Expiry and collapsing, by each of the ways in


@pytest_twisted.ensureDeferred
async def test_expiry_and_collapsing_by_http_python_and_sql(server: InboxServer) -> None:
    soon = later(3_600)
    member = await server.member()
    await member.join()
    for n in range(2):
        await server.post("alice", expires_at=soon.isoformat(), collapse_key="http", payload=n)
        await server.notifications.push_notification("alice", "t", n, expires_at=soon, collapse_key="python")
        await server.rows(
            "SELECT flow.notify('alice', 't', %s, expires_at => %s, collapse_key => 'sql')", str(n), soon
        )
    await member.seen(6)
    status, listed = await server.ask("GET", LIST)
    assert [entry["seq"] for entry in listed["notifications"]] == [6, 5, 4]
    assert [entry["payload"] for entry in listed["notifications"]] == [1, 1, 1]
    assert (status, listed["unread"]) == (200, 3)
    assert await server.rows("SELECT DISTINCT expires_at FROM flow.notifications") == [(soon,)]
    await server.rows("UPDATE flow.notifications SET expires_at = now() WHERE seq = 5")
    assert (await server.ask("GET", LIST))[1]["unread"] == 2
    # One that was read is not replaced.
    assert (await server.ask("POST", READ, {"up_to_seq": 4}))[1] == {"unread": 1}
    await server.post("alice", collapse_key="http")
    assert len((await server.ask("GET", LIST))[1]["notifications"]) == 3
    returned = await server.member()
    response = await returned.join(last_seq=0)
    assert (response["unread"], response["last_seq"]) == (2, 7)
    await returned.seen(7)
    assert returned.seqs == [4, 6, 7]
    for one in (member, returned):
        await one.leave()


@pytest.mark.parametrize(
    "value",
    [
        "2020-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "2030-01-01T00:00:00",
        "2030-01-01",
        "tomorrow",
        "2030-02-30T00:00:00Z",
        "2030-01-01T25:00:00Z",
        "9999-12-31T23:59:59-14:00",
        "infinity",
        "",
        -1,
        1e300,
        "'; DROP TABLE flow.notifications; --",
        "2030-01-01T00:00:00Z\x00",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_time_of_expiry_that_cannot_be_is_named(value: object, server: InboxServer) -> None:
    status, answer = await server.post("alice", expires_at=value)
    assert (status, answer["error"]) == (422, "invalid_payload")
    assert "expires_at" in answer["detail"]
    assert await stored(server) == 0


# Wrong values


WRONG: dict[str, list[Any]] = {
    "user_ids": [None, 7, "alice", {}, [], [None], [7], [[]], [""], ["a b"], ["a\x00"], ["'; DROP TABLE x"]],
    "type": [None, 7, 1.5, True, [], {}, "", "t\x00", "t\n", "\x7f", "t" * 129],
    "idempotency_key": [7, False, [], {}, "", "k\x00", "k\t", "k" * 256],
    "collapse_key": [7, False, [], {}, "", "c\x00", "c\r", "c" * 129],
    "expires_at": [False, [], {}, "", "x", 1e999, 2**63],
    "payload": [
        {"a": "\x00"},
        "\x00",
        {"\x00": 1},
        "x" * 65_535,
        float("nan"),
        float("inf"),
        -float("inf"),
        json.loads("[" * 33 + "]" * 33),
        json.loads('{"a":' * 33 + "1" + "}" * 33),
    ],
}
"""By field; written with NaN and Infinity where Python has them."""

RAW: list[tuple[bytes, str]] = [
    (b"1e999", "payload"),
    (b"-1e999", "payload"),
    (b'"\\ud800"', ""),
    (b'"\\udc00\\ud800"', ""),
    (b'{"a": "\\ud800 \\u0041"}', ""),
    (b'"\xed\xa0\x80"', "payload"),
    (b'"\xff"', "payload"),
    (b"9" * 4_500, "payload"),
    (b"01", ""),
    (b"+1", ""),
    (b"'x'", ""),
    (b'{"a" 1}', ""),
    (b"", ""),
    (b"{}, {}", ""),
    (b'{}, "payload": 1 "type"', ""),
]
"""In the place of a payload, and what the answer must name."""


@pytest.mark.parametrize("field", WRONG)
@pytest_twisted.ensureDeferred
async def test_a_wrong_value_is_named_and_nothing_is_stored(field: str, server: InboxServer) -> None:
    for value in WRONG[field]:
        for body in ({**GOOD, field: value}, {**GOOD, "idempotency_key": "k", field: value}):
            status, answer = await server.ask("POST", "/api/notifications", body)
            assert (status, answer["error"]) == (422, "invalid_payload"), (value, answer)
            assert answer["detail"].startswith(field), (value, answer)
    assert await stored(server) == 0
    assert (await server.ask("POST", "/api/notifications", GOOD))[0] == 202


@pytest_twisted.ensureDeferred
async def test_a_payload_that_is_no_json_is_refused(server: InboxServer) -> None:
    for payload, named in RAW:
        body = b'{"user_ids": ["alice"], "type": "t", "payload": %b}' % payload
        status, answer = await server.ask("POST", "/api/notifications", body)
        assert (status, answer["error"]) == (422, "invalid_payload"), (payload, answer)
        assert named in answer["detail"], (payload, answer)
    bodies: list[Any] = [
        {**GOOD, "nonsense": 1},
        {**GOOD, "Type": "t"},
        {**GOOD, "user_id": "alice"},
        {key: value for key, value in GOOD.items() if key != "payload"},
        {key: value for key, value in GOOD.items() if key != "user_ids"},
        [GOOD],
        "x",
    ]
    for other in bodies:
        status, answer = await server.ask("POST", "/api/notifications", other)
        assert (status, answer["error"]) == (422, "invalid_payload"), other
    assert await stored(server) == 0


@pytest_twisted.ensureDeferred
async def test_what_is_strange_but_right_is_stored_as_it_is(server: InboxServer) -> None:
    payloads: list[Any] = [
        "'; DROP TABLE flow.notifications; --",
        "x" * 65_534,
        json.loads("[" * 32 + "]" * 32),
        "\\u0000",
        {"%s %(x)s": "$1 \\ \u2028 😀"},
        -1.5e-300,
        2**63,
        "",
        {"": {"": None}},
    ]
    member = await server.member()
    await member.join()
    for n, payload in enumerate(payloads, 1):
        body = {
            "user_ids": ["alice"],
            "type": "'; DROP TABLE x; -- %s \\ 😀",
            "payload": payload,
            "idempotency_key": f"{n}' OR 1=1; -- %s \\ 😀",
            "collapse_key": f"{n}' OR 1=1; -- %s \\ 😀",
        }
        status, answer = await server.ask("POST", "/api/notifications", body)
        assert (status, answer["notifications"][0]["seq"]) == (202, n)
        await member.seen(n)
        assert member.events[-1][1]["payload"] == payload
        assert member.events[-1][1]["type"] == body["type"]
    await member.leave()


# The list and the marks


@pytest_twisted.ensureDeferred
async def test_the_list_is_paged_by_seq(server: InboxServer) -> None:
    await fill(server.database, "alice", 250)
    await server.ask("POST", READ, {"up_to_seq": 100})
    assert await keyset(server) == list(range(250, 0, -1))
    # What comes meanwhile moves no page.
    seqs = await keyset(server, push=True, limit=7)
    assert seqs == list(range(250, 0, -1))
    status, listed = await server.ask("GET", f"{LIST}?unread=true&limit=100&before_seq=150")
    assert [entry["seq"] for entry in listed["notifications"]] == list(range(149, 100, -1))
    assert all(entry["read_at"] is None for entry in listed["notifications"])
    status, listed = await server.ask("GET", f"{LIST}?unread=false&limit=1&before_seq=100")
    assert [entry["seq"] for entry in listed["notifications"]] == [99]
    assert set(listed["notifications"][0]) == {"id", "seq", "type", "payload", "inserted_at", "read_at"}
    assert listed["notifications"][0]["read_at"].endswith("Z")
    for query, expected in ((f"before_seq={2**63 - 1}&limit=1", 1), ("before_seq=1", 0), ("before_seq=0", 0)):
        status, listed = await server.ask("GET", f"{LIST}?{query}")
        assert (status, len(listed["notifications"])) == (200, expected), query
    assert await server.ask("GET", "/api/users/nobody/notifications") == (
        200,
        {"notifications": [], "unread": 0},
    )


async def keyset(server: InboxServer, *, push: bool = False, limit: int = 100) -> list[int]:
    seqs: list[int] = []
    query = f"limit={limit}"
    while True:
        status, listed = await server.ask("GET", f"{LIST}?{query}")
        assert status == 200
        page = [entry["seq"] for entry in listed["notifications"]]
        assert len(page) <= limit
        if not page:
            return seqs
        seqs += page
        query = f"limit={limit}&before_seq={page[-1]}"
        if push:
            await server.post("alice", collapse_key="one", idempotency_key=str(page[-1]))


@pytest_twisted.ensureDeferred
async def test_wrong_parameters_and_marks_are_named(server: InboxServer) -> None:
    await server.post("alice")
    for name, values in {
        "limit": ["0", "101", "-1", "x", "", "1.5", "1e2", str(2**63), "%00", "1%20", "%D9%A3"],
        "before_seq": ["-1", "x", "", str(2**63), "9" * 40, "%00", "NaN"],
        "unread": ["2", "yes", "%00", "null"],
    }.items():
        for value in values:
            status, answer = await server.ask("GET", f"{LIST}?{name}={value}")
            assert (status, answer["error"]) == (422, "invalid_parameter"), (name, value)
            assert answer["detail"].startswith(f"{name}: got"), answer
    wrong: dict[str, list[Any]] = {
        "ids": [7, UUID, {}, [7], [None], ["x"], [""], [UUID + "0"], [f"{UUID}\x00"], [UUID] * 1_001],
        "up_to_seq": [-1, 2**63, 2**70, "1", 1.5, True, [], 1e999],
        "all": [False, 1, "true", [], {}],
        "nonsense": [1],
    }
    for name, values in wrong.items():
        for value in values:
            status, answer = await server.ask("POST", READ, {name: value})
            assert (status, answer["error"]) == (422, "invalid_payload"), (name, value)
            assert answer["detail"].startswith(name), (name, value, answer)
    bodies: list[Any] = [
        {},
        {"all": True, "up_to_seq": 1},
        {"ids": [], "all": True},
        {"all": None},
        [],
        "x",
        b"{",
        b"",
    ]
    for body in bodies:
        status, answer = await server.ask("POST", READ, body)
        assert (status, answer["error"]) == (422, "invalid_payload"), body
    assert (await server.ask("GET", LIST))[1]["unread"] == 1
    assert await server.ask("POST", READ, {"ids": [UUID] * 1_000}) == (200, {"unread": 1})
    assert await server.ask("POST", READ, {"up_to_seq": 2**63 - 1}) == (200, {"unread": 0})
    assert await server.ask("POST", "/api/users/nobody/notifications/read", {"all": True}) == (
        200,
        {"unread": 0},
    )
    # Who has no inbox has got none by that.
    assert await server.rows("SELECT user_id FROM flow.inboxes") == [("alice",)]


@pytest_twisted.ensureDeferred
async def test_ids_of_others_have_no_effect(server: InboxServer) -> None:
    theirs = (await server.post("bob"))[1]["notifications"][0]["id"]
    own = (await server.post("alice"))[1]["notifications"][0]["id"]
    assert await server.ask("POST", READ, {"ids": [theirs]}) == (200, {"unread": 1})
    assert (await server.ask("GET", "/api/users/bob/notifications"))[1]["unread"] == 1
    assert await server.ask("POST", READ, {"ids": [own.upper(), theirs]}) == (200, {"unread": 0})


@pytest_twisted.ensureDeferred
async def test_impossible_ids_methods_and_types_of_content(server: InboxServer) -> None:
    for user_id in ("a%20b", "a%00", "%D9%A3", "a" * 129, "';%20DROP", "%2e%2e%2fx"):
        for method, path in (("GET", ""), ("POST", "/read")):
            body = {"all": True} if method == "POST" else None
            status, answer = await server.ask(method, f"/api/users/{user_id}/notifications{path}", body)
            assert (status, answer["error"]) == (404, "not_found"), user_id
    for method, path in (("DELETE", LIST), ("POST", LIST), ("PUT", LIST), ("GET", READ), ("PATCH", READ)):
        status, answer = await server.ask(method, path, {})
        assert (status, answer["error"]) == (405, "method_not_allowed"), (method, path)
    for method, path in (("GET", LIST), ("POST", READ)):
        assert (await server.ask(method, path, {"all": True}, key="wrong"))[0] == 401
    status, answer = await server.ask("POST", READ, {"all": True}, content_type="text/plain")
    assert (status, answer["error"]) == (415, "unsupported_media_type")
