"""What is wrong with a value, and where in it: ``PLACE: what it takes``, as all details say it."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, TypeVar

import msgspec

from flowtx.errors import InvalidPayload

T = TypeVar("T")

MAX_PLACE: Final = 200
"""Characters of a place that are told; it can hold names that a client chose."""

_PLACED: Final = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)
_FIELD: Final = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
_UNREADABLE: Final = re.compile(rb"\\u[dD]|NaN|Infinity")
_OF_FIELDS: Final = {"missing required": "it is required", "contains unknown": "there is no such field"}


def read_as(value: Any, form: type[T]) -> T:
    """Take a decoded value as one of a form.

    Raises:
        InvalidPayload: it has another form.
    """
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as problem:
        raise InvalidPayload(of_form(problem)) from None


def of_form(problem: msgspec.ValidationError) -> str:
    """Say where a value has not the form that it should have."""
    text, place = str(problem), ""
    if placed := _PLACED.fullmatch(text):
        text, place = placed.groups()
    if field := _FIELD.fullmatch(text):
        what, name = field.groups()
        return _at(f"{place}.{name}" if place else name, _OF_FIELDS[what])
    return _at(place, text[:1].lower() + text[1:])


def of_text(text: bytes, problem: ValueError) -> str:
    """Say where a text is no JSON that can be read.

    Args:
        text: the text.
        problem: what `msgspec` says of it. It counts bytes, which tells little where an encoder wrote
            a lone surrogate, NaN or Infinity; these are looked for.
    """
    if isinstance(problem, msgspec.ValidationError):
        return of_form(problem)
    if _UNREADABLE.search(text):
        try:
            # This decoder takes all three.
            found = _unreadable(json.loads(text))
        except (ValueError, RecursionError):
            found = None
        if found is not None:
            what, steps = found
            return _at("".join(reversed(steps)).removeprefix("."), what)
    return str(problem)


def _unreadable(value: object) -> tuple[str, list[str]] | None:
    """Find what is no JSON in a value: what it is, and the steps to it, the last one first."""
    if isinstance(value, str) and _is_torn(value):
        return "has a lone surrogate", []
    if isinstance(value, float) and not math.isfinite(value):
        return f"got {value}, which JSON has not", []
    if isinstance(value, dict):
        for name, part in value.items():
            if _is_torn(name):
                return "has a name with a lone surrogate", []
            if found := _unreadable(part):
                found[1].append(f".{name[:MAX_PLACE]}")
                return found
    if isinstance(value, list):
        for number, part in enumerate(value):
            if found := _unreadable(part):
                found[1].append(f"[{number}]")
                return found
    return None


def _is_torn(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _at(place: str, what: str) -> str:
    return f"{place[:MAX_PLACE]}: {what}" if place else what
