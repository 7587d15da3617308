"""Groups on real parts: the table in PostgreSQL, and members who come and go in the whole server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class

from flowtx.errors import InvalidPayload
from flowtx.storage.groups import CHANNEL, PostgresGroupStore
from flowtx.storage.listener import Listener
from flowtx.storage.postgres import Database
from tests.integration.member import Event, Member, ask
from tests.integration.test_session_life import Run, Server, run
from tests.storage.groups_contract import CHECKS, Check

__all__ = ["run"]

SALES = "group:sales"
REFUSED = ("error", {"reason": "unauthorized"})
CLOSED = Event(SALES, "phx_close", {})
INSERT = "INSERT INTO flow.group_members (group_name, user_id) VALUES ('sales', %s)"
DELETE = "DELETE FROM flow.group_members WHERE user_id = %s"


@pytest.fixture
def caller(database_url: str) -> Iterator[Connection]:
    """A backend's own connection, with a transaction of its own."""
    with closing(psycopg2.connect(database_url)) as connection:
        yield connection


@pytest.fixture
def no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the table looked at only when a NOTIFY says so."""
    defaults = Listener.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "poll_interval", 3_600.0)


def execute(caller: Connection, sql: str, *parameters: object) -> None:
    """Run SQL and commit."""
    with caller.cursor() as cursor:
        cursor.execute(sql, parameters)
    caller.commit()


async def hears(server: Server, member: Member) -> bool:
    """Whether a broadcast to the group reaches a client."""
    server.pubsub.broadcast(SALES, "new", {})
    return Event(SALES, "new", {}) in await member.events()


# The table


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_contract(check: Check, database: Database) -> None:
    await check(PostgresGroupStore(database))


@pytest_twisted.ensureDeferred
async def test_names_that_cannot_be_stored(database: Database) -> None:
    store = PostgresGroupStore(database)
    for bad in ("", "a b", "x" * 129, "ż", "a\n", "a\x00", "\ud800"):
        for pair in ((bad, "alice"), ("sales", bad)):
            with pytest.raises(InvalidPayload):
                await store.add(*pair)
    assert await store.members("sales", "", 10) == []


@pytest_twisted.ensureDeferred
async def test_a_notify_comes_where_rows_went_and_only_there(database: Database, caller: Connection) -> None:
    with closing(psycopg2.connect(caller.dsn)) as listener:
        listener.autocommit = True
        listener.cursor().execute(f"LISTEN {CHANNEL}")
        for sql, expected in (
            ("INSERT INTO flow.group_members SELECT 'sales', 'user-' || n FROM generate_series(1, 9) n", 0),
            ("DELETE FROM flow.group_members WHERE user_id = 'nobody'", 0),
            ("UPDATE flow.group_members SET user_id = 'x' WHERE user_id = 'nobody'", 0),
            ("DELETE FROM flow.group_members WHERE user_id IN ('user-1', 'user-2')", 1),
            ("UPDATE flow.group_members SET group_name = 'hr' WHERE user_id = 'user-3'", 1),
            ("DELETE FROM flow.group_members; DELETE FROM flow.group_members", 1),
            ("TRUNCATE flow.group_members", 1),
        ):
            execute(caller, sql)
            listener.cursor().execute("SELECT 1")
            assert [note.payload for note in listener.notifies] == [""] * expected, sql
            listener.notifies.clear()


# The whole server


@pytest_twisted.ensureDeferred
async def test_members_by_claim_and_by_table_join_and_others_do_not(run: Run, caller: Connection) -> None:
    async with run() as server:
        execute(caller, INSERT, "bob")
        alice = await Member.connect(server, "alice", groups=["sales", "hr"])
        bob = await Member.connect(server, "bob")
        other = await Member.connect(server, "alice", groups=["hr"])
        assert await alice.join(SALES) == ("ok", {})
        assert await bob.join(SALES) == ("ok", {})
        assert await other.join(SALES) == REFUSED
        assert await bob.join("group:hr") == REFUSED
        assert await bob.join("group:sales\u200b") == REFUSED
        answer = await ask(
            server, "POST", "/api/broadcasts", {"topic": SALES, "event": "e", "payload": {"n": 1}}
        )
        assert answer == (202, {"delivered": 2})
        assert await alice.events() == await bob.events() == [Event(SALES, "e", {"n": 1})]
        assert await other.events() == []
        assert await alice.ask(SALES, "e", {"n": 2}) == REFUSED
        assert await bob.events() == []
        for member in (alice, bob, other):
            await member.leave()


@pytest.mark.usefixtures("no_poll")
@pytest_twisted.ensureDeferred
async def test_a_deleted_row_sends_its_user_away_when_it_is_committed(run: Run, caller: Connection) -> None:
    async with run() as server:
        execute(caller, INSERT, "alice")
        execute(caller, INSERT, "bob")
        devices = [await Member.connect(server, "alice", SALES) for _ in range(2)]
        bob = await Member.connect(server, "bob", SALES)
        with caller.cursor() as cursor:
            cursor.execute(DELETE, ["alice"])
        await server.groups.wake()
        assert await hears(server, devices[0])
        assert await devices[1].events() == [Event(SALES, "new", {})]
        caller.commit()
        for device in devices:
            assert await device.event() == CLOSED
            assert await device.join(SALES) == REFUSED
            assert not await hears(server, device)
        assert await hears(server, bob)
        execute(caller, INSERT, "alice")
        assert await devices[0].join(SALES) == ("ok", {})
        assert await hears(server, devices[0])
        for member in (*devices, bob):
            await member.leave()


@pytest.mark.usefixtures("no_poll")
@pytest.mark.parametrize(
    "sql", ["UPDATE flow.group_members SET group_name = 'hr'", "TRUNCATE flow.group_members"]
)
@pytest_twisted.ensureDeferred
async def test_other_ways_to_lose_a_row(run: Run, caller: Connection, sql: str) -> None:
    async with run() as server:
        execute(caller, INSERT, "alice")
        alice = await Member.connect(server, "alice", SALES)
        claimed = await Member.connect(server, "bob", SALES, groups=["sales"])
        execute(caller, sql)
        assert await alice.event() == CLOSED
        assert await alice.join(SALES) == REFUSED
        assert await hears(server, claimed)
        for member in (alice, claimed):
            await member.leave()


@pytest_twisted.ensureDeferred
async def test_a_notify_that_never_comes_is_made_up_for(run: Run, caller: Connection) -> None:
    async with run() as server:
        execute(caller, INSERT, "alice")
        alice = await Member.connect(server, "alice", SALES)
        execute(caller, "ALTER TABLE flow.group_members DISABLE TRIGGER ALL")
        execute(caller, DELETE, "alice")
        assert await alice.event() == CLOSED
        await alice.leave()


@pytest_twisted.ensureDeferred
async def test_a_renewed_token_without_the_group(run: Run, caller: Connection) -> None:
    async with run() as server:
        execute(caller, INSERT, "bob")
        alice = await Member.connect(server, "alice", SALES, "group:hr", groups=["sales", "hr"])
        bob = await Member.connect(server, "bob", SALES, groups=["sales"])
        for member, name, groups in ((alice, "alice", ["hr"]), (bob, "bob", [])):
            token = server.token(name, groups=groups)
            assert (await member.ask(SALES, "access_token", {"access_token": token}))[0] == "ok"
        assert await alice.event() == CLOSED
        assert await alice.join(SALES) == REFUSED
        assert await alice.ask("group:hr", "anything") == REFUSED  # from the group, which is still joined
        assert await hears(server, bob)
        for member in (alice, bob):
            await member.leave()


# The calls


@pytest_twisted.ensureDeferred
async def test_add_list_and_remove_by_http(run: Run) -> None:
    async with run() as server:
        alice = await Member.connect(server, "alice")
        assert await alice.join(SALES) == REFUSED
        path = "/api/groups/sales/members"
        assert await ask(server, "GET", path) == (200, {"members": [], "next": None})
        assert await ask(server, "PUT", f"{path}/alice") == (200, {"added": True})
        assert await ask(server, "PUT", f"{path}/alice") == (200, {"added": False})
        assert await alice.join(SALES) == ("ok", {})
        assert await ask(server, "GET", path) == (200, {"members": ["alice"], "next": None})
        assert await ask(server, "DELETE", f"{path}/alice") == (200, {"removed": True})
        assert await alice.event() == CLOSED
        assert await alice.join(SALES) == REFUSED
        assert await ask(server, "DELETE", f"{path}/alice") == (200, {"removed": False})
        await alice.leave()


@pytest_twisted.ensureDeferred
async def test_the_list_comes_in_pages(run: Run) -> None:
    async with run() as server:
        await server.database.query(
            "INSERT INTO flow.group_members SELECT 'sales', 'user-' || to_char(n, 'FM000') "
            "FROM generate_series(0, 249) n"
        )
        listed: list[str] = []
        pages, after = 0, ""
        while after is not None:
            status, body = await ask(server, "GET", f"/api/groups/sales/members?after={after}")
            assert status == 200
            listed += body["members"]
            pages, after = pages + 1, body["next"]
        assert (pages, listed) == (3, [f"user-{number:03}" for number in range(250)])
        _, body = await ask(server, "GET", "/api/groups/sales/members?limit=2&after=user-247")
        assert body == {"members": ["user-248", "user-249"], "next": None}
        _, body = await ask(server, "GET", "/api/groups/sales/members?limit=1&after=user-247")
        assert body == {"members": ["user-248"], "next": "user-248"}


BAD: list[tuple[str, str, int]] = [
    ("GET", "/api/groups/a%20b/members", 404),
    ("GET", f"/api/groups/{'x' * 129}/members", 404),
    ("GET", "/api/groups/a%2Fb/members", 404),
    ("GET", "/api/groups//members", 404),
    ("GET", "/api/groups/sales", 404),
    ("GET", "/api/groups/sales/members?limit=0", 422),
    ("GET", "/api/groups/sales/members?limit=101", 422),
    ("GET", "/api/groups/sales/members?limit=x", 422),
    ("GET", "/api/groups/sales/members?after=%00", 422),
    ("PUT", "/api/groups/sales/members/a%20b", 404),
    ("PUT", "/api/groups/sales/members/a%00", 404),
    ("PUT", "/api/groups/s%C5%BC/members/alice", 404),
    ("PUT", f"/api/groups/sales/members/{'x' * 129}", 404),
    ("DELETE", "/api/groups/a%0Ab/members/alice", 404),
    ("DELETE", "/api/groups/sales/members/a%27--", 404),
    ("POST", "/api/groups/sales/members/alice", 405),
    ("DELETE", "/api/groups/sales/members", 405),
]


@pytest_twisted.ensureDeferred
async def test_bad_calls(run: Run) -> None:
    async with run() as server:
        for method, path, status in BAD:
            answer = await ask(server, method, path)
            assert answer.status == status, (method, path, answer)
            assert set(answer.body) == {"error", "detail"}
        for method, path in (
            ("GET", "/api/groups/sales/members"),
            ("PUT", "/api/groups/sales/members/alice"),
            ("DELETE", "/api/groups/sales/members/alice"),
        ):
            no_key: Any = await ask(server, method, path, headers={})
            assert (no_key.status, no_key.body["error"]) == (401, "unauthorized")
        assert await server.database.query("SELECT count(*) FROM flow.group_members") == [(0,)]
