"""Broadcasts within one process."""

from __future__ import annotations

from zope.interface import implementer

from flowtx.interfaces import IPubSub, Subscriber
from flowtx.protocol.message import Broadcast


@implementer(IPubSub)
class MemoryPubSub:
    """The subscribers of each topic in a dict: O(1) to come and go, O(subscribers) to broadcast."""

    def __init__(self) -> None:
        # Dicts, not sets: subscribers hear a broadcast in the order in which they came.
        self._topics: dict[str, dict[Subscriber, None]] = {}

    def subscribe(self, topic: str, subscriber: Subscriber) -> None:
        self._topics.setdefault(topic, {})[subscriber] = None

    def unsubscribe(self, topic: str, subscriber: Subscriber) -> None:
        subscribers = self._topics.get(topic)
        if subscribers is None:
            return
        subscribers.pop(subscriber, None)
        if not subscribers:
            del self._topics[topic]

    def broadcast(self, broadcast: Broadcast, sender: Subscriber | None = None) -> int:
        delivered = 0
        for subscriber in tuple(self._topics.get(broadcast.topic, ())):
            if subscriber is not sender:
                subscriber.deliver(broadcast)
                delivered += 1
        return delivered
