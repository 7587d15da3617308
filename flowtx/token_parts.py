"""The parts of a token, read strictly: without anything that two readers could take differently."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Never

from flowtx.errors import Refused

MAX_DEPTH: Final = 32

_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|[\]}]')


@lru_cache(64)
def read_header(part: str) -> Mapping[str, object]:
    """Read the header of a token; those of one signer are all the same."""
    return read_part(part)


def decoded(part: str) -> bytes:
    """Decode base64url in its one shortest form: without bits that nobody reads."""
    data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode():
        raise ValueError("not in the shortest form")
    return data


def read_part(part: str) -> dict[str, object]:
    """Read a part of a token: an object, without anything that two readers could take differently."""
    try:
        text = decoded(part).decode()
        _check_depth(text)
        value = _DECODER.decode(text)
    except ValueError:
        raise Refused("invalid_token") from None
    if not isinstance(value, dict):
        raise Refused("invalid_token") from None
    return value


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _BRACKETS.finditer(text):
        if found[1]:
            depth += 1
        elif found[0] in "]}":
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is given twice")
    return value


def _constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _int(text: str) -> int:
    if len(text) > 40:
        raise ValueError("a number with too many digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that is too large")
    return value


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_int=_int, parse_float=_float
)
