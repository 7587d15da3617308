"""When changes are told, to whom, and how often they are encoded for that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.presence.tracker import PERIOD, Tracker
from flowtx.protocol.message import NULL_REF, Broadcast
from flowtx.protocol.serializer import Serializer, V1Serializer, V2Serializer
from flowtx.pubsub.memory import MemoryPubSub

TOPIC = "users:online"


class Listener:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Broadcast] = []

    def deliver(self, broadcast: Broadcast) -> None:
        self.heard.append(broadcast)

    def take(self) -> list[Any]:
        """The payloads since the last call."""
        heard, self.heard = self.heard, []
        return [msgspec.json.decode(msgspec.json.encode(broadcast.payload)) for broadcast in heard]


class Receiver:
    """Encodes what it hears, as a client's Socket does."""

    def __init__(self, serializer: Serializer, join_ref: bytes) -> None:
        self.serializer = serializer
        self.join_ref = join_ref
        self.broadcasts: list[Broadcast] = []
        self.frames: list[bytes] = []

    def deliver(self, broadcast: Broadcast) -> None:
        self.broadcasts.append(broadcast)
        self.frames.append(self.serializer.broadcast(self.join_ref, broadcast).payload)


def joins(*keys: str) -> dict[str, Any]:
    return {key: {"metas": [{"phx_ref": f"ref-{key}"}]} for key in keys}


class TrackerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.pubsub = MemoryPubSub()
        self.tracker = Tracker(self.pubsub, clock=self.clock)
        self.tracker.start()
        self.listener = Listener()
        self.pubsub.subscribe(TOPIC, self.listener)

    def tearDown(self) -> None:
        self.tracker.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def track(self, key: str, topic: str = TOPIC) -> None:
        self.tracker.track(topic, key, f"ref-{key}", b"{}")

    def untrack(self, key: str, topic: str = TOPIC) -> None:
        self.tracker.untrack(topic, key, f"ref-{key}")

    def test_the_changes_of_a_period_are_one_diff(self) -> None:
        self.track("a")
        self.clock.advance(PERIOD / 2)
        self.track("b")
        self.assertEqual(self.listener.take(), [])
        self.clock.advance(PERIOD / 2)
        self.assertEqual(self.listener.take(), [{"joins": joins("a", "b"), "leaves": {}}])
        self.clock.advance(10 * PERIOD)
        self.assertEqual(self.listener.take(), [])

    def test_a_period_begins_with_its_first_change(self) -> None:
        self.track("a")
        self.clock.advance(PERIOD)
        self.listener.take()
        self.clock.advance(PERIOD * 0.7)
        self.untrack("a")
        self.clock.advance(PERIOD * 0.7)
        self.assertEqual(self.listener.take(), [])
        self.clock.advance(PERIOD * 0.3)
        self.assertEqual(self.listener.take(), [{"joins": {}, "leaves": joins("a")}])

    def test_one_timer_is_for_all_topics(self) -> None:
        other = Listener()
        self.pubsub.subscribe("room:1", other)
        self.track("a")
        self.track("b", "room:1")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(PERIOD)
        self.assertEqual(self.listener.take(), [{"joins": joins("a"), "leaves": {}}])
        self.assertEqual(other.take(), [{"joins": joins("b"), "leaves": {}}])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_period_can_be_set(self) -> None:
        tracker = Tracker(self.pubsub, clock=self.clock, period=2)
        tracker.start()
        tracker.track(TOPIC, "a", "ref-a", b"{}")
        self.clock.advance(1.9)
        self.assertEqual(self.listener.take(), [])
        self.clock.advance(0.1)
        self.assertEqual(len(self.listener.take()), 1)

    def test_what_comes_and_goes_unseen_leaves_nothing_behind(self) -> None:
        self.track("a")
        self.untrack("a")
        self.assertEqual((self.tracker._topics, self.tracker._changed), ({}, {}))
        self.clock.advance(PERIOD)
        self.assertEqual(self.listener.take(), [])

    def test_a_topic_that_nobody_is_present_on_takes_no_room(self) -> None:
        self.track("a")
        self.clock.advance(PERIOD)
        self.untrack("a")
        self.assertEqual(msgspec.json.decode(self.tracker.shown(TOPIC)), joins("a"))
        self.clock.advance(PERIOD)
        self.assertEqual((self.tracker._topics, self.tracker._changed), ({}, {}))
        self.assertEqual(bytes(self.tracker.shown(TOPIC)), b"{}")

    def test_changes_that_are_none(self) -> None:
        self.track("a")
        self.clock.advance(PERIOD)
        self.listener.take()
        self.track("a")
        self.untrack("b")
        self.untrack("a", "room:1")
        self.tracker.update(TOPIC, "b", "ref-b", "ref-c", b"{}")
        self.tracker.update("room:1", "a", "ref-a", "ref-c", b"{}")
        self.clock.advance(PERIOD)
        self.assertEqual(self.listener.take(), [])
        self.assertEqual(list(self.tracker._topics), [TOPIC])

    def test_a_change_made_while_a_diff_is_told_is_in_the_next_one(self) -> None:
        class Leaver(Listener):
            def deliver(leaver, broadcast: Broadcast) -> None:  # noqa: N805
                super().deliver(broadcast)
                self.untrack("a")
                self.untrack("b", "room:1")

        leaver = Leaver()
        self.pubsub.subscribe(TOPIC, leaver)
        self.track("a")
        self.track("b", "room:1")
        self.clock.advance(PERIOD)
        self.clock.advance(PERIOD)
        self.assertEqual(
            self.listener.take(),
            [{"joins": joins("a"), "leaves": {}}, {"joins": {}, "leaves": joins("a")}],
        )
        self.assertEqual(self.tracker._topics, {})

    def test_before_the_start_changes_wait(self) -> None:
        tracker = Tracker(self.pubsub, clock=self.clock)
        tracker.track(TOPIC, "a", "ref-a", b"{}")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        tracker.start()
        self.clock.advance(PERIOD)
        self.assertEqual(self.listener.take(), [{"joins": joins("a"), "leaves": {}}])

    def test_stopping_tells_what_waits_and_nothing_after(self) -> None:
        self.track("a")
        self.tracker.stop()
        self.assertEqual(self.listener.take(), [{"joins": joins("a"), "leaves": {}}])
        self.untrack("a")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(PERIOD)
        self.assertEqual(self.listener.take(), [])

    def test_observers_hear_of_keys_that_come_and_go(self) -> None:
        told: list[tuple[str, Sequence[str], Sequence[str]]] = []
        self.tracker.observe(lambda *what: told.append(what))
        self.track("a")
        self.tracker.track(TOPIC, "a", "second", b"{}")
        self.track("b")
        self.assertEqual(told, [])
        self.clock.advance(PERIOD)
        self.untrack("a")
        self.untrack("b")
        self.track("c")
        self.clock.advance(PERIOD)
        self.tracker.untrack(TOPIC, "a", "second")
        self.tracker.track(TOPIC, "a", "third", b"{}")
        self.clock.advance(PERIOD)
        self.assertEqual(told, [(TOPIC, ("a", "b"), ()), (TOPIC, ("c",), ("b",))])

    def test_one_that_fails_does_not_keep_the_others_from_being_told(self) -> None:
        told: list[str] = []

        def fails(topic: str, arrived: Sequence[str], departed: Sequence[str]) -> None:
            raise RuntimeError(topic)

        self.tracker.observe(fails)
        self.tracker.observe(lambda topic, arrived, departed: told.append(topic))
        for topic in (TOPIC, "room:1"):
            self.track("a", topic)
        self.clock.advance(PERIOD)
        self.assertEqual(told, [TOPIC, "room:1"])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
        self.track("b")
        self.clock.advance(PERIOD)
        self.assertEqual(len(told), 3)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_diff_is_encoded_once_for_each_version_of_the_protocol(self) -> None:
        receivers = [
            Receiver(V1Serializer() if number % 2 else V2Serializer(), b'"%d"' % number)
            for number in range(100)
        ]
        for receiver in receivers:
            self.pubsub.subscribe(TOPIC, receiver)
        self.track("a")
        self.clock.advance(PERIOD)
        [broadcast] = {id(one): one for receiver in receivers for one in receiver.broadcasts}.values()
        forms = {form for form in broadcast.encoded if isinstance(form, str)}
        self.assertEqual(forms, {"1.0.0", "2.0.0"})
        diff = b'{"joins":{"a":{"metas":[{"phx_ref":"ref-a"}]}},"leaves":{}}'
        self.assertEqual(receivers[2].frames, [b'["2",null,"users:online","presence_diff",%b]' % diff])
        self.assertEqual(
            receivers[1].frames,
            [b'{"event":"presence_diff","payload":%b,"ref":null,"topic":"users:online"}' % diff],
        )
        self.assertEqual(len({id(receiver.frames[0]) for receiver in receivers[1::2]}), 1)


