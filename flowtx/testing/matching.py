"""Patterns of JSON values, as tests write down what they expect."""

from __future__ import annotations

from typing import Any, Final

ANY: Final = ...
"""Matches anything."""


def matches(pattern: Any, value: Any) -> bool:
    """Whether a JSON value has the form of a pattern.

    - ``...`` (`ANY`) matches anything, a type its instances: ``{"id": int, "at": str}``. True and False are
      no numbers.
    - A dict matches one that has at least its keys, a list one of its length; what is in them is matched
      in the same way. So ``{}`` matches every object, and ``[]`` the empty list alone.
    - A function matches what it returns True for.
    - Anything else matches what is equal to it.
    """
    match pattern:
        case dict():
            found = isinstance(value, dict) and pattern.keys() <= value.keys()
            return found and all(matches(part, value[key]) for key, part in pattern.items())
        case list() | tuple():
            found = isinstance(value, list) and len(pattern) == len(value)
            return found and all(map(matches, pattern, value))
        case type():
            return isinstance(value, pattern) and (pattern in (bool, object) or not isinstance(value, bool))
        case _ if callable(pattern):
            return bool(pattern(value))
    same_kind = isinstance(pattern, bool) == isinstance(value, bool)
    return pattern is ANY or (same_kind and bool(pattern == value))
