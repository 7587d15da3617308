"""From a writer's COMMIT until the client has the notification."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from statistics import quantiles
from typing import NamedTuple

import psycopg2

from benchmarks.inbox.crowd import Crowd
from benchmarks.inbox.figures import Figure
from benchmarks.inbox.server import Server

RATE = 100
"""Pushes a second."""
MAX_P50_MS = 5.0


class _Commit(NamedTuple):
    user_id: str
    seq: int
    asked_at: float
    answered_at: float


async def latency(server: Server, crowd: Crowd, seconds: float) -> Sequence[Figure]:
    """Write at a steady rate to users out of a crowd that is connected."""
    users = random.choices(list(crowd.clients), k=round(RATE * seconds))
    before = crowd.received
    crowd.arrivals = []
    loop = asyncio.get_running_loop()
    # In a process of its own, as a thread would be timed with the clients' work in it. The clock is
    # the machine's, so that the times of both can be compared.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as writers, server.metered() as meter:
        commits = await loop.run_in_executor(writers, _write, server.database_url, users)
        await crowd.until(before + len(users))
    arrived = {(arrival.user_id, arrival.seq): arrival.at for arrival in crowd.arrivals}
    crowd.arrivals = None
    waits = [1e3 * (arrived[commit.user_id, commit.seq] - commit.answered_at) for commit in commits]
    took = [1e3 * (commit.answered_at - commit.asked_at) for commit in commits]
    early = 100 * sum(wait <= 0 for wait in waits) / len(waits)
    name = f"commit to client, {len(crowd.clients):,} users, {RATE}/s"
    return [
        Figure(
            f"{name}: p50",
            _p(waits, 50),
            "ms",
            "the COMMIT, p50",
            _p(took, 50),
            at_most=MAX_P50_MS,
            load=meter.load,
        ),
        Figure(f"{name}: p99", _p(waits, 99), "ms", "the COMMIT, p99", _p(took, 99)),
        Figure("there before COMMIT was answered", early, "%"),
    ]


def _p(times: Sequence[float], percent: int) -> float:
    return quantiles(times, n=100, method="inclusive")[percent - 1]


def _write(url: str, users: Sequence[str]) -> Sequence[_Commit]:
    commits = []
    with (
        closing(psycopg2.connect(url, options="-c statement_timeout=10s")) as connection,
        connection.cursor() as cursor,
    ):
        began = time.monotonic()
        for number, user_id in enumerate(users):
            time.sleep(max(0.0, began + number / RATE - time.monotonic()))
            cursor.execute("SELECT flow.notify(%s, 'deal.won', '{\"deal\": 7}')", [user_id])
            row = cursor.fetchone()
            assert row is not None
            asked_at = time.monotonic()
            connection.commit()
            commits.append(_Commit(user_id, row[0], asked_at, time.monotonic()))
    return commits
