"""The presence of one topic, as values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flowtx.presence.state import Diff, Meta, TopicState
from tests.presence.client import ModelClient, State

KEYS = ("alice", "bob", "7")


def plain(value: object) -> Any:
    """What a client reads of a value."""
    return msgspec.json.decode(msgspec.json.encode(value))


def refs_of(state: State) -> set[str]:
    return {meta["phx_ref"] for presence in state.values() for meta in presence["metas"]}


class MetaTests(SynchronousTestCase):
    def test_the_application_s_part_keeps_its_order_behind_the_refs(self) -> None:
        meta = Meta.make("k", "r2", b'{"b":1,"a":{"c":[]}}', replaces="r1")
        self.assertEqual(bytes(meta.encoded), b'{"phx_ref":"r2","phx_ref_prev":"r1","b":1,"a":{"c":[]}}')

    def test_an_empty_meta_has_its_ref(self) -> None:
        self.assertEqual(bytes(Meta.make("k", "r1", b"{}").encoded), b'{"phx_ref":"r1"}')


class TopicStateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.state = TopicState()

    def flush(self) -> Diff:
        diff = self.state.flush()
        assert diff is not None
        return diff

    def payload(self) -> Any:
        return plain(self.flush().payload)

    def test_nothing_has_changed(self) -> None:
        self.assertIsNone(self.state.flush())
        self.assertEqual(bytes(self.state.shown()), b"{}")
        self.assertTrue(self.state.empty)

    def test_came_and_went_within_a_period(self) -> None:
        self.state.track("a", "1", b"{}")
        self.assertFalse(self.state.empty)
        self.assertTrue(self.state.untrack("a", "1"))
        self.assertIsNone(self.state.flush())
        self.assertTrue(self.state.empty)

    def test_came_was_updated_and_went_within_a_period(self) -> None:
        self.state.track("a", "1", b"{}")
        self.assertTrue(self.state.update("a", "1", "2", b'{"x":1}'))
        self.assertTrue(self.state.untrack("a", "2"))
        self.assertIsNone(self.state.flush())

    def test_what_clients_were_not_shown_is_not_named_as_replaced(self) -> None:
        self.state.track("a", "1", b"{}")
        self.state.update("a", "1", "2", b'{"x":1}')
        self.assertEqual(
            self.payload(), {"joins": {"a": {"metas": [{"phx_ref": "2", "x": 1}]}}, "leaves": {}}
        )

    def test_several_updates_are_one(self) -> None:
        self.state.track("a", "1", b'{"x":0}')
        self.state.flush()
        self.state.update("a", "1", "2", b'{"x":1}')
        self.state.update("a", "2", "3", b'{"x":2}')
        joined = {"phx_ref": "3", "phx_ref_prev": "1", "x": 2}
        self.assertEqual(
            self.payload(),
            {
                "joins": {"a": {"metas": [joined]}},
                "leaves": {"a": {"metas": [{"phx_ref": "1", "x": 0}]}},
            },
        )
        self.assertEqual(plain(self.state.list()), {"a": {"metas": [joined]}})

    def test_a_second_period_names_what_the_first_one_showed(self) -> None:
        self.state.track("a", "1", b"{}")
        self.state.flush()
        for old, new in (("1", "2"), ("2", "3")):
            self.state.update("a", old, new, b"{}")
            self.assertEqual(self.payload()["joins"]["a"]["metas"], [{"phx_ref": new, "phx_ref_prev": old}])

    def test_updated_and_gone_within_a_period(self) -> None:
        self.state.track("a", "1", b"{}")
        self.state.flush()
        self.state.update("a", "1", "2", b'{"x":1}')
        self.state.untrack("a", "2")
        self.assertFalse(self.state.empty)
        self.assertEqual(self.payload(), {"joins": {}, "leaves": {"a": {"metas": [{"phx_ref": "1"}]}}})
        self.assertTrue(self.state.empty)

    def test_gone_and_back_within_a_period(self) -> None:
        self.state.track("a", "1", b"{}")
        self.state.flush()
        self.state.untrack("a", "1")
        self.state.track("a", "2", b"{}")
        diff = self.flush()
        self.assertEqual(
            plain(diff.payload),
            {"joins": {"a": {"metas": [{"phx_ref": "2"}]}}, "leaves": {"a": {"metas": [{"phx_ref": "1"}]}}},
        )
        self.assertEqual((diff.arrived, diff.departed), ((), ()))

    def test_keys_arrive_with_their_first_meta_and_depart_with_their_last(self) -> None:
        seen = []
        for change in (
            lambda: self.state.track("a", "1", b"{}"),
            lambda: self.state.track("a", "2", b"{}"),
            lambda: self.state.update("a", "1", "3", b"{}"),
            lambda: self.state.untrack("a", "2"),
            lambda: self.state.untrack("a", "3"),
        ):
            change()
            diff = self.flush()
            seen.append((diff.arrived, diff.departed))
        self.assertEqual(seen, [(("a",), ()), ((), ()), ((), ()), ((), ()), ((), ("a",))])

    def test_unknown_refs_change_nothing(self) -> None:
        self.state.track("a", "1", b"{}")
        self.state.flush()
        for key, ref in (("a", "2"), ("b", "1"), ("b", "2")):
            self.assertFalse(self.state.untrack(key, ref))
            self.assertFalse(self.state.update(key, ref, "9", b"{}"))
            self.assertIsNone(self.state.find(key, ref))
        self.assertIsNone(self.state.flush())
        self.assertEqual(plain(self.state.list()), {"a": {"metas": [{"phx_ref": "1"}]}})

    def test_twice_gone_is_as_once(self) -> None:
        self.state.track("a", "1", b"{}")
        self.state.flush()
        self.assertTrue(self.state.untrack("a", "1"))
        self.assertFalse(self.state.untrack("a", "1"))
        self.assertEqual(self.payload()["leaves"], {"a": {"metas": [{"phx_ref": "1"}]}})

    def test_the_state_shown_is_that_of_the_last_flush(self) -> None:
        self.state.track("a", "1", b"{}")
        self.state.track("b", "2", b"{}")
        self.assertEqual(bytes(self.state.shown()), b"{}")
        self.state.flush()
        before = plain(self.state.list())
        self.state.untrack("a", "1")
        self.state.update("b", "2", "3", b"{}")
        self.state.track("c", "4", b"{}")
        self.assertEqual(plain(self.state.shown()), before)
        self.state.flush()
        self.assertEqual(plain(self.state.shown()), plain(self.state.list()))
        self.assertEqual(list(plain(self.state.shown())), ["b", "c"])

    def test_the_state_shown_is_encoded_once_between_two_changes_that_are_told(self) -> None:
        self.state.track("a", "1", b"{}")
        self.state.flush()
        shown = self.state.shown()
        self.state.track("b", "2", b"{}")
        self.assertIs(self.state.shown(), shown)
        self.state.untrack("b", "2")
        self.state.flush()
        self.assertIs(self.state.shown(), shown)
        self.state.track("b", "3", b"{}")
        self.state.flush()
        self.assertIsNot(self.state.shown(), shown)


class CostTests(SynchronousTestCase):
    """What a change costs, counted in the instructions that the interpreter runs for it."""

    def cost(self, present: int) -> int:
        state = TopicState()
        for number in range(present):
            state.track(f"u{number}", f"{number}", b"{}")
        state.flush()

        def changes() -> None:
            state.track("new", "n1", b"{}")
            state.update("new", "n1", "n2", b'{"x":1}')
            state.update("u1", "1", "n3", b'{"x":1}')
            state.untrack("u2", "2")
            state.flush()

        return instructions(changes)

    def test_a_change_costs_the_same_however_many_are_present(self) -> None:
        few, many = self.cost(10), self.cost(10_000)
        self.assertGreater(few, 100)
        self.assertEqual(few, many)


def instructions(call: Callable[[], object]) -> int:
    """Count the instructions that run in ``call``."""
    counted = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal counted
        frame.f_trace_opcodes = True
        counted += event == "opcode"
        return trace

    before = sys.gettrace()
    # CPython 3.12 looks for a frame that wants it when tracing begins, and never again.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return counted


changes = st.lists(
    st.tuples(
        st.sampled_from(
            ["track", "track", "update", "untrack", "flush", "join", "lose", "rejoin", "late", "state"]
        ),
        st.integers(0, 5),
    ),
    max_size=60,
)


class Room:
    """A topic and its clients: each hears all diffs from when it joined, and gets the state then or later."""

    def __init__(self) -> None:
        self.topic = TopicState()
        self.told: State = {}
        self.live: list[tuple[str, str]] = []
        self.clients: list[ModelClient] = []
        self.waiting: list[ModelClient] = []
        self.lost: list[ModelClient] = []
        self.numbers = count()

    def do(self, change: str, choice: int) -> None:
        new = f"r{next(self.numbers)}"
        body = b'{"n":%d}' % choice
        if change == "track":
            self.topic.track(KEYS[choice % len(KEYS)], new, body)
            self.live.append((KEYS[choice % len(KEYS)], new))
        elif change in ("update", "untrack") and self.live:
            key, ref = self.live.pop(choice % len(self.live))
            if change == "untrack":
                assert self.topic.untrack(key, ref)
            else:
                assert self.topic.update(key, ref, new, body)
                self.live.append((key, new))
        elif change == "flush":
            self.flush()
        elif change == "join":
            self.clients.append(ModelClient())
            self.clients[-1].receive_state(plain(self.topic.shown()))
        elif change == "late":
            self.clients.append(ModelClient())
            self.waiting.append(self.clients[-1])
        elif change == "lose":
            # Not those that wait for the state: phoenix.js keeps what they heard for the next join,
            # which is why the state is to be given with the join.
            self.lost += [client for client in self.clients if client not in self.waiting]
            self.clients = [client for client in self.clients if client in self.waiting]
        elif change == "rejoin":
            self.rejoin()
        elif change == "state":
            self.send_states()
        assert refs_of(plain(self.topic.shown())) == refs_of(self.told)

    def rejoin(self) -> None:
        """Those that lost their connection, and what was told meanwhile, join again."""
        for client in self.lost:
            client.joined()
        self.clients += self.lost
        self.waiting += self.lost
        self.lost = []

    def send_states(self) -> None:
        for client in self.waiting:
            client.receive_state(plain(self.topic.shown()))
        self.waiting.clear()

    def flush(self) -> None:
        before, now = self.told, plain(self.topic.list())
        diff = self.topic.flush()
        if diff is None:
            assert now == before
            return
        payload = plain(diff.payload)
        joins, leaves = payload["joins"], payload["leaves"]
        assert refs_of(joins) == refs_of(now) - refs_of(before)
        assert refs_of(leaves) == refs_of(before) - refs_of(now)
        assert sorted(diff.arrived) == sorted(now.keys() - before.keys())
        assert sorted(diff.departed) == sorted(before.keys() - now.keys())
        for key, presence in joins.items():
            replaced = [meta["phx_ref_prev"] for meta in presence["metas"] if "phx_ref_prev" in meta]
            assert len(replaced) == len(set(replaced))
            assert set(replaced) <= refs_of({key: leaves.get(key, {"metas": []})})
        self.told = now
        for client in self.clients:
            client.receive_diff(payload)


@settings(max_examples=400, deadline=None)
@given(changes)
def test_clients_end_with_what_is_listed(steps: list[tuple[str, int]]) -> None:
    room = Room()
    for change, choice in [("join", 0), *steps]:
        room.do(change, choice)
    room.rejoin()
    room.send_states()
    room.flush()
    listed = plain(room.topic.list())
    assert sorted(refs_of(listed)) == sorted(ref for _, ref in room.live)
    assert plain(room.topic.shown()) == listed
    for client in room.clients:
        assert client.state == listed
