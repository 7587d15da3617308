"""Inboxes in a real PostgreSQL: the contract of all stores, and what SQL adds to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest
import pytest_twisted
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class
from twisted.internet.defer import Deferred, gatherResults

from flowtx.errors import InvalidPayload, SchemaError
from flowtx.inbox import ReadMarks
from flowtx.storage.migrations import migrate, migrations
from flowtx.storage.notifications import PostgresNotificationStore
from flowtx.storage.postgres import Database
from tests.storage.inbox_contract import CHECKS, Check, backlog_of, everything, push, push_one


@pytest.fixture
def store(database: Database) -> PostgresNotificationStore:
    return PostgresNotificationStore(database)


@pytest.fixture
def caller(database: Database, database_url: str) -> Iterator[Connection]:
    """A backend's own connection, with a transaction of its own."""
    with closing(psycopg2.connect(database_url)) as connection:
        yield connection


def notify(caller: Connection, user_id: str, type_: str = "t") -> int:
    with caller.cursor() as cursor:
        cursor.execute("SELECT flow.notify(%s, %s, '{}')", [user_id, type_])
        return int(cursor.fetchone()[0])  # type: ignore[index]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_contract(check: Check, store: PostgresNotificationStore) -> None:
    await check(store)


@pytest_twisted.ensureDeferred
async def test_a_notification_is_there_if_and_only_if_the_callers_transaction_commits(
    store: PostgresNotificationStore, caller: Connection
) -> None:
    mark, _ = await store.changed(None)
    assert notify(caller, "alice") == 1
    assert await everything(store, "alice") == []
    mark, users = await store.changed(mark)
    assert not users
    caller.rollback()
    assert notify(caller, "alice") == 1
    caller.commit()
    assert [entry.seq for entry in await everything(store, "alice")] == [1]
    mark, users = await store.changed(mark)
    assert users == frozenset({"alice"})
    assert (await backlog_of(store, "alice", None, 10, 10)).unread == 1


@pytest_twisted.ensureDeferred
async def test_what_commits_late_is_not_skipped(store: PostgresNotificationStore, caller: Connection) -> None:
    mark, _ = await store.changed(None)
    notify(caller, "slow")
    await push(store, "quick")
    mark, users = await store.changed(mark)
    assert users == frozenset({"quick"})
    await push(store, "quick")
    caller.commit()
    mark, users = await store.changed(mark)
    assert users == frozenset({"quick", "slow"})
    mark, users = await store.changed(mark)
    assert not users


@pytest_twisted.ensureDeferred
async def test_rows_inserted_by_hand_are_seen_too(
    store: PostgresNotificationStore, database: Database
) -> None:
    mark, _ = await store.changed(None)
    await database.query(
        "INSERT INTO flow.notifications (user_id, seq, type, payload) VALUES ('alice', 1, 't', '{}')"
    )
    _, users = await store.changed(mark)
    assert users == frozenset({"alice"})


@pytest_twisted.ensureDeferred
async def test_rows_of_another_servers_backup_do_not_look_new_for_ever(
    store: PostgresNotificationStore, database: Database
) -> None:
    await push(store, "alice")
    await database.query("UPDATE flow.notifications SET xid = '4611686018427387904'")
    mark, _ = await store.changed(None)
    _, users = await store.changed(mark)
    assert users == frozenset()


@pytest_twisted.ensureDeferred
async def test_writers_at_once_leave_no_hole_and_do_not_block_each_other_for_ever(
    store: PostgresNotificationStore,
) -> None:
    users = [f"user-{number}" for number in range(10)]

    async def write(number: int) -> None:
        for turn in range(20):
            some = users if number % 2 else users[::-1]
            await push(store, *some[turn % 5 :], key=f"{number}-{turn}" if number < 4 else None)

    await gatherResults([Deferred.fromCoroutine(write(number)) for number in range(8)])
    lengths = []
    for user in users:
        entries = await everything(store, user)
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        backlog = await backlog_of(store, user, None, 1_000, 1_000)
        assert backlog.unread == backlog.last_seq == len(entries)
        lengths.append(len(entries))
    assert sum(lengths) == 8 * 20 * 10 - 8 * 4 * (0 + 1 + 2 + 3 + 4)


@pytest_twisted.ensureDeferred
async def test_the_same_key_at_once_stores_once(store: PostgresNotificationStore) -> None:
    pushes = [Deferred.fromCoroutine(push_one(store, ["alice"], key="key")) for _ in range(50)]
    results = await gatherResults(pushes)
    assert len({result[0] for result in results}) == 1
    assert len(await everything(store, "alice")) == 1


