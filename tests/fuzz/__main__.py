"""``python -m tests.fuzz [--seconds N] [--target NAME]… [--at-random]``: look for input that is a fault.

Every target gets its share of the time, led by coverage where atheris is here. What is found is kept in
``tests/fuzz/corpus``, where it is a test from then on.
"""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.search import can_be_guided, search, search_guided
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="one of them; repeatable")
    parser.add_argument("--at-random", action="store_true", help="not led by coverage")
    given = parser.parse_args()
    names = given.target or list(TARGETS)
    guided = can_be_guided() and not given.at_random
    look = search_guided if guided else search
    faults = 0
    for name in names:
        tried, found = look(given.seconds / len(names), [name])
        sys.stdout.write(f"{name}: {tried} inputs{'' if found is None else ', a fault'}\n")
        if found is not None:
            faults += 1
            sys.stdout.write(f"{found.data[:500]!r}\n{found.why}\nkept as {found.keep()}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{faults} faults, {'led by coverage' if guided else 'at random'}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
