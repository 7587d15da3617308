"""Broadcasts within one process: of a node that is alone, and of several that a test wants."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from zope.interface import implementer

from flowtx.bursts import Bursts
from flowtx.interfaces import IPubSubAdapter
from flowtx.pubsub.pubsub import Publication, PubSub


class MemoryPubSub(PubSub):
    """The broadcasts of a node that is alone."""

    def __init__(self, node: str = "local", bursts: Bursts | None = None) -> None:
        super().__init__(node, bursts=bursts)


class MemoryBus:
    """Joins several nodes in one process::

        bus = MemoryBus()
        here, there = (PubSub(name, MemoryAdapter(bus)) for name in ("here", "there"))
        here.broadcast("room:1", "new", {})
        bus.settle()

    What a node sends waits until `settle`, as it is under way for a while between real nodes.
    """

    def __init__(self) -> None:
        self._receivers: dict[str, Callable[[Publication], object]] = {}
        self._waiting: deque[tuple[str, Publication, str | None]] = deque()

    def open(self, node: str, receive: Callable[[Publication], object]) -> None:
        """Have ``receive`` called with what the other nodes send."""
        self._receivers[node] = receive

    def send(self, sender: str, publication: Publication, node: str | None) -> None:
        """Queue what ``sender`` has for all others, or for one."""
        self._waiting.append((sender, publication, node))

    def settle(self) -> None:
        """Deliver what waits, and what comes of that."""
        while self._waiting:
            sender, publication, node = self._waiting.popleft()
            for name, receive in self._receivers.items():
                if name != sender and node in (None, name):
                    receive(publication)


@implementer(IPubSubAdapter)
class MemoryAdapter:
    """One node's end of a `MemoryBus`."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self._node = ""

    def open(self, node: str, receive: Callable[[Publication], object]) -> None:
        self._node = node
        self._bus.open(node, receive)

    def send(self, publication: Publication, node: str | None = None) -> None:
        self._bus.send(self._node, publication, node)
