"""The table: what was measured, under which conditions, and how it compares."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.peers.cases import Figure, Scale
from benchmarks.peers.rows import BASE, FLOOR, MAX_LOAD, ROWS, Row
from benchmarks.peers.servers import FLOWTX, HERE, SERVERS

_OURS: Final = ("flowtx", "Twisted", "autobahn", "uvloop", "msgspec", "PyJWT", "txpostgres")
_PEERS: Final = ("ws/package.json", "starlette/requirements.txt", "channels/requirements.txt")
_PINNED: Final = re.compile(r'"(ws|jsonwebtoken)": "([^"]+)"|^([A-Za-z]+)(?:\[\w+\])?==(\S+)', re.MULTILINE)


class Table:
    """All samples, by row and server.

    Args:
        scale: how much is done.
        saved: what an earlier run has saved, whose samples these add to.

    Raises:
        ValueError: that run was of another scale.
    """

    def __init__(self, scale: Scale, saved: Mapping[str, Any] | None = None) -> None:
        self._scale = scale
        self._samples: dict[str, dict[str, list[float]]] = {}
        self._loads: dict[str, dict[str, float]] = {}
        if saved is not None:
            if saved["scale"] != asdict(scale):
                raise ValueError(f"got samples of {saved['scale']}; it takes those of {asdict(scale)}")
            self._samples = {row: dict(by_server) for row, by_server in saved["samples"].items()}
            self._loads = {row: dict(by_server) for row, by_server in saved["loads"].items()}

    def add(self, server: str, figure: Figure) -> None:
        """Add a sample."""
        self._samples.setdefault(figure.key, {}).setdefault(server, []).append(figure.value)
        if figure.load is not None:
            loads = self._loads.setdefault(figure.key, {})
            loads[server] = max(figure.load, loads.get(server, 0.0))

    def as_json(self) -> str:
        """All of it, for `saved` and for other programs."""
        content = {
            "conditions": conditions(),
            "scale": asdict(self._scale),
            "samples": self._samples,
            "loads": self._loads,
            "medians": {
                key: {server: median(values) for server, values in by_server.items()}
                for key, by_server in self._samples.items()
            },
        }
        return json.dumps(content, indent=2) + "\n"

    def as_markdown(self) -> str:
        """Lay it out, for people: the conditions, then a row of medians for each thing that was measured."""
        servers = [server for server in SERVERS if any(server in by for by in self._samples.values())]
        lines = [["", "unit", *servers, "aim", "load"]]
        for key, row in ROWS.items():
            if key in self._samples:
                what = row.what.format_map(asdict(self._scale))
                cells = [self._cell(key, row, server) for server in servers]
                lines.append([what, row.unit, *cells, _aim(row), self._load(key)])
        head = [f"- {name}: {text}" for name, text in conditions().items()]
        return "\n".join([*head, "", *_aligned(lines)])

    def _load(self, key: str) -> str:
        # The floor is there to take all that the generator can give.
        most = max(
            (load for server, load in self._loads.get(key, {}).items() if server != FLOOR), default=None
        )
        return "" if most is None else f"{100 * most:.0f} %{'' if most < MAX_LOAD else ' TOO MUCH'}"

    def missed(self) -> bool:
        """Find out whether an aim is missed."""
        return any(
            self._kept(key, row, server) is False
            for key, row in ROWS.items()
            for server in self._samples.get(key, {})
        )

    def _cell(self, key: str, row: Row, server: str) -> str:
        values = self._samples[key].get(server)
        if values is None:
            return ""
        middle, ratio = median(values), self._ratio(key, row, server)
        kept = {True: " KEPT", False: " MISSED", None: ""}[self._kept(key, row, server)]
        return f"{middle:,.{_digits(middle)}f}{'' if ratio is None else f' ({ratio:.2f}x)'}{kept}"

    def _ratio(self, key: str, row: Row, server: str) -> float | None:
        base = self._samples.get(row.to or "", {}).get(BASE)
        return None if base is None else median(self._samples[key][server]) / median(base)

    def _kept(self, key: str, row: Row, server: str) -> bool | None:
        aim = row.aim(server)
        value = self._ratio(key, row, server) if row.to else median(self._samples[key][server])
        return None if aim is None or value is None else value <= aim


def conditions() -> dict[str, str]:
    """Say what it was measured on and with."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    pinned = [
        f"{found[0] or found[2]} {found[1] or found[3]}"
        for name in _PEERS
        for found in _PINNED.findall((HERE / name).read_text())
    ]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"Linux {platform.release()}",
        "flowtx": f"commit {_said('git', '-C', str(HERE), 'describe', '--always', '--dirty')}, "
        f"CPython {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in _OURS),
        "reactors": ", ".join(f"{reactor} in `{name}`" for name, reactor in FLOWTX.items()),
        "peers": f"node {_said('node', '--version')}, {', '.join(dict.fromkeys(pinned))}",
        "figures": f"medians; in brackets the ratio to `{BASE}`; `load` is the most of its core that the "
        f"generator used, beside `{FLOOR}`",
    }


def _said(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _aim(row: Row) -> str:
    shown = [f"{aim:g}" for aim in dict.fromkeys(row.aims) if aim is not None]
    return f"≤ {' / '.join(shown)}{'x' if row.to else ''}" if shown else ""


def _digits(value: float) -> int:
    return 0 if value >= 100 else 1 if value >= 10 else 2


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return [rows[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *rows[1:]]
