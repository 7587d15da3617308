"""What is measured: each case starts its server, gives it a load, and yields figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.load.generator import AT_ONCE, Done, Generator
from benchmarks.peers.process import LOAD_CORES, SERVER_CORES, cpu_seconds, memory, pin
from benchmarks.peers.servers import FLOWTX, Flowtx, Subject

CONNECT_WITHIN: Final = 300.0
ARRIVALS: Final = 400
FAILURES: Final = ("turned_away", "broken", "timed_out", "join_refused")
"""Of attempts to come back, while somebody listens."""

STORM_WITHIN: Final = 240.0
HEARTBEAT_EVERY: Final = 30.0
GROUP: Final = "group:live"
TEXT: Final = 64
"""Bytes of text in a broadcast."""

BURST: Final = 16
PACE: Final = 1_000
"""Messages a second that find the server with nothing else to do, as most do; one that is busy takes several
at a time, which costs less."""


class Figure(NamedTuple):
    """One measurement.

    Attributes:
        key: the row of the table.
        value: in the row's unit.
        load: share of its core that the generator used; None where it does not matter.
        note: what else there is to say.
    """

    key: str
    value: float
    load: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        users: that connect in one measurement.
        warm: that connect before.
        few, many: subscribers of a broadcast.
        idle: connections of which the memory is measured.
        idle_seconds: for which they are.
        seconds: of round trips, or of broadcasts.
        settle: seconds after which what connections left behind is done.
    """

    users: int = 10_000
    warm: int = 1_000
    few: int = 1_000
    many: int = 10_000
    idle: int = 15_000
    idle_seconds: float = 60.0
    seconds: float = 3.0
    settle: float = 1.0


QUICK: Final = Scale(users=1_000, warm=200, few=200, many=1_000, idle=2_000, idle_seconds=10, seconds=1.0)


class Bench:
    """A server that runs, and a generator that knows it.

    Args:
        subject: the server.
        load: the generator.
        scale: how much is done.
        users: the file of users and tokens.
    """

    def __init__(self, subject: Subject, load: Generator, scale: Scale, users: Path) -> None:
        self.subject = subject
        self.load = load
        self.scale = scale
        self.users = users
        self.connected = 0
        load.command(f"target 127.0.0.1 {subject.port} {subject.path}")
        load.command(f"api 127.0.0.1 {subject.api_port} {subject.api_key}")

    def connect(self, count: int, *topics: str) -> Done:
        """Have the next users connect and join topics."""
        self.connected += count
        return self.load.command(f"connect {count} {AT_ONCE} {CONNECT_WITHIN} {' '.join(topics)}")

    def settle(self) -> None:
        self.load.command(f"idle {self.scale.settle}")

    def cost(self, work: Callable[[], Done], *, settle: bool = False) -> tuple[Done, float]:
        """Do work; what it came to, and the microseconds of the server's processor time for each.

        Args:
            work: what is done.
            settle: whether what the server does shortly after belongs to it.
        """
        before = cpu_seconds(self.subject.pid)
        done = work()
        if settle:
            self.settle()
        return done, (cpu_seconds(self.subject.pid) - before) / done.units * 1e6


@contextmanager
def bench(subject: Subject, users: Path, scale: Scale) -> Iterator[Bench]:
    """Start a server and a generator, each on its core."""
    with subject, Generator(users, LOAD_CORES) as load:
        pin(subject.pid, SERVER_CORES)
        yield Bench(subject, load, scale, users)


def connect(it: Bench) -> Iterator[Figure]:
    """Users connect and join their own topic."""
    it.connect(it.scale.warm, "user:")
    it.settle()
    done, each = it.cost(lambda: it.connect(it.scale.users, "user:"), settle=True)
    yield Figure("connect", each, done.share)


