"""Values as text: like Python's own where they are short, and never more work than what is shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flowtx.manhole.shown import MAX_SHOWN, Text, cut, shown

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.tuples(inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


class Point(NamedTuple):
    x: int
    y: object


class Made(msgspec.Struct):
    name: str
    parts: list[int]


class Own(msgspec.Struct):
    secret: str

    def __repr__(self) -> str:
        return "Own(…)"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class ShownTests(SynchronousTestCase):
    @given(PLAIN)
    def test_short_values_are_written_as_python_does(self, value: Any) -> None:
        self.assertEqual(shown(value, width=10**9), repr(value))

    @given(PLAIN, st.integers(1, 60))
    def test_what_is_laid_out_is_the_same_value(self, value: Any, width: int) -> None:
        text = shown(value, width)
        self.assertEqual(repr(eval(text, {"nan": float("nan"), "inf": float("inf")})), repr(value))

    def test_keys_are_shown_whole(self) -> None:
        key = "0" * 1_000
        self.assertEqual(shown({key: None}, width=10**9), repr({key: None}))
        self.assertEqual(shown({key: None}, 1), f"{{\n    '{key}': None,\n}}")

    def test_structures(self) -> None:
        self.assertEqual(shown(Point(1, [Made("a", [2])])), "Point(x=1, y=[Made(name='a', parts=[2])])")
        self.assertEqual(shown(Own("canary")), "Own(…)")
        self.assertEqual(shown(deque([1])), "deque([1])")
        self.assertEqual(shown({1: 2}.items()), "dict_items([(1, 2)])")
        self.assertEqual(shown((set(), frozenset())), "(set(), frozenset({}))")

    def test_layout(self) -> None:
        value = {"user": "alice", "topics": ["user:alice", "users:online"], "none": []}
        self.assertEqual(
            shown(value, 40),
            "{\n    'user': 'alice',\n    'topics': [\n        'user:alice',\n        'users:online',\n"
            "    ],\n    'none': [],\n}",
        )

    def test_what_is_long_is_cut(self) -> None:
        for value in ("x" * 10**6, b"x" * 10**6, list(range(10**6)), {"k": "x" * 10**6}, {"x" * 10**6: 1}):
            text = shown(value)
            self.assertLess(len(text), MAX_SHOWN + 100)
            self.assertTrue(text.endswith("(cut after 65536 characters)"))
        self.assertEqual(cut("abc", 3), "abc")

    def test_no_more_is_looked_at_than_is_shown(self) -> None:
        looked: list[int] = []

        class Entry:
            def __repr__(self) -> str:
                looked.append(1)
                return "x" * 100

        for value in ([Entry()] * 10**6, dict.fromkeys(range(10**6), Entry())):
            looked.clear()
            shown(value)
            self.assertLess(len(looked), 2_000)

    def test_what_holds_itself_ends(self) -> None:
        value: list[object] = []
        value.append(value)
        self.assertEqual(shown(value, 1000).count("["), 13)
        self.assertLess(len(shown(value, 10)), 1_000)

    def test_what_cannot_be_shown_is_named(self) -> None:
        self.assertEqual(
            shown([Broken(), 10**5000], 200),
            "[<Broken that cannot be shown: RuntimeError>, <int that cannot be shown: ValueError>]",
        )

    def test_texts_are_shown_as_they_are(self) -> None:
        self.assertEqual(shown(Text("a\nb")), "a\nb")

    def test_iterators_are_left_alone(self) -> None:
        def numbers() -> Iterator[int]:
            raise AssertionError
            yield 1

        self.assertIn("generator object", shown(numbers()))
