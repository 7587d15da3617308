"""What an application writes: a Channel, and the values that its methods return."""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from flowtx.interfaces import Subscriber
from flowtx.protocol.message import Ref

if TYPE_CHECKING:
    from flowtx.channels.membership import Membership
    from flowtx.channels.socket import Socket


_log = Logger()


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
Outcome: TypeAlias = Stop | None


class UnhandledEvent(Exception):  # noqa: N818
    """A client sent an event that its channel does not know."""


class Channel:
    """One topic on one client's Socket: subclass it and give the subclass to a `Router`.

    Its five callbacks ``join``, ``handle_in``, ``handle_out``, ``handle_info`` and ``terminate`` may
    be plain or ``async``. A channel is in one of them at a time: what comes meanwhile waits its turn.
    Different channels are independent. An exception, or a return value that is none of those
    listed, ends this channel alone: the client gets ``phx_error`` and joins again.

    The client's messages are bounded by reading no more of them. Of infos and of broadcasts that
    the channel handles itself, 1,000 may wait: past that, those with a key are dropped, and where
    there are none, the channel ends as if it had crashed, with the reason ``overflow``; its client
    joins again and starts afresh.

    Attributes:
        intercept: events whose broadcasts on the topic go to ``handle_out``, and not straight out.
        topic: the topic that the client joined.
        socket: the connection; ``socket.principal`` is the user whom its token names.
        assigns: a dict for the application's own values.
    """

    intercept: Collection[str] = ()
    topic: str
    socket: Socket
    assigns: dict[str, Any]
    _membership: Membership

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A text is a collection too, of the letters in it.
        if isinstance(cls.intercept, str) or not all(isinstance(event, str) for event in cls.intercept):
            raise TypeError(
                f'{cls.__name__}.intercept is {cls.intercept!r}; it takes a tuple of events: ("new_msg",)'
            )

    def join(self, payload: Any) -> JoinResult | Awaitable[JoinResult]:  # noqa: ARG002
        """Let a client in, or not.

        What is pushed here follows the answer. `send_info` has something done right after it.

        Args:
            payload: what the client sent with ``phx_join``: any JSON value.

        Returns:
            None or ``ok(response)`` to let it in, ``error(response)`` to refuse.
        """
        return None

    def handle_in(self, event: str, payload: Any) -> InResult | Awaitable[InResult]:  # noqa: ARG002
        """Handle a message from the client.

        `InvalidPayload` and `StorageError` are answered ``invalid_payload`` and ``unavailable``, and
        the channel goes on; any other exception is a crash.

        Args:
            event: its event.
            payload: any JSON value, or bytes where the client pushed binary.

        Returns:
            ``ok(…)``, ``error(…)`` or another `Reply` to answer, None not to, or a `Stop`.
        """
        raise UnhandledEvent(event)

    def handle_out(self, event: str, payload: Any) -> Outcome | Awaitable[Outcome]:
        """Handle a broadcast on the topic, of an event that is in ``intercept``.

        Nothing goes out but what is pushed here; by default, what came. The broadcasts behind it wait
        for it, so that the client gets them in order.

        Args:
            event: its event.
            payload: as its sender gave it. Others have the same one: it must not be changed.

        Returns:
            None, or a `Stop` without a reply.
        """
        self.push(event, payload)
        return None

    def handle_info(self, message: Any) -> Outcome | Awaitable[Outcome]:
        """Handle what the server itself sent to this channel; by default it is logged as unexpected.

        Args:
            message: what `send_info` or `send_after` was given, or a `Broadcast` of a topic that the
                channel subscribed to: it has ``topic``, ``event`` and ``payload``.

        Returns:
            None, or a `Stop` without a reply.
        """
        _log.warn(
            "{channel} has no handle_info, and drops a message of type {type}",
            channel=type(self).__name__,
            type=type(message).__name__,
        )
        return None

    def terminate(self, reason: str) -> Awaitable[None] | None:
        """Called once after a join that succeeded, when the channel has ended.

        By then its timers and subscriptions have ended too. It is given five seconds.

        Args:
            reason: ``leave``, ``closed`` (the connection went), ``duplicate_join``, ``crash``,
                ``overflow``, or that of a `Stop`.
        """

    @property
    def is_taken(self) -> bool:
        """Whether a client has asked to join it; each join needs a Channel of its own."""
        return "topic" in vars(self)

    @property
    def user_id(self) -> str:
        """The user whom the connection's token names."""
        return self.socket.principal.user_id

    @property
    def subscriber(self) -> Subscriber:
        """What hears the broadcasts on this topic for this client."""
        return self._membership

    # To the client

    @property
    def ref(self) -> Ref:
        """Names the message in hand, to answer it later with `reply`.

        Raises:
            RuntimeError: the channel is not in ``handle_in``; what is to be answered later has to be
                asked for there.
        """
        ref = self._membership.ref
        if ref is None:
            raise RuntimeError("there is no message in hand: ref is for handle_in, to keep for later")
        return ref

    def reply(self, ref: Ref, reply: Reply) -> None:
        """Answer a message later than from its handler, which returned None.

        Args:
            ref: what `ref` was when it was handled.
            reply: the answer.

        Raises:
            UnencodablePayload: the response is neither JSON nor bytes.
        """
        self._membership.reply(ref, reply)

    def push(self, event: str, payload: object, *, key: str | None = None) -> None:
        """Send an event to this client; without effect once the channel has ended.

        Args:
            event: its event.
            payload: an object of JSON, or bytes, which go out as a binary frame.
            key: None where the client must get it. Otherwise it may be dropped for a client that is
                slow, and a newer one with the same key takes its place while it waits.

        Raises:
            UnencodablePayload: ``payload`` is neither of the two.
        """
        self._membership.sender.push(event, payload, key)

    def ping(self, payload: bytes) -> None:
        """Send a WebSocket Ping behind what was sent before; ``socket.on_pong`` gets its answer.

        Args:
            payload: at most 125 bytes.
        """
        self._membership.sender.ping(payload)

    # To all on the topic

    def broadcast(self, event: str, payload: object, *, key: str | None = None) -> int:
        """Send an event to all who joined this topic, this client too.

        Args:
            event: its event.
            payload: see `push`.
            key: see `push`.

        Returns:
            How many subscribers it had on this node.

        Raises:
            UnencodablePayload: see `push`.
        """
        return self._membership.broadcast(event, payload, key, without_self=False)

    def broadcast_from(self, event: str, payload: object, *, key: str | None = None) -> int:
        """Send an event to all who joined this topic but this client; see `broadcast`."""
        return self._membership.broadcast(event, payload, key, without_self=True)

    # To itself

    def send_info(self, message: Any) -> None:
        """Have ``handle_info`` called with ``message`` when it is its turn, after the join.

        Without effect once the channel has ended.

        Args:
            message: anything.
        """
        self._membership.send_info(message)

    def send_after(self, seconds: float, message: Any) -> IDelayedCall:
        """Do as `send_info`, some time from now, unless the channel has ended by then.

        Returns:
            The timer: it has ``cancel()``, for as long as it is ``active()``.

        Raises:
            TooManySources: a thousand timers run already.
        """
        return self._membership.sources.send_after(seconds, message)

    def subscribe(self, topic: str) -> None:
        """Have ``handle_info`` called with each `Broadcast` on another topic, until the channel ends.

        Args:
            topic: which; a second time has no effect.

        Raises:
            ValueError: it is the channel's own topic; ``intercept`` is for that.
            TooManySources: the channel subscribes to a thousand topics already.
        """
        if topic == self.topic:
            raise ValueError(f"{topic!r} is the channel's own topic: name the events in intercept")
        self._membership.sources.subscribe(topic)

    def unsubscribe(self, topic: str) -> None:
        """Undo `subscribe`; without effect where there is nothing to undo."""
        self._membership.sources.unsubscribe(topic)
