"""Reading the JSON of a payload, with bounds on what it may cost."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from flowtx.errors import InvalidPayload
from flowtx.protocol.message import Message
from flowtx.protocol.places import of_text

MAX_DEPTH: Final = 32
MAX_NODES: Final = 2_000


def read_payload(message: Message) -> Any:
    """Decode the payload of ``message``.

    Returns:
        Any JSON value, or bytes for a binary push.

    Raises:
        InvalidPayload: it is not JSON, or nested deeper than 32, or of more than 2,000 values.
    """
    return message.body if message.binary else read_json(message.body)


def read_json(text: bytes, *, max_nodes: int | None = MAX_NODES) -> Any:
    """Decode JSON text of a bounded size into a value of bounded depth and count.

    Args:
        text: the JSON.
        max_nodes: how many values it may hold; None for any number.

    Raises:
        InvalidPayload: see `read_payload`.
    """
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        raise InvalidPayload(f"nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise InvalidPayload(f"not JSON that can be read: {of_text(text, error)}") from None
    # Brackets and commas inside strings count too, which only costs the exact count below.
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH or (
        max_nodes is not None and text.count(b",") >= max_nodes // 2
    ):
        _check_size(value, max_nodes)
    return value


def _check_size(value: Any, max_nodes: int | None) -> None:
    nodes = 0
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nodes += len(level)
        if max_nodes is not None and nodes > max_nodes:
            raise InvalidPayload(f"more than {max_nodes} values")
        inner = [item for item in level if isinstance(item, dict | list)]
        if not inner:
            return
        level = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
    raise InvalidPayload(f"nested deeper than {MAX_DEPTH}")
