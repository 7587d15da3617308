"""Bad input gets a clear answer, loses nothing and troubles nobody else; see `tests.badinput.table`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import psycopg2
import pytest

from tests.badinput.ground import Ground
from tests.badinput.rows import ABSENT, COUNT, ROWS, summary
from tests.badinput.table import try_row


@pytest.fixture(scope="module")
def passed() -> list[int]:
    """The numbers of those that passed."""
    return []


@pytest.fixture(scope="module")
def ground(
    tmp_path_factory: pytest.TempPathFactory, postgres_url: str, passed: list[int]
) -> Iterator[Ground]:
    with closing(psycopg2.connect(postgres_url)) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE badinput")
    url = urlsplit(postgres_url)._replace(path="/badinput").geturl()
    with Ground(tmp_path_factory.mktemp("badinput"), url) as made:
        yield made
        sys.stdout.write(summary(passed, made))


def test_each_number_is_there() -> None:
    assert ROWS.keys() | ABSENT.keys() == set(range(1, COUNT + 1))
    assert not ROWS.keys() & ABSENT.keys()


@pytest.mark.parametrize("number", sorted(ROWS), ids=lambda number: f"{number}-{ROWS[number].what}")
def test_row(ground: Ground, passed: list[int], number: int) -> None:
    try_row(ground, number)
    passed.append(number)
