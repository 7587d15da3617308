"""One restart, and what comes of it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any, Final, NamedTuple

import psycopg2
from twisted.internet import reactor as global_reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from benchmarks.restart.crowd import ALL_BACK_WITHIN, Crowd
from tests.integration.async_flow_process import AsyncFlowProcess, until

reactor: Any = global_reactor

EXIT_WITHIN: Final = 120.0
WINDOW: Final = 30.0
MARGIN: Final = 5.0
PUSH_EVERY: Final = 0.004


class Figures(NamedTuple):
    """What a restart came to; times in seconds.

    Attributes:
        exit_seconds: from SIGTERM to the end of the process.
        exit_cpu_seconds: processor time that the process had meanwhile.
        exit_status: the signal that it ended by, or its exit status.
        down_seconds: from its end until the next process was ready.
        back_seconds: from then until all clients had joined again.
        codes: with what their connections were closed: close codes, or "broken".
        tries: what became of each attempt to connect again.
        pushed: notifications pushed from before the restart until after it.
        lost, doubled: of those, by what clients got.
        left_within: rows of ``flow.presence_events`` from SIGTERM to the end of the reconnection window
            that say that a user went.
        left_later: those after it: of users who were not back in time.
        shown_offline: how often the status API of the next process said within the window that a user is
            offline.
    """

    exit_seconds: float
    exit_cpu_seconds: float
    exit_status: int
    down_seconds: float
    back_seconds: float
    codes: dict[str, int]
    tries: dict[str, int]
    pushed: int
    lost: int
    doubled: int
    left_within: int
    left_later: int
    shown_offline: int


class Pusher:
    """Pushes notifications by SQL, one after the other, to one user or another, in a thread.

    Attributes:
        pushed: how many each user was sent.
    """

    def __init__(self, url: str, users: Sequence[str]) -> None:
        self.pushed: Counter[str] = Counter()
        self._enough = threading.Event()
        self._over = deferToThread(self._push, url, users)

    def _push(self, url: str, users: Sequence[str]) -> None:
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            while not self._enough.wait(PUSH_EVERY):
                user_id = random.choice(users)
                cursor.execute("SELECT flow.notify(%s, 'tick', '{}')", [user_id])
                self.pushed[user_id] += 1

    async def stop(self) -> None:
        """Push no more."""
        self._enough.set()
        await self._over


async def restart(
    size: int, database_url: str, *options: str, say: Callable[[str], object] = lambda _: None
) -> Figures:
    """Connect so many users to a server, restart it, and see what becomes of them.

    Args:
        size: how many users.
        database_url: an empty database that both processes use.
        options: further ones of ``twistd flow``.
        say: told how it goes on.
    """
    flow = AsyncFlowProcess(f"--database={database_url}", "--users-query=claims", *options)
    async with flow:
        crowd = Crowd(size, flow.port, (flow.data_dir / "secret").read_bytes().strip())
        await crowd.come()
        say(f"{size} users have joined")
        pusher = Pusher(database_url, [member.user_id for member in crowd.members])
        await deferLater(reactor, 1.0)
        last_event = _sql(database_url, "SELECT coalesce(max(id), 0) FROM flow.presence_events")[0][0]
        crowd.ends.clear()

        began = time.monotonic()
        used, others = _processor_seconds(flow.pid), _of_children()
        ended = await flow.stop(EXIT_WITHIN)
        exited = time.monotonic()
        exit_cpu_seconds = _of_children() - others - used
        codes = dict(crowd.ends)
        say(f"the process has ended after {exited - began:.1f} s, of {exit_cpu_seconds:.1f} on a processor")
        crowd.ends.clear()
        await flow.start()
        started = time.monotonic()
        say(f"the next one is ready after {started - exited:.1f} s")
        # The window counts from shortly before the end of the process.
        window = exited + WINDOW - MARGIN
        shown_offline = 0
        while not crowd.all_joined():
            assert time.monotonic() < started + ALL_BACK_WITHIN, crowd.state()
            offline = await _shown_offline(flow, crowd) if time.monotonic() < window else 0
            if time.monotonic() < window:  # where the answer has come in time
                shown_offline += offline
            say(f"  {time.monotonic() - started:5.1f} s: {crowd.state()}")
            await deferLater(reactor, 1.0)
        back = time.monotonic()
        say(f"all are back after {back - started:.1f} s more")
        await deferLater(reactor, 1.0)
        await pusher.stop()

        def all_have_all() -> bool:
            return all(len(set(m.seqs)) >= pusher.pushed[m.user_id] for m in crowd.members)

        with suppress(AssertionError):  # what is missing is counted
            await until(all_have_all, 20)
        lost = doubled = 0
        for member in crowd.members:
            lost += len(set(range(1, pusher.pushed[member.user_id] + 1)) - set(member.seqs))
            doubled += len(member.seqs) - len(set(member.seqs))
        [(left_within, left_later)] = _sql(
            database_url,
            "SELECT count(*) FILTER (WHERE at < to_timestamp(%s)),"
            " count(*) FILTER (WHERE at >= to_timestamp(%s))"
            " FROM flow.presence_events WHERE id > %s AND event = 'offline'",
            *2 * [time.time() - time.monotonic() + window],
            last_event,
        )
        tries = dict(crowd.ends)
        await crowd.leave()
    return Figures(
        exited - began,
        exit_cpu_seconds,
        ended.status if ended.signal is None else -ended.signal,  # type: ignore[arg-type]
        started - exited,
        back - started,
        {how: number for how, number in codes.items() if not how.startswith("no connection")},
        tries,
        sum(pusher.pushed.values()),
        lost,
        doubled,
        left_within,
        left_later,
        shown_offline,
    )


def _processor_seconds(pid: int) -> float:
    """How much processor time a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _of_children() -> float:
    """How much processor time those children have had that have ended."""
    usage = getrusage(RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def _shown_offline(flow: AsyncFlowProcess, crowd: Crowd) -> int:
    """Ask the status API about 500 users; how many are shown as offline."""
    some = random.sample(crowd.members, min(500, len(crowd.members)))
    answer = await flow.call("POST", "/api/presence/status", {"user_ids": [m.user_id for m in some]})
    # While all are coming back it may say that the database is busy.
    assert answer.status in (200, 503), answer
    return answer.body.count(b'"offline"')


def _sql(url: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall()
