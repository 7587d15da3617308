"""Presence of three nodes: whatever happens in whatever order, all end with the same, and so do clients.

There is no bus between nodes yet. What one has to keep to, for this to hold, is in `Replicas`: each node's
changes come to another one in their order, maybe again from somewhere before the end; those of different
nodes in any order; and who has noticed that a node has gone takes away what it had of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from flowtx.presence.presence import Presence
from flowtx.presence.tracker import PERIOD, PRESENCE_DIFF, Tracker
from flowtx.protocol.message import Broadcast
from flowtx.pubsub.memory import MemoryPubSub
from tests.presence.client import ModelClient, State

NODES = 3
TOPIC = "users:online"
KEYS = ("alice", "bob")
OWNERS = 2
"""Devices of each user on each node."""

Change = tuple[str, tuple[Any, ...]]

# What a step shrinks to comes first: a list as long as these does not become shorter.
STEPS = (
    ("idle",) + 2 * ("track", "deliver") + ("update", "untrack", "drop", "again", "flush", "crash", "roam")
)

steps = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 255), st.integers(0, 255)), min_size=40, max_size=80
)


class Node:
    """One run of a node; its changes go to its own Tracker at once, and are sent to the others."""

    def __init__(self, send: Callable[[Change], None]) -> None:
        self.clock = Clock()
        self.pubsub = MemoryPubSub()
        self.tracker = Tracker(self.pubsub, clock=self.clock)
        self.presence = Presence(self.tracker, changes=self)
        self.presence.startService()
        self.clients: list[ModelClient] = []
        self.pubsub.subscribe(TOPIC, self)
        self._send = send

    def track(self, *change: Any) -> None:
        self._change("track", change)

    def update(self, *change: Any) -> None:
        self._change("update", change)

    def untrack(self, *change: Any) -> None:
        self._change("untrack", change)

    def _change(self, name: str, change: tuple[Any, ...]) -> None:
        getattr(self.tracker, name)(*change)
        self._send((name, change))

    def deliver(self, broadcast: Broadcast) -> None:
        assert broadcast.event == PRESENCE_DIFF
        for client in self.clients:
            client.receive_diff(msgspec.json.decode(msgspec.json.encode(broadcast.payload)))

    def admit(self, client: ModelClient) -> None:
        client.joined()
        client.receive_state(msgspec.json.decode(self.tracker.shown(TOPIC)))
        self.clients.append(client)

    def flush(self) -> None:
        self.clock.advance(PERIOD)

    @property
    def metas(self) -> dict[str, dict[str, Any]]:
        return by_ref(self.presence.list(TOPIC))


class Link:
    """The way from one node to another."""

    def __init__(self) -> None:
        self.waiting: deque[Change] = deque()
        self.gone: list[Change] = []
        self.known: dict[str, str] = {}
        """Of the sender's metas that the receiver has, the key of each ref."""

    def deliver(self, to: Node) -> None:
        if not self.waiting:
            return
        name, change = self.waiting.popleft()
        self.gone.append((name, change))
        getattr(to.tracker, name)(*change)
        key, ref = change[1:3]
        if name == "track":
            self.known[ref] = key
        elif self.known.pop(ref, None) and name == "update":
            self.known[change[3]] = key

    def again(self, many: int) -> None:
        """What was delivered last comes once more."""
        for _ in range(min(many, len(self.gone))):
            self.waiting.appendleft(self.gone.pop())

    def break_off(self, to: Node) -> None:
        """The sender has gone, and what it sent and nobody got yet with it."""
        for ref, key in self.known.items():
            to.tracker.untrack(TOPIC, key, ref)


