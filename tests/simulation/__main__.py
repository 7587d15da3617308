"""``python -m tests.simulation --seeds 1000``: the simulation by itself; status 1 where it is red.

It prints one line: the seeds, the faults by kind, the invariants that did not hold, the seconds. Each
seed that is red has lines of its own before that, with the command that runs it again.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import count
from time import monotonic

from tests.simulation.planted import BUGS, planted
from tests.simulation.run import run, run_all


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it, and print how it went."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=None, help="how many (default: 1000)")
    parser.add_argument("--seconds", type=float, default=None, help="as many as so many seconds allow")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them (default: 0)")
    parser.add_argument("--seed", type=int, default=None, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: print all that happens")
    parser.add_argument("--digests", action="store_true", help="print the hash of each run")
    parser.add_argument("--bug", choices=BUGS, help="run with this bug planted")
    given = parser.parse_args(arguments)
    began = monotonic()
    faults: Counter[str] = Counter()
    done = broken = 0

    def seeds() -> Iterator[int]:
        most = given.seeds or (1_000 if given.seconds is None else None)
        for seed in count(given.first):
            if done == most or (given.seconds is not None and monotonic() - began >= given.seconds):
                return
            yield seed

    with planted(given.bug) if given.bug else nullcontext():
        reports = run_all(seeds())
        if given.seed is not None:
            reports = iter([run(given.seed, tell if given.trace else None)])
        for report in reports:
            done += 1
            faults.update(report.faults)
            broken += len(report.broken)
            if given.digests:
                tell(f"{report.seed} {report.digest}")
            for problem in report.broken:
                tell(f"seed {report.seed}: {problem}")
            if report.broken:
                tell(f"replay: python -m tests.simulation --seed {report.seed} --trace")
    kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(faults.items()))
    tell(
        f"seeds {done} | faults {faults.total()} ({kinds}) | "
        f"invariants violated {broken} | {monotonic() - began:.1f} s"
    )
    if broken:
        raise SystemExit(1)


def tell(text: str) -> None:
    """Print it now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
