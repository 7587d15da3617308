"""Broadcasts that are remembered, for tests to look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from flowtx.interfaces import Subscriber
from flowtx.protocol.message import Broadcast
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.testing.matching import ANY, matches

MAX_REMEMBERED: Final = 10_000


class RecordingPubSub(MemoryPubSub):
    """Remembers the last broadcasts that nobody has asserted."""

    def __init__(self) -> None:
        super().__init__()
        self._made: deque[Broadcast] = deque(maxlen=MAX_REMEMBERED)

    def _deliver(self, broadcast: Broadcast, sender: Subscriber | None = None) -> int:
        self._made.append(broadcast)
        return super()._deliver(broadcast, sender)

    def assert_broadcast(self, topic: str, event: str, payload: Any = ANY) -> Any:
        """Take a broadcast that was made; see `flowtx.testing.server.MemoryServer.assert_broadcast`."""
        for broadcast in self._find(topic, event, payload):
            self._made.remove(broadcast)
            return _value(broadcast)
        wanted = "anything" if payload is ANY else repr(payload)
        made = "".join(f"\n  {other.event!r} on {other.topic}: {_value(other)!r}" for other in self._made)
        raise AssertionError(
            f"no broadcast of {event!r} on {topic} with {wanted}; those that were not asked for:"
            f"{made or ' none'}"
        )

    def refute_broadcast(self, topic: str, event: str, payload: Any = ANY) -> None:
        """See that no such broadcast was made."""
        for broadcast in self._find(topic, event, payload):
            value = _value(broadcast)
            raise AssertionError(f"there was to be no {event!r} on {topic}, but it came: {value!r}")

    def _find(self, topic: str, event: str, payload: Any) -> Iterator[Broadcast]:
        for broadcast in self._made:
            same = (broadcast.topic, broadcast.event) == (topic, event)
            if same and matches(payload, _value(broadcast)):
                yield broadcast


def _value(broadcast: Broadcast) -> Any:
    """The payload as a client would get it."""
    if isinstance(broadcast.payload, bytes):
        return broadcast.payload
    return msgspec.json.decode(msgspec.json.encode(broadcast.payload))
