"""Bad input gets a clear answer, loses nothing and troubles nobody else; see `tests.badinput.table`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import psycopg2
import pytest

from tests.badinput import frames, handshakes, messages, tokens  # noqa: F401
from tests.badinput.ground import Ground
from tests.badinput.table import ROWS, try_row

_passed: list[int] = []


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Ground]:
    with closing(psycopg2.connect(postgres_url)) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE badinput")
    url = urlsplit(postgres_url)._replace(path="/badinput").geturl()
    with Ground(tmp_path_factory.mktemp("badinput"), url) as made:
        yield made


@pytest.mark.parametrize("number", sorted(ROWS), ids=lambda number: f"{number}-{ROWS[number].what}")
def test_row(ground: Ground, number: int) -> None:
    try_row(ground, number)
    _passed.append(number)
