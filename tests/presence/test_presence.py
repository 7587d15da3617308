"""The application's side: tracking for owners, what is refused, and presences that span nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import AlreadyTracked, FlowtxError, InvalidPayload, NotTracked, PresenceFull
from flowtx.presence.presence import (
    MAX_META,
    POISON,
    Presence,
)
from flowtx.presence.tracker import PERIOD, Tracker
from flowtx.pubsub.memory import MemoryPubSub
from tests.presence.test_tracker import Listener

TOPIC = "users:online"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class PresenceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.pubsub = MemoryPubSub()
        self.presence = self.make()
        self.listener = Listener()
        self.pubsub.subscribe(TOPIC, self.listener)

    def make(self, **options: Any) -> Presence:
        presence = Presence(Tracker(self.pubsub, clock=self.clock), **options)
        presence.startService()
        self.addCleanup(presence.stopService)
        return presence

    def state(self) -> Any:
        return msgspec.json.decode(self.presence.state(TOPIC))

    # What it does

    def test_tracking(self) -> None:
        ref = self.presence.track(TOPIC, "42", {"device": "web", "online_at": 1}, owner=self)
        metas = [{"phx_ref": ref, "device": "web", "online_at": 1}]
        self.assertEqual(self.presence.list(TOPIC), {"42": {"metas": metas}})
        self.assertEqual(self.presence.get_by_key(TOPIC, "42"), metas)
        self.assertEqual(self.state(), {})
        self.clock.advance(PERIOD)
        self.assertEqual(self.state(), self.presence.list(TOPIC))
        self.assertEqual(self.listener.take(), [{"joins": {"42": {"metas": metas}}, "leaves": {}}])

    def test_nobody_is_present(self) -> None:
        self.assertEqual(self.presence.list("room:1"), {})
        self.assertEqual(self.presence.get_by_key("room:1", "42"), [])
        self.assertEqual(bytes(self.presence.state("room:1")), b"{}")

    def test_several_devices_are_several_metas_of_one_key(self) -> None:
        refs = [self.presence.track(TOPIC, "42", {"device": name}, owner=name) for name in ("web", "phone")]
        self.assertEqual(
            self.presence.get_by_key(TOPIC, "42"),
            [{"phx_ref": refs[0], "device": "web"}, {"phx_ref": refs[1], "device": "phone"}],
        )
        self.presence.untrack(TOPIC, "42", owner="web")
        self.assertEqual(self.presence.get_by_key(TOPIC, "42"), [{"phx_ref": refs[1], "device": "phone"}])
        self.presence.untrack(TOPIC, "42", owner="phone")
        self.assertEqual(self.presence.list(TOPIC), {})

    def test_refs_are_short_and_never_the_same(self) -> None:
        other = self.make()
        refs = [
            presence.track(TOPIC, key, {}, owner=key)
            for presence in (self.presence, other)
            for key in map(str, range(100))
        ]
        self.assertEqual(len(set(refs)), 200)
        self.assertLessEqual(max(map(len, refs)), 16)

    def test_updating(self) -> None:
        first = self.presence.track(TOPIC, "42", {"status": "online"}, owner=self)
        self.clock.advance(PERIOD)
        self.listener.take()
        second = self.presence.update(TOPIC, "42", {"status": "away"}, owner=self)
        self.assertNotEqual(first, second)
        self.clock.advance(PERIOD)
        new = {"phx_ref": second, "phx_ref_prev": first, "status": "away"}
        self.assertEqual(
            self.listener.take(),
            [
                {
                    "joins": {"42": {"metas": [new]}},
                    "leaves": {"42": {"metas": [{"phx_ref": first, "status": "online"}]}},
                }
            ],
        )
        self.assertEqual(self.presence.get_by_key(TOPIC, "42"), [new])

    def test_updating_by_a_function_of_the_old_meta(self) -> None:
        self.presence.track(TOPIC, "42", {"device": "web", "status": "online"}, owner=self)
        given: list[dict[str, Any]] = []

        def away(meta: dict[str, Any]) -> dict[str, Any]:
            given.append(dict(meta))
            return {**meta, "status": "away"}

        ref = self.presence.update(TOPIC, "42", away, owner=self)
        self.assertEqual(given, [{"device": "web", "status": "online"}])
        self.assertEqual(
            self.presence.get_by_key(TOPIC, "42"), [{"phx_ref": ref, "device": "web", "status": "away"}]
        )

    def test_an_update_that_changes_nothing_is_not_told(self) -> None:
        ref = self.presence.track(TOPIC, "42", {"status": "away"}, owner=self)
        self.clock.advance(PERIOD)
        self.listener.take()
        self.assertEqual(self.presence.update(TOPIC, "42", {"status": "away"}, owner=self), ref)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_refs_that_come_back_in_a_meta_are_left_out(self) -> None:
        first = self.presence.track(TOPIC, "42", {"phx_ref": "mine", "n": 1}, owner=self)
        self.clock.advance(PERIOD)
        second = self.presence.update(TOPIC, "42", {"phx_ref_prev": "x", "phx_ref": "y", "n": 2}, owner=self)
        self.assertEqual(
            self.presence.get_by_key(TOPIC, "42"), [{"phx_ref": second, "phx_ref_prev": first, "n": 2}]
        )

    def test_a_meta_is_kept_as_it_was_given(self) -> None:
        meta = {"tags": ["a"]}
        ref = self.presence.track(TOPIC, "42", meta, owner=self)
        meta["tags"].append("b")
        self.presence.list(TOPIC)["42"]["metas"].clear()
        self.assertEqual(self.presence.get_by_key(TOPIC, "42"), [{"phx_ref": ref, "tags": ["a"]}])

    def test_untracking_what_is_not_tracked(self) -> None:
        self.presence.track(TOPIC, "42", {}, owner="web")
        self.presence.untrack(TOPIC, "42", owner="phone")
        self.presence.untrack(TOPIC, "43", owner="web")
        self.presence.untrack("room:1", "42", owner="web")
        self.presence.untrack_all("phone")
        self.assertEqual(list(self.presence.list(TOPIC)), ["42"])

    def test_untracking_twice_is_as_once(self) -> None:
        self.presence.track(TOPIC, "42", {}, owner="web")
        self.presence.track(TOPIC, "42", {}, owner="phone")
        for _ in range(2):
            self.presence.untrack(TOPIC, "42", owner="web")
            self.assertEqual(len(self.presence.get_by_key(TOPIC, "42")), 1)
        self.presence.untrack_all("web")
        self.assertEqual(len(self.presence.get_by_key(TOPIC, "42")), 1)

    def test_an_owner_goes_with_all_that_it_tracked(self) -> None:
        for owner in ("web", "phone"):
            for topic in (TOPIC, "room:1"):
                for key in ("42", "43"):
                    self.presence.track(topic, key, {"owner": owner}, owner=owner)
        self.presence.update(TOPIC, "42", {"owner": "web", "status": "away"}, owner="web")
        self.presence.untrack(TOPIC, "43", owner="web")
        self.presence.untrack_all("web")
        for topic in (TOPIC, "room:1"):
            for key in ("42", "43"):
                self.assertEqual([meta["owner"] for meta in self.presence.get_by_key(topic, key)], ["phone"])
        self.presence.untrack_all("phone")
        self.assertEqual((self.presence._refs, self.presence._counts, self.presence._total), ({}, {}, 0))

    def test_tracking_again_after_untracking(self) -> None:
        refs = set()
        for _ in range(3):
            refs.add(self.presence.track(TOPIC, "42", {}, owner=self))
            self.presence.untrack(TOPIC, "42", owner=self)
        self.assertEqual(len(refs), 3)
        self.assertEqual(self.presence._refs, {})

    def test_observers(self) -> None:
        told: list[tuple[str, Sequence[str], Sequence[str]]] = []
        self.presence.observe(lambda *what: told.append(what))
        self.presence.track(TOPIC, "42", {}, owner="web")
        self.clock.advance(PERIOD)
        self.presence.track(TOPIC, "42", {}, owner="phone")
        self.presence.untrack_all("web")
        self.clock.advance(PERIOD)
        self.presence.untrack_all("phone")
        self.clock.advance(PERIOD)
        self.assertEqual(told, [(TOPIC, ("42",), ()), (TOPIC, (), ("42",))])

    def test_stopping(self) -> None:
        self.presence.track(TOPIC, "42", {}, owner=self)
        self.presence.stopService()
        self.assertEqual(len(self.listener.take()), 1)
        self.presence.untrack_all(self)
        self.presence.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # What it refuses

    def refused(self, error: type[FlowtxError], text: str, key: Any, meta: Any, owner: str = "web") -> None:
        before = self.presence.list(TOPIC)
        problem = self.assertRaises(error, self.presence.track, TOPIC, key, meta, owner)
        self.assertIn(text, str(problem))
        self.assertEqual(self.presence.list(TOPIC), before)

    def test_keys(self) -> None:
        self.refused(InvalidPayload, "a presence key is text, not int", 42, {})
        self.refused(InvalidPayload, "1 to 128 characters long, not 0", "", {})
        self.refused(InvalidPayload, "1 to 128 characters long, not 129", "x" * 129, {})
        self.refused(InvalidPayload, "lone surrogates", "\ud800", {})
        for number, key in enumerate(("x" * 128, "é" * 128, "a b", "0", "\x00")):
            self.presence.track(TOPIC, key, {}, owner=number)
        self.assertEqual(len(self.presence.list(TOPIC)), 5)

    def test_keys_that_poison_an_object_of_javascript(self) -> None:
        for key in sorted(POISON):
            self.refused(InvalidPayload, f"{key} cannot be a presence key", key, {})
        for key in ("__proto", "Constructor", "prototypes"):
            self.presence.track(TOPIC, key, {}, owner=key)

    def test_metas(self) -> None:
        self.refused(InvalidPayload, "is a JSON object, not list", "42", [])
        self.refused(InvalidPayload, "is a JSON object, not bytes", "42", b"{}")
        self.refused(InvalidPayload, "is a JSON object, not NoneType", "42", None)
        self.refused(InvalidPayload, "cannot be written as JSON", "42", {"x": object()})
        self.refused(InvalidPayload, "cannot be written as JSON", "42", {"x": "\udfff"})
        # Where the recursion of C is not bounded by its depth, the size is.
        self.refused(InvalidPayload, "a presence meta ", "42", {"x": nested(5_000)})
        self.refused(InvalidPayload, "a presence meta: nested deeper than 32", "42", {"x": nested(32)})
        self.presence.track(TOPIC, "42", {"x": nested(31)}, owner=self)

    def test_the_size_of_a_meta(self) -> None:
        room = MAX_META - len(b'{"x":""}')
        self.refused(
            InvalidPayload, "at most 4096 bytes of JSON, not 4098", "42", {"x": "é" * (room // 2 + 1)}
        )
        self.presence.track(TOPIC, "42", {"x": "y" * room}, owner=self)
        problem = self.assertRaises(
            InvalidPayload, self.presence.update, TOPIC, "42", {"x": "y" * room + "y"}, self
        )
        self.assertIn("not 4097", problem.detail)
        self.assertEqual(len(self.presence.get_by_key(TOPIC, "42")[0]["x"]), room)

    def test_an_owner_tracks_a_key_once(self) -> None:
        self.presence.track(TOPIC, "42", {"n": 1}, owner="web")
        self.refused(AlreadyTracked, "use update", "42", {"n": 2})
        self.presence.track(TOPIC, "43", {}, owner="web")
        self.presence.track("room:1", "42", {}, owner="web")

    def test_updating_what_is_not_tracked(self) -> None:
        self.presence.track(TOPIC, "42", {}, owner="web")
        for topic, key, owner in ((TOPIC, "42", "phone"), (TOPIC, "43", "web"), ("room:1", "42", "web")):
            problem = self.assertRaises(NotTracked, self.presence.update, topic, key, {"n": 1}, owner)
            self.assertIn("use track", str(problem))
        self.presence.untrack(TOPIC, "42", owner="web")
        self.assertRaises(NotTracked, self.presence.update, TOPIC, "42", {"n": 1}, "web")
        self.assertEqual(self.presence.list(TOPIC), {})

    def test_a_topic_that_is_full(self) -> None:
        self.presence = self.make(max_topic_metas=3)
        for number in range(3):
            self.presence.track(TOPIC, "42", {}, owner=number)
        self.refused(PresenceFull, "'users:online' has 3 metas, which is the most", "43", {})
        self.presence.update(TOPIC, "42", {"n": 1}, owner=0)
        self.presence.track("room:1", "43", {}, owner="web")
        self.presence.untrack_all(0)
        self.presence.track(TOPIC, "43", {}, owner="web")
        self.refused(PresenceFull, "has 3 metas", "44", {}, owner="phone")

    def test_a_node_that_is_full(self) -> None:
        self.presence = self.make(max_metas=3)
        for number in range(3):
            self.presence.track(f"room:{number}", "42", {}, owner="web")
        self.refused(PresenceFull, "this node has 3 metas, which is the most", "42", {})
        self.presence.untrack("room:0", "42", owner="web")
        self.presence.track(TOPIC, "42", {}, owner="web")


class Cluster:
    """Passes the changes of each node on to all of them, as a store that they share would."""

    def __init__(self, *trackers: Tracker) -> None:
        self.trackers = trackers

    def track(self, topic: str, key: str, ref: str, body: bytes) -> None:
        for tracker in self.trackers:
            tracker.track(topic, key, ref, body)

    def update(self, topic: str, key: str, ref: str, new_ref: str, body: bytes) -> None:
        for tracker in self.trackers:
            tracker.update(topic, key, ref, new_ref, body)

    def untrack(self, topic: str, key: str, ref: str) -> None:
        for tracker in self.trackers:
            tracker.untrack(topic, key, ref)


class TwoNodesTests(SynchronousTestCase):
    """What stands between `Presence` and `Tracker` can make one presence of several nodes."""

    def test_each_node_knows_of_all(self) -> None:
        clock = Clock()
        trackers = [Tracker(MemoryPubSub(), clock=clock) for _ in range(2)]
        cluster = Cluster(*trackers)
        here, there = (Presence(tracker, changes=cluster, max_topic_metas=2) for tracker in trackers)
        for number in range(2):
            here.track(TOPIC, "42", {"n": number}, owner=number)
            there.track(TOPIC, str(number), {}, owner=number)
        there.untrack_all(0)
        here.update(TOPIC, "42", {"n": 2}, owner=0)
        self.assertEqual(here.list(TOPIC), there.list(TOPIC))
        self.assertEqual(
            {key: len(presence["metas"]) for key, presence in here.list(TOPIC).items()}, {"42": 2, "1": 1}
        )
