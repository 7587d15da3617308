"""What tests on real parts share: PostgreSQL 18, as flowtx runs it, and a fresh database in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor

from flowtx.storage.embedded import EmbeddedPostgres
from flowtx.storage.migrations import migrate
from flowtx.storage.postgres import Database

_numbers = count(1)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL 18 that runs as long as the tests do."""
    directory: Path = tmp_path_factory.mktemp("postgres")
    server = EmbeddedPostgres(directory, reactor=reactor)
    pytest_twisted.blockon(server.startService())
    yield server.url
    pytest_twisted.blockon(server.stopService())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what needs real parts last: what is broken in the small shows first."""
    items.sort(
        key=lambda item: ("faults" in item.path.parts, bool({"integration", "docs"} & {*item.path.parts}))
    )


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    name = f"test_{next(_numbers)}"
    with closing(psycopg2.connect(postgres_url)) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name}")
    yield urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
    with closing(psycopg2.connect(postgres_url)) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest_twisted.async_yield_fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database of the test's own, with the schema ``flow``."""
    service = Database(database_url, reactor=reactor)
    await service.startService()
    await migrate(service)
    yield service
    await service.stopService()
