"""Whoever holds an inbox keeps nobody waiting but those who want that inbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults

from flowtx.errors import Unavailable
from flowtx.inbox import Busy, Push, ReadMarks, Receipts
from flowtx.storage.notifications import PostgresNotificationStore
from flowtx.storage.postgres import Database
from flowtx.storage.upkeep import AT_ONCE
from tests.integration.inbox_server import Program, program, running, until
from tests.storage.inbox_contract import backlog_of, everything, push, seqs

DAY = 86_400.0


@pytest.fixture
def programs(database_url: str, database: Database) -> Iterator[Callable[[], Program]]:
    """Connects other programs to the database."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(program(database_url))


@pytest.fixture
def store(database: Database) -> PostgresNotificationStore:
    return PostgresNotificationStore(database)


async def waiting(database: Database, count: int) -> None:
    """Wait until so many statements wait for a lock."""

    async def enough() -> bool:
        rows = await database.query(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(rows[0][0] >= count)

    await until(enough)


def kinds(outcomes: Any) -> list[type]:
    return [type(outcome) for outcome in outcomes]


# Pushes


@pytest.mark.parametrize("known", [True, False], ids=["an inbox", "an inbox that is being made"])
@pytest_twisted.ensureDeferred
async def test_of_many_pushes_only_those_for_a_held_inbox_are_busy(
    known: bool, store: PostgresNotificationStore, programs: Callable[[], Program]
) -> None:
    if known:
        await push(store, "alice")
    holder = programs()
    holder.notify("alice")
    others = [Push((f"user-{number}",), "t", b"{}") for number in range(50)]
    both = Push(("alice", "bob"), "t", b"{}")
    for n in range(2):
        outcomes = await store.push([*others[:25], both, *others[25:], Push(("alice",), "t", b"{}")], False)
        assert kinds(outcomes) == [tuple] * 25 + [Busy] + [tuple] * 25 + [Busy]
        assert seqs(await everything(store, "user-7")) == list(range(1, n + 2))
    assert await everything(store, "bob") == []
    holder.connection.commit()
    [outcome] = await store.push([both], False)
    assert isinstance(outcome, tuple)
    assert [(one.user_id, one.seq) for one in outcome] == [("alice", 2 + known), ("bob", 1)]


@pytest.mark.parametrize("known", [True, False], ids=["an inbox", "an inbox that is being made"])
@pytest_twisted.ensureDeferred
async def test_others_are_answered_while_an_inbox_is_held(
    known: bool, database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as server:
        if known:
            await server.post("alice")
        with program(database_url) as holder:
            holder.notify("alice")
            held = [server.post("alice") for _ in range(20)]
            for n in range(5):
                assert (await server.post("bob"))[0] == 202
                pushed = await server.notifications.push_notification("carol", "t", {})
                assert pushed.seq == n + 1
                held.append(server.post("alice", idempotency_key=f"key-{n}"))
                assert not any(deferred.called for deferred in held)
            holder.connection.commit()
            answers = await gatherResults(held)
        stored = [answer["notifications"][0]["seq"] for status, answer in answers if status == 202]
        assert {status for status, _ in answers} <= {202, 503}
        assert stored
        rows = await server.rows("SELECT seq FROM flow.notifications WHERE user_id = 'alice' ORDER BY seq")
        first = 2 + known
        assert [seq for (seq,) in rows] == list(range(1, first + len(stored)))
        assert sorted(stored) == list(range(first, first + len(stored)))


@pytest_twisted.ensureDeferred
async def test_a_push_to_an_inbox_that_stays_held_is_a_503_and_not_stored(
    database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as server:
        await server.post("alice")
        with program(database_url) as holder:
            holder.hold("alice")
            answers = await gatherResults([server.post("alice", idempotency_key=str(n)) for n in range(6)])
            assert [status for status, _ in answers] == [503] * 6
            assert {answer["error"] for _, answer in answers} == {"unavailable"}
        answers = await gatherResults([server.post("alice", idempotency_key=str(n)) for n in range(6)])
        assert [status for status, _ in answers] == [202] * 6
        rows = await server.rows("SELECT array_agg(seq ORDER BY seq) FROM flow.notifications")
        assert rows == [([1, 2, 3, 4, 5, 6, 7],)]


@pytest_twisted.ensureDeferred
async def test_calls_for_inboxes_that_come_up_meanwhile_do_not_wait_for_each_other(
    store: PostgresNotificationStore, database: Database, programs: Callable[[], Program]
) -> None:
    await push(store, "zoe")
    holder, first, maker, second = (programs() for _ in range(4))
    holder.hold("zoe")
    # The first call knows no inbox of ann's; when it has got zoe's, another call may hold both.
    calls = [first.later(lambda: first.notify_and_commit("zoe", "ann"))]
    await waiting(database, 1)
    calls.append(maker.later(lambda: maker.notify_and_commit("ann")))
    made = calls[-1]

    async def made_or_waiting() -> bool:
        if made.called:
            return True
        rows = await database.query("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool(rows[0][0] >= 2)

    await until(made_or_waiting)
    calls.append(second.later(lambda: second.notify_and_commit("ann", "zoe")))
    await waiting(database, 2)
    holder.connection.rollback()
    await gatherResults(calls)
    assert seqs(await everything(store, "ann")) == seqs(await everything(store, "zoe")) == [1, 2, 3]


# What else asks for an inbox


@pytest_twisted.ensureDeferred
async def test_reads_and_receipts_go_on_while_an_inbox_is_held(
    store: PostgresNotificationStore, programs: Callable[[], Program]
) -> None:
    await push(store, "alice")
    await push(store, "alice")
    holder = programs()
    holder.notify("alice")
    assert seqs(await everything(store, "alice")) == [1, 2]
    assert (await store.list_page("alice", None, 10, True)).unread == 2
    await store.mark_delivered(Receipts(exact=[("alice", 1)]))
    assert await store.find_undelivered(0, 100) == 1
    assert await store.subscribe("alice", ["deal.*"], []) == ("deal.*",)
    with pytest.raises(Unavailable):
        await store.mark_read("alice", ReadMarks(all=True))
    holder.connection.rollback()
    assert await store.mark_read("alice", ReadMarks(all=True)) == 0


@pytest_twisted.ensureDeferred
async def test_who_marks_a_held_inbox_is_told_to_try_again(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        await server.post("alice")
        member = await server.member()
        await member.join()
        await member.seen(1)
        with program(database_url) as holder:
            holder.hold("alice")
            read = server.ask("POST", "/api/users/alice/notifications/read", {"all": True})
            member.raw.text('["1","9","user:alice","mark_read",{"all":true}]')
            refused = {"status": "error", "response": {"reason": "unavailable"}}
            assert await member.told("phx_reply") == refused
            status, answer = await read
            assert (status, answer["error"]) == (503, "unavailable")
        assert await member.ask("mark_read", all=True) == {"unread": 0}
        await member.leave()


# The sweep


async def many(database: Database, user_id: str, count: int, **columns: str) -> None:
    """Append many notifications to an inbox, with SQL for further columns."""
    await database.query("SELECT flow.notify(%s, 't', '{}') FROM generate_series(1, %s)", [user_id, count])
    for name, sql in columns.items():
        await database.query(f"UPDATE flow.notifications SET {name} = {sql} WHERE user_id = %s", [user_id])


AGED = {"inserted_at": "clock_timestamp() - interval '2 days'"}
EXPIRED = {"expires_at": "clock_timestamp() - interval '1 s'"}


@pytest.mark.parametrize(
    ("columns", "max_age", "max_count"),
    [(AGED, DAY, 0), (EXPIRED, 0, 0), ({}, 0, 1)],
    ids=["age", "expiry", "count"],
)
@pytest_twisted.ensureDeferred
async def test_a_sweep_passes_a_held_inbox_by(
    columns: dict[str, str],
    max_age: float,
    max_count: int,
    store: PostgresNotificationStore,
    database: Database,
    programs: Callable[[], Program],
) -> None:
    await many(database, "alice", AT_ONCE + 100, **columns)
    await many(database, "bob", 10, **columns)
    left = 1 if max_count else 0
    holder = programs()
    holder.hold("alice")
    gone = 0
    while now := await store.sweep(max_age, max_count):
        assert now <= AT_ONCE
        gone += now
    assert gone == 10 - left
    assert (await backlog_of(store, "bob", None, 10, 10)).unread == left
    holder.connection.commit()
    while now := await store.sweep(max_age, max_count):
        assert now <= AT_ONCE
        gone += now
    assert gone == AT_ONCE + 110 - 2 * left
    assert (await backlog_of(store, "alice", None, 10, 10)).unread == left


@pytest_twisted.ensureDeferred
async def test_a_sweep_passes_a_key_by_that_is_being_used_again(
    store: PostgresNotificationStore, database: Database, programs: Callable[[], Program]
) -> None:
    for key in ("used", "unused"):
        await push(store, "alice", key=key)
    await database.query("UPDATE flow.idempotency_keys SET inserted_at = now() - interval '25 hours'")
    holder = programs()
    holder.run("SELECT flow.notify('alice', 't', '{}', 'used')")
    assert await store.sweep(0, 0) == 1
    holder.connection.commit()
    assert await store.sweep(0, 0) == 0
    assert await database.query("SELECT key, seq FROM flow.idempotency_keys") == [("used", 3)]


@pytest_twisted.ensureDeferred
async def test_a_transaction_of_the_sweep_deletes_500_rows_at_most(
    store: PostgresNotificationStore, database: Database
) -> None:
    for number in range(3):
        await many(database, f"user-{number}", 700, **AGED)
    await many(database, "alice", 700, **EXPIRED)
    await database.query(
        "CREATE TABLE gone (xid xid8 DEFAULT pg_current_xact_id());"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO gone DEFAULT VALUES; RETURN OLD; END';"
        "CREATE TRIGGER note BEFORE DELETE ON flow.notifications FOR EACH ROW EXECUTE FUNCTION note()"
    )
    while await store.sweep(DAY, 0):
        pass
    rows = await database.query("SELECT count(*), sum(n) FROM (SELECT count(*) n FROM gone GROUP BY xid) g")
    assert rows[0][1] == 2_800
    assert rows[0][0] >= 2_800 / AT_ONCE
    [(most,)] = await database.query("SELECT max(n) FROM (SELECT count(*) n FROM gone GROUP BY xid) g")
    assert most == AT_ONCE
