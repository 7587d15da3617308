"""Whether what a user does grows with the size of the inbox."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from statistics import median

from benchmarks.inbox.crowd import Client, Crowd, RefusedError
from benchmarks.inbox.figures import Figure
from benchmarks.inbox.server import Server, seed, session, vacuum

SMALL = 100
TURNS = 15
_AT_ONCE = 200


async def growth(server: Server, large: int) -> Sequence[Figure]:
    """Do the same in an inbox of 100 and in a large one, all of it unread.

    Args:
        server: what the users connect to.
        large: how many notifications the large one has.
    """
    # All can be marked as read once only: there is a small inbox for each turn.
    small = [f"small-{turn}" for turn in range(TURNS)]
    await asyncio.to_thread(_fill, server.database_url, small, "large", large)
    crowd = Crowd(server, {**dict.fromkeys(small, SMALL), "large": large})
    ids = {
        user_id: await asyncio.to_thread(_ids, server.database_url, user_id) for user_id in (*small, "large")
    }
    times: dict[str, dict[int, list[float]]] = {}
    refused: set[str] = set()

    async def timed(name: str, size: int, client: Client, event: str, payload: object) -> None:
        taken = times.setdefault(name, {}).setdefault(size, [])
        if name in refused:
            return
        began = time.monotonic()
        try:
            await client.call(event, payload)
        except RefusedError as problem:
            refused.add(name)
            print(problem, file=sys.stderr)
        else:
            taken.append(1e3 * (time.monotonic() - began))

    try:
        for turn in range(TURNS):
            for user_id, size in ((small[turn], SMALL), ("large", large)):
                client = await crowd.open(user_id, size)
                await timed("join", size, client, "phx_join", {"last_seq": size})
                await timed("mark_read, by id", size, client, "mark_read", {"ids": [ids[user_id][turn]]})
                if user_id != "large" or turn == TURNS - 1:
                    await timed("mark_read, all", size, client, "mark_read", {"all": True})
                await timed("list, first page", size, client, "list_notifications", {})
                await timed("list, last page", size, client, "list_notifications", {"before_seq": 101})
                await crowd.leave()
    finally:
        await crowd.leave()
    return [
        Figure(f"{name}, of {large:,}", _median(by_size[large]), "ms", f"of {SMALL}", _median(by_size[SMALL]))
        for name, by_size in times.items()
    ]


def _median(times: Sequence[float]) -> float | None:
    return median(times) if times else None


def _fill(url: str, small: Sequence[str], large_user: str, large: int) -> None:
    seed(url, small, SMALL)
    with session(url) as cursor:
        for _ in range(large // _AT_ONCE):
            cursor.execute(
                "SELECT flow.notify(%s, 'deal.won', '{\"deal\": 7}') FROM generate_series(1, %s)",
                [large_user, _AT_ONCE],
            )
    vacuum(url)


def _ids(url: str, user_id: str) -> Sequence[str]:
    """Read the ids of as many notifications as there are turns, from all over the inbox."""
    with session(url) as cursor:
        cursor.execute(
            "SELECT id::text FROM flow.notifications WHERE user_id = %s ORDER BY id LIMIT %s",
            [user_id, TURNS],
        )
        return [row[0] for row in cursor.fetchall()]
