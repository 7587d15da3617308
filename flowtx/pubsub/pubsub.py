"""Broadcasts: the subscribers of this node, and the way to those of the others.

::

    broadcast, broadcast_from, broadcast_many…        another node's
              │                                             │
        encoded once ──► IPubSubAdapter.send ─ ─ ─► receive ┘
              │                                             │
              └──────────► subscribers of the topic ◄───────┘

The subscribers of this node are served first and at once; without an adapter there are no others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec import Raw
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from flowtx.bursts import WORTH_IT, Bursts
from flowtx.errors import InvalidPayload
from flowtx.interfaces import IPubSub, IPubSubAdapter, Subscriber
from flowtx.protocol.message import NULL_REF, Broadcast, UnencodablePayload
from flowtx.protocol.serializer import V2Serializer
from flowtx.protocol.topic import TopicPattern

MAX_TOPIC: Final = 1024
MAX_EVENT: Final = 128

_TEXT: Final = re.compile("[^\x00-\x1f\x7f\ud800-\udfff]+")
_RESERVED: Final = ("phx_", "presence_")

_serializer = V2Serializer()


class Publication(msgspec.Struct, frozen=True):
    """What goes from node to node: one event for the subscribers of some topics.

    Attributes:
        topics: the topics; or, where ``matching`` is set, one pattern.
        event: the event.
        body: the payload: JSON text, or bytes that go out as a binary frame.
        binary: whether ``body`` is not JSON.
        matching: whether ``topics`` is a pattern.
        key: as in `flowtx.protocol.message.Frame`.
    """

    topics: tuple[str, ...]
    event: str
    body: bytes
    binary: bool = False
    matching: bool = False
    key: str | None = None


@implementer(IPubSub)
class PubSub:
    """See the module, and `flowtx.interfaces.IPubSub`.

    To come and go costs a subscriber the same, however many there are. It may do so within
    ``deliver``: who has gone gets nothing more, who has come gets the next broadcast. What a subscriber
    broadcasts within ``deliver`` reaches the others before what it was told of.

    Args:
        node: the name of this node.
        adapter: reaches the other nodes; None where this is the only one.
        bursts: is told of the broadcasts that many get; None where nobody joins what is sent.
    """

    _log = Logger()

    def __init__(
        self,
        node: str = "local",
        adapter: IPubSubAdapter | None = None,
        bursts: Bursts | None = None,
    ) -> None:
        self.node = node
        self._bursts = bursts
        self._adapter = adapter
        # Dicts, not sets: subscribers hear a broadcast in the order in which they came.
        self._topics: dict[str, dict[Subscriber, None]] = {}
        if adapter is not None:
            adapter.open(node, self._receive)

    def subscribe(self, topic: str, subscriber: Subscriber) -> None:
        self._topics.setdefault(topic, {})[subscriber] = None

    def unsubscribe(self, topic: str, subscriber: Subscriber) -> None:
        subscribers = self._topics.get(topic)
        if subscribers is None:
            return
        subscribers.pop(subscriber, None)
        if not subscribers:
            del self._topics[topic]

    # To send

    def broadcast(self, topic: str, event: str, payload: object, *, key: str | None = None) -> int:
        return self.publish(_checked(topic, event, payload, key))

    def broadcast_from(
        self, sender: Subscriber, topic: str, event: str, payload: object, *, key: str | None = None
    ) -> int:
        return self.publish(_checked(topic, event, payload, key), sender)

    def direct_broadcast(
        self, node: str, topic: str, event: str, payload: object, *, key: str | None = None
    ) -> int:
        return self.publish(_checked(topic, event, payload, key), node=node)

    def broadcast_many(
        self, topics: Iterable[str], event: str, payload: object, *, key: str | None = None
    ) -> int:
        distinct = tuple(dict.fromkeys(topics))
        for topic in distinct:
            _check("topic", topic, MAX_TOPIC)
        return self._spread(distinct, distinct, event, payload, key)

    def broadcast_matching(self, pattern: str, event: str, payload: object, *, key: str | None = None) -> int:
        _check("pattern", pattern, MAX_TOPIC)
        return self._spread((pattern,), self._matching(pattern), event, payload, key, matching=True)

    def publish(self, broadcast: Broadcast, sender: Subscriber | None = None, node: str | None = None) -> int:
        # Encoded here, so that a payload that cannot be sent fails its sender, not its receivers.
        _serializer.broadcast(NULL_REF, broadcast)
        delivered = self._deliver(broadcast, sender) if node in (None, self.node) else 0
        if self._adapter is not None and node != self.node:
            topics, event, payload = (broadcast.topic,), broadcast.event, broadcast.payload
            self._adapter.send(_publication(topics, event, payload, broadcast.key), node)
        return delivered

    def _spread(
        self,
        named: tuple[str, ...],
        topics: Sequence[str],
        event: str,
        payload: object,
        key: str | None,
        *,
        matching: bool = False,
    ) -> int:
        """Send to ``topics`` on this node; the others are told what was ``named``."""
        _check_event(event)
        publication = _publication(named, event, payload, key, matching=matching)
        delivered = self._deliver_all(topics, publication, payload)
        if self._adapter is not None:
            self._adapter.send(publication)
        return delivered

    # To deliver

    def _receive(self, publication: Publication) -> None:
        try:
            if publication.matching:
                topics: Sequence[str] = self._matching(publication.topics[0])
            else:
                topics = publication.topics
            payload = publication.body if publication.binary else msgspec.json.decode(publication.body)
            self._deliver_all(topics, publication, payload)
        except (ValueError, RecursionError, LookupError, InvalidPayload) as problem:
            self._log.warn("Dropped what another node published: {error}", error=str(problem)[:200])

    def _matching(self, pattern: str) -> list[str]:
        try:
            matches = TopicPattern.parse(pattern).matches
        except ValueError as problem:
            raise InvalidPayload(f"pattern: {problem}") from None
        return [topic for topic in self._topics if matches(topic)]

    def _deliver_all(self, topics: Iterable[str], publication: Publication, payload: object) -> int:
        """Deliver to several topics, for which the payload is encoded only once."""
        encoded: object = publication.body if publication.binary else Raw(publication.body)
        delivered = 0
        for topic in topics:
            if topic in self._topics:
                broadcast = Broadcast(topic, publication.event, encoded, publication.key)
                _serializer.broadcast(NULL_REF, broadcast)
                # Subscribers that are programs take the value, not its text.
                broadcast.payload = payload
                delivered += self._deliver(broadcast)
        return delivered

    def _deliver(self, broadcast: Broadcast, sender: Subscriber | None = None) -> int:
        subscribers = self._topics.get(broadcast.topic)
        if subscribers is None:
            return 0
        bursts = self._bursts
        if bursts is None or len(subscribers) < WORTH_IT:
            return self._deliver_to(subscribers, broadcast, sender)
        bursts.begin()
        try:
            return self._deliver_to(subscribers, broadcast, sender)
        finally:
            bursts.end()

    def _deliver_to(
        self, subscribers: dict[Subscriber, None], broadcast: Broadcast, sender: Subscriber | None
    ) -> int:
        delivered = failed = 0
        first: Failure | None = None
        for subscriber in tuple(subscribers):
            if subscriber is sender or subscriber not in subscribers:
                continue
            try:
                subscriber.deliver(broadcast)
            except Exception:
                failed += 1
                first = first or Failure()
            else:
                delivered += 1
        if first is not None:
            self._log.failure(
                "{event} failed {failed} of the subscribers of {topic}; the first with",
                first,
                event=broadcast.event[:MAX_EVENT],
                failed=failed,
                topic=broadcast.topic[:MAX_EVENT],
            )
        return delivered


def _checked(topic: str, event: str, payload: object, key: str | None) -> Broadcast:
    _check("topic", topic, MAX_TOPIC)
    _check_event(event)
    return Broadcast(topic, event, payload, key)


def _check_event(event: str) -> None:
    _check("event", event, MAX_EVENT)
    if event.startswith(_RESERVED):
        raise InvalidPayload(f"event: got {event!r}; names that begin with phx_ or presence_ are reserved")


def _check(name: str, text: object, most: int) -> None:
    if not isinstance(text, str):
        raise InvalidPayload(f"{name}: got {type(text).__name__}; it takes text")
    if len(text) > most or not _TEXT.fullmatch(text):
        raise InvalidPayload(
            f"{name}: got {text[:140]!r}; it takes 1 to {most} characters, none of them a control character"
        )


def _publication(
    topics: tuple[str, ...], event: str, payload: object, key: str | None, *, matching: bool = False
) -> Publication:
    if isinstance(payload, bytes):
        return Publication(topics, event, payload, binary=True, matching=matching, key=key)
    try:
        body = msgspec.json.encode(payload)
    except (TypeError, ValueError, RecursionError, OverflowError) as problem:
        raise UnencodablePayload(f"cannot be written as JSON: {problem}") from None
    if not body.startswith(b"{"):
        raise UnencodablePayload(f"a payload must be an object, not {type(payload).__name__}")
    return Publication(topics, event, body, matching=matching, key=key)
