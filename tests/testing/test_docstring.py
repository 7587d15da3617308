"""The test that the docstring of `flowtx.testing` shows, run as it is printed."""

from __future__ import annotations

import textwrap
import unittest
from typing import Any

import pytest

import flowtx.testing


def printed() -> dict[str, Any]:
    """Run the code of the docstring; the names that it gives."""
    text = flowtx.testing.__doc__ or ""
    _, _, rest = text.partition("A test, whole::\n\n")
    code = textwrap.dedent(rest.partition("\nIt needs no network")[0])
    names: dict[str, Any] = {"__name__": "printed"}
    exec(compile(code, "<docstring>", "exec"), names)
    return names


CASES = [printed()["RoomTests"]]
NAMES = unittest.defaultTestLoader.getTestCaseNames(CASES[0])


def test_there_are_some() -> None:
    assert len(NAMES) == 3


@pytest.mark.parametrize("name", NAMES)
def test_printed(name: str) -> None:
    result = unittest.TestResult()
    CASES[0](name).run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), "".join(text for _, text in [*result.failures, *result.errors])
