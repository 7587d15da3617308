"""What the examples of the guide to notifications find: the schema ``flow``, and a table of a product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from flowtx.storage.postgres import Database
from tests.docs.examples import GUIDE, Example, Reader, examples
from tests.integration.flow_process import run_sql


@pytest.fixture(scope="session")
def guide() -> Mapping[str, Example]:
    return examples(GUIDE)


@pytest.fixture
def reader(
    tmp_path: Path, database: Database, database_url: str, guide: Mapping[str, Example]
) -> Iterator[Reader]:
    """A reader who has run the first example."""
    reader = Reader(tmp_path / "reader", database_url)
    reader.succeed(guide["table"])
    yield reader
    # Roles are the server's, not the database's.
    for (role,) in run_sql(database_url, "SELECT rolname FROM pg_roles WHERE rolname IN ('crm', 'mailer')"):
        run_sql(database_url, f"DROP OWNED BY {role}; DROP ROLE {role}")
