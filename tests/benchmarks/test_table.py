"""The table of the benchmark: medians, ratios, and which aims are kept."""

from __future__ import annotations

import json

import pytest

from benchmarks.peers.cases import QUICK, Figure, Scale
from benchmarks.peers.table import Table


def filled() -> Table:
    table = Table(Scale())
    for value in (90.0, 100.0, 400.0):
        table.add("ws", Figure("connect", value, 0.1))
    table.add("flowtx", Figure("connect", 30.0, 0.2))
    table.add("flowtx-uvloop", Figure("connect", 31.0, 0.3))
    table.add("floor", Figure("connect", 4.0, 0.9))
    table.add("flowtx", Figure("memory", 8.5))
    return table


def row(table: Table, start: str) -> list[str]:
    (line,) = [line for line in table.as_markdown().splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_of_ratios() -> None:
    assert row(filled(), "connect, verify")[1:] == [
        "µs",
        "30.0 (0.30x) KEPT",
        "31.0 (0.31x) MISSED",
        "100 (1.00x)",
        "4.00 (0.04x)",
        "≤ 0.3x",
        "30 %",
    ]


def test_a_row_without_ratios() -> None:
    assert row(filled(), "memory")[1:] == ["KiB", "8.50 MISSED", "", "", "", "≤ 8", ""]
    assert filled().missed()


def test_a_generator_that_was_too_busy() -> None:
    table = filled()
    table.add("ws", Figure("connect", 90.0, 0.85))
    assert row(table, "connect, verify")[-1] == "85 % TOO MUCH"


def test_without_the_server_that_ratios_are_to() -> None:
    table = Table(Scale())
    table.add("flowtx", Figure("connect", 30.0))
    assert row(table, "connect, verify")[2] == "30.0"
    assert not table.missed()


def test_samples_are_added_to_those_of_an_earlier_run() -> None:
    table = Table(Scale(), json.loads(filled().as_json()))
    table.add("flowtx", Figure("connect", 50.0))
    assert row(table, "connect, verify")[2] == "40.0 (0.40x) MISSED"
    with pytest.raises(ValueError, match="got samples of"):
        Table(QUICK, json.loads(filled().as_json()))
