"""The PubSub of a node that is alone, and of several in one process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flowtx.protocol import serializer
from flowtx.protocol.message import Broadcast
from flowtx.protocol.serializer import Serializer, V1Serializer, V2Serializer
from flowtx.pubsub.memory import MemoryAdapter, MemoryBus, MemoryPubSub
from flowtx.pubsub.pubsub import Publication, PubSub
from tests.pubsub.pubsub_contract import (
    ALONE,
    BETWEEN,
    Check,
    Ear,
    Nodes,
    failing,
    one_that_raises_keeps_nobody_else_from_theirs,
)


class Alone:
    """A node that needs no adapter."""

    async def open(self, *names: str) -> Sequence[PubSub]:
        return [MemoryPubSub(name) for name in names]

    async def settle(self) -> None:
        pass


class OnBus:
    """Nodes on a `MemoryBus`."""

    def __init__(self) -> None:
        self.bus = MemoryBus()

    async def open(self, *names: str) -> Sequence[PubSub]:
        return [PubSub(name, MemoryAdapter(self.bus)) for name in names]

    async def settle(self) -> None:
        self.bus.settle()


class ContractTests(SynchronousTestCase):
    """A test for each check, alone and on the bus."""

    def run_check(self, nodes: Nodes, check: Check) -> None:
        self.successResultOf(Deferred.fromCoroutine(check(nodes)))  # type: ignore[arg-type]

    def test_those_who_raise_on_any_node_keep_nobody_from_theirs(self) -> None:
        self.run_check(OnBus(), one_that_raises_keeps_nobody_else_from_theirs)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 4)


def _test(nodes: type[Nodes], check: Check) -> object:
    return lambda self: self.run_check(nodes(), check)


for _check in ALONE:
    setattr(ContractTests, f"test_alone_{_check.__name__}", _test(Alone, _check))
for _check in ALONE + BETWEEN:
    setattr(ContractTests, f"test_on_bus_{_check.__name__}", _test(OnBus, _check))


class Receiver:
    """Encodes what it hears, as a channel does."""

    def __init__(self, spoken: Serializer, join_ref: bytes) -> None:
        self.serializer = spoken
        self.join_ref = join_ref
        self.frames: list[bytes] = []

    def deliver(self, broadcast: Broadcast) -> None:
        self.frames.append(self.serializer.broadcast(self.join_ref, broadcast).payload)


class PubSubTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.pubsub = MemoryPubSub()

    def test_subscribers_hear_in_the_order_in_which_they_came(self) -> None:
        log: list[str] = []
        ears = {name: Ear((self.pubsub, "t")) for name in "dbca"}
        for name, ear in ears.items():
            ear.then = partial(log.append, name)
        self.pubsub.unsubscribe("t", ears["b"])
        self.pubsub.subscribe("t", ears["b"])
        self.pubsub.broadcast("t", "new", {})
        self.assertEqual(log, ["d", "c", "a", "b"])

    def test_a_topic_without_subscribers_takes_no_room(self) -> None:
        ear = Ear((self.pubsub, "t"))
        self.pubsub.unsubscribe("t", ear)
        self.pubsub.unsubscribe("other", ear)
        self.pubsub.broadcast("third", "new", {})
        self.assertEqual(self.pubsub._topics, {})

    def test_those_who_raise_are_logged_once_a_broadcast(self) -> None:
        for _ in range(5):
            Ear((self.pubsub, "t"), then=failing)
        self.assertEqual(self.pubsub.broadcast("t", "new", {}), 0)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def count_encodings(self, payload: object) -> list[object]:
        """Note each time that ``payload`` itself is encoded from now on."""
        found = []
        encode = serializer._json

        def counted(value: object) -> bytes:
            if value is payload:
                found.append(value)
            return encode(value)

        self.patch(serializer, "_json", counted)
        return found

    def test_a_payload_is_encoded_once_for_each_version(self) -> None:
        versions = (V1Serializer(), V2Serializer())
        receivers = [Receiver(versions[number % 2], b'"%d"' % number) for number in range(100)]
        for receiver in receivers:
            self.pubsub.subscribe("t", receiver)
        payload = {"text": "x" * 1_000}
        encoded = self.count_encodings(payload)
        self.assertEqual(self.pubsub.broadcast("t", "new", payload), 100)
        self.assertEqual(len(encoded), 2)
        self.assertEqual(len({id(receiver.frames[0]) for receiver in receivers[::2]}), 1)
        tail = b',null,"t","new",{"text":"%b"}]' % (b"x" * 1_000)
        self.assertEqual(
            [r.frames for r in receivers[1::2]], [[b"[" + r.join_ref + tail] for r in receivers[1::2]]
        )

    def test_for_many_topics_it_is_not_encoded_again(self) -> None:
        receivers = [Receiver(V2Serializer(), b'"1"') for _ in range(100)]
        for number, receiver in enumerate(receivers):
            self.pubsub.subscribe(f"user:{number}", receiver)
        payload = {"n": 1}
        encoded = self.count_encodings(payload)
        self.assertEqual(self.pubsub.broadcast_matching("user:*", "new", payload), 100)
        self.assertEqual(self.pubsub.broadcast_many(["user:7", "user:9"], "new", payload), 2)
        self.assertEqual(encoded, [])
        self.assertEqual(receivers[7].frames, [b'["1",null,"user:7","new",{"n":1}]'] * 2)

    def test_programs_get_the_value_of_what_goes_to_many(self) -> None:
        ear = Ear((self.pubsub, "t"))
        payload = {"n": 1}
        self.pubsub.broadcast_many(["t"], "new", payload)
        self.assertIs(ear.heard[0].payload, payload)

    def test_garbage_from_other_nodes_is_dropped(self) -> None:
        bus = MemoryBus()
        pubsub = PubSub("here", MemoryAdapter(bus))
        ear = Ear((pubsub, "t"))
        for publication in (
            Publication(("t",), "e", b""),
            Publication(("t",), "e", b"\xff"),
            Publication(("t",), "e", b"[1]"),
            Publication(("t",), "e", b"[" * 100_000),
            Publication(("t",), "\ud800", b"{}"),
            Publication(("a*b",), "e", b"{}", matching=True),
            Publication((), "e", b"{}", matching=True),
        ):
            bus.send("there", publication, None)
        bus.send("there", Publication(("t",), "good", b"{}"), None)
        bus.settle()
        self.assertEqual(ear.events, ["good"])


_TOPICS = ("a:1", "a:2", "b:1")
_PLACES = st.tuples(st.integers(0, 2), st.sampled_from(_TOPICS), st.integers(0, 2))
_STEPS = st.one_of(
    st.tuples(st.just("subscribe"), _PLACES),
    st.tuples(st.just("unsubscribe"), _PLACES),
    st.tuples(st.just("broadcast"), st.integers(0, 2), st.sampled_from(_TOPICS)),
    st.tuples(st.just("from"), _PLACES),
    st.tuples(st.just("direct"), st.integers(0, 2), st.integers(0, 2), st.sampled_from(_TOPICS)),
    st.tuples(st.just("matching"), st.integers(0, 2)),
)


@given(st.lists(_STEPS, min_size=20, max_size=60))
def test_any_history_agrees_with_a_plain_model(steps: list[Any]) -> None:
    bus = MemoryBus()
    nodes = [PubSub(str(number), MemoryAdapter(bus)) for number in range(3)]
    ears = {(node, number): Ear() for node in range(3) for number in range(3)}
    subscribed: set[tuple[int, str, int]] = set()
    expected: dict[tuple[int, int], list[tuple[str, str]]] = {key: [] for key in ears}

    for count, (step, *arguments) in enumerate(steps):
        event = str(count)
        to: set[tuple[int, str, int]] = set()
        match step, arguments:
            case "subscribe", [(node, topic, number)]:
                nodes[node].subscribe(topic, ears[node, number])
                subscribed.add((node, topic, number))
            case "unsubscribe", [(node, topic, number)]:
                nodes[node].unsubscribe(topic, ears[node, number])
                subscribed.discard((node, topic, number))
            case "broadcast", [sender, topic]:
                to = {place for place in subscribed if place[1] == topic}
                counted = nodes[sender].broadcast(topic, event, {})
                assert counted == sum(place[0] == sender for place in to)
            case "from", [(node, topic, number)]:
                to = {place for place in subscribed - {(node, topic, number)} if place[1] == topic}
                nodes[node].broadcast_from(ears[node, number], topic, event, {})
            case "direct", [sender, node, topic]:
                to = {place for place in subscribed if place[:2] == (node, topic)}
                nodes[sender].direct_broadcast(str(node), topic, event, {})
            case "matching", [sender]:
                to = {place for place in subscribed if place[1].startswith("a:")}
                nodes[sender].broadcast_matching("a:*", event, {})
        bus.settle()
        for node, topic, number in to:
            expected[node, number].append((event, topic))

    for key, ear in ears.items():
        assert sorted((heard.event, heard.topic) for heard in ear.heard) == sorted(expected[key])
        assert ear.events == sorted(ear.events, key=int)
