"""A client in memory that speaks to a server as phoenix.js does, and says what it was sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred

from flowtx.channels.channel import Channel
from flowtx.protocol.close import Close
from flowtx.protocol.message import CLOSE, ERROR, JOIN, LEAVE, PHOENIX_TOPIC, REPLY, Frame
from flowtx.sessions.service import Claim
from flowtx.testing.link import Link
from flowtx.testing.matching import ANY, matches


class Received(NamedTuple):
    """A frame that a client got; refs that are absent are None."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: Any

    def __str__(self) -> str:
        if self.event == REPLY:
            return (
                f"reply {self.ref!r} on {self.topic}: {self.payload['status']} {self.payload['response']!r}"
            )
        return f"{self.event!r} on {self.topic}: {self.payload!r}"


class Client:
    """One connection of a user; `flowtx.testing.server.MemoryServer.connect` makes it.

    A frame that an ``assert_…`` has matched is taken: the next one looks at the others. Those that
    nobody asked for do no harm. What is due by now is done before each look.

    Attributes:
        user_id: whose connection it is.
        link: the connection, with its faults: ``stop_reading``, ``hold``, ``release``, ``drop``.
        is_silent: whether it has ceased to send heartbeats.
    """

    def __init__(self, link: Link, claim: Claim, settle: Callable[[], None]) -> None:
        self.user_id = link.socket.principal.user_id
        self.link = link
        self.is_silent = False
        self._claim = claim
        self._settle = settle
        self._v1 = link.socket.serializer.version.startswith("1.")
        self._refs = count(1)
        self._joins: dict[str, str] = {}
        self._frames: list[Received] = []
        self._lost: Deferred[None] | None = None
        link.on_close = lambda: link.socket.clock.callLater(0, self.lose)

    @property
    def closed(self) -> Close | None:
        """Why the server closed the connection: code and reason; None where it did not."""
        self._settle()
        return self.link.closed

    def channel(self, topic: str) -> Channel:
        """Find the server's end of a topic, to look at its ``assigns`` or to `send_info`.

        Raises:
            AssertionError: the topic is not joined.
        """
        channel = self.link.socket.channel(topic)
        if channel is None:
            raise AssertionError(f"{topic} is not joined; joined are: {', '.join(self._joins) or 'none'}")
        return channel

    # To the server

    def join(self, topic: str, payload: Any = None) -> Any:
        """Join a topic; the response.

        Raises:
            AssertionError: it was refused, or has not been answered.
        """
        return self.assert_reply(self.send_join(topic, payload))

    def send_join(self, topic: str, payload: Any = None) -> str:
        """Ask to join, where that is refused or takes its time; the ref, for `assert_reply`."""
        ref = self._joins[topic] = str(next(self._refs))
        self._send(ref, ref, topic, JOIN, payload)
        return ref

    def push(self, topic: str, event: str, payload: Any = None) -> str:
        """Send a message; the ref, for `assert_reply`.

        Args:
            topic: on which topic.
            event: its event.
            payload: any JSON value, by default an empty object; or bytes, which go as a binary frame.
        """
        ref = str(next(self._refs))
        self._send(self._joins.get(topic), ref, topic, event, payload)
        return ref

    def leave(self, topic: str) -> None:
        """Leave a topic.

        Raises:
            AssertionError: that was not answered, as the channel is busy.
        """
        joined = topic in self._joins
        self.assert_reply(self.push(topic, LEAVE))
        if joined:
            self.assert_push(CLOSE, topic=topic)

    def heartbeat(self) -> None:
        """Send a heartbeat; `flowtx.testing.server.MemoryServer.advance` does so for those not silent."""
        self._send(None, None, PHOENIX_TOPIC, "heartbeat", None)

    def lose(self) -> Deferred[None]:
        """Lose the connection, as when a tab is closed or the network goes; what is under way is lost.

        Returns:
            A Deferred that fires with None when its channels have ended.
        """
        if self._lost is None:
            self._lost = self.link.lose().addCallback(lambda _: self._claim.release())
            self._settle()
        return self._lost

    # From the server

    def assert_reply(self, ref: str, status: str = "ok", response: Any = ANY) -> Any:
        """Take the reply to a message.

        Args:
            ref: what `push` gave.
            status: the expected status.
            response: a pattern; see `flowtx.testing.matching.matches`.

        Returns:
            The response.

        Raises:
            AssertionError: there is none, or it is another one.
        """

        def is_it(frame: Received) -> bool:
            return frame.event == REPLY and frame.ref == ref

        expected = {"status": status, "response": response}
        frame = self._take(lambda frame: is_it(frame) and matches(expected, frame.payload))
        if frame is None:
            raise self._missing(f"no reply {ref!r} of status {status!r} with {_shown(response)} came")
        return frame.payload["response"]

    def refute_reply(self, ref: str) -> None:
        """See that a message has not been answered."""
        frame = self._take(lambda frame: frame.event == REPLY and frame.ref == ref)
        if frame is not None:
            raise AssertionError(f"there was to be no reply {ref!r}, but it came: {frame}")

    def assert_push(self, event: str, payload: Any = ANY, *, topic: str | None = None) -> Any:
        """Take an event that was pushed, or broadcast, to this client; ``phx_close`` and ``phx_error`` too.

        Args:
            event: its event.
            payload: a pattern; see `flowtx.testing.matching.matches`.
            topic: on which topic; None for any.

        Returns:
            The payload.

        Raises:
            AssertionError: there is none.
        """
        frame = self._take(lambda frame: _is_push(frame, event, payload, topic))
        if frame is None:
            where = "" if topic is None else f" on {topic}"
            raise self._missing(f"no {event!r}{where} with {_shown(payload)} came")
        return frame.payload

    def refute_push(self, event: str, payload: Any = ANY, *, topic: str | None = None) -> None:
        """See that no such event has come; see `assert_push`."""
        frame = self._take(lambda frame: _is_push(frame, event, payload, topic))
        if frame is not None:
            raise AssertionError(f"there was to be no {event!r}, but it came: {frame}")

    def received(self) -> list[Received]:
        """Take all frames that were not taken yet, in order; replies to heartbeats are not among them."""
        self._settle()
        taken, self._frames = self._frames + self._read(), []
        return taken

    # Within

    def _send(self, join_ref: str | None, ref: str | None, topic: str, event: str, payload: Any) -> None:
        if isinstance(payload, bytes):
            fields = [(field or "").encode() for field in (join_ref, ref, topic, event)]
            self.link.binary(bytes([0, *map(len, fields)]) + b"".join(fields) + payload)
        else:
            payload = {} if payload is None else payload
            message: Any = [join_ref, ref, topic, event, payload]
            if self._v1:
                message = dict(zip(("join_ref", "ref", "topic", "event", "payload"), message, strict=True))
            self.link.text(json.dumps(message, separators=(",", ":")))

    def _take(self, is_it: Callable[[Received], bool]) -> Received | None:
        self._settle()
        self._frames += self._read()
        for place, frame in enumerate(self._frames):
            if is_it(frame):
                return self._frames.pop(place)
        return None

    def _read(self) -> list[Received]:
        frames = [self._decode(frame) for frame in self.link.take()]
        for frame in frames:
            if frame.event in (CLOSE, ERROR) and frame.join_ref in (self._joins.get(frame.topic), None):
                self._joins.pop(frame.topic, None)
        return [frame for frame in frames if frame.topic != PHOENIX_TOPIC]

    def _decode(self, frame: Frame) -> Received:
        if frame.binary:
            return _decode_binary(frame.payload)
        message = json.loads(frame.payload)
        if isinstance(message, Mapping):
            message = [None, *(message[name] for name in ("ref", "topic", "event", "payload"))]
        return Received(*message)

    def _missing(self, what: str) -> AssertionError:
        came = "".join(f"\n  {frame}" for frame in self._frames) or " nothing"
        closed = "" if self.link.closed is None else f"\nthe server closed the connection: {self.link.closed}"
        return AssertionError(f"{what}; what {self.user_id} got and was not asked for:{came}{closed}")


def _is_push(frame: Received, event: str, payload: Any, topic: str | None) -> bool:
    return frame.event == event and topic in (None, frame.topic) and matches(payload, frame.payload)


def _shown(pattern: Any) -> str:
    return "anything" if pattern is ANY else repr(pattern)


def _decode_binary(data: bytes) -> Received:
    kind = data[0]
    names = (("join_ref", "topic", "event"), ("join_ref", "ref", "topic", "status"), ("topic", "event"))[kind]
    start, fields = 1 + len(names), {}
    for name, size in zip(names, data[1:], strict=False):
        fields[name] = data[start : start + size].decode()
        start += size
    payload: Any = data[start:]
    if "status" in fields:
        payload = {"status": fields["status"], "response": payload}
    return Received(
        fields.get("join_ref") or None,
        fields.get("ref") or None,
        fields["topic"],
        fields.get("event", REPLY),
        payload,
    )
