"""Measure flowtx beside its peers; see the package."""

from __future__ import annotations

import argparse
import base64
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.load.generator import build
from benchmarks.peers.cases import CASES, QUICK, Scale, bench
from benchmarks.peers.servers import SERVERS
from flowtx.auth import mint

TTL: Final = 43_200.0


def _users(directory: Path, secret: bytes, count: int) -> Path:
    """Sign a token for each of as many users; the file that the generator reads."""
    path, now = directory / "users", time.time()
    with path.open("w") as file:
        for number in range(count):
            name = f"user-{number}"
            token = mint(secret, "HS256", name, ttl=TTL, now=now, claims={"groups": ["live"]})
            file.write(f"{name} {token}\n")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--servers", default=",".join(SERVERS), help=f"of {', '.join(SERVERS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    scale = QUICK if given.quick else Scale()
    build()
    results: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="flowtx-peers-") as name:
        directory = Path(name)
        secret = base64.b64encode(os.urandom(64))
        secret_file = directory / "secret"
        secret_file.touch(mode=0o600)
        secret_file.write_bytes(secret)
        users = _users(directory, secret, max(scale.users + scale.warm, scale.idle))
        for case in given.only.split(","):
            for number in range(given.rounds):
                for server in given.servers.split(","):
                    subject = SERVERS[server](secret_file)
                    with bench(subject, users, scale) as it:
                        for figure in CASES[case](it):
                            results[figure.key][server].append(figure.value)
                            load = "" if figure.load is None else f"  load {100 * figure.load:.0f} %"
                            print(
                                f"{number + 1} {figure.key:16}{server:16}{figure.value:10.2f}{load}",
                                flush=True,
                            )
    for key, by_server in results.items():
        base = median(by_server["ws"]) if "ws" in by_server else None
        for server, values in by_server.items():
            ratio = "" if base is None else f"{median(values) / base:8.2f} x ws"
            print(f"{key:16}{server:16}{median(values):10.2f}{ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
