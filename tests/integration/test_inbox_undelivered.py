"""What nobody got in time appears in flow.undelivered, once; and what a migration makes of old inboxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from flowtx.inbox import ReadMarks
from flowtx.storage.migrations import migrate, migrations
from flowtx.storage.notifications import PostgresNotificationStore
from flowtx.storage.postgres import Database
from tests.integration.inbox_server import InboxServer, Program, fill, program, running, until
from tests.storage.inbox_contract import backlog_of, everything, later, push, push_one, seqs


@pytest.fixture
def store(database: Database) -> PostgresNotificationStore:
    return PostgresNotificationStore(database)


async def undelivered(server: InboxServer) -> list[tuple[Any, ...]]:
    return await server.rows("SELECT user_id, seq FROM flow.undelivered ORDER BY number")


@pytest_twisted.ensureDeferred
async def test_it_appears_once_and_wakes_who_listens(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path, undelivered_after=3.0) as server:
        member = await server.member("bob")
        await member.join()
        with program(database_url) as mailer:
            mailer.connection.autocommit = True
            mailer.run("LISTEN flow_undelivered")
            await server.post("alice", "bob", type="deal.won")
            await member.seen(1)

            async def received() -> bool:
                await member.ask("activity")  # and the answer to a Ping
                rows = await server.rows("SELECT FROM flow.notifications WHERE delivered_at IS NOT NULL")
                return len(rows) == 1

            await until(received)
            await server.post("alice", type="read")
            await server.ask("POST", "/api/users/alice/notifications/read", {"up_to_seq": 2})
            await server.post("alice", type="expires", expires_at=later(1).isoformat())
            await server.post("alice", type="task.due")

            def woken() -> bool:
                mailer.connection.poll()
                return bool(mailer.connection.notifies)

            await until(woken)
            assert mailer.run("SELECT user_id, seq, type, payload FROM flow.undelivered") == [
                ("alice", 4, "task.due", {})
            ]
            await server.post("alice")

            async def both() -> bool:
                return len(await undelivered(server)) == 2

            await until(both)
        # What comes late does not take it off the list.
        late = await server.member()
        await late.join()
        await late.seen(5)

        async def got() -> bool:
            rows = await server.rows("SELECT delivered_at > undelivered_at FROM flow.undelivered")
            await late.ask("activity")
            return rows == [(True,), (True,)]

        await until(got)
        assert await undelivered(server) == [("alice", 4), ("alice", 5)]
        metrics = server.metrics.expose().decode()
        assert "flowtx_notifications_undelivered_total 2.0" in metrics
        for one in (member, late):
            await one.leave()


@pytest_twisted.ensureDeferred
async def test_two_nodes_that_look_at_once_find_each_once(
    store: PostgresNotificationStore, database: Database
) -> None:
    other = PostgresNotificationStore(database)
    await fill(database, "alice", 300)
    await fill(database, "bob", 300)
    await push_one(store, ["alice"], expires_at=later(-1))

    found: list[int] = []

    async def find(node: PostgresNotificationStore) -> None:
        while sum(found) < 600:
            # 0 where the other one looks just now.
            found.append(await node.find_undelivered(0, 7))
            assert len(found) < 10_000

    await gatherResults([Deferred.fromCoroutine(find(node)) for node in (store, other, store, other)])
    assert sum(found) == 600
    assert await store.find_undelivered(0, 7) == 0
    rows = await database.query(
        "SELECT count(*), count(DISTINCT number), count(DISTINCT (user_id, seq)) FROM flow.undelivered"
    )
    assert rows == [(600, 600, 600)]


@pytest_twisted.ensureDeferred
async def test_numbers_grow_in_the_order_of_commits(
    store: PostgresNotificationStore, database: Database, database_url: str
) -> None:
    await push(store, "alice")
    await push(store, "bob")
    with program(database_url) as slow:
        assert slow.run("SELECT flow.find_undelivered(0, 1)") == [(1,)]
        # Nobody else can find any before that has committed: its number would be seen before a lower one.
        assert await store.find_undelivered(0, 100) == 0
        slow.connection.commit()
        assert await store.find_undelivered(0, 100) == 1
    rows = await database.query("SELECT user_id FROM flow.undelivered ORDER BY number")
    assert rows == [("alice",), ("bob",)]


@pytest_twisted.ensureDeferred
async def test_the_oldest_come_first(store: PostgresNotificationStore, database: Database) -> None:
    users = [f"user-{n}" for n in (3, 1, 2, 5, 4)]
    for user in users:
        await push(store, user)
    assert await store.find_undelivered(0, 100) == 5
    rows = await database.query("SELECT user_id FROM flow.undelivered ORDER BY number")
    assert [user for (user,) in rows] == users


# From an older schema


@pytest_twisted.ensureDeferred
async def test_a_migration_keeps_notifications_keys_and_counts(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.query("DROP SCHEMA flow CASCADE")
    known = migrations()
    monkeypatch.setattr("flowtx.storage.migrations.migrations", lambda: known[:2])
    assert await migrate(database) == 2
    content = {"text": "ż 😀", "n": [1, 2.5, None]}
    with program(database_url) as caller:
        notify_before(caller, content)
    before = await database.query(
        "SELECT id, seq, type, payload, read_at FROM flow.notifications ORDER BY seq"
    )
    monkeypatch.undo()
    assert await migrate(database) == known[-1].version
    after = await database.query(
        "SELECT id, seq, type, payload, read_at FROM flow.notifications ORDER BY seq"
    )
    assert after == before
    store = PostgresNotificationStore(database)
    backlog = await backlog_of(store, "alice", None, 10, 10)
    assert (seqs(backlog.page.entries), backlog.unread, backlog.last_seq) == ([2, 3], 2, 3)
    assert json.loads(bytes((await everything(store, "alice"))[0].payload)) == content
    # The key still names what it named, whoever asks.
    [pushed] = await push_one(store, ["alice"], "deal.won", json.dumps(content).encode(), "key")
    assert (pushed.seq, pushed.id) == (1, str(before[0][0]))
    with program(database_url) as caller:
        caller.connection.autocommit = True
        assert caller.run("SELECT flow.notify('alice', 'deal.won', %s, 'key')", json.dumps(content)) == [(1,)]
        assert caller.run("SELECT flow.notify('alice', 'old', '{}', 'old')") == [(4,)]
    # Whether they were ever received nobody knows: they are not undelivered now.
    assert await store.find_undelivered(0, 100) == 1
    assert await database.query("SELECT seq FROM flow.undelivered") == [(4,)]
    assert await store.mark_read("alice", ReadMarks(all=True)) == 0


def notify_before(caller: Program, content: object) -> None:
    """Notify as by schema 2: one read, one under a key of long ago."""
    caller.run("SELECT flow.notify('alice', 'deal.won', %s, 'key')", json.dumps(content))
    caller.run("SELECT flow.notify('alice', 'old', '{}', 'old')")
    caller.run("SELECT flow.notify('alice', 'task.due', '[]')")
    caller.run("SELECT flow.mark_read('alice', NULL, 1)")
    caller.run("UPDATE flow.notifications SET inserted_at = now() - interval '25 hours' WHERE seq = 2")
    caller.connection.commit()
