"""What a Session costs, and whether that grows with their number: run ``python benchmarks/sessions.py``.

In one process, without network and database: a directory and transports in memory, under a reactor's
own timers. One world each with 1,000, 10,000 and 50,000 Sessions, every one with a connection that has
joined a topic. In each round a few hundred operations are timed in each world in turn, so that what
disturbs the machine disturbs all of them; the table shows the medians of the rounds.

start    claim the Session of a user who has none, until it is ready
find     look up the Session of a user by id
touch    a message of a client on its topic, counted as activity and answered
stop     stop the Session of a user who is away, until its name is free

The users of one round are spread evenly over the world and are asked for again in each pass of it, so
that the table tells what the structures cost, not how large the processor's caches are.

The memory of a Session is what tracemalloc finds held per Session, after 10,000 were started: the
Session, its timer, its id, its entry in the registry, its subscription to ``disconnect``, and the claim
that keeps it alive. The user's record and the token are the caller's and do not count; nor do connections.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from twisted.internet.defer import Deferred
from twisted.internet.selectreactor import SelectReactor

from flowtx.channels.channel import Channel, Reply, ok
from flowtx.channels.router import Router
from flowtx.channels.socket import Socket
from flowtx.interfaces import Principal, User
from flowtx.protocol.serializer import V2Serializer
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.sessions.machine import State
from flowtx.sessions.service import Claim, SessionService
from flowtx.storage.memory import MemoryUserDirectory
from flowtx.testing.memory import MemoryTransport

SIZES = (1_000, 10_000, 50_000)
ROUNDS = 15
SAMPLE = 200
PASSES = 20
"""How often ``find`` goes over the sample, as one look-up is too short to be timed."""

MAX_RATIO = 1.3
MAX_START = 1_000.0
MAX_BYTES = 2_048

NAMES = ("start", "find", "touch", "stop")
MESSAGE = '["1","2","room:1","ping",{}]'


class Answering(Channel):
    """Answers whatever comes."""

    def handle_in(self, event: str, payload: object) -> Reply:  # noqa: ARG002
        return ok()


class Directory(MemoryUserDirectory):
    """Knows everybody, and looks only at who is asked for."""

    async def load(self, principals: Sequence[Principal]) -> dict[str, User]:
        return {principal.user_id: self.users[principal.user_id] for principal in principals}


class World:
    """A node with many Sessions."""

    def __init__(self) -> None:
        # Never run: it keeps timers as a running one does, and `settle` is what a turn of it does.
        self.reactor = SelectReactor()
        self.pubsub = MemoryPubSub()
        self.directory = Directory()
        self.sessions = SessionService(
            self.directory, pubsub=self.pubsub, clock=self.reactor, max_sessions=1_000_000
        )
        self.sessions.startService()
        self.router = Router().channel("room:*", Answering)
        self.clients: list[tuple[str, MemoryTransport]] = []
        self._numbers = count()

    def settle(self) -> None:
        self.reactor.runUntilCurrent()

    def new_users(self, number: int) -> list[Principal]:
        """Make users whom the directory knows."""
        names = [f"user-{next(self._numbers)}" for _ in range(number)]
        for name in names:
            self.directory.users[name] = User(name, "A User", None)
        return [Principal(name, expires_at=4e9) for name in names]

    def start(self, principals: Sequence[Principal]) -> list[Claim]:
        claims: list[Claim] = []
        for principal in principals:
            Deferred.fromCoroutine(self.sessions.claim(principal)).addCallback(claims.append)
        assert len(claims) == len(principals)
        return claims

    def stop(self, principals: Sequence[Principal]) -> None:
        stopped: list[bool] = []
        for principal in principals:
            stopping = Deferred.fromCoroutine(self.sessions.stop_session(principal.user_id))
            stopping.addCallback(stopped.append)
        assert all(stopped), "there was no such Session"

    def fill(self, number: int) -> None:
        """Start Sessions, each with a connection that has joined."""
        for claim in self.start(self.new_users(number)):
            client = self.connect(claim)
            client.text('["1","1","room:1","phx_join",{}]')
            assert len(client.take()) == 1
            self.clients.append((claim.session.user_id, client))
        self.settle()

    def connect(self, claim: Claim) -> MemoryTransport:
        """Open a connection of a Session."""
        transport = MemoryTransport()
        transport.socket = Socket(
            transport,
            V2Serializer(),
            Principal(claim.session.user_id, expires_at=4e9),
            router=self.router,
            pubsub=self.pubsub,
            clock=self.reactor,
            max_topics=100,
            heartbeat_timeout=3_600,
        )
        claim.attach(transport.socket)
        return transport

    # What is timed; each gives microseconds per operation

    def round(self) -> dict[str, float]:
        arriving = self.new_users(SAMPLE)
        step = len(self.clients) // SAMPLE
        sample = self.clients[::step][:SAMPLE]
        names = [name for name, _ in sample]
        figures = {}
        gc.collect()
        claims: list[Claim] = []
        figures["start"] = _time(SAMPLE, lambda: claims.extend(self.start(arriving)), self.settle)
        self._find(names)
        figures["find"] = _time(SAMPLE * PASSES, lambda: self._find(names))
        self._touch(sample)
        figures["touch"] = _time(SAMPLE, lambda: self._touch(sample))
        for _, client in sample:
            assert len(client.take()) == 2
        for claim in claims:
            self.connect(claim).lose()
            claim.release()
        assert all(claim.session.state is State.AWAY for claim in claims)
        figures["stop"] = _time(SAMPLE, lambda: self.stop(arriving), self.settle)
        return figures

    def _find(self, names: Sequence[str]) -> None:
        find = self.sessions.get_session
        for _ in range(PASSES):
            for name in names:
                find(name)

    @staticmethod
    def _touch(sample: Sequence[tuple[str, MemoryTransport]]) -> None:
        for _, client in sample:
            client.text(MESSAGE)


def _time(operations: int, *calls: Callable[[], None]) -> float:
    began = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - began) / operations * 1e6


def measure(sizes: Sequence[int] = SIZES, rounds: int = ROUNDS) -> dict[int, dict[str, float]]:
    """Find the median cost of each operation, in microseconds, by the number of Sessions."""
    worlds = {size: World() for size in sizes}
    for size, world in worlds.items():
        world.fill(size)
    results: dict[int, dict[str, list[float]]] = {size: {name: [] for name in NAMES} for size in sizes}
    for number in range(rounds + 1):
        for size, world in worlds.items():
            for name, figure in world.round().items():
                if number:  # the first one warms up
                    results[size][name].append(figure)
    return {
        size: {name: median(figures) for name, figures in result.items()} for size, result in results.items()
    }


def memory(number: int = 10_000) -> float:
    """Find the bytes that a Session without connections holds."""
    world = World()
    for claim in world.start(world.new_users(100)):  # what is made once
        claim.release()
    principals = world.new_users(number)
    world.settle()
    gc.collect()
    tracemalloc.start()
    claims = world.start(principals)
    world.settle()
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(list(world.sessions)) == number
    assert all(claim.session.state is State.READY for claim in claims)
    return held / number


def main() -> int:
    """Print the table; 1 where a bound is not kept."""
    held = memory()
    table = measure()
    print(f"{'µs each':8}" + "".join(f"{size:>12,}" for size in SIZES) + f"{'50,000/1,000':>15}")
    kept = held <= MAX_BYTES
    for name in NAMES:
        costs = [table[size][name] for size in SIZES]
        ratio = costs[-1] / costs[0]
        kept = kept and ratio <= MAX_RATIO
        print(f"{name:8}" + "".join(f"{cost:12.3f}" for cost in costs) + f"{ratio:15.2f}")
    kept = kept and max(table[size]["start"] for size in SIZES) < MAX_START
    print(f"memory of a Session alone: {held:,.0f} bytes")
    print(f"bounds (ratio {MAX_RATIO}, start {MAX_START:,.0f} µs, {MAX_BYTES:,} bytes): ", end="")
    print("kept" if kept else "NOT kept")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
