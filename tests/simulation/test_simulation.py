"""The simulation is green, is the same each time, and can tell: each planted bug turns it red."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import Final

import pytest

from tests.simulation.nemesis import KINDS, PLACES
from tests.simulation.planted import BUGS, planted
from tests.simulation.run import run, run_all

SEEDS: Final = 1_000
FEW: Final = 6
FOUND_WITHIN: Final = 300
"""Seeds within which each planted bug is found; most are within ten."""


def test_many_seeds() -> None:
    faults: Counter[str] = Counter()
    broken = {}
    for report in run_all(range(SEEDS)):
        faults.update(report.faults)
        if report.broken:
            broken[report.seed] = report.broken
    assert broken == {}
    # What never happened would prove nothing.
    wanted = {*KINDS, *(f"at {place}" for place in PLACES), "timers late"}
    assert faults.keys() == wanted


def test_a_seed_is_the_same_in_one_process() -> None:
    digests = [report.digest for report in run_all(range(FEW))]
    assert [run(seed).digest for seed in reversed(range(FEW))] == digests[::-1]
    assert len(set(digests)) == FEW


def test_a_seed_is_the_same_in_another_process() -> None:
    here = [f"{report.seed} {report.digest}" for report in run_all(range(FEW))]
    for hash_seed in ("1", "2"):
        said = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seeds", str(FEW), "--digests"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert said.stdout.splitlines()[:-1] == here


def test_a_trace_is_told_and_changes_nothing() -> None:
    lines: list[str] = []
    assert run(3, lines.append).digest == run(3).digest
    assert any("nemesis" in line for line in lines)


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_found(bug: str) -> None:
    with planted(bug):
        assert any(report.broken for report in run_all(range(FOUND_WITHIN)))


def test_command_is_red_for_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.simulation.__main__ import main  # noqa: PLC0415

    with pytest.raises(SystemExit):
        main(["--bug", "resume-from-too-low", "--seeds", "3"])
    said = capsys.readouterr().out.splitlines()
    assert "replay: python -m tests.simulation --seed" in "".join(said)
    assert said[-1].startswith("seeds 3 | faults ")
