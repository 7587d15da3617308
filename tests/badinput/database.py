"""The database: 123 to 135, and what would come from other nodes: 136 to 145."""

from __future__ import annotations

from contextlib import closing
from urllib.parse import urlsplit

import psycopg2
import pytest

from tests.badinput.ground import Ground
from tests.badinput.table import ABSENT, row
from tests.integration.flow_process import eventually, run_sql

OTHERS = (
    "SELECT {what} FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND application_name LIKE 'flowtx/%%' {and_so}"
)


def pids(ground: Ground, and_so: str = "") -> set[int]:
    return {pid for (pid,) in run_sql(ground.database_url, OTHERS.format(what="pid", and_so=and_so))}


def terminate(ground: Ground, and_so: str = "") -> None:
    run_sql(ground.database_url, OTHERS.format(what="pg_terminate_backend(pid)", and_so=and_so))


@row(123, "quotes and other marks of SQL are stored as they are")
def _(ground: Ground) -> None:
    for text in ("'; DROP TABLE flow.notifications; --", "$$ \\ \" ' %s %(x)s", "\\x00 {} {0} %", "☃\u2028"):
        assert ground.push(user_ids=["kim"], type=text, payload={"text": text}).status == 202
        latest = ground.inbox("kim")[0]
        assert (latest["type"], latest["payload"]) == (text, {"text": text})


@row(124, "a per cent sign in the users' query")
def _(ground: Ground) -> None:
    query = "SELECT id, name, email FROM flow.users WHERE name LIKE '%a' AND id = ANY(%s)"
    ground.refuses(f"--users-query={query}", says="--users-query")
    ground.refuses("--users-query=SELECT 1", says="--users-query")


@row(125, "an id that is no UUID")
def _(ground: Ground) -> None:
    for ids in (["x"], ["00000000-0000-4000-8000-00000000000g"], [7], "x"):
        assert ground.api("POST", "/api/users/alice/notifications/read", {"ids": ids}).status == 422


@row(126, "JSON that PostgreSQL itself finds too deep")
def _(ground: Ground) -> None:
    deep_body = b'{"user_ids":["alice"],"type":"t","payload":%b1%b}' % (b"[" * 20_000, b"]" * 20_000)
    answer = ground.push(deep_body)
    assert answer.status == 422
    with pytest.raises(psycopg2.errors.StatementTooComplex):
        deep = "[" * 200_000 + "]" * 200_000
        run_sql(ground.database_url, "SELECT flow.notify('alice', 'deep', %s::jsonb)", deep)


@row(127, "a notification far larger than a NOTIFY may be")
def _(ground: Ground) -> None:
    with ground.joined("user:leo", "leo") as wire:
        text = "x" * 60_000
        run_sql(ground.database_url, "SELECT flow.notify('leo', 'large', jsonb_build_object('t', %s))", text)
        assert wire.message()[4]["payload"] == {"t": text}


@row(128, "the connections are lost under pushes: what is answered 202 is there, once")
def _(ground: Ground) -> None:
    kept = []
    for number in range(60):
        if number % 10 == 5:
            terminate(ground)
        key = f"row-128-{number}"
        answer = ground.push(user_ids=["mia"], payload={"n": number}, idempotency_key=key)
        assert answer.status in (202, 503)
        if answer.status == 503:
            eventually(
                lambda: (
                    ground.push(user_ids=["mia"], payload={"n": number}, idempotency_key=key).status == 202  # noqa: B023
                ),
                "it is back",
            )
        kept.append(number)
    found = run_sql(
        ground.database_url, "SELECT payload->>'n' FROM flow.notifications WHERE user_id = 'mia' ORDER BY seq"
    )
    assert [int(n) for (n,) in found] == kept
    ground.tried += 100  # each connection that was lost has a line


@row(129, "the database answers nobody")
def _(ground: Ground) -> None:
    with closing(psycopg2.connect(ground.database_url)) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK flow.inboxes, flow.notifications IN ACCESS EXCLUSIVE MODE")
        answer = ground.push(user_ids=["nina"])
        assert (answer.status, answer.json["error"]) == (503, "unavailable")
        assert "retry-after" in answer.headers
        holder.rollback()
    eventually(lambda: ground.push(user_ids=["nina"]).status == 202, "it is back")
    ground.tried += 20


