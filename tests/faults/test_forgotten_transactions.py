"""After a crash PostgreSQL gives out again the numbers of transactions that it had not written down."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from random import Random
from tempfile import mkdtemp

import jwt
import psycopg2
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from tests.faults.history import Reader
from tests.faults.nemesis import Timing
from tests.faults.readers import RawReader
from tests.faults.targets import FlowNode, PostgresServer
from tests.integration.flow_process import TWISTD, run_sql

LOOKED = """
    SELECT max(query_start) FROM pg_stat_activity
    WHERE application_name LIKE 'flowtx/%' AND query LIKE '%pg_current_snapshot%'
"""


@pytest_twisted.async_yield_fixture
async def postgres() -> AsyncIterator[PostgresServer]:
    directory = Path(mkdtemp(prefix="ftx-", dir="/tmp"))
    server = PostgresServer(directory, reactor=reactor)
    await server.create()
    server.spawn()
    await Timing(reactor, 30.0).until(lambda: is_up(server.url), "PostgreSQL takes connections", 30.0)
    # What ends without a commit stays in memory for longer.
    for statement in ("ALTER SYSTEM SET wal_writer_delay = '10s'", "SELECT pg_reload_conf()"):
        run_alone(server.url, statement)
    yield server
    await server.kill()
    server.leave_nothing()
    shutil.rmtree(directory)


@pytest_twisted.ensureDeferred
async def test_what_commits_under_such_a_number_is_delivered(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    timing = Timing(reactor, 120.0)
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_hex(64))
    node = FlowNode("node", tmp_path / "node", database=postgres.url, secret_file=secret, launch=TWISTD[1:])
    token = jwt.encode({"sub": "ann", "exp": int(time.time()) + 600}, secret.read_text(), "HS512")
    ann = Reader("ann", "ann")
    reader = RawReader(ann, token, [node.port], random=Random(1), reactor=reactor)
    node.spawn()
    try:
        await timing.until(lambda: is_ready(node), "the node is ready", 30.0)
        run_sql(postgres.url, "INSERT INTO flow.users (id, name) VALUES ('ann', 'Ann')")
        reader.start()
        await timing.until(lambda: reader.joined == 1, "ann has joined", 10.0)
        notify(postgres.url, "one")
        await timing.until(lambda: ann.taken == 1, "one is delivered", 10.0)

        forgotten = await deferToThread(roll_back_until_flowtx_has_looked, postgres.url)
        await postgres.kill()
        # Long enough for flowtx to come back later than the one who commits first.
        await timing.pause(4.0)
        postgres.spawn()
        await timing.until(lambda: is_up(postgres.url), "PostgreSQL takes connections", 30.0)
        number = notify(postgres.url, "two")
        assert number <= forgotten, "PostgreSQL had written the numbers down: nothing was tried"

        await timing.until(lambda: ann.taken == 2, "two is delivered", 15.0)
        assert [entry.marker for join in ann.joins for entry in join.seen] == ["one", "two"]
    finally:
        reader.stop()
        await node.kill()


def is_up(url: str) -> bool:
    try:
        run_sql(url, "SELECT")
    except psycopg2.OperationalError:
        return False
    return True


def is_ready(node: FlowNode) -> bool:
    try:
        return node.process.request("GET", "/health/ready")[0] == 200
    except OSError:
        return False


def run_alone(url: str, statement: str) -> None:
    """Run a statement that takes no transaction."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        connection.cursor().execute(statement)


def notify(url: str, marker: str) -> int:
    """Notify ann; the number of the transaction."""
    notified = (
        "SELECT pg_current_xact_id()::text FROM flow.notify('ann', 't', jsonb_build_object('marker', %s))"
    )
    return int(run_sql(url, notified, marker)[0][0])


def roll_back_until_flowtx_has_looked(url: str) -> int:
    """Use numbers up, and return the last one."""
    give_up = time.monotonic() + 20.0
    with closing(psycopg2.connect(url)) as worker, closing(psycopg2.connect(url)) as watch:
        watch.autocommit = True
        looks = watch.cursor()
        looks.execute(LOOKED)
        before = looks.fetchall()
        number = 0
        while True:
            for _ in range(50):
                with worker.cursor() as cursor:
                    cursor.execute("SELECT pg_current_xact_id()::text")
                    number = int(cursor.fetchall()[0][0])
                worker.rollback()
            looks.execute(LOOKED)
            if looks.fetchall() != before:
                return number
            assert time.monotonic() < give_up, "flowtx did not look for what has committed"
