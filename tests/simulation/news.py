"""Broadcasts to users, numbered, so that a client can tell whether one is missing."""

from __future__ import annotations

from collections import Counter
from typing import Final

from tests.simulation.node import Node

SIZE: Final = 1_500
"""Bytes of each."""


class News:
    """Broadcasts the event ``news`` to users; those without a key count 1, 2, 3... for each user."""

    def __init__(self) -> None:
        self._numbers: Counter[str] = Counter()

    def publish(self, node: Node, user: str, count: int, key: str | None) -> None:
        """Broadcast, several in a row; those with a key may be dropped, and have no number."""
        for _ in range(count):
            payload: dict[str, object] = {"text": "x" * SIZE}
            if key is None:
                self._numbers[user] += 1
                payload["number"] = self._numbers[user]
            node.sessions.broadcast_to_users([user], "news", payload, key=key)
