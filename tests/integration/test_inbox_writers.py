"""Writers, readers and upkeep of all kinds at once: no hole, no double, no deadlock, exact counts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults

from flowtx.errors import Unavailable
from flowtx.inbox import Push, ReadMarks, Receipts, Want
from flowtx.storage.notifications import PostgresNotificationStore
from flowtx.storage.postgres import Database
from tests.integration.inbox_server import InboxServer, Program, fill, program, running
from tests.storage.inbox_contract import backlog_of, later

T = TypeVar("T")

USERS = ["alice", "bob", "carol", "dave"]


@pytest.fixture
def stack() -> Any:
    with ExitStack() as stack:
        yield stack


async def finished(work: Sequence[Deferred[T]]) -> list[T]:
    """Wait for all, also where one has failed: none is left at work when the test ends."""
    await DeferredList(work, consumeErrors=False)
    return await gatherResults(work)


def transactions(caller: Program, seed: int, turns: int) -> list[tuple[str, str]]:
    """Notify in transactions that commit or not; gives whom, and of what, where they did."""
    choices = random.Random(seed)
    told: list[tuple[str, str]] = []
    for turn in range(turns):
        some = choices.sample(USERS, choices.randint(1, len(USERS)))
        tag = f"sql-{seed}-{turn}"
        caller.run("SELECT flow.notify_many(%s, %s, '{}')", some, tag)
        if choices.random() < 0.3:
            caller.run("SELECT pg_sleep(0.01)")
        if choices.random() < 0.3:
            caller.connection.rollback()
        else:
            caller.connection.commit()
            told += [(user, tag) for user in some]
    return told


async def by_store(store: PostgresNotificationStore, turns: int) -> list[tuple[str, str]]:
    told = []
    for turn in range(turns):
        pushes = [
            Push(tuple(USERS if n % 2 else reversed(USERS)), f"store-{turn}-{n}", b"{}") for n in range(5)
        ]
        outcomes = await store.push(pushes, wait=bool(turn % 2))
        told += [
            (one.user_id, push.type)
            for push, outcome in zip(pushes, outcomes, strict=True)
            if isinstance(outcome, tuple)
            for one in outcome
        ]
    return told


async def by_http(server: InboxServer, number: int, turns: int) -> list[tuple[str, str]]:
    told = []
    for turn in range(turns):
        user = USERS[(number + turn) % len(USERS)]
        tag = f"http-{number}-{turn}"
        body = {"user_ids": [user, "eve"], "type": tag, "payload": {}, "idempotency_key": tag}
        for _ in range(20):
            status, _ = await server.ask("POST", "/api/notifications", body)
            if status == 202:
                break
        assert status == 202
        told.append((user, tag))
    return told


async def by_python(server: InboxServer, turns: int) -> list[tuple[str, str]]:
    tags = [f"python-{turn}" for turn in range(turns)]
    push = server.notifications.push_notification
    await gatherResults([Deferred.fromCoroutine(push("alice", tag, {}, tag)) for tag in tags])
    return [("alice", tag) for tag in tags]


@pytest_twisted.ensureDeferred
async def test_all_kinds_of_writers_at_once_leave_no_hole_and_nothing_is_skipped(
    database_url: str, tmp_path: Path, stack: ExitStack
) -> None:
    async with running(database_url, tmp_path) as server:
        members = {user: [await server.member(user) for _ in range(2)] for user in ("alice", "bob")}
        for member in (*members["alice"], *members["bob"]):
            await member.join(last_seq=0)
        callers = [stack.enter_context(program(database_url)) for _ in range(4)]
        store = PostgresNotificationStore(server.database)
        writers: list[Deferred[list[tuple[str, str]]]] = [
            *(
                caller.later(lambda caller=caller, seed=seed: transactions(caller, seed, 40))  # type: ignore[misc]
                for seed, caller in enumerate(callers)
            ),
            Deferred.fromCoroutine(by_store(store, 30)),
            *(Deferred.fromCoroutine(by_http(server, number, 25)) for number in range(3)),
            Deferred.fromCoroutine(by_python(server, 50)),
        ]
        told = [entry for entries in await finished(writers) for entry in entries]
        for user in USERS:
            rows = await server.rows(
                "SELECT seq, type FROM flow.notifications WHERE user_id = %s ORDER BY seq", user
            )
            assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
            assert sorted(type_ for _, type_ in rows) == sorted(tag for to, tag in told if to == user)
            counts = await server.rows("SELECT last_seq, unread FROM flow.inboxes WHERE user_id = %s", user)
            assert counts == [(len(rows), len(rows))]
            for member in members.get(user, ()):
                await member.seen(len(rows))
                # In the order of commits, as each was handed out when it had committed.
                assert member.seqs == list(range(1, len(rows) + 1))
                given = [entry["type"] for event, entry in member.events if event == "notification"]
                assert given == [type_ for _, type_ in rows]
                await member.leave()


@pytest_twisted.ensureDeferred
async def test_what_was_rolled_back_reaches_nobody(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        member = await server.member()
        await member.join()
        with program(database_url) as caller:
            for _ in range(5):
                caller.notify("alice")
                caller.connection.rollback()
            caller.run("SELECT flow.notify('alice', 'kept', '{}')")
            caller.run("SAVEPOINT s")
            caller.run("SELECT flow.notify('alice', 'lost', '{}')")
            caller.run("ROLLBACK TO s")
            caller.run("SELECT flow.notify('alice', 'kept', '{}')")
            caller.connection.commit()
        await member.seen(2)
        assert [(entry["seq"], entry["type"]) for _, entry in member.events[-2:]] == [
            (1, "kept"),
            (2, "kept"),
        ]
        await member.leave()


@pytest_twisted.ensureDeferred
async def test_what_commits_late_is_given_though_later_ones_came_first(
    database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as server:
        alice, bob = await server.member(), await server.member("bob")
        for member in (alice, bob):
            await member.join()
        with program(database_url) as caller:
            for n in range(1, 4):
                caller.notify("alice")
                # Bob's come from later transactions, which the reader has seen before this one ends.
                await server.post("bob")
                await server.post("bob")
                await bob.seen(2 * n)
                await alice.ask("activity")
                assert len(alice.seqs) == n - 1
                caller.connection.commit()
                await alice.seen(n)
        for member in (alice, bob):
            await member.leave()


# Everything at once


class Crowd:
    """Does all that can be done to a few inboxes, in any order, until it is told to end."""

    def __init__(self, database: Database) -> None:
        self.store = PostgresNotificationStore(database)
        self.database = database
        self.done: Counter[str] = Counter()
        self.over = False

    async def repeat(self, seed: int, work: Any) -> None:
        choices = random.Random(seed)
        while not self.over:
            try:
                await work(choices)
            except Unavailable as problem:
                # A lock that took longer than a second; a deadlock would say so.
                self.over = "deadlock" in str(problem)
                assert not self.over, problem
            except BaseException:
                self.over = True
                raise
            else:
                self.done[work.__name__] += 1

    async def push(self, choices: random.Random) -> None:
        pushes = [
            Push(
                tuple(choices.sample(USERS, choices.randint(1, len(USERS)))),
                choices.choice(["deal.won", "task.due"]),
                b"{}",
                idempotency_key=choices.choice([None, str(choices.random())]),
                collapse_key=choices.choice([None, None, "a", "b"]),
                expires_at=choices.choice([None, None, later(0.2)]),
            )
            for _ in range(choices.randint(1, 20))
        ]
        await self.store.push(pushes, wait=choices.random() < 0.5)

    async def read(self, choices: random.Random) -> None:
        user = choices.choice(USERS)
        [page] = await self.store.pages([Want(user, 0, 2**62)], 50)
        ids = [entry.id for entry in page.entries]
        choices.shuffle(ids)
        some = tuple(ids[: choices.randint(0, 10)])
        up_to = page.entries[0].seq if page.entries else 0
        marks = [ReadMarks(ids=some), ReadMarks(up_to_seq=up_to), ReadMarks(ids=some), ReadMarks(all=True)]
        unread = await self.store.mark_read(user, choices.choice(marks[: 4 if choices.random() < 0.1 else 3]))
        assert unread >= 0

    async def receive(self, choices: random.Random) -> None:
        asked = [Want(user, 0, 2**62) for user in USERS]
        pages = await self.store.pages(asked, 50)
        exact = [
            (want.user_id, entry.seq)
            for want, page in zip(asked, pages, strict=True)
            for entry in page.entries
            if choices.random() < 0.5
        ]
        choices.shuffle(exact)
        await self.store.mark_delivered(Receipts(exact, [(user, 2**40) for user in reversed(USERS)]))

    async def sweep(self, choices: random.Random) -> None:
        await self.store.sweep(choices.choice([0, 0.5]), choices.choice([0, 50]))

    async def find(self, choices: random.Random) -> None:
        await self.store.find_undelivered(choices.choice([0, 0.1]), choices.choice([1, 50]))


@pytest_twisted.async_yield_fixture
async def wide(database: Database, database_url: str) -> AsyncIterator[Database]:
    """More connections than usual, to a server that sees a deadlock before we give up waiting."""
    [(name,)] = await database.query("SELECT current_database()")
    await database.query(f"ALTER DATABASE {name} SET deadlock_timeout = '100ms'")
    service = Database(database_url, reactor=reactor, slots=12)
    await service.startService()
    yield service
    await service.stopService()


def call_on(caller: Program, seed: int, crowd: Crowd) -> int:
    """Notify from another program, in any order within a call, while the crowd is at work."""
    choices = random.Random(seed)
    deadlocks = 0
    while not crowd.over:
        some = choices.sample(USERS, choices.randint(1, len(USERS)))
        collapse = choices.choice([None, "a", "b"])
        try:
            caller.run("SELECT flow.notify_many(%s, 't', '{}', NULL, NULL, %s)", some, collapse)
            caller.connection.commit()
        except psycopg2.errors.DeadlockDetected:
            caller.connection.rollback()
            deadlocks += 1
    return deadlocks


@pytest_twisted.ensureDeferred
async def test_everything_at_once(wide: Database, database_url: str, stack: ExitStack) -> None:
    crowd = Crowd(wide)
    assert await wide.query("SHOW deadlock_timeout") == [("100ms",)]
    callers = [stack.enter_context(program(database_url)) for _ in range(2)]
    kinds = [crowd.push] * 3 + [crowd.read] * 3 + [crowd.receive] * 2 + [crowd.sweep] * 2 + [crowd.find] * 2
    work = [Deferred.fromCoroutine(crowd.repeat(seed, kind)) for seed, kind in enumerate(kinds)]
    calls = [
        caller.later(lambda caller=caller, seed=seed: call_on(caller, seed, crowd))  # type: ignore[misc]
        for seed, caller in enumerate(callers)
    ]
    reactor.callLater(4, setattr, crowd, "over", True)
    await finished(work)
    assert await finished(calls) == [0, 0]
    assert set(crowd.done) == {"push", "read", "receive", "sweep", "find"}
    rows = await wide.query(
        "SELECT i.user_id, i.unread, i.last_seq, count(n.seq) FILTER (WHERE n.read_at IS NULL), max(n.seq)"
        " FROM flow.inboxes i LEFT JOIN flow.notifications n USING (user_id) GROUP BY i.user_id"
    )
    assert sorted(user for user, *_ in rows) == USERS
    for _, unread, last_seq, counted, highest in rows:
        assert unread == counted
        assert last_seq >= (highest or 0)
    numbers = await wide.query("SELECT count(number), count(DISTINCT number) FROM flow.undelivered")
    assert numbers[0][0] == numbers[0][1]


@pytest_twisted.ensureDeferred
async def test_reading_all_of_a_large_inbox_while_pushes_go_on(database: Database) -> None:
    store = PostgresNotificationStore(database)
    await fill(database, "alice", 20_000)
    pushed: list[int] = []
    over = False

    async def push_on() -> None:
        while not over:
            [outcome] = await store.push([Push(("alice",), "t", b"{}")], wait=True)
            assert isinstance(outcome, tuple)
            pushed.append(outcome[0].seq)

    pushing = Deferred.fromCoroutine(push_on())
    try:
        unread = await store.mark_read("alice", ReadMarks(all=True))
    finally:
        amid = len(pushed)
        over = True
        await pushing
    # It took several transactions, which let others in between.
    marked = await database.query(
        "SELECT count(DISTINCT xmin::text), count(*) FROM flow.notifications WHERE read_at IS NOT NULL"
    )
    assert marked[0][0] >= 4
    assert 20_000 <= marked[0][1] <= 20_000 + amid
    assert 1 < amid <= len(pushed)
    assert pushed == list(range(20_001, 20_001 + len(pushed)))
    backlog = await backlog_of(store, "alice", None, 1_000, 1_000)
    assert backlog.unread == len(backlog.page.entries) == 20_000 + len(pushed) - marked[0][1]
    assert unread <= backlog.unread
