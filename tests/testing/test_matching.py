"""Patterns of JSON values."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from flowtx.testing.matching import ANY, matches


class MatchesTests(SynchronousTestCase):
    def test_what_matches(self) -> None:
        cases: list[tuple[Any, Any]] = [
            (ANY, None),
            (ANY, {"a": 1}),
            ({}, {"a": 1}),
            ({"a": 1}, {"a": 1, "b": 2}),
            ({"a": {"b": ANY}}, {"a": {"b": [1], "c": 2}}),
            ([1, str], [1, "x"]),
            ((1, str), [1, "x"]),
            ([], []),
            ([{"a": int}], [{"a": 1, "b": 2}]),
            (int, 5),
            (float, 0.5),
            (bool, True),
            (dict, {}),
            (object, True),
            (lambda value: value > 4, 5),
            (None, None),
            (True, True),
            (1, 1.0),
            (b"\xff", b"\xff"),
        ]
        for pattern, value in cases:
            self.assertIs(matches(pattern, value), True, (pattern, value))

    def test_what_does_not(self) -> None:
        cases: list[tuple[Any, Any]] = [
            ({"a": 1}, {}),
            ({"a": 1}, {"a": 2}),
            ({"a": ANY}, {}),
            ({}, []),
            ({}, None),
            ([], {}),
            ([], [1]),
            ([1], [1, 2]),
            ([1, 2], [1]),
            ([ANY], []),
            ("ab", ["a", "b"]),
            (["a", "b"], "ab"),
            (int, True),
            (int, "1"),
            (str, None),
            (lambda value: value > 4, 4),
            (1, True),
            (True, 1),
            (None, 0),
            ("1", 1),
        ]
        for pattern, value in cases:
            self.assertIs(matches(pattern, value), False, (pattern, value))
