"""The rows of the table, with the figures to reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks.peers.cases import BURST, PACE
from benchmarks.peers.servers import FLOWTX

BASE: Final = "ws"
"""The server that ratios are to."""

FLOOR: Final = "floor"

MAX_LOAD: Final = 0.8
"""Share of its core from which on the generator may be what is measured."""


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        what: was measured.
        unit: of its figures.
        aims: the most that a server of flowtx may have: a ratio, or where there is none the figure itself.
        to: the row whose figure of `BASE` the ratio is to; None for no ratio.
    """

    what: str
    unit: str
    aims: tuple[float | None, float | None] = (None, None)
    to: str | None = None

    def aim(self, server: str) -> float | None:
        """Find the most that a server may have; None for any."""
        return self.aims[tuple(FLOWTX).index(server)] if server in FLOWTX else None


def _ratio(key: str, what: str, epoll: float | None = None, uvloop: float | None = None) -> tuple[str, Row]:
    return key, Row(what, "µs", (epoll, epoll if uvloop is None else uvloop), key)


def _storm(key: str, what: str) -> Iterator[tuple[str, Row]]:
    yield f"{key}-ready", Row(f"{what}: until it is ready", "s")
    yield f"{key}-seconds", Row(f"{what}: until all are back", "s", (45, 45))
    yield f"{key}-retries", Row(f"{what}: attempts that were turned away", "%", (10, 10))
    yield f"{key}-lag", Row(f"{what}: lag of the reactor, 99th percentile", "ms")


ROWS: Final = dict(
    [
        _ratio("connect", "connect, verify, join", 0.30),
        _ratio("heartbeat", "heartbeat, 100 connections in a closed loop", 0.75),
        _ratio("activity", "`activity`, 100 connections in a closed loop", 0.75),
        _ratio("heartbeat-paced", f"heartbeat, {PACE:,} a second over 100 connections"),
        _ratio("activity-paced", f"`activity`, {PACE:,} a second over 100 connections"),
        _ratio("broadcast-few", "broadcast to {few:,}: a delivered frame", 0.65, 0.50),
        _ratio("broadcast-many", "broadcast to {many:,}: a delivered frame", 0.65, 0.50),
        _ratio("burst-few", f"bursts of {BURST} broadcasts to {{few:,}}: a delivered frame", 0.25),
        _ratio("burst-many", f"bursts of {BURST} broadcasts to {{many:,}}: a delivered frame", 0.25),
        ("memory", Row("memory of an idle connection, {idle:,} of them", "KiB", (8, 8))),
        ("online", Row("connect and join `users:online`, {few:,} watching", "µs", (0.6, 0.6), "connect")),
        ("idle", Row("{idle:,} connections with a heartbeat each 30 s", "% of a core", (5, 5))),
        ("grown-connect", Row("connect at {idle:,} connections, to that at {few:,}", "x", (1.2, 1.2))),
        ("grown-roundtrip", Row("`activity` at {idle:,} connections, to that at {few:,}", "x", (1.2, 1.2))),
        ("grown-broadcast", Row("a delivered frame to {idle:,}, to one to {few:,}", "x", (1.2, 1.2))),
        ("beside-connect", Row("connect beside a second node, to that alone", "x")),
        ("beside-roundtrip", Row("`activity` beside a second node, to that alone", "x")),
        *_storm("restart", "restarted with {many:,} clients"),
        *_storm("crash", "killed and started with {many:,} clients"),
    ]
)
