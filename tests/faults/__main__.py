"""``python -m tests.faults --kills 2000``: the fault test by itself; status 1 where it is red.

First it runs against each of the planted bugs, which must turn it red.
"""

from __future__ import annotations

import argparse
import faulthandler
import secrets
import sys
from collections.abc import Sequence
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred

from tests.faults.campaign import run
from tests.faults.plan import Plan
from tests.faults.planted import BUGS


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it, and print how it went."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many kills (default: 200)")
    parser.add_argument("--seed", type=int, default=None, help="of all chances (default: a new one)")
    parser.add_argument("--bug", choices=BUGS, help="do only the short run against this planted bug")
    given = parser.parse_args(arguments)
    seed = secrets.randbelow(2**32) if given.seed is None else given.seed
    tell(f"seed {seed}")

    async def start(reactor: Any) -> None:
        if given.bug:
            await one(Plan.proof(seed, given.bug), reactor)
            return
        for bug in BUGS:
            await one(Plan.proof(seed, bug), reactor)
        await one(Plan(given.kills, seed), reactor)

    def begin(reactor: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(start(reactor))

    task.react(begin)


async def one(plan: Plan, reactor: Any) -> None:
    """Do one run.

    Raises:
        SystemExit: it is not what it must be: red with a bug, else green.
    """
    # The last resort, where not even the reactor runs any more.
    faulthandler.dump_traceback_later(plan.seconds + 60.0, exit=True)
    report = await run(plan, reactor=reactor, tell=tell)
    faulthandler.cancel_dump_traceback_later()
    tell(str(report))
    if plan.bug is None:
        good = report.passed
    else:
        good = report.is_red_for(BUGS[plan.bug].fault)
        tell(f"planted {plan.bug}: {'found' if good else 'NOT FOUND'}")
    if not good:
        raise SystemExit(1)


def tell(text: str) -> None:
    """Print it now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
