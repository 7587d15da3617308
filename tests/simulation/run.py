"""One run: a scenario that a seed chooses, and what came of it.

::

    0 s            2 s                  18 s            at rest             all gone
    node, clients  ├── faults, pushes ──┤ heal ─► judge ─────► clients leave ──────► node stops ─► judge
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Final

from twisted.logger import ILogObserver, LogEvent
from zope.interface import implementer

from flowtx.auth import mint
from flowtx.settings import Settings
from flowtx.transports.factory import TOKEN_GRACE
from tests.simulation.clients import Device
from tests.simulation.clock import NodeClock, Time
from tests.simulation.database import Database
from tests.simulation.invariants import LATE, Invariants
from tests.simulation.nemesis import Crash, Nemesis
from tests.simulation.network import Network
from tests.simulation.news import News
from tests.simulation.node import ALGORITHM, SECRET
from tests.simulation.nodes import Nodes
from tests.simulation.sources import bygone, faults_at, logged_to, replaced, seeded
from tests.simulation.trace import Trace
from tests.simulation.writers import Writers

EPOCH: Final = 1_767_225_600.0
"""The wall clock at the beginning: the first of January 2026."""
BEGIN: Final = 2.0
HEAL: Final = 18.0
REST_WITHIN: Final = 90.0
"""Seconds after the last fault in which all must have come to rest."""
GONE_WITHIN: Final = 35.0
STOP_WITHIN: Final = 40.0
USES: Final = ("status", "status", "read", "list", "reload", "rejoin", "broadcast", "broadcast")
"""What users and applications do; see `Device.do`."""


@dataclass
class Report:
    """What came of a run.

    Attributes:
        seed: which it was.
        digest: the hash of all that happened.
        broken: the invariants that did not hold.
        faults: how many there were, by kind.
        seconds: how much time passed in it.
        steps: how many things happened.
    """

    seed: int
    digest: str
    broken: list[str]
    faults: Mapping[str, int]
    seconds: float
    steps: int
    counts: Counter[str] = field(default_factory=Counter)


@implementer(ILogObserver)
class Log:
    """Keeps what is logged as a failure, which only the crashes are that were wanted."""

    def __init__(self, trace: Trace) -> None:
        self.failures: list[str] = []
        self._trace = trace

    def __call__(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        if failure is not None and not isinstance(failure.value, Crash):
            said = f"logged: {event.get('log_format')}: {failure.value!r}"
            self._trace.note(said)
            self.failures.append(said + "\n" + failure.getTraceback())
        elif event["log_level"].name in ("error", "critical") and failure is None:
            self.failures.append(f"logged: {event.get('log_format')}")


def run(seed: int, tell: Callable[[str], object] | None = None) -> Report:
    """Run a seed.

    Args:
        seed: which.
        tell: is given all that happens, line by line.
    """
    return next(run_all([seed], tell))


def run_all(seeds: Iterable[int], tell: Callable[[str], object] | None = None) -> Iterator[Report]:
    """Run seeds, one after the other; see `run`."""
    collecting = gc.isenabled()
    # When something is collected would be chance; what was there before has no part in it.
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        for seed in seeds:
            report = Run(seed, tell).report()
            with bygone():
                gc.collect()
            yield report
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()


class Run:
    """See the module."""

    def __init__(self, seed: int, tell: Callable[[str], object] | None = None) -> None:
        self.seed = seed
        self.chance = chance = Random(seed)
        self.time = Time(chance)
        self.trace = Trace(lambda: self.time.now, tell)
        self.log = Log(self.trace)
        self.outside = NodeClock(self.time)
        self.users = [f"user{number}" for number in range(chance.randint(1, 3))]
        self.network = Network(self.outside, chance, self.trace)
        self.database = Database(self.outside, chance, self.trace, users=self.users, wall=self.database_wall)
        self.settings = Settings(
            reconnect_window=chance.choice((0.0, 2.0, 6.0)),
            idle_timeout=chance.choice((10.0, 1_800.0, 1_800.0)),
            heartbeat_timeout=12.0,
            ping_interval=chance.choice((0.0, 5.0, 5.0)),
            pong_timeout=3.0,
            outbox_limit=16_384,
            outbox_max_age=6.0,
            max_devices=chance.choice((2, 20, 20)),
            users_query="claims",
        )
        self.ttl = chance.choice((3.0, 600.0, 600.0))
        self.nodes = Nodes(
            self.settings,
            time=self.time,
            outside=self.outside,
            chance=chance,
            network=self.network,
            database=self.database,
            wall=self.skewed_wall,
            trace=self.trace,
        )
        self.devices = [
            device for user in self.users for device in self._devices_of(user, chance.choice((1, 1, 2)))
        ]
        self.writers = Writers(
            self.users,
            clock=self.outside,
            chance=chance,
            database=self.database,
            node=lambda: self.nodes.current,
        )
        self.news = News()
        self.nemesis = Nemesis(
            time=self.time,
            clock=self.outside,
            chance=chance,
            trace=self.trace,
            nodes=self.nodes,
            database=self.database,
            devices=self.devices,
            news=self.news,
            push=self.writers.push,
        )
        self.invariants = Invariants(
            nodes=self.nodes,
            database=self.database,
            devices=self.devices,
            writers=self.writers,
            right_time=lambda: None if self.nemesis.counts["clock step"] else self.wall(),
        )

    def wall(self) -> float:
        """The time of day."""
        return EPOCH + self.time.now

    def skewed_wall(self) -> float:
        """The time of day that the nodes have."""
        return EPOCH + self.time.now + self.nemesis.skew

    def database_wall(self) -> float:
        """The time of day that the database has."""
        return EPOCH + self.time.now + self.nemesis.database_skew

    def _devices_of(self, user: str, count: int) -> list[Device]:
        devices = []
        for number in range(count):
            device = Device(
                f"{user}-{number}",
                user,
                network=self.network,
                clock=self.outside,
                chance=self.chance,
                token=self._token,
                forgetful=self.chance.random() < 0.2,
            )
            device.route.shredding = self.chance.choice((0.0, 0.05, 0.5))
            device.route.window = self.chance.choice((2_000, 20_000, 65_536))
            device.route.buffer_size = self.chance.choice((500, 65_536))
            devices.append(device)
        return devices

    def _token(self, user: str) -> tuple[str, float]:
        claims = {"jti": f"{self.chance.getrandbits(64):x}"}
        return mint(SECRET, ALGORITHM, user, ttl=self.ttl, now=self.wall(), claims=claims), self.ttl

    # What happens

    def report(self) -> Report:
        """Do it."""
        sources = seeded(self.chance, self.skewed_wall)
        with ExitStack() as stack:
            stack.enter_context(logged_to(self.log))
            stack.enter_context(replaced(sources))
            stack.enter_context(faults_at(self.nemesis))
            self._happen()
            digest = self._digest()
            self._forget()
        broken = self.invariants.broken + self.log.failures
        return Report(self.seed, digest, broken, self.nemesis.counts, self.time.now, self.time.steps)

    def _digest(self) -> str:
        self.trace.note(f"{self.time.steps} steps, {self.chance.random()}")
        return self.trace.digest

    def _happen(self) -> None:
        chance, outside = self.chance, self.outside
        self.nodes.start()
        for device in self.devices:
            outside.callLater(chance.uniform(0.0, 3.0), device.start)
        outside.callLater(1.0, self.writers.start, chance.choice((0.15, 0.5, 1.0)))
        outside.callLater(1.0, self._use, chance.choice((0.3, 1.0, 3.0)))
        self.nemesis.plan(chance.randint(4, 10), BEGIN, HEAL - 1.0)
        # The last push may come when nothing else happens, or when all is in pieces.
        outside.callLater(chance.choice((HEAL, HEAL, 14.0)), self.writers.stop)
        self._pass(HEAL)
        self.nemesis.heal()
        finish = chance.choice((None, "notify lost", "kill", "drain", "roll", "database cut", "reload"))
        if finish is not None:
            self._finish(finish)
        if not self._pass_until(REST_WITHIN, self.invariants.unrest, "not at rest"):
            self.invariants.gather()
            return
        self.invariants.judge()
        if self.ttl < TOKEN_GRACE:
            self._pass(self.time.now + self.ttl + TOKEN_GRACE + LATE + 2.0)
        self._leave()
        self.invariants.gather()

    def _finish(self, kind: str) -> None:
        """Have a last fault, and a last push to each user meanwhile; no wake-up follows that."""
        self.nemesis.haunt(4)
        self.database.slowness = self.chance.choice((0.0, 0.05, 0.5))
        self.outside.callLater(8.0, self.database.come_back)
        self.nemesis.strike(kind)
        for user in self.users:
            self.outside.callLater(self.chance.uniform(0.0, 1.0), self.writers.push, [user])
        self._pass(self.time.now + 2.0)

    def _pass(self, until: float) -> None:
        while self.time.now < until:
            self.outside.advance(1.0)
            self.invariants.watch()

    def _pass_until(self, seconds: float, what: Callable[[], str], name: str) -> bool:
        until = self.time.now + seconds
        while (problem := what()) and self.time.now < until:
            self.outside.advance(1.0)
            self.invariants.watch()
        if problem:
            self.invariants.broken.append(f"{name} within {seconds:g} s: {problem}")
        return not problem

    def _use(self, every: float) -> None:
        """Do now and then what users and applications do."""
        if self.writers.stopped:
            return
        chance = self.chance
        self.outside.callLater(chance.expovariate(1 / every), self._use, every)
        what = "burst" if chance.random() < 0.04 else chance.choice(USES)
        if what != "broadcast":
            chance.choice(self.devices).do(what)
            return
        node, user = self.nodes.current, chance.choice(self.users)
        if node is not None and node.state == "up":
            count, key = chance.choice((1, 20)), chance.choice((None, "a", "b"))
            node.clock.callLater(0, self.news.publish, node, user, count, key)

    def _leave(self) -> None:
        """Have all clients go, and stop the node."""
        self.nemesis.relent()
        for device in self.devices:
            self.outside.callLater(
                self.chance.random(), device.stop, self.chance.choice(("close", "drop", "vanish"))
            )
        self._pass(self.time.now + 1.0)
        if not self._pass_until(GONE_WITHIN, self.invariants.remains, "left behind"):
            return
        node = self.nodes.current
        assert node is not None
        self.nodes.end()
        if self._pass_until(STOP_WITHIN, lambda: "" if node.state == "gone" else node.state, "not stopped"):
            self.invariants.judge_end(node)

    def _forget(self) -> None:
        """See what still exists of the last node once nobody has a hold of it."""
        node = self.nodes.past[-1] if self.nodes.past else None
        if self.invariants.broken or node is None:
            return
        gc.collect()
        self.invariants.judge_memory(node)
