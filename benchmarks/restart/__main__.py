"""Restart a server under load and print what its users noticed; see the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from benchmarks.restart.run import restart
from flowtx.storage.embedded import EmbeddedPostgres

reactor: Any = global_reactor


async def _main(size: int, options: Sequence[str]) -> None:
    with TemporaryDirectory(prefix="ftx-", dir="/tmp") as directory:
        postgres = EmbeddedPostgres(Path(directory), reactor=reactor)
        await postgres.startService()
        try:
            figures = await restart(size, postgres.url, *options, say=lambda text: print(text, flush=True))
        finally:
            await postgres.stopService()
    for name, value in figures._asdict().items():
        shown = f"{value:.1f}" if isinstance(value, float) else value
        print(f"{name.replace('_', ' '):16} {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart", description=__doc__)
    parser.add_argument("--clients", type=int, default=3_000, help="default 3000")
    parser.add_argument("options", nargs="*", help="of twistd flow, after --")
    given = parser.parse_args()
    react(lambda _: Deferred.fromCoroutine(_main(given.clients, given.options)))


if __name__ == "__main__":
    main()
