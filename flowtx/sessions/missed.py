"""What was sent to a user while nobody was there to get it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flowtx.interfaces import IPubSub
from flowtx.protocol.close import HEARTBEAT_TIMEOUT, SLOW_CONSUMER, Close
from flowtx.protocol.message import NULL_REF, Broadcast
from flowtx.protocol.serializer import V2Serializer

MAX_EVENTS: Final = 100
MAX_BYTES: Final = 65_536

_UNDELIVERED: Final = frozenset({HEARTBEAT_TIMEOUT, SLOW_CONSUMER})
"""Ends of a connection after which nobody knows what the client still got."""

_serializer = V2Serializer()


class MissedEvents:
    """What is broadcast on a topic, from now on; past a bound it is given up, all of it.

    Args:
        pubsub: where to listen.
        topic: to what.
        close: how the last connection was closed; None where it has gone by itself.
    """

    __slots__ = ("_bytes", "_events", "_pubsub", "_topic")

    def __init__(self, pubsub: IPubSub, topic: str, close: Close | None) -> None:
        self._events: list[Broadcast] | None = None if close in _UNDELIVERED else []
        self._bytes = 0
        self._pubsub = pubsub
        self._topic = topic
        pubsub.subscribe(topic, self)

    def deliver(self, broadcast: Broadcast) -> None:
        """Keep an event."""
        if self._events is None:
            return
        self._bytes += len(_serializer.broadcast(NULL_REF, broadcast).payload)
        if len(self._events) == MAX_EVENTS or self._bytes > MAX_BYTES:
            self._events = None
        else:
            self._events.append(broadcast)

    def take(self) -> Sequence[Broadcast] | None:
        """Stop to listen; the events in order, or None where they are not all there."""
        self._pubsub.unsubscribe(self._topic, self)
        return self._events
