"""Measure flowtx beside its peers; see the package."""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.load.generator import BUILD
from benchmarks.peers.cases import CASES, QUICK, Scale, bench
from benchmarks.peers.servers import SERVERS, make_server
from benchmarks.peers.table import Table
from flowtx.auth import mint

TTL: Final = 43_200.0


def _sign(path: Path, secret: bytes, count: int) -> None:
    """Write a file of as many users for the generator, each with a token."""
    now = time.time()
    with path.open("w") as file:
        for number in range(count):
            name = f"user-{number}"
            token = mint(secret, "HS256", name, ttl=TTL, now=now, claims={"groups": ["live"]})
            file.write(f"{name} {token}\n")


def _measure(table: Table, scale: Scale, cases: Sequence[str], servers: Sequence[str], rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="flowtx-peers-") as name:
        users, secret_file = Path(name, "users"), Path(name, "secret")
        secret = base64.b64encode(os.urandom(64))
        secret_file.touch(mode=0o600)
        secret_file.write_bytes(secret)
        _sign(users, secret, max(scale.users + scale.warm, scale.idle))
        for case, number, server in _turns(cases, servers, rounds):
            subject = make_server(server, secret_file, CASES[case].options)
            with bench(subject, users, scale) as it:
                for figure in CASES[case].run(it):
                    table.add(server, figure)
                    load = "" if figure.load is None else f"load {100 * figure.load:.0f} %"
                    value = f"{number} {figure.key:16}{server:16}{figure.value:12.2f}"
                    print(f"{value}  {load or figure.note}".rstrip(), flush=True)


def _turns(cases: Sequence[str], servers: Sequence[str], rounds: int) -> Iterator[tuple[str, int, str]]:
    """Name what is measured, one after another: each round has all the servers in turn."""
    for case in cases:
        for number in range(1, rounds + 1):
            for server in servers:
                if number <= CASES[case].rounds_of(server, rounds):
                    yield case, number, server


def _names(of: Sequence[str]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names).difference(of):
            raise argparse.ArgumentTypeError(
                f"got {', '.join(sorted(unknown))}; it takes some of {','.join(of)}"
            )
        return names

    return split


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 where an aim is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    names = ",".join
    parser.add_argument("--only", type=_names(tuple(CASES)), metavar="CASES", help=f"some of {names(CASES)}")
    parser.add_argument("--servers", type=_names(SERVERS), metavar="NAMES", help=f"some of {names(SERVERS)}")
    parser.add_argument("--rounds", type=int, default=5, help="of each case, at the most; default 5")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything; of no use but to try it")
    parser.add_argument(
        "--save",
        type=Path,
        default=BUILD / "bench",
        metavar="PATH",
        help="without suffix; default build/bench",
    )
    parser.add_argument("--add", action="store_true", help="to the samples that are saved there")
    given = parser.parse_args(arguments)
    servers = given.servers or SERVERS
    for program in ("gcc", *(("node", "npm") if "ws" in servers else ())):
        if shutil.which(program) is None:
            parser.error(f"there is no {program} here; the load takes gcc, and the server ws node and npm")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, and the table saved
    scale, saved = QUICK if given.quick else Scale(), given.save.with_suffix(".json")
    table = Table(scale, json.loads(saved.read_text()) if given.add and saved.exists() else None)
    try:
        _measure(table, scale, given.only or tuple(CASES), servers, given.rounds)
    finally:
        given.save.parent.mkdir(parents=True, exist_ok=True)
        saved.write_text(table.as_json())
        given.save.with_suffix(".md").write_text(text := table.as_markdown() + "\n")
        print(f"\n{text}\nsaved: {saved} and {given.save.with_suffix('.md').name}")
    return 1 if table.missed() else 0


if __name__ == "__main__":
    sys.exit(main())
