"""Rows that were put in by hand: who cannot be given one is told so, and everything else flows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from flowtx.inbox import ReadMarks
from tests.integration.inbox_server import InboxServer, Member, running

LARGE = "jsonb_build_object('x', repeat('x', 100000))"
DEEP = "(repeat('[', 5000) || repeat(']', 5000))::jsonb"
POISON = [
    (f"payload = {LARGE}", "too_large"),
    (f"payload = {DEEP}", "unencodable"),
    ("payload = '1e100000'", "too_large"),
    ("payload = '-1e-16000'", None),
    ("payload = '{\"n\": 1e400}'", None),
    ("payload = '123456789012345678901234567890.5'", None),
    ("payload = to_jsonb(repeat('9', 4300)::numeric)", None),
    ("payload = to_jsonb(repeat('9', 4400)::numeric)", "unencodable"),
    ("payload = to_jsonb(repeat('9', 4400))", None),
    ("payload = 'null'", None),
    ("payload = to_jsonb(chr(8232) || chr(1) || '</script>')", None),
    ("inserted_at = 'infinity'", None),
    ("inserted_at = '-infinity'", None),
    ("inserted_at = '0044-03-15 BC'", None),
    ("inserted_at = '294276-12-31'", None),
    ("read_at = 'infinity', delivered_at = '-infinity'", None),
    ("expires_at = 'infinity'", None),
    ("type = repeat('t', 10000)", None),
    ("type = ''", None),
    ("type = E'\\x01\\u2028'", None),
]


async def joined(server: InboxServer, user_id: str = "alice", **payload: object) -> Member:
    member = await server.member(user_id)
    await member.join(**payload)
    return member


async def flows_on(server: InboxServer, *members: Member) -> None:
    """See that what is pushed now arrives, and that the server comes to rest."""
    for user_id in ("alice", "bob"):
        status, answer = await server.post(user_id)
        assert status == 202
        for member in members:
            if member.topic == f"user:{user_id}":
                await member.seen(answer["notifications"][0]["seq"])
    queries = 0
    store: Any = server.notifications._store
    ask = store._ask

    async def counted(*arguments: Any) -> Any:
        nonlocal queries
        queries += 1
        return await ask(*arguments)

    store._ask = counted
    await deferLater(server._reactor, 0.3)
    store._ask = ask
    # No more than the receipts of what was pushed, and a look or two.
    assert queries < 10
    status, listed = await server.ask("GET", "/api/users/alice/notifications")
    assert (status, listed["unread"] >= 0) == (200, True)


@pytest.mark.parametrize(("change", "reason"), POISON, ids=[change[:40] for change, _ in POISON])
@pytest_twisted.ensureDeferred
async def test_a_poisoned_row(change: str, reason: str | None, database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        alice, bob = await joined(server), await joined(server, "bob")
        await server.post("alice")
        column = change.partition(" = ")[0]
        # Live: a row of the next seq, put in by hand.
        if column in {"payload", "type", "inserted_at"}:
            value = change.partition(" = ")[2]
            values = {"payload": "'{}'", "type": "'t'", "inserted_at": "now()", column: value}
            await server.rows(
                "INSERT INTO flow.notifications (user_id, seq, type, payload, inserted_at)"
                f" VALUES ('alice', 2, {values['type']}, {values['payload']}, {values['inserted_at']});"
                " NOTIFY flow_inbox"
            )
            await alice.seen(2)
            assert alice.undeliverable == ({} if reason is None else {2: reason})
        else:
            await server.post("alice")
        await server.rows(f"UPDATE flow.notifications SET {change} WHERE seq = 2")
        if column == "read_at":
            await server.rows("UPDATE flow.inboxes SET unread = unread - 1 WHERE user_id = 'alice'")
        await server.post("alice")
        await alice.seen(3)
        await flows_on(server, alice, bob)
        # At a return, with and without a place.
        returned = await joined(server, last_seq=1)
        unread = await joined(server)
        for member in (returned, unread):
            await member.seen(4)
            assert member.undeliverable == ({} if reason is None else {2: reason})
        assert returned.seqs == ([2, 3, 4] if reason is None else [3, 4])
        listed = await unread.ask("list_notifications")
        assert [entry["seq"] for entry in listed["notifications"]] == [4, 3, 2, 1]
        if reason is not None:
            assert listed["notifications"][2]["payload"] is None
        status, answer = await server.ask("POST", "/api/users/alice/notifications/read", {"all": True})
        assert (status, answer) == (200, {"unread": 0})
        await flows_on(server, alice, bob, returned, unread)
        await server.notifications._store.find_undelivered(0.1, 100)
        for member in (alice, bob, returned, unread):
            await member.leave()


@pytest_twisted.ensureDeferred
async def test_a_seq_ahead_of_the_inbox(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        alice = await joined(server)
        await server.post("alice")
        await server.rows(
            "INSERT INTO flow.notifications (user_id, seq, type, payload) VALUES ('alice', 10, 't', '{}')"
        )
        assert await server.rows("SELECT flow.notify('alice', 't', '{}')") == [(11,)]
        await alice.seen(11)
        assert alice.seqs == [1, 10, 11]
        await flows_on(server, alice)
        await alice.leave()


@pytest_twisted.ensureDeferred
async def test_rows_without_an_inbox_and_below_zero(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        for user_id, first in (("alice", -5), ("bob", 1)):
            await server.rows(
                "INSERT INTO flow.notifications (user_id, seq, type, payload, expires_at, collapse_key)"
                " SELECT %s, n, 't', '{}', CASE WHEN n = 3 THEN now() - interval '1 s' END,"
                "   CASE WHEN n = 4 THEN 'c' END FROM generate_series(%s, 200) n",
                user_id,
                first,
            )
        alice, bob = await joined(server), await joined(server, "bob", last_seq=0)
        for member in (alice, bob):
            await member.seen(200)
            assert member.seqs == [n for n in range(1, 201) if n != 3]
        await flows_on(server, alice, bob)
        assert await server.rows("SELECT min(seq) FROM flow.notifications WHERE user_id = 'bob'") == [(1,)]
        status, answer = await server.post("bob", collapse_key="c")
        assert (status, answer["notifications"][0]["seq"]) == (202, 202)
        await bob.seen(202)
        status, listed = await server.ask("GET", "/api/users/alice/notifications?before_seq=3")
        assert [entry["seq"] for entry in listed["notifications"]] == [2, 1, 0, -1, -2, -3, -4, -5]
        status, answer = await server.ask("POST", "/api/users/alice/notifications/read", {"all": True})
        assert (status, answer) == (200, {"unread": 0})
        for member in (alice, bob):
            await member.leave()


@pytest_twisted.ensureDeferred
async def test_a_seq_with_nothing_after_it_is_of_that_user_alone(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        bob = await joined(server, "bob")
        await server.rows(
            "INSERT INTO flow.notifications (user_id, seq, type, payload)"
            " VALUES ('alice', 9223372036854775807, 't', '{}')"
        )
        pushes = [server.post("alice"), server.post("bob"), server.post("bob")]
        assert [(await push)[0] for push in pushes] == [422, 202, 202]
        await bob.seen(2)
        assert await server.notifications._store.mark_read("alice", ReadMarks(all=True)) == 0
        alice = await joined(server)
        assert await alice.ask("activity") == {}
        for member in (alice, bob):
            await member.leave()
