"""How PostgreSQL carries out what is asked of inboxes: by indexes, however large the table is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest_twisted

from flowtx.inbox import Push, ReadMarks, Receipts, Want
from flowtx.storage.link import Rows
from flowtx.storage.notifications import PostgresNotificationStore
from flowtx.storage.postgres import Database
from tests.integration.inbox_server import fill
from tests.storage.inbox_contract import backlog_of

ROWS = 100_000
ID = "00000000-0000-4000-8000-000000000000"

Call = Callable[[PostgresNotificationStore], Awaitable[Any]]

PER_USER: dict[str, Call] = {
    "backlog after a seq": lambda store: backlog_of(store, "alice", 49_000, 1_000, 64),
    "backlog of the unread": lambda store: backlog_of(store, "alice", None, 1_000, 64),
    "pages": lambda store: store.pages([Want(f"user-{n}", 5) for n in range(100)], 64),
    "unread pages": lambda store: store.pages([Want("alice", 5, 49_900)], 64),
    "list": lambda store: store.list_page("alice", None, 100, False),
    "list before a seq": lambda store: store.list_page("alice", 40_000, 100, False),
    "list of the unread": lambda store: store.list_page("alice", None, 100, True),
    "receipts": lambda store: store.mark_delivered(Receipts([("alice", 7)], [("alice", 49_990)])),
    "subscriptions": lambda store: store.subscribe("alice", ["deal.*"], []),
    "changed": lambda store: store.changed("1000000000:1000000000:"),
}


class Explained(PostgresNotificationStore):
    """Keeps the plan of each statement that it runs."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.plans: list[str] = []

    async def _ask(self, sql: str, params: Sequence[object] = ()) -> Rows:
        rows = await self._database.query(f"EXPLAIN {sql}", params)
        self.plans.append("\n".join(line for (line,) in rows))
        return await super()._ask(sql, params)


@pytest_twisted.async_fixture
async def store(database: Database) -> Any:
    """A store with 100,000 rows: an inbox with half of them, most of it read, and 500 others."""
    await fill(database, "alice", ROWS // 2)
    await database.query(
        "SELECT count(*) FROM generate_series(1, 100) n, flow.append("
        "  (SELECT array_agg(1) FROM generate_series(1, 500)),"
        "  (SELECT array_agg('user-' || u) FROM generate_series(1, 500) u),"
        "  '{t}', '{\"{}\"}', '{}', '{}', '{}', true)"
    )
    await database.query(
        "UPDATE flow.notifications SET read_at = now() WHERE seq % 10 <> 0 AND user_id = 'alice'"
    )
    await database.query(
        "UPDATE flow.notifications SET delivered_at = now(),"
        " expires_at = now() + interval '1 day' * (1 + seq % 7) WHERE seq % 100 <> 7"
    )
    await database.query(
        "UPDATE flow.inboxes i SET unread = ("
        "  SELECT count(*) FROM flow.notifications n WHERE n.user_id = i.user_id AND n.read_at IS NULL)"
    )
    await database.query("VACUUM ANALYZE flow.notifications")
    await database.query("ANALYZE flow.inboxes")
    return Explained(database)


@pytest_twisted.ensureDeferred
async def test_what_is_asked_of_one_user_reads_no_other(store: Explained) -> None:
    for name, call in PER_USER.items():
        store.plans.clear()
        await call(store)
        assert store.plans
        for plan in store.plans:
            assert "Seq Scan on notifications" not in plan, (name, plan)
            assert "Seq Scan on inboxes" not in plan, (name, plan)


IN_FUNCTIONS: dict[str, Call] = {
    "mark by id": lambda store: store.mark_read("alice", ReadMarks(ids=(ID,) * 100)),
    "mark up to a seq": lambda store: store.mark_read("user-7", ReadMarks(up_to_seq=40)),
    "push": lambda store: store.push([Push(("user-7",), "t", b"{}", "key", None, "key")], True),
    "push without waiting": lambda store: store.push([Push(("user-7",), "t", b"{}", "key")], False),
    "find the undelivered": lambda store: store.find_undelivered(0, 100),
    "find none undelivered": lambda store: store.find_undelivered(3_600, 100),
    "sweep by expiry": lambda store: store.sweep(0, 0),
    "sweep by age": lambda store: store.sweep(86_400, 0),
    "sweep by count": lambda store: store.sweep(0, 49_900),
}


@pytest_twisted.ensureDeferred
async def test_no_work_reads_much_of_the_table(store: PostgresNotificationStore, database: Database) -> None:
    async def rows_read() -> tuple[int, int]:
        # By this connection, which is the first that is free each time.
        await database.query("SELECT pg_stat_force_next_flush()")
        [(scans, rows)] = await database.query(
            "SELECT seq_scan, seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables"
            " WHERE relname = 'notifications'"
        )
        return scans, rows

    # Often enough for plans that serve any argument.
    times = 8
    for name, call in IN_FUNCTIONS.items():
        scans, rows = await rows_read()
        for _ in range(times):
            await call(store)
        scans_after, rows_after = await rows_read()
        assert scans_after == scans, name
        # The index of ages tells ranges of pages only, and nothing of the one that is being filled.
        assert rows_after - rows <= times * ROWS / 10, name
    scans, rows = await rows_read()
    await database.query("SELECT count(payload) FROM flow.notifications")
    scans_after, rows_after = await rows_read()
    assert scans_after > scans
    assert rows_after - rows > ROWS / 2


@pytest_twisted.ensureDeferred
async def test_each_index_that_upkeep_needs_is_used(
    store: PostgresNotificationStore, database: Database
) -> None:
    async def scans(index: str) -> int:
        await database.query("SELECT pg_stat_force_next_flush()")
        rows = await database.query(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = %s", [index]
        )
        return int(rows[0][0])

    for name, index in (
        ("find the undelivered", "notifications_waiting"),
        ("find none undelivered", "notifications_waiting"),
        ("sweep by expiry", "notifications_expires_at"),
        ("sweep by age", "notifications_inserted_at"),
    ):
        before = await scans(index)
        await IN_FUNCTIONS[name](store)
        assert await scans(index) == before + 1, name
