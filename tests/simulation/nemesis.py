"""What goes wrong in a run, and when: chosen by chance, and counted by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from random import Random
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater

from flowtx.errors import StorageError
from tests.simulation.clients import Device
from tests.simulation.clock import NodeClock, Time
from tests.simulation.database import Database
from tests.simulation.news import News
from tests.simulation.node import Node
from tests.simulation.nodes import Nodes
from tests.simulation.trace import Trace

PLACES: Final = (
    "push.committed",
    "inbox.changed",
    "inbox.backlog",
    "inbox.page",
    "listen.woken",
    "receipts.written",
    "session.user",
    "session.closing",
    "session.ready",
    "channel.join",
    "channel.end",
    "token.verified",
    "history.written",
    "presence.recorded",
    "drain.shut",
)
"""The fault points of flowtx."""


class Crash(Exception):  # noqa: N818
    """What Sessions are crashed with."""


class Nemesis:
    """See the module; it is also the `flowtx.faultpoints.Faults` of the run.

    Attributes:
        counts: how many faults there were, by kind.
        skew: by how many seconds the wall clock of the nodes is wrong.
        database_skew: that of the database.
    """

    def __init__(
        self,
        *,
        time: Time,
        clock: NodeClock,
        chance: Random,
        trace: Trace,
        nodes: Nodes,
        database: Database,
        devices: Sequence[Device],
        news: News,
        push: Callable[[], object],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.skew = self.database_skew = 0.0
        self._time = time
        self._clock = clock
        self._chance = chance
        self._trace = trace
        self._nodes = nodes
        self._database = database
        self._devices = devices
        self._news = news
        self._push = push
        self._probable: dict[str, float] = {}

    def plan(self, count: int, begin: float, end: float) -> None:
        """Choose what goes wrong between two times."""
        chance = self._chance
        self.haunt(chance.randint(0, 8))
        if chance.random() < 0.3:
            self._nodes.lateness = chance.choice((0.005, 0.05, 0.5))
            self.counts["timers late"] += 1
        # A few kinds a run, so that they meet.
        kinds = chance.sample(sorted(KINDS), 4)
        for _ in range(count):
            self._clock.callLater(chance.uniform(begin, end), self.strike, chance.choice(kinds))

    def haunt(self, count: int) -> None:
        """Choose fault points at which something may go wrong from now on."""
        for place in self._chance.sample(PLACES, count):
            self._probable[place] = self._chance.choice((0.05, 0.2, 0.5))

    def strike(self, kind: str) -> None:
        """Have something go wrong now."""
        self._trace.note(f"nemesis {kind}")
        self.counts[kind] += 1
        KINDS[kind](self)

    def relent(self) -> None:
        """Let nothing go wrong at the fault points any more, and timers be in time."""
        self._probable.clear()
        self._nodes.lateness = 0.0

    def heal(self) -> None:
        """Mend what is broken; what may go wrong at the fault points goes on."""
        self._trace.note("nemesis heals")
        self.skew = self.database_skew = 0.0
        self._thaw()
        self._database.come_back()
        for device in self._devices:
            self._heal_route(device)

    # The fault points

    def stall(self, place: str) -> Awaitable[None]:
        running = self._time.running
        if running is None or not self._happens(place):
            return succeed(None)
        chance = self._chance
        if place == "inbox.backlog" and chance.random() < 0.5:
            # Into the gap between backlog and live, if there is one.
            self._clock.callLater(chance.uniform(0.0, 0.1), self._push)
        return deferLater(running, chance.choice((0.0, 0.01, 0.1, 1.0, 2.5)) * chance.random())

    def strikes(self, place: str) -> bool:
        return self._happens(place)

    def _happens(self, place: str) -> bool:
        if place not in PLACES:
            raise AssertionError(f"{place} is not in the list of fault points")
        probability = self._probable.get(place)
        if probability is None or self._chance.random() >= probability:
            return False
        self.counts[f"at {place}"] += 1
        self._trace.note(f"fault at {place}")
        return True

    # Nodes

    def _kill(self) -> None:
        self._nodes.kill(self._chance.choice((0.05, 0.5, 3.0)), with_host=self._chance.random() < 0.3)

    def _drain(self) -> None:
        self._nodes.drain(self._chance.choice((0.0, 0.3)))

    def _roll(self) -> None:
        self._nodes.roll()

    def _freeze(self) -> None:
        for node in self._nodes.alive:
            node.clock.freeze()
            self._clock.callLater(self._chance.uniform(0.2, 8.0), node.clock.thaw)

    def _thaw(self) -> None:
        for node in self._nodes.alive:
            node.clock.thaw()

    def _clock_step(self) -> None:
        self.skew = self._chance.choice((-3600.0, -30.0, 30.0, 3600.0, 86_400.0))
        self._clock.callLater(self._chance.uniform(0.5, 6.0), self._step_back)

    def _step_back(self) -> None:
        self.skew = 0.0

    def _database_clock_step(self) -> None:
        self.database_skew = self._chance.choice((-3600.0, -30.0, 30.0, 3600.0))
        self._clock.callLater(self._chance.uniform(0.5, 6.0), self._database_step_back)

    def _database_step_back(self) -> None:
        self.database_skew = 0.0

    # The database

    def _database_down(self) -> None:
        self._database.go_down()
        self._clock.callLater(self._chance.uniform(0.2, 6.0), self._database.come_back)

    def _database_hangs(self) -> None:
        self._database.hang()
        self._clock.callLater(self._chance.uniform(0.5, 8.0), self._database.come_back)

    def _database_cut(self) -> None:
        self._database.cut()

    def _database_slow(self) -> None:
        self._database.slowness = self._chance.choice((0.05, 0.5, 2.0))
        self._clock.callLater(self._chance.uniform(1.0, 6.0), self._database.come_back)

    def _inbox_locked(self) -> None:
        user, locked = self._user(), self._database.inboxes.locked
        locked.add(user)
        self._clock.callLater(self._chance.uniform(0.1, 3.0), locked.discard, user)

    def _notify_lost(self) -> None:
        self._database.deafness = self._chance.choice((0.5, 1.0))
        self._clock.callLater(self._chance.uniform(2.0, 10.0), self._database.come_back)

    def _user_unknown(self) -> None:
        known = self._database.users.users
        user = known.pop(self._user(), None)
        if user is not None:
            self._clock.callLater(self._chance.uniform(0.5, 8.0), known.setdefault, user.id, user)

    # The network

    def _link_cut(self) -> None:
        device = self._chance.choice(self._devices)
        for connection in tuple(device.route.connections):
            pipe = self._chance.choice((connection.up, connection.down))
            pipe.cut_after = int(self._chance.expovariate(1 / 400))

    def _black_hole(self) -> None:
        device = self._chance.choice(self._devices)
        device.route.block(*self._chance.choice((("up",), ("down",), ("up", "down"))))
        self._clock.callLater(self._chance.uniform(0.5, 16.0), device.route.open)

    def _link_slow(self) -> None:
        device = self._chance.choice(self._devices)
        device.route.latency = self._chance.choice((0.1, 0.5, 2.0))
        self._clock.callLater(self._chance.uniform(1.0, 8.0), self._heal_route, device)

    def _reads_nothing(self) -> None:
        device = self._chance.choice(self._devices)
        transport = device.transport
        if transport is not None:
            transport.set_slow(True)
            device.route.window = 2_000
            self._clock.callLater(self._chance.uniform(1.0, 15.0), transport.set_slow, False)
            self._on_node(lambda node: self._news.publish(node, device.user, 20, None))

    @staticmethod
    def _heal_route(device: Device) -> None:
        device.route.latency = 0.01
        device.route.open()
        if device.transport is not None:
            device.transport.set_slow(False)

    # What operators and applications do

    def _user(self) -> str:
        return self._chance.choice(self._devices).user

    def _session_crash(self) -> None:
        user = self._user()

        async def crash() -> None:
            raise Crash

        def spawn(node: Node) -> None:
            session = node.sessions.get_session(user)
            if session is not None:
                session.spawn(crash())

        self._on_node(spawn)

    def _session_stop(self) -> None:
        user = self._user()
        self._on_node(lambda node: _asked(node.sessions.stop_session(user)))

    def _revocation(self) -> None:
        user = self._user()
        # By a clock that is ahead it would hit the tokens of all that time.
        if not self.database_skew:
            self._on_node(lambda node: _asked(node.sessions.revoke(user_id=user)))

    def _disconnect(self) -> None:
        topic = f"users_socket:{self._user()}"
        self._on_node(lambda node: node.pubsub.broadcast(topic, "disconnect", {}))

    def _reload(self) -> None:
        for device in self._devices:
            self._clock.callLater(self._chance.uniform(0.0, 0.5), device.do, "reload")

    def _on_node(self, call: Callable[[Node], object]) -> None:
        node = self._nodes.current
        if node is not None and node.state == "up":
            node.clock.callLater(0, call, node)


def _asked(question: Coroutine[Any, Any, object]) -> None:
    """Ask for something, and take it as it comes where the database cannot be asked."""
    Deferred.fromCoroutine(question).addErrback(lambda failure: failure.trap(StorageError))


KINDS: Final[dict[str, Callable[[Nemesis], None]]] = {
    "kill": Nemesis._kill,
    "drain": Nemesis._drain,
    "roll": Nemesis._roll,
    "freeze": Nemesis._freeze,
    "database down": Nemesis._database_down,
    "database hangs": Nemesis._database_hangs,
    "database cut": Nemesis._database_cut,
    "database slow": Nemesis._database_slow,
    "inbox locked": Nemesis._inbox_locked,
    "notify lost": Nemesis._notify_lost,
    "link cut": Nemesis._link_cut,
    "black hole": Nemesis._black_hole,
    "link slow": Nemesis._link_slow,
    "reads nothing": Nemesis._reads_nothing,
    "clock step": Nemesis._clock_step,
    "database clock step": Nemesis._database_clock_step,
    "user unknown": Nemesis._user_unknown,
    "session crash": Nemesis._session_crash,
    "session stop": Nemesis._session_stop,
    "revocation": Nemesis._revocation,
    "disconnect": Nemesis._disconnect,
    "reload": Nemesis._reload,
}
"""What can go wrong, by name."""