def round_trips(it: Bench) -> Iterator[Figure]:
    """A hundred clients send heartbeats, and then activity: each again once it is answered, and at a pace."""
    it.connect(100, "user:")
    for kind in ("heartbeat", "activity"):
        it.load.command(f"roundtrip 100 {it.scale.seconds / 4} 0 {kind}")
        for name, rate in (("", 0), ("-paced", PACE)):
            command = f"roundtrip 100 {it.scale.seconds} {rate} {kind}"
            done, each = it.cost(lambda command=command: it.load.command(command))  # type: ignore[misc]
            yield Figure(f"{kind}{name}", each, done.share)


def _broadcasts(it: Bench, count: int) -> Iterator[Figure]:
    it.connect(count, GROUP)
    it.settle()
    for key, burst in (("broadcast", 1), ("burst", BURST)):
        it.load.command(f"broadcast {burst} 1 1 {TEXT} {GROUP}")
        command = f"broadcast {burst} 1000000 {it.scale.seconds} {TEXT} {GROUP}"
        done, each = it.cost(lambda command=command: it.load.command(command))  # type: ignore[misc]
        yield Figure(f"{key}-{_name(it, count)}", each / count, done.share)


def _name(it: Bench, count: int) -> str:
    return "few" if count == it.scale.few else "many"


def broadcasts_to_few(it: Bench) -> Iterator[Figure]:
    """Broadcasts, one by one and in bursts."""
    return _broadcasts(it, it.scale.few)


def broadcasts_to_many(it: Bench) -> Iterator[Figure]:
    """The same to ten times as many."""
    return _broadcasts(it, it.scale.many)


def idle(it: Bench) -> Iterator[Figure]:
    """Memory of connections that do nothing but say so, and what they cost flowtx."""
    before = memory(it.subject.pid)
    it.load.command(f"beat {HEARTBEAT_EVERY}")
    it.connect(it.scale.idle, "user:")
    it.load.command(f"idle {5 * it.scale.settle}")
    yield Figure("memory", (memory(it.subject.pid) - before) / it.scale.idle / 1024)
    if isinstance(it.subject, Flowtx):
        used = cpu_seconds(it.subject.pid)
        done = it.load.command(f"idle {it.scale.idle_seconds}")
        share = (cpu_seconds(it.subject.pid) - used) / done.seconds
        yield Figure("idle", 100 * share, done.share)