@row(130, "the connection that listens is lost")
def _(ground: Ground) -> None:
    with ground.joined("user:olga", "olga") as wire:
        terminate(ground, "AND query LIKE 'LISTEN%%'")
        run_sql(ground.database_url, "SELECT flow.notify('olga', 'later', '{}')")
        assert wire.message()[4]["type"] == "later"
    ground.tried += 10


@row(131, "somebody holds an inbox for longer than a lock is waited for")
def _(ground: Ground) -> None:
    assert ground.push(user_ids=["paul"]).status == 202
    before = pids(ground)
    with closing(psycopg2.connect(ground.database_url)) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT flow.notify('paul', 'held', '{}')")
        answer = ground.push(user_ids=["paul"])
        assert (answer.status, answer.json["error"]) == (503, "unavailable")
        assert ground.push(user_ids=["quinn"]).status == 202
        holder.commit()
    assert ground.push(user_ids=["paul"]).status == 202
    assert pids(ground) == before
    assert [entry["seq"] for entry in ground.inbox("paul")] == [3, 2, 1]
    ground.tried += 10


@row(132, "a database that has become read-only")
def _(ground: Ground) -> None:
    name = urlsplit(ground.database_url).path.strip("/")
    run_sql(ground.database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        terminate(ground)
        eventually(lambda: ground.push(user_ids=["rita"]).status == 503, "pushes are refused")
    finally:
        with closing(psycopg2.connect(ground.database_url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("SET default_transaction_read_only = off")
            cursor.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
    terminate(ground)
    eventually(lambda: ground.push(user_ids=["rita"]).status == 202, "it is back", 30)
    ground.tried += 100


@row(133, "the database takes no more connections")
def _(ground: Ground) -> None:
    run_sql(ground.database_url, "CREATE ROLE few LOGIN CONNECTION LIMIT 1")
    run_sql(
        ground.database_url, "GRANT ALL ON SCHEMA flow TO few; GRANT ALL ON ALL TABLES IN SCHEMA flow TO few"
    )
    parts = urlsplit(ground.database_url)
    url = parts._replace(netloc=f"few@{parts.netloc.rpartition('@')[2]}").geturl()
    with closing(psycopg2.connect(url)):
        ground.refuses(f"--database={url}", says="too many connections")


@row(134, "a schema of another version")
def _(ground: Ground) -> None:
    with closing(psycopg2.connect(ground.database_url)) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE newer")
    url = urlsplit(ground.database_url)._replace(path="/newer").geturl()
    run_sql(
        url,
        "CREATE SCHEMA flow; CREATE TABLE flow.schema_versions (version int PRIMARY KEY, "
        "migrated_at timestamptz NOT NULL DEFAULT now()); INSERT INTO flow.schema_versions VALUES (999)",
    )
    ground.refuses(f"--database={url}", says="newer")


@row(135, "a statement that takes too long is told as that")
def _(ground: Ground) -> None:
    with closing(psycopg2.connect(ground.database_url)) as holder, holder.cursor() as cursor:
        cursor.execute("LOCK flow.notifications IN ACCESS EXCLUSIVE MODE")
        answer = ground.api("GET", "/api/users/alice/notifications")
        assert (answer.status, answer.json["error"]) == (503, "unavailable")
        holder.rollback()
    ground.tried += 10


ONE_NODE = "there is no bus: this server is one node"
ABSENT.update(
    {
        136: f"{ONE_NODE}, and takes nothing from others",
        137: f"{ONE_NODE}; nobody can forge a message to it",
        138: f"{ONE_NODE}; what is replayed by clients is in 98 and 103",
        139: f"{ONE_NODE}",
        140: f"{ONE_NODE}, and no Redis",
        141: f"{ONE_NODE}; silent links to the database are in tests/integration/test_database.py",
        142: f"{ONE_NODE}",
        143: f"{ONE_NODE}; there are no leases",
        145: f"{ONE_NODE}",
    }
)


@row(144, "the same node started twice")
def _(ground: Ground) -> None:
    ground.refuses(f"--data-dir={ground.server.data_dir}", says=str(ground.server.data_dir))