@pytest_twisted.ensureDeferred
async def test_readers_at_once_count_right(store: PostgresNotificationStore) -> None:
    pushed = [(await push_one(store, ["alice"]))[0] for _ in range(30)]
    marks = [ReadMarks(ids=tuple(entry.id for entry in pushed[start::3])) for start in (0, 1, 0, 1, 0)]

    async def push_another() -> None:
        await push(store, "alice")

    async def read(mark: ReadMarks) -> None:
        await store.mark_read("alice", mark)

    await gatherResults(
        [Deferred.fromCoroutine(work) for work in (*map(read, marks), *(push_another() for _ in range(5)))]
    )
    backlog = await backlog_of(store, "alice", None, 100, 100)
    assert backlog.unread == len(backlog.page.entries) == 15


@pytest_twisted.ensureDeferred
async def test_functions_take_named_arguments(store: PostgresNotificationStore, caller: Connection) -> None:
    with caller.cursor() as cursor:
        cursor.execute(
            "SELECT flow.notify(user_id => 'alice', type => 't', payload => '{\"a\": 1}',"
            " idempotency_key => 'k'),"
            " (SELECT array_agg(n.user_id || n.seq) FROM flow.notify_many("
            "   user_ids => ARRAY['bob', 'alice'], type => 't', payload => '{}') n)"
        )
        assert cursor.fetchone() == (1, ["alice2", "bob1"])
    caller.commit()
    assert [json.loads(bytes(entry.payload)) for entry in await everything(store, "alice")] == [{"a": 1}, {}]


BAD = [
    ("NULL, 't', '{}'", "user_id"),
    ("'', 't', '{}'", "user_id"),
    ("'a b', 't', '{}'", "user_id"),
    ("E'alice\\n', 't', '{}'", "user_id"),
    ("repeat('a', 129), 't', '{}'", "user_id"),
    ("'alice', NULL, '{}'", "type"),
    ("'alice', '', '{}'", "type"),
    ("'alice', repeat('t', 129), '{}'", "type"),
    ("'alice', 't', NULL", "payload"),
    ("'alice', 't', to_jsonb(repeat('x', 65536))", "payload"),
    ("'alice', 't', (repeat('[', 33) || repeat(']', 33))::jsonb", "payload"),
    ("'alice', 't', (repeat('{\"a\":', 33) || '1' || repeat('}', 33))::jsonb", "payload"),
    ("'alice', 't', '{}', ''", "idempotency_key"),
    ("'alice', 't', '{}', NULL, NULL, ''", "collapse_key"),
    ("'alice', 't', '{}', NULL, NULL, repeat('k', 129)", "collapse_key"),
    ("'alice', 't', '{}', repeat('k', 256)", "idempotency_key"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD)
def test_bad_arguments_are_named_and_nothing_is_stored(
    caller: Connection, arguments: str, named: str
) -> None:
    with caller.cursor() as cursor:
        with pytest.raises(psycopg2.DataError, match=f"^{named} must be"):
            cursor.execute(f"SELECT flow.notify({arguments})")
        caller.rollback()
        cursor.execute("SELECT count(*) FROM flow.inboxes")
        assert cursor.fetchone() == (0,)


@pytest_twisted.ensureDeferred
async def test_bad_values_are_an_invalid_payload(store: PostgresNotificationStore) -> None:
    for users, payload in ((["a b"], b"{}"), (["alice"], b'{"a": "\\u0000"}'), (["alice"], b"{")):
        with pytest.raises(InvalidPayload):
            await push_one(store, users, payload=payload)
    assert await everything(store, "alice") == []
    await push(store, "alice")
    for marks in (ReadMarks(ids=("x",)), ReadMarks(ids=("\x00",)), ReadMarks(up_to_seq=2**63)):
        with pytest.raises(InvalidPayload):
            await store.mark_read("alice", marks)
    assert (await backlog_of(store, "alice", None, 10, 10)).unread == 1


def test_a_program_that_may_use_the_schema_may_notify_and_nothing_more(caller: Connection) -> None:
    with caller.cursor() as cursor:
        cursor.execute("CREATE ROLE crm; GRANT USAGE ON SCHEMA flow TO crm; SET ROLE crm")
        assert notify(caller, "alice") == 1
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("SELECT * FROM flow.notifications")
    caller.rollback()


@pytest_twisted.ensureDeferred
async def test_migrating_again_changes_nothing(database: Database) -> None:
    newest = migrations()[-1].version
    assert await migrate(database) == newest
    rows = await database.query("SELECT version FROM flow.schema_versions ORDER BY version")
    assert rows == [(migration.version,) for migration in migrations()]
    assert [migration.version for migration in migrations()] == list(range(1, newest + 1))


@pytest_twisted.ensureDeferred
async def test_two_nodes_may_migrate_at_once(database: Database) -> None:
    await database.query("DROP SCHEMA flow CASCADE")
    nodes = [Deferred.fromCoroutine(migrate(database)) for _ in range(3)]
    assert await gatherResults(nodes) == [migrations()[-1].version] * 3


@pytest_twisted.ensureDeferred
async def test_a_newer_schema_is_refused(database: Database) -> None:
    await database.query("INSERT INTO flow.schema_versions (version) VALUES (9000)")
    with pytest.raises(SchemaError, match="version 9000, this flowtx knows"):
        await migrate(database)
