"""The guide to notifications: pushes in the transaction of whatever writes to the database."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from tests.docs.examples import Example, Reader
from tests.integration.flow_process import Outcome, run_sql

PROJECT = """
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", **{connection!r}}}}}
INSTALLED_APPS = ["deals"]
"""
#: Fails no statement of a transaction, but its commit: after an UPDATE, after an INSERT.
REFUSE_COMMITS = """
    CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;
    CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON deals
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.refuse();
    CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON flow.notifications
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.refuse()
"""


def win_with_django(reader: Reader, guide: Mapping[str, Example]) -> Outcome:
    """Put the two files into a project, and call the function from a program of it."""
    app = reader.directory / "deals"
    app.mkdir(exist_ok=True)
    (app / "__init__.py").touch()
    for name in ("django-models", "django-services"):
        text = guide[name].text
        first_line = text.splitlines()[0]
        (reader.directory / first_line.removeprefix("# ")).write_text(text, encoding="utf-8")
    dsn = parse_dsn(reader.database_url)
    connection = {"NAME": dsn["dbname"], "USER": dsn["user"], "HOST": dsn["host"], "PORT": dsn["port"]}
    (reader.directory / "settings.py").write_text(PROJECT.format(connection=connection), encoding="utf-8")
    program = """
import os
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()
from deals.services import win
win(7)
"""
    return reader.run(Example("python", program))


def win_with(name: str) -> Callable[[Reader, Mapping[str, Example]], Outcome]:
    return lambda reader, guide: reader.run(guide[name])


WINS = {
    "psql": win_with("psql"),
    "psycopg": win_with("psycopg"),
    "sqlalchemy": win_with("sqlalchemy"),
    "django": win_with_django,
}


def stage(reader: Reader) -> str:
    ((stage,),) = run_sql(reader.database_url, "SELECT stage FROM deals WHERE id = 7")
    assert isinstance(stage, str)
    return stage


def inboxes(reader: Reader) -> list[tuple[str, int, str, Any]]:
    """All notifications: user, seq, type and payload."""
    rows = run_sql(
        reader.database_url,
        "SELECT user_id, seq, type, payload FROM flow.notifications ORDER BY user_id, seq",
    )
    return [(user_id, seq, type_, payload) for user_id, seq, type_, payload in rows]


@pytest.mark.parametrize("client", WINS)
def test_the_notification_is_there_if_and_only_if_the_row_is(
    reader: Reader, guide: Mapping[str, Example], client: str
) -> None:
    run_sql(reader.database_url, REFUSE_COMMITS)
    # First for either reason, then for the notification's alone.
    for table in ("deals", "flow.notifications"):
        refused = WINS[client](reader, guide)
        assert refused.status != 0
        assert "not today" in refused.stderr
        assert (stage(reader), inboxes(reader)) == ("open", [])
        run_sql(reader.database_url, f"DROP TRIGGER refuse ON {table}")

    assert WINS[client](reader, guide).status == 0
    assert stage(reader) == "won"
    ((user_id, seq, type_, payload),) = inboxes(reader)
    assert (user_id, seq, type_, payload["deal"]) == ("42", 1, "deal.won", 7)


def test_what_is_rolled_back_takes_no_number(reader: Reader, guide: Mapping[str, Example]) -> None:
    assert reader.succeed(guide["rollback"]) == ["1"]
    assert inboxes(reader) == []
    assert reader.succeed(guide["rollback"]) == ["1"]


def test_many_users(reader: Reader, guide: Mapping[str, Example]) -> None:
    *pushed, count = reader.succeed(guide["many"])
    assert sorted((row.split("|")[0], row.split("|")[2]) for row in pushed) == [
        ("42", "1"),
        ("43", "1"),
        ("44", "1"),
    ]
    assert count == "1"
    assert inboxes(reader) == [
        ("42", 1, "deal.won", {"deal": 7}),
        ("42", 2, "quarter.ends", {"quarter": 3}),
        ("43", 1, "deal.won", {"deal": 7}),
        ("44", 1, "deal.won", {"deal": 7}),
    ]


def test_an_idempotency_key(reader: Reader, guide: Mapping[str, Example]) -> None:
    outcome = reader.run(guide["idempotency"])
    assert outcome.stdout.split() == ["1", "1"]
    assert "ERROR:  23F09" in outcome.stderr
    assert inboxes(reader) == [("42", 1, "invoice.due", {"invoice": 12})]


@pytest.fixture
def crm(reader: Reader, guide: Mapping[str, Example]) -> Reader:
    """The reader, as the role of the example."""
    reader.succeed(guide["grants"])
    return reader.logged_in_as("crm")


PUSH = "SELECT flow.notify('42', 'deal.won', '{}'), n.seq FROM flow.notify_many(ARRAY['43'], 't', '{}') n"


def test_a_role_that_may_use_the_schema_may_notify_and_nothing_else(crm: Reader) -> None:
    assert run_sql(crm.database_url, PUSH) == [(1, 1)]
    with closing(psycopg2.connect(crm.database_url)) as connection, connection.cursor() as cursor:
        for statement in (
            "SELECT FROM flow.notifications",
            "SELECT FROM flow.inboxes",
            "SELECT FROM flow.undelivered",
            "SELECT flow.mark_read('42', NULL, 1)",
            "DELETE FROM flow.users",
        ):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(statement)
            connection.rollback()


def test_where_nobody_may_execute_by_default(
    crm: Reader, reader: Reader, guide: Mapping[str, Example]
) -> None:
    run_sql(reader.database_url, "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA flow FROM PUBLIC")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run_sql(crm.database_url, PUSH)
    reader.succeed(guide["grant-execute"])
    assert run_sql(crm.database_url, PUSH) == [(1, 1)]
