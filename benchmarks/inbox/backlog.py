"""Many users who come back at once, each of whom has missed something."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.inbox.crowd import Crowd
from benchmarks.inbox.figures import Figure
from benchmarks.inbox.server import Server, seed, session, vacuum


async def backlog(server: Server, number: int, missed: int) -> Sequence[Figure]:
    """Have users connect and join with ``last_seq`` 0.

    Args:
        server: what they connect to.
        number: how many users.
        missed: how many notifications each of them has; at most the 1,000 that a join gives.
    """
    users = [f"away-{index}" for index in range(number)]
    rows = number * missed
    await asyncio.to_thread(seed, server.database_url, users, missed)
    await asyncio.to_thread(vacuum, server.database_url)
    read_in = await asyncio.to_thread(_read, server.database_url, users)
    crowd = Crowd(server, dict.fromkeys(users, 0))
    with server.metered() as meter:
        began = time.monotonic()
        try:
            await crowd.connect()
            await crowd.until(rows)
            took = crowd.last_at - began
        finally:
            await crowd.leave()
    name = f"{rows:,} missed by {number:,} users"
    return [
        Figure(name, rows / took, "/s", "a SELECT a user, one by one", rows / read_in, load=meter.load),
        Figure(f"{name}: in all", took, "s", "a SELECT a user, one by one", read_in),
    ]


def _read(url: str, users: Sequence[str]) -> float:
    """Read the same rows by SQL; the seconds."""
    with session(url) as cursor:
        began = time.monotonic()
        for user_id in users:
            cursor.execute(
                "SELECT id::text, seq, type, payload::text, inserted_at::text, read_at::text"
                " FROM flow.notifications WHERE user_id = %s AND seq > 0 ORDER BY seq LIMIT 1000",
                [user_id],
            )
            cursor.fetchall()
        return time.monotonic() - began
