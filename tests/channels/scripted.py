"""A Channel whose methods a test gives, and a V2 client that speaks to it in JSON values."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from flowtx.channels.channel import Channel
from flowtx.channels.router import Router
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.testing.memory import MemoryTransport, connect


class Script:
    """What the Channels of a test do, and what became of them.

    Attributes:
        join: called with the Channel and the payload.
        events: by event, called with the Channel and the payload.
        intercept: the events whose broadcasts the Channels handle themselves.
        out: called with the Channel, the event and the payload of such a broadcast.
        info: called with the Channel and what it was sent.
        terminate: called with the Channel and the reason.
        joined: the Channels whose join was asked for, in order.
        handled: the payloads that came to ``handle_in``, in order.
        terminated: topic and reason of each call of ``terminate``.
    """

    def __init__(self) -> None:
        self.join: Callable[[Channel, Any], Any] = lambda _channel, _payload: None
        self.events: dict[str, Callable[[Channel, Any], Any]] = {}
        self.intercept: tuple[str, ...] = ()
        self.out: Callable[[Channel, str, Any], Any] = lambda channel, event, payload: channel.push(
            event, payload
        )
        self.info: Callable[[Channel, Any], Any] = lambda _channel, _message: None
        self.terminate: Callable[[Channel, str], Any] = lambda _channel, _reason: None
        self.joined: list[Channel] = []
        self.handled: list[Any] = []
        self.terminated: list[tuple[str, str]] = []


class ScriptedChannel(Channel):
    def __init__(self, script: Script) -> None:
        self._script = script
        self.intercept = script.intercept

    def join(self, payload: Any) -> Any:
        self._script.joined.append(self)
        return self._script.join(self, payload)

    def handle_in(self, event: str, payload: Any) -> Any:
        self._script.handled.append(payload)
        handler = self._script.events.get(event)
        return super().handle_in(event, payload) if handler is None else handler(self, payload)

    def handle_out(self, event: str, payload: Any) -> Any:
        return self._script.out(self, event, payload)

    def handle_info(self, message: Any) -> Any:
        return self._script.info(self, message)

    def terminate(self, reason: str) -> Any:
        self._script.terminated.append((self.topic, reason))
        return self._script.terminate(self, reason)


class Server:
    """Serves a `Script` on ``room:*`` under a Clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pubsub = MemoryPubSub()
        self.script = Script()
        self.router = Router().channel("room:*", lambda: ScriptedChannel(self.script))

    def connect(self, **options: Any) -> Client:
        return Client(connect(self.router, "42", self.clock, pubsub=self.pubsub, **options))


class Client:
    """A client of version 2, or 1 where the transport is of that."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.socket = transport.socket
        self._v1 = self.socket.serializer.version == "1.0.0"

    def send(self, join_ref: Any, ref: Any, topic: Any, event: Any, payload: Any = None) -> None:
        """Send a message; without a payload, with an empty object."""
        payload = {} if payload is None else payload
        if self._v1:
            self.transport.text(
                json.dumps(
                    {"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref}
                )
            )
        else:
            self.transport.text(json.dumps([join_ref, ref, topic, event, payload]))

    def received(self) -> list[Any]:
        """Take the frames that came: JSON values, or bytes."""
        return [
            frame.payload if frame.binary else json.loads(frame.payload) for frame in self.transport.take()
        ]

    def join(self, topic: str, ref: str) -> None:
        """Join a topic that lets the client in at once."""
        self.send(ref, ref, topic, "phx_join")
        [reply] = self.received()
        if (reply["payload"] if self._v1 else reply[4])["status"] != "ok":
            raise AssertionError(f"not let in: {reply}")

    def lose(self) -> Deferred[None]:
        return self.transport.lose()


def reply(join_ref: Any, ref: Any, topic: str, response: Any = None, status: str = "ok") -> list[Any]:
    """A reply as a client gets it; without a response, with an empty object."""
    body = {"status": status, "response": {} if response is None else response}
    return [join_ref, ref, topic, "phx_reply", body]


def unmatched(ref: Any, topic: Any) -> list[Any]:
    """The refusal of a message on a topic that is not joined."""
    return reply(None, ref, topic, {"reason": "unmatched topic"}, "error")


def closing(join_ref: Any, topic: str) -> list[Any]:
    """The end of a channel, after which a client stays away."""
    return [join_ref, join_ref, topic, "phx_close", {}]


def crashed(join_ref: Any, topic: str) -> list[Any]:
    """The end of a channel, after which a client joins again."""
    return [join_ref, join_ref, topic, "phx_error", {"reason": "channel_crash"}]
