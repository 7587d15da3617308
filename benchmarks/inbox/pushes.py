"""Pushes per second from HTTP to the client, beside pgbench's inserts."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from benchmarks.inbox.backend import Backend
from benchmarks.inbox.crowd import Crowd
from benchmarks.inbox.figures import Figure, Load
from benchmarks.inbox.pgbench import pgbench
from benchmarks.inbox.server import Server

CONCURRENCIES = (1, 8, 64)
BATCHES = (100, 1_000)
BATCH_CONCURRENCY = 4
BATCHED_SHARE = 0.5
"""The aim: what batched pushes reach of pgbench's rows per second."""

_CONTENT = "'deal.won', '{\"deal\": 7}'"


class Flood(NamedTuple):
    """What one round gave, in notifications per second: on disk, and with the client."""

    accepted: float
    delivered: float
    load: Load


async def singles(server: Server, crowd: Crowd, alone: str, rounds: int, seconds: float) -> Sequence[Figure]:
    """Push to one user a call.

    Args:
        server: what the backends connect to.
        crowd: the users, connected.
        alone: the URL of pgbench's database.
        rounds: how often each is measured.
        seconds: how long each time.
    """
    ours: dict[int, list[Flood]] = {number: [] for number in CONCURRENCIES}
    theirs: dict[int, list[float]] = {number: [] for number in CONCURRENCIES}
    for _ in range(rounds):
        for number in CONCURRENCIES:
            ours[number].append(await _flood(server, crowd, 1, number, seconds))
            theirs[number].append(await _rows(alone, crowd, 1, number, seconds))
    return [
        _figure(f"singles, {number} at once", ours[number], "pgbench", theirs[number])
        for number in CONCURRENCIES
    ]


async def batches(server: Server, crowd: Crowd, alone: str, rounds: int, seconds: float) -> Sequence[Figure]:
    """Push to many users a call; see `singles`."""
    ours: dict[int, list[Flood]] = {size: [] for size in BATCHES}
    theirs: dict[int, list[float]] = {size: [] for size in (1, *BATCHES)}
    for _ in range(rounds):
        for size in BATCHES:
            ours[size].append(await _flood(server, crowd, size, BATCH_CONCURRENCY, seconds))
            theirs[size].append(await _rows(alone, crowd, size, BATCH_CONCURRENCY, seconds))
        theirs[1].append(await _rows(alone, crowd, 1, BATCH_CONCURRENCY, seconds))
    figures = []
    for size in BATCHES:
        name = f"batches of {size:,}, {BATCH_CONCURRENCY} at once"
        same = f"pgbench, {size:,} a transaction"
        figures += [
            _figure(name, ours[size], same, theirs[size], at_least=BATCHED_SHARE),
            _figure(name, ours[size], "pgbench, 1 a transaction", theirs[1], at_least=BATCHED_SHARE),
            _figure(f"{name}: on disk", ours[size], same, theirs[size], rate=lambda flood: flood.accepted),
        ]
    return figures


def _figure(
    name: str,
    ours: Sequence[Flood],
    reference: str,
    theirs: Sequence[float],
    *,
    at_least: float | None = None,
    rate: Callable[[Flood], float] = lambda flood: flood.delivered,
) -> Figure:
    middle = sorted(ours, key=rate)[len(ours) // 2]
    return Figure(
        name,
        median(map(rate, ours)),
        "/s",
        reference,
        median(theirs),
        ratios=[rate(flood) / other for flood, other in zip(ours, theirs, strict=True)],
        at_least=at_least,
        load=middle.load,
    )


async def _flood(server: Server, crowd: Crowd, size: int, concurrency: int, seconds: float) -> Flood:
    """Push for a while, and wait until the clients have everything."""
    users = list(crowd.clients)
    backends = [await Backend.connect(server) for _ in range(concurrency)]
    before = crowd.received
    pushed = 0

    async def push(backend: Backend) -> None:
        nonlocal pushed
        while time.monotonic() < deadline:
            await backend.push(_some(users, size))
            pushed += size

    with server.metered() as meter:
        began = time.monotonic()
        deadline = began + seconds
        try:
            async with asyncio.TaskGroup() as group:
                for backend in backends:
                    group.create_task(push(backend))
        finally:
            for backend in backends:
                backend.close()
        accepted = time.monotonic()
        await crowd.until(before + pushed)
    delivered = max(accepted, crowd.last_at)
    return Flood(pushed / (accepted - began), pushed / (delivered - began), meter.load)


def _some(users: Sequence[str], size: int) -> Sequence[str]:
    """Take neighbours out of a circle of users, from anywhere."""
    start = random.randrange(len(users))
    return [users[(start + step) % len(users)] for step in range(size)]


async def _rows(url: str, crowd: Crowd, size: int, concurrency: int, seconds: float) -> float:
    """Insert for as many users as the crowd has; rows per second."""
    count = len(crowd.clients)
    if size == 1:
        call = f"SELECT flow.notify('user-' || :u, {_CONTENT});"
    else:
        some = f"ARRAY(SELECT 'user-' || (:u + g) % {count} FROM generate_series(1, {size}) g)"
        call = f"SELECT * FROM flow.notify_many({some}, {_CONTENT});"
    script = f"\\set u random(0, {count - 1})\n{call}\n"
    return size * await pgbench(url, script, clients=concurrency, seconds=seconds)
