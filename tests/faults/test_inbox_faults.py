"""Kills flowtx and PostgreSQL at random moments under writers and readers, and counts what went wrong.

The same test first runs against planted bugs, each of which must turn it red. ``make soak`` does it by
itself, for longer.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.faults.campaign import run
from tests.faults.plan import Plan
from tests.faults.planted import BUGS

KILLS = 200
PACKAGES = Path(__file__).parents[1] / "clients" / "node_modules"

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and (PACKAGES / "phoenix").exists()),
    reason="there is no node, or npm phoenix is not installed (make test does that)",
)


def show(capsys: pytest.CaptureFixture[str], what: object) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{what}\n")


@pytest.mark.parametrize("bug", BUGS)
@pytest_twisted.ensureDeferred
async def test_a_planted_bug_turns_it_red(bug: str) -> None:
    report = await run(Plan.proof(secrets.randbelow(2**32), bug), reactor=reactor)
    assert report.is_red_for(BUGS[bug].fault), report
    assert not report.passed


@pytest_twisted.ensureDeferred
async def test_nothing_is_lost_doubled_or_out_of_order(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(KILLS, secrets.randbelow(2**32))
    show(capsys, plan)
    report = await run(plan, reactor=reactor)
    show(capsys, report)
    assert report.passed, report