class CrowdTests(SynchronousTestCase):
    """Ten thousand users join one topic: what is encoded for that."""

    USERS = 10_000
    A_PERIOD = 250

    def test_joining_costs_what_changes(self) -> None:
        clock, pubsub, listener = Clock(), MemoryPubSub(), Listener()
        tracker = Tracker(pubsub, clock=clock)
        tracker.start()
        pubsub.subscribe(TOPIC, listener)
        states = []
        for number in range(self.USERS):
            tracker.track(TOPIC, f"u{number}", f"{number}", b"{}")
            states.append(tracker.shown(TOPIC))
            if number % self.A_PERIOD == self.A_PERIOD - 1:
                clock.advance(PERIOD)
        diffs = listener.take()
        self.assertEqual(len(diffs), self.USERS // self.A_PERIOD)
        self.assertEqual([len(diff["joins"]) for diff in diffs], [self.A_PERIOD] * len(diffs))
        self.assertEqual([diff["leaves"] for diff in diffs], [{}] * len(diffs))
        # Each state is an object of its own as long as `states` holds it.
        self.assertEqual(len({id(state) for state in states}), len(diffs))
        sizes = [len(msgspec.json.decode(state)) for state in states[:: self.A_PERIOD]]
        self.assertEqual(sizes, list(range(0, self.USERS, self.A_PERIOD)))
        serializer = V2Serializer()
        frames = {serializer.push(NULL_REF, TOPIC, "presence_state", state).payload for state in states[-3:]}
        self.assertEqual(len(frames), 1)
        tracker.stop()
