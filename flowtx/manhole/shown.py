"""Values as text for people to read: laid out over lines, and cut where they are too long.

Unlike `repr` and `pprint`, it costs no more than what it shows: a dict of a million entries is not
walked to its end to show the first thousand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

MAX_SHOWN: Final = 65_536
"""Characters of a value that are shown."""
MAX_DEPTH: Final = 12
"""Containers within each other that are shown; one that holds itself ends there."""

_INDENT: Final = "    "
_DICT_REPR: Final[object] = dict.__repr__
_STRUCT_REPR: Final[object] = msgspec.Struct.__repr__
_ELLIPSIS: Final = "…"
_BRACKETS: Final[dict[type, tuple[str, str]]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
    deque: ("deque([", "])"),
    type({}.keys()): ("dict_keys([", "])"),
    type({}.values()): ("dict_values([", "])"),
    type({}.items()): ("dict_items([", "])"),
}


class Text(str):
    """A text that is shown as it is, not as Python would write it."""

    __slots__ = ()


def shown(value: object, width: int = 80, most: int = MAX_SHOWN) -> str:
    """Write a value as Python does, over as many lines as it takes.

    Args:
        value: the value.
        width: characters of a line, where that can be held.
        most: how many characters to show.
    """
    if isinstance(value, Text):
        return cut(value, most)
    return cut(_up_to(_laid_out(value, 0, 0, width, most), most + 1), most)


def cut(text: str, most: int = MAX_SHOWN) -> str:
    """Show the beginning of a text, and say so where it is not all of it."""
    return text if len(text) <= most else f"{text[:most]}{_ELLIPSIS}\n(cut after {most} characters)"


class _Container(NamedTuple):
    """A value that holds others; with what stands before each of them."""

    opening: str
    items: Iterable[tuple[str, object]]
    closing: str


def _up_to(pieces: Iterator[str], most: int) -> str:
    """Join pieces until there are so many characters."""
    taken = []
    for piece in pieces:
        taken.append(piece[:most])
        most -= len(piece)
        if most <= 0:
            break
    return "".join(taken)


def _laid_out(value: object, depth: int, before: int, width: int, most: int) -> Iterator[str]:
    """Yield the pieces of a value that begins after ``before`` characters of its line."""
    room = max(0, width - before)
    line = _up_to(_in_line(value, depth, most), room + 1)
    container = _opened(value, most)
    if len(line) <= room:
        yield line
    elif container is None or depth >= MAX_DEPTH:
        yield from _in_line(value, depth, most)
    else:
        yield f"{container.opening}\n"
        for key, item in container.items:
            start = f"{_INDENT * (depth + 1)}{key}"
            yield start
            yield from _laid_out(item, depth + 1, len(start) + 1, width, most)
            yield ",\n"
        yield f"{_INDENT * depth}{container.closing}"


def _in_line(value: object, depth: int, most: int) -> Iterator[str]:
    container = _opened(value, most)
    if container is None:
        yield _atom(value, most)
        return
    yield container.opening
    if depth >= MAX_DEPTH:
        yield _ELLIPSIS
    else:
        for number, (key, item) in enumerate(container.items):
            yield f", {key}" if number else key
            yield from _in_line(item, depth + 1, most)
        if type(value) is tuple and len(value) == 1:
            yield ","
    yield container.closing


def _opened(value: Any, most: int) -> _Container | None:
    """Take a container apart; None for all else, and for what is written in a way of its own."""
    kind = type(value)
    if isinstance(value, dict) and kind.__repr__ is _DICT_REPR:
        return _Container("{", ((f"{_atom(key, most)}: ", item) for key, item in value.items()), "}")
    if kind in _BRACKETS:
        # An empty set has no form of its own.
        opening, closing = _BRACKETS[kind] if value or kind is not set else ("set(", ")")
        return _Container(opening, (("", item) for item in value), closing)
    if kind.__repr__ is _STRUCT_REPR:
        fields = ((f"{name}=", getattr(value, name)) for name in kind.__struct_fields__)
        return _Container(f"{kind.__name__}(", fields, ")")
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        fields = ((f"{name}=", item) for name, item in zip(kind._fields, value, strict=True))
        return _Container(f"{kind.__name__}(", fields, ")")
    return None


def _atom(value: object, most: int) -> str:
    if isinstance(value, str | bytes | bytearray) and len(value) > most:
        value = value[: most + 1]
    try:
        return repr(value)[: most + 1]
    except Exception as error:  # noqa: BLE001, RUF100 - whatever it is, the others are shown
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
