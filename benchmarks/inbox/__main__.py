"""Run the parts and show the table; see the package."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.inbox.backlog import backlog
from benchmarks.inbox.crowd import Crowd
from benchmarks.inbox.figures import HEADING, Figure, line
from benchmarks.inbox.growth import growth
from benchmarks.inbox.latency import latency
from benchmarks.inbox.pushes import batches, singles
from benchmarks.inbox.server import Server, seed, vacuum

PARTS: Final = ("singles", "batches", "latency", "backlog", "growth")
USERS: Final = 1_000


@dataclass(frozen=True)
class Scale:
    """How much is done; times in seconds.

    Attributes:
        rounds: of pushes beside pgbench.
        push: of each of them; whole ones, as pgbench has it.
        latency: for how long there are writes at a steady rate.
        missed: notifications for each user who comes back.
        inbox: notifications in the large inbox.
        within: what all of it may take.
    """

    rounds: int
    push: int
    latency: float
    missed: int
    inbox: int
    within: float


FULL: Final = Scale(rounds=5, push=2, latency=10.0, missed=200, inbox=100_000, within=480.0)
QUICK: Final = Scale(rounds=1, push=1, latency=2.0, missed=20, inbox=5_000, within=120.0)


def main() -> int:
    """Run; 1 where an aim is not reached or an event was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inbox", description="Pushes, latency and the cost of an inbox."
    )
    parser.add_argument(
        "--quick", action="store_true", help="less of everything: half a minute, rough figures"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures there as JSON too")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; default all"
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="have twistd profile itself; the figures are worth less then",
    )
    given = parser.parse_args()
    scale = QUICK if given.quick else FULL
    # A SIGTERM ends what was started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = datetime.now(UTC)
    with Server(given.profile) as server:
        try:
            figures = asyncio.run(_run(server, scale, given.parts))
        except BaseException:
            print(f"the server's log ends:\n{server.log_end()}", file=sys.stderr)
            raise
    if given.output is not None:
        told = {
            "started_at": started.isoformat(timespec="seconds"),
            "machine": {
                "cores": os.cpu_count(),
                "load": os.getloadavg(),
                "python": platform.python_version(),
            },
            "quick": given.quick,
            "profiled": given.profile is not None,
            "figures": [figure.as_json() for figure in figures],
        }
        given.output.write_text(json.dumps(told, indent=2) + "\n")
    return int(any(figure.kept is False or figure.value is None for figure in figures))


async def _run(server: Server, scale: Scale, parts: Collection[str]) -> Sequence[Figure]:
    figures: list[Figure] = []
    print(HEADING)
    async with asyncio.timeout(scale.within), aclosing(_measured(server, scale, parts)) as measured:
        async for some in measured:
            figures += some
            print(*map(line, some), sep="\n", flush=True)
    return figures


async def _measured(
    server: Server, scale: Scale, parts: Collection[str]
) -> AsyncGenerator[Sequence[Figure], None]:
    if not {"singles", "batches", "latency"}.isdisjoint(parts):
        users = [f"user-{number}" for number in range(USERS)]
        alone = await asyncio.to_thread(server.second_database)
        for url in (server.database_url, alone):
            await asyncio.to_thread(seed, url, users, 1)
        crowd = Crowd(server, dict.fromkeys(users, 1))
        try:
            await crowd.connect()
            for part, pushes in (("singles", singles), ("batches", batches)):
                if part in parts:
                    for url in (server.database_url, alone):
                        await asyncio.to_thread(vacuum, url)
                    yield await pushes(server, crowd, alone, scale.rounds, scale.push)
            if "latency" in parts:
                await asyncio.to_thread(vacuum, server.database_url)
                yield await latency(server, crowd, scale.latency)
        finally:
            await crowd.leave()
    if "backlog" in parts:
        yield await backlog(server, USERS, scale.missed)
    if "growth" in parts:
        yield await growth(server, scale.inbox)


if __name__ == "__main__":
    raise SystemExit(main())
