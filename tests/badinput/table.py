"""The rows: each a kind of bad input, by its number, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.badinput.ground import Ground

Try = Callable[[Ground], None]


class Row(NamedTuple):
    """One kind of bad input.

    Attributes:
        number: in the list of 154.
        what: it, in a few words.
        try_it: sends it, and asserts what comes of it.
    """

    number: int
    what: str
    try_it: Try


ROWS: dict[int, Row] = {}
ABSENT: dict[int, str] = {}
"""Those that cannot come, each with the reason."""
COUNT = 154


def row(number: int, what: str) -> Callable[[Try], Try]:
    """Add a row to the table."""

    def add(try_it: Try) -> Try:
        assert number not in ROWS, number
        ROWS[number] = Row(number, what, try_it)
        return try_it

    return add


def try_row(ground: Ground, number: int) -> None:
    """Try one row, and look at the bystander and the log after it."""
    ground.begin()
    ROWS[number].try_it(ground)
    ground.check()