class Replicas:
    """Three nodes, the links between them, and the truth."""

    def __init__(self) -> None:
        self.links = {(a, b): Link() for a in range(NODES) for b in range(NODES) if a != b}
        self.nodes = [self.start(number) for number in range(NODES)]
        # The truth: of each node, key and owner, what was tracked last.
        self.here: dict[tuple[int, str, int], dict[str, Any]] = {}
        self.number = 0
        for node in self.nodes:
            node.admit(ModelClient())

    def start(self, number: int) -> Node:
        def send(change: Change) -> None:
            for (sender, _), link in self.links.items():
                if sender == number:
                    link.waiting.append(change)

        return Node(send)

    def do(self, step: str, first: int, second: int) -> None:
        number = first % NODES
        node = self.nodes[number]
        key, owner = KEYS[second % len(KEYS)], second // len(KEYS) % OWNERS
        place = (number, key, owner)
        self.number += 1
        meta = {"n": self.number}
        match step:
            case "track" if place not in self.here:
                node.presence.track(TOPIC, key, meta, owner)
                self.here[place] = meta
            case "update" if place in self.here:
                node.presence.update(TOPIC, key, meta, owner)
                self.here[place] = meta
            case "untrack" if place in self.here:
                node.presence.untrack(TOPIC, key, owner)
                del self.here[place]
            case "drop":
                node.presence.untrack_all(owner)
                self.forget(lambda there: there[0] == number and there[2] == owner)
            case "flush":
                node.flush()
            case "crash":
                self.crash(number)
            case "roam" if node.clients:
                self.nodes[second % NODES].admit(node.clients.pop())
            case "deliver" | "again":
                sender, receiver = list(self.links)[first % len(self.links)]
                link = self.links[sender, receiver]
                if step == "again":
                    link.again(second % 4)
                else:
                    link.deliver(self.nodes[receiver])

    def forget(self, gone: Callable[[tuple[int, str, int]], bool]) -> None:
        self.here = {place: meta for place, meta in self.here.items() if not gone(place)}

    def crash(self, number: int) -> None:
        """A node goes without a word; another run of it begins, and is told what the others have."""
        old = self.nodes[number]
        new = self.nodes[number] = self.start(number)
        self.forget(lambda there: there[0] == number)
        for (sender, receiver), link in list(self.links.items()):
            if sender == number:
                link.break_off(self.nodes[receiver])
                self.links[sender, receiver] = Link()
            elif receiver == number:
                fresh = self.links[sender, receiver] = Link()
                for key in self.nodes[sender].tracker.keys(TOPIC):
                    for meta in self.nodes[sender].presence.get_by_key(TOPIC, key):
                        ref = meta.pop("phx_ref")
                        meta.pop("phx_ref_prev", None)
                        if ref.startswith(self.life_of(sender)):
                            body = msgspec.json.encode(meta)
                            fresh.waiting.append(("track", (TOPIC, key, ref, body)))
        for client in old.clients:
            new.admit(client)

    def life_of(self, number: int) -> str:
        return self.nodes[number].presence._life

    def settle(self) -> None:
        """All that was sent arrives, and all clients are told."""
        for (_, receiver), link in self.links.items():
            while link.waiting:
                link.deliver(self.nodes[receiver])
        for node in self.nodes:
            node.flush()

    def check(self) -> None:
        truth = sorted((key, meta["n"]) for (_, key, _), meta in self.here.items())
        first, *others = (node.metas for node in self.nodes)
        assert sorted((meta["key"], meta["n"]) for meta in first.values()) == truth
        for metas in others:
            assert metas == first
        for node in self.nodes:
            for client in node.clients:
                assert by_ref(client.state) == first


def by_ref(state: State) -> dict[str, dict[str, Any]]:
    """All metas. Which older one they took the place of is another matter on each node."""
    return {
        meta["phx_ref"]: {"key": key, "n": meta["n"]}
        for key, presence in state.items()
        for meta in presence["metas"]
    }


@settings(max_examples=200, deadline=None)
@given(steps)
def test_three_nodes_end_with_the_same(steps: list[tuple[str, int, int]]) -> None:
    replicas = Replicas()
    for step in steps:
        replicas.do(*step)
    replicas.settle()
    replicas.check()
