"""What an application writes: a Channel, and the values that its methods return."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from flowtx.interfaces import Subscriber
from flowtx.protocol.message import Ref

if TYPE_CHECKING:
    from flowtx.channels.membership import Membership
    from flowtx.channels.socket import Socket


class Reply(msgspec.Struct, frozen=True):
    """An answer to a client's message.

    Attributes:
        status: ``ok``, ``error``, or another word that the client knows.
        response: any JSON value, or bytes, which go out as a binary frame.
    """

    status: str
    response: Any = msgspec.field(default_factory=dict)


GRACEFUL: Final = frozenset({"normal", "shutdown"})
"""Reasons of a `Stop` after which a client stays away."""


class Stop(msgspec.Struct, frozen=True):
    """Ends the channel.

    Attributes:
        reason: ``normal`` and ``shutdown`` send ``phx_close``, after which a client stays away;
            any other word is a crash and sends ``phx_error``, after which it joins again.
        reply: an answer to send first.
    """

    reason: str = "normal"
    reply: Reply | None = None


def ok(response: object = None) -> Reply:
    """Answer ``ok``; without a response, with an empty object."""
    return Reply("ok", {} if response is None else response)


def error(response: object = None) -> Reply:
    """Answer ``error``; without a response, with an empty object."""
    return Reply("error", {} if response is None else response)


JoinResult: TypeAlias = Reply | None
InResult: TypeAlias = Reply | Stop | None


class UnhandledEvent(Exception):  # noqa: N818
    """A client sent an event that its channel does not know."""


class Channel:
    """One topic on one client's Socket: subclass it and give the subclass to a `Router`.

    Its methods may be plain or ``async``. The messages of one channel are handled one after the
    other, those of different channels independently. An exception ends this channel alone: the
    client gets ``phx_error`` and joins again.

    Attributes:
        topic: the topic that the client joined.
        socket: the connection; ``socket.principal`` is the user whom its token names.
        assigns: a dict for the application's own values.
    """

    topic: str
    socket: Socket
    assigns: dict[str, Any]
    _membership: Membership

    def join(self, payload: Any) -> JoinResult | Awaitable[JoinResult]:  # noqa: ARG002
        """Let a client in, or not.

        Args:
            payload: what the client sent with ``phx_join``: any JSON value.

        Returns:
            None or ``ok(response)`` to let it in, ``error(response)`` to refuse.
        """
        return None

    def handle_in(self, event: str, payload: Any) -> InResult | Awaitable[InResult]:  # noqa: ARG002
        """Handle a message from the client.

        Args:
            event: its event.
            payload: any JSON value, or bytes where the client pushed binary.

        Returns:
            ``ok(…)``, ``error(…)`` or another `Reply` to answer, None not to, or a `Stop`.
        """
        raise UnhandledEvent(event)

    def terminate(self, reason: str) -> Awaitable[None] | None:
        """Called once after a join that succeeded, when the channel has ended.

        Args:
            reason: ``leave``, ``closed`` (the connection went), ``duplicate_join``, ``crash``, or
                that of a `Stop`.
        """

    @property
    def subscriber(self) -> Subscriber:
        """What hears the broadcasts on this topic for this client."""
        return self._membership

    @property
    def ref(self) -> Ref:
        """Names the message in hand, to answer it later with `reply`."""
        return self._membership.ref

    def reply(self, ref: Ref, reply: Reply) -> None:
        """Answer a message later than from its handler."""
        self._membership.reply(ref, reply)

    def push(self, event: str, payload: object) -> None:
        """Send an event to this client.

        Raises:
            UnencodablePayload: ``payload`` is neither an object of JSON nor bytes.
        """
        self._membership.push(event, payload)

    def ping(self, payload: bytes) -> None:
        """Send a WebSocket Ping behind what was sent before; ``socket.on_pong`` gets its answer.

        Args:
            payload: at most 125 bytes.
        """
        self._membership.ping(payload)

    def broadcast(self, event: str, payload: object) -> int:
        """Send an event to all who joined this topic; the number of those on this node.

        Raises:
            UnencodablePayload: see `push`.
        """
        return self._membership.broadcast(event, payload)

    def broadcast_from(self, event: str, payload: object) -> int:
        """Send an event to all who joined this topic but this client; see `broadcast`."""
        return self._membership.broadcast(event, payload, without_self=True)
