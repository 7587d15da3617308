"""Who runs the nodes: one after the other, as a supervisor does that restarts what has ended."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from twisted.python.failure import Failure

from flowtx.errors import StartupError, StorageError
from flowtx.settings import Settings
from tests.simulation.clock import NodeClock, Time
from tests.simulation.database import Database
from tests.simulation.network import Network
from tests.simulation.node import Node
from tests.simulation.trace import Trace

AGAIN_AFTER = 0.5
"""Seconds after which a start that failed is tried again."""


class Nodes:
    """See the module.

    Attributes:
        current: the node that there is, in any state but ``gone``; or None.
        leaving: one that is being drained while the current one has taken its place.
        past: those that have ended.
        faults: what went wrong that must not.
        lateness: by up to how many seconds timers of a node are late.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        time: Time,
        outside: NodeClock,
        chance: Random,
        network: Network,
        database: Database,
        wall: Callable[[], float],
        trace: Trace,
    ) -> None:
        self.current: Node | None = None
        self.leaving: Node | None = None
        self.past: list[Node] = []
        self.faults: list[str] = []
        self.lateness = 0.0
        self._settings = settings
        self._time = time
        self._outside = outside
        self._chance = chance
        self._network = network
        self._database = database
        self._wall = wall
        self._trace = trace
        self._number = 0
        self._wanted = True

    def _late(self) -> float:
        return self._chance.random() * self.lateness if self.lateness else 0.0

    def start(self) -> None:
        """Start a node, where there is none."""
        if self.current is not None or not self._wanted:
            return
        self._number += 1
        node = self.current = Node(
            self._number,
            self._settings,
            time=self._time,
            chance=self._chance,
            late=self._late,
            network=self._network,
            database=self._database,
            wall=self._wall,
        )
        self._trace.note(f"node {node.number} starts")
        node.start().addErrback(self._not_started, node)

    def _not_started(self, failure: Failure, node: Node) -> None:
        if not failure.check(StartupError, StorageError):
            self.faults.append(f"node {node.number} did not start: {failure.value!r}")
        self._bury(node, AGAIN_AFTER)

    def kill(self, again_after: float, *, with_host: bool) -> None:
        """Kill the node; it starts again after some seconds."""
        node = self.current
        if node is not None:
            node.kill(with_host=with_host)
            self._bury(node, again_after)

    def drain(self, again_after: float) -> None:
        """Stop the node in an orderly way; it starts again so many seconds after it has stopped."""
        node = self.current
        if node is not None and node.state == "up":
            node.stop().addCallback(lambda _: self._bury(node, again_after))

    def roll(self) -> None:
        """Stop the node, and start another one that takes its place meanwhile."""
        node = self.current
        if node is not None and node.state == "up" and self.leaving is None:
            self.leaving, self.current = node, None
            node.stop().addCallback(lambda _: self._left(node))
            self.start()

    def _left(self, node: Node) -> None:
        self._trace.note(f"node {node.number} has left")
        self.past.append(node)
        self.leaving = None

    @property
    def alive(self) -> list[Node]:
        """Those that there are."""
        return [node for node in (self.leaving, self.current) if node is not None]

    def end(self) -> None:
        """Stop the node for good."""
        self._wanted = False
        self.drain(0.0)

    def _bury(self, node: Node, again_after: float) -> None:
        self._trace.note(f"node {node.number} is gone")
        self.past.append(node)
        self.current = None
        self._outside.callLater(again_after, self.start)
