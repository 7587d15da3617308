"""Presence in a real PostgreSQL: the contract of all stores, and what others see in the database."""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, gatherResults

from flowtx.errors import StorageError
from flowtx.presence.store import Instance
from flowtx.storage.postgres import Database
from flowtx.storage.presence import PostgresPresenceStore
from tests.storage.presence_contract import CHECKS, HERE, THERE, Check, change, record

reactor: Any = global_reactor


@pytest.fixture
def store(database: Database) -> PostgresPresenceStore:
    return PostgresPresenceStore(database)


@pytest.fixture
def backend(database: Database, database_url: str) -> Iterator[Connection]:
    """A backend's own connection."""
    with closing(psycopg2.connect(database_url)) as connection:
        connection.autocommit = True
        yield connection


def ask(connection: Connection, sql: str, *params: object) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_contract(check: Check, store: PostgresPresenceStore) -> None:
    await check(store)


@pytest_twisted.ensureDeferred
async def test_a_backend_reads_the_view(store: PostgresPresenceStore, backend: Connection) -> None:
    await record(store, HERE, alice="online", bob="away")
    await record(store, THERE, carol="online")
    await record(store, THERE, carol="offline")
    await store.leave(HERE, 0)
    await record(store, THERE, bob="online")
    rows = ask(
        backend,
        "SELECT user_id, status, node, last_seen BETWEEN now() - interval '1 min' AND now() "
        "FROM flow.presence ORDER BY 1",
    )
    assert rows == [
        ("alice", "offline", "here", True),
        ("bob", "online", "there", True),
        ("carol", "offline", "there", True),
    ]


@pytest_twisted.ensureDeferred
async def test_a_backend_is_woken_by_changes_and_by_nothing_else(
    store: PostgresPresenceStore, backend: Connection
) -> None:
    ask(backend, "LISTEN flow_presence")

    def woken() -> list[str]:
        readable = select.select([backend], [], [], 0.3)[0]
        if readable:
            backend.poll()
        payloads = [notify.payload for notify in backend.notifies]
        backend.notifies.clear()
        return payloads

    await record(store, HERE, alice="online", bob="online")
    assert woken() == [""]
    await record(store, HERE, alice="away", bob="online")
    await store.beat(HERE, 30)
    assert woken() == []
    await store.leave(HERE, 0)
    assert woken() == []
    await store.beat(THERE, 30)
    assert woken() == [""]


@pytest_twisted.ensureDeferred
async def test_a_reader_by_id_skips_nothing_however_many_write(
    store: PostgresPresenceStore, database: Database, backend: Connection
) -> None:
    """Each reading goes on from the last id that the one before has seen."""
    writers = [Instance(f"writer-{number}", f"node-{number}") for number in range(4)]
    rounds = 12

    async def write(instance: Instance) -> None:
        await store.beat(instance, 30)
        for number in range(rounds):
            told: Any = "online" if number % 2 == 0 else "offline"
            changes = [change(f"{instance.node}-user-{user}", told) for user in range(10)]
            await store.record(instance, number + 1, changes)

    read: list[int] = []
    over = False

    async def follow() -> None:
        while True:
            last = over
            page = ask(
                backend, "SELECT id FROM flow.presence_events WHERE id > %s ORDER BY id", max(read, default=0)
            )
            read.extend(row[0] for row in page)
            if last:
                return
            await database.query("SELECT 1")

    following = Deferred.fromCoroutine(follow())
    await gatherResults([Deferred.fromCoroutine(write(writer)) for writer in writers])
    over = True
    await following
    everything = ask(backend, "SELECT id FROM flow.presence_events ORDER BY id")
    assert read == [row[0] for row in everything]
    assert len(read) == len(writers) * rounds * 10


@pytest_twisted.ensureDeferred
async def test_a_writer_waits_for_the_commit_of_another_one(
    store: PostgresPresenceStore, backend: Connection, database: Database
) -> None:
    """What makes the ids follow the commits: who comes second gets its ids after the first has committed."""
    await store.beat(HERE, 30)
    await store.beat(Instance("x", "other"), 30)
    backend.autocommit = False
    sql = "SELECT flow.record_presence('x', 'other', 1, '{bob}', '{online}', '{0}', '{0}')"
    ask(backend, sql)
    recording = Deferred.fromCoroutine(record(store, HERE, alice="online"))
    for _ in range(20):
        await database.query("SELECT 1")
    assert not recording.called
    backend.commit()
    await recording
    assert [event.user_id for event in await store.events(0, 10)] == ["bob", "alice"]


@pytest_twisted.ensureDeferred
async def test_a_writer_that_is_kept_waiting_gives_up(
    store: PostgresPresenceStore, backend: Connection
) -> None:
    backend.autocommit = False
    ask(backend, "SELECT flow.lock_presence()")
    with pytest.raises(StorageError):
        await record(store, HERE, alice="online")
    backend.rollback()
    await record(store, HERE, alice="online")
    assert len(await store.events(0, 10)) == 1


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_read_or_written_is_a_storage_error(
    store: PostgresPresenceStore, database: Database
) -> None:
    await database.query("DROP SCHEMA flow CASCADE")
    calls: Sequence[Any] = (
        record(store, HERE, alice="online"),
        store.beat(HERE, 30),
        store.leave(HERE, 30),
        store.seen(["alice"], ""),
        store.events(0, 1),
        store.sweep(1),
    )
    for call in calls:
        with pytest.raises(StorageError):
            await call


@pytest_twisted.ensureDeferred
async def test_many_expire_in_short_transactions(store: PostgresPresenceStore, database: Database) -> None:
    await store.beat(HERE, 30)
    for first in range(0, 1_500, 500):
        changes = [change(f"user-{number}", "online") for number in range(first, first + 500)]
        await store.record(HERE, first + 1, changes)
    await store.leave(HERE, 0)
    await store.beat(THERE, 30)
    counted = await database.query("SELECT event, count(*) FROM flow.presence_events GROUP BY 1 ORDER BY 1")
    assert counted == [("offline", 1_500), ("online", 1_500)]
    # Each in a transaction of its own: of at most so many.
    sizes = await database.query(
        "SELECT max(n) FROM (SELECT count(*) n FROM flow.presence_events GROUP BY xmin::text) s"
    )
    assert sizes == [(500,)]