def online(it: Bench) -> Iterator[Figure]:
    """Users connect and join `users:online` one after another, and all of them see it."""
    it.connect(it.scale.warm // 10, "user:")
    it.settle()
    command = f"connect {it.scale.few} 1 {CONNECT_WITHIN} users:online"
    done, each = it.cost(lambda: it.load.command(command), settle=True)
    yield Figure("online", each, done.share)


def growth(it: Bench) -> Iterator[Figure]:
    """What each thing costs with many connections, by what it costs with few."""
    some, many, topics = it.scale.few, it.scale.idle, ("user:", GROUP)
    it.connect(it.scale.warm // 5, *topics)
    it.settle()
    first = _costs(it, some, *topics)
    it.connect(many - it.connected - some, *topics)
    it.settle()
    for (key, few), (_, after) in zip(first, _costs(it, some, *topics), strict=True):
        yield Figure(f"grown-{key}", after / few)


def _costs(it: Bench, arriving: int, *topics: str) -> list[tuple[str, float]]:
    _, connecting = it.cost(lambda: it.connect(arriving, *topics), settle=True)
    _, turning = it.cost(lambda: it.load.command(f"roundtrip 100 {it.scale.seconds} 0 activity"))
    it.load.command(f"broadcast 1 1 1 {TEXT} {GROUP}")
    _, sending = it.cost(lambda: it.load.command(f"broadcast 1 1000000 {it.scale.seconds} {TEXT} {GROUP}"))
    return [("connect", connecting), ("roundtrip", turning), ("broadcast", sending / it.connected)]


def restart(it: Bench) -> Iterator[Figure]:
    """The server is stopped as an operator does, and started again."""
    return _storm(it, "restart", kill=False)


def crash(it: Bench) -> Iterator[Figure]:
    """The server is killed, so that all clients lose it at once, and started again."""
    return _storm(it, "crash", kill=True)


def _storm(it: Bench, key: str, *, kill: bool) -> Iterator[Figure]:
    assert isinstance(it.subject, Flowtx), "peers are not restarted"
    server, count = it.subject.server, it.scale.many
    it.load.command(f"beat {HEARTBEAT_EVERY}")
    for start in range(0, count, ARRIVALS):
        it.connect(min(ARRIVALS, count - start), "user:")
        it.settle()  # as the server lets in no more than 500 a second
    it.load.begin(f"storm {STORM_WITHIN}")
    server.end(kill=kill)
    ended = time.monotonic()
    server.start_again()
    yield Figure(f"{key}-ready", time.monotonic() - ended)
    pin(server.pid, SERVER_CORES)
    done = it.load.finish()
    turned_away = sum(done.answer[how] for how in FAILURES)
    why = [f"{done.answer[how]:,} {how}" for how in FAILURES] + [done.answer["refusal"]]
    yield Figure(f"{key}-seconds", done.answer["last_joined_at"] - ended, done.share)
    yield Figure(
        f"{key}-retries", 100 * turned_away / (turned_away + count), note=", ".join(filter(None, why))
    )
    yield Figure(f"{key}-lag", 1_000 * server.quantile("flowtx_reactor_lag_seconds", 0.99))


def two_nodes(it: Bench) -> Iterator[Figure]:
    """What things cost while a second node on the same database does the same, by what they cost alone."""
    assert isinstance(it.subject, Flowtx), "peers have no database"
    some, command = it.scale.few, f"roundtrip 100 {it.scale.seconds} 0 activity"
    it.connect(it.scale.warm // 5, "user:")
    _, connecting = it.cost(lambda: it.connect(some, "user:"), settle=True)
    _, turning = it.cost(lambda: it.load.command(command))
    with it.subject.second() as subject, Generator(it.users, skipped=it.scale.many // 2) as load:
        pin(subject.pid, LOAD_CORES)
        other = Bench(subject, load, it.scale, it.users)
        other.connect(it.scale.warm // 5, "user:")
        other.load.begin(f"connect {some} {AT_ONCE} {CONNECT_WITHIN} user:")
        _, connecting_beside = it.cost(lambda: it.connect(some, "user:"), settle=True)
        other.load.finish()
        other.load.begin(command)
        _, turning_beside = it.cost(lambda: it.load.command(command))
        other.load.finish()
    yield Figure("beside-connect", connecting_beside / connecting)
    yield Figure("beside-roundtrip", turning_beside / turning)


class Case(NamedTuple):
    """A case.

    Attributes:
        run: measures it.
        rounds: as many at the most.
        peers: whether it is anything to them.
        options: of ``twistd flow``.
        channels: rounds of `channels` at the most: its in-memory layer looks over all that are connected at
            each step, so that a connect takes 9 ms where 10,000 are.
    """

    run: Callable[[Bench], Iterator[Figure]]
    rounds: int = 100
    peers: bool = True
    options: tuple[str, ...] = ()
    channels: int = 100

    def rounds_of(self, server: str, most: int) -> int:
        """Find in how many rounds a server is measured."""
        if server in FLOWTX:
            return min(most, self.rounds)
        return min(most, self.rounds, self.channels if server == "channels" else most) if self.peers else 0


# What a client that lives, or comes back, meets in production.
_GUARDED: Final = ("--handshake-rate=500", "--heartbeat-timeout=60", "--rate-limit=50/100", "--join-rate=10")

CASES: Final = {
    "connect": Case(connect, channels=1),
    "roundtrip": Case(round_trips),
    "broadcast-few": Case(broadcasts_to_few),
    "broadcast-many": Case(broadcasts_to_many, channels=0),
    "idle": Case(idle, rounds=3, channels=0),
    "online": Case(online, peers=False),
    "growth": Case(growth, rounds=3, peers=False),
    "two-nodes": Case(two_nodes, rounds=3, peers=False),
    "restart": Case(restart, rounds=3, peers=False, options=_GUARDED),
    "crash": Case(crash, rounds=3, peers=False, options=_GUARDED),
}
