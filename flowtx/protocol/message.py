"""The values that travel: what a client sent, and the frames that go back.

A *ref* is an opaque string of the client's. It is kept as the JSON text it came in and echoed to
the byte, so that numbers stay numbers; ``NULL_REF`` stands for an absent one.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

Ref: TypeAlias = bytes
NULL_REF: Final[Ref] = b"null"

PHOENIX_TOPIC: Final = "phoenix"
HEARTBEAT: Final = "heartbeat"
JOIN: Final = "phx_join"
LEAVE: Final = "phx_leave"
REPLY: Final = "phx_reply"
CLOSE: Final = "phx_close"
ERROR: Final = "phx_error"

SERVER_EVENTS: Final = frozenset({REPLY, CLOSE, ERROR})
"""Events that only a server may send."""


class Message(NamedTuple):
    """A message from a client, its payload still unread.

    Attributes:
        join_ref: names the join of the topic that this belongs to.
        ref: names the message; its reply carries the same.
        topic: as sent: text, or a JSON scalar that matches no topic.
        event: as sent: text, or a JSON scalar that matches no event.
        body: the payload: JSON text, or the bytes of a binary push.
        binary: whether ``body`` is the bytes of a binary push.
    """

    join_ref: Ref
    ref: Ref
    topic: Any
    event: Any
    body: bytes
    binary: bool = False


class Frame(msgspec.Struct, gc=False, eq=False):
    """The payload of one WebSocket frame to a client.

    Attributes:
        payload: the payload.
        binary: whether it goes into a binary frame.
        key: None where the client must get it; otherwise it may be dropped for a client that is slow,
            and a newer one with the same key takes its place while it waits.
        wire: the whole WebSocket frame, once a transport has made it.
    """

    payload: bytes
    binary: bool = False
    key: str | None = None
    wire: bytes | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return (self.payload, self.binary, self.key) == (other.payload, other.binary, other.key)

    def __ne__(self, other: object) -> bool:
        # msgspec's own would come first.
        return not self == other

    __hash__ = None  # type: ignore[assignment]


class Broadcast:
    """One event for all subscribers of a topic, encoded once for each form it is needed in.

    Attributes:
        topic: the topic.
        event: the event.
        payload: a mapping, a value that msgspec encodes as an object, or bytes.
        key: as in `Frame`.
        encoded: what a serializer made of it, by what the form hangs on.
    """

    __slots__ = ("encoded", "event", "key", "payload", "topic")

    def __init__(self, topic: str, event: str, payload: object, key: str | None = None) -> None:
        self.topic = topic
        self.event = event
        self.payload = payload
        self.key = key
        self.encoded: dict[str | Ref, Frame] = {}


class MalformedFrame(ValueError):  # noqa: N818
    """A frame that is no message of the Phoenix protocol."""


class UnencodablePayload(ValueError):  # noqa: N818
    """A payload that cannot be sent: not JSON, not an object, or binary where only text goes."""
