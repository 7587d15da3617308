"""One Channel on one Socket: its mailbox, its state and the frames it sends.

A membership takes the place of Phoenix's channel process. It handles one message at a time, be it
the client's, an info or a broadcast that the channel intercepts; what comes meanwhile waits in the
mailbox. What a handler sends after the frame that ends the channel is dropped; ``terminate`` may
still send, as in Phoenix.
"""

from __future__ import annotations

from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx.channels import callbacks
from flowtx.channels.channel import GRACEFUL, Channel, Reply, Stop
from flowtx.channels.mailbox import Info, Item, Mailbox
from flowtx.channels.sender import Sender
from flowtx.channels.sources import Sources
from flowtx.channels.state import State
from flowtx.protocol.message import (
    CLOSE,
    ERROR,
    LEAVE,
    NULL_REF,
    Broadcast,
    Message,
    Ref,
    UnencodablePayload,
)

if TYPE_CHECKING:
    from flowtx.channels.socket import Socket

MAX_TURN: Final = 1_000
"""Messages handled in one turn of the reactor: a channel that sends itself one for each leaves room."""


class Membership:
    """See the module; made by `flowtx.channels.socket.Socket` for each ``phx_join``.

    Attributes:
        topic: the topic.
        channel: what the application wrote.
        sender: writes the channel's frames.
    """

    __slots__ = (
        "_ended",
        "_in_hand",
        "_mailbox",
        "_next_turn",
        "_pumping",
        "_reason",
        "_running",
        "_socket",
        "_sources",
        "_state",
        "channel",
        "sender",
        "topic",
    )

    _log = Logger()

    def __init__(self, socket: Socket, channel: Channel, message: Message) -> None:
        self._socket = socket
        self.channel = channel
        self.topic: str = message.topic
        self.sender = Sender(socket, message)
        self._state = State.JOINING
        self._mailbox = Mailbox()
        self._sources: Sources | None = None
        self._in_hand: Item | None = None
        self._running: Deferred[Any] | None = None
        self._pumping = False
        self._next_turn: IDelayedCall | None = None
        self._ended: Deferred[None] | None = None
        self._reason = ""
        channel.topic = message.topic
        channel.socket = socket
        channel.assigns = {}
        channel._membership = self  # noqa: SLF001 - the two are one thing, seen from two sides

    @property
    def ref(self) -> Ref | None:
        """Names the client's message in hand; None where there is none."""
        return self._in_hand.ref if isinstance(self._in_hand, Message) else None

    def accepts(self, join_ref: Ref) -> bool:
        """Whether a message with ``join_ref`` is for this join of the topic."""
        own = self.sender.join_ref
        return join_ref in (own, NULL_REF) or own == NULL_REF

    # The join

    def start(self, message: Message, replaced: Membership | None) -> None:
        """Run the join that ``message`` asks for, after ``replaced``, if any, has ended."""
        running = Deferred.fromCoroutine(self._join(message, replaced))
        if not running.called:
            self._running = running

    async def _join(self, message: Message, replaced: Membership | None) -> None:
        if replaced is not None:
            await replaced.stop("duplicate_join")
        if self._state is State.JOINING:
            reply = await callbacks.join(self.channel, message)
            self._running = None
            if self._state is State.JOINING:
                if not self._answer_join(message, reply) and reply.status == "ok":
                    await callbacks.terminate(self.channel, "crash", self._socket.clock)
            elif reply.status == "ok":
                # Another join took the topic meanwhile, or the connection has gone.
                await callbacks.terminate(self.channel, self._reason, self._socket.clock)
        if replaced is not None:
            self._socket.send(replaced.sender.control_frame(CLOSE))
        if self._state is State.CLOSED:
            for waiting in self._clear():
                self._socket.dispatch(waiting)
        self._pump()

    def _answer_join(self, message: Message, reply: Reply) -> bool:
        """Write the join's answer, then what was held; whether the client is in."""
        serializer = self._socket.serializer
        try:
            frame = serializer.reply(message.join_ref, message.ref, self.topic, reply.status, reply.response)
        except UnencodablePayload:
            self._log.failure("Channel {channel} crashed in join", channel=callbacks.name(self.channel))
            reply = callbacks.JOIN_CRASHED
            frame = serializer.reply(message.join_ref, message.ref, self.topic, reply.status, reply.response)
        self._socket.send(frame)
        if reply.status != "ok":
            self._socket.note("join_refused", topic=self.topic)
            self._state = State.CLOSED
            self.sender.muted = True
            self._close_sources()
            self._socket.forget(self)
            return False
        self._state = State.JOINED
        self._socket.note("joined", topic=self.topic, device=self._socket.device)
        self._socket.pubsub.subscribe(self.topic, self)
        self.sender.release()
        return True

    # What comes in

    def receive(self, message: Message) -> None:
        """Take a message of the client's; it is handled when those before it are."""
        if self._state is State.JOINED and not self._pumping and self._running is None and not self._mailbox:
            # Nothing is before it: what most messages find.
            self._pumping = True
            try:
                self._handle(message)
            finally:
                self._pumping = False
        else:
            self._mailbox.put(message)
            self._socket.queued(1)
        self._pump()

    def send_info(self, message: Any) -> None:
        """Take something for ``handle_info``; without effect once the channel ends."""
        if not self._is_over:
            self._mailbox.put(Info(message))
            self._pump()

    def deliver(self, broadcast: Broadcast) -> None:
        """Take a broadcast: to send, to intercept, or of another topic that the channel listens to."""
        if broadcast.topic != self.topic:
            self.send_info(broadcast)
        elif self._state is not State.JOINED:
            return
        # Behind one that is to be intercepted the others wait too, so that their order is kept.
        elif self.channel.intercept and (
            broadcast.event in self.channel.intercept
            or self._mailbox.broadcasts
            or isinstance(self._in_hand, Broadcast)
        ):
            self._mailbox.put(broadcast)
            self._pump()
        else:
            self._forward(broadcast)

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        try:
            for _ in range(MAX_TURN):
                if self._state is not State.JOINED:
                    return
                if self._mailbox.overflowed:
                    callbacks.log_overflow(self.channel)
                    self._finish(ERROR, "overflow")
                    return
                if self._running is not None or (item := self._mailbox.take()) is None:
                    return
                if isinstance(item, Message):
                    self._socket.queued(-1)
                self._handle(item)
            if self._next_turn is None:
                self._next_turn = self._socket.clock.callLater(0, self._go_on)
        finally:
            self._pumping = False

    def _go_on(self) -> None:
        self._next_turn = None
        self._pump()

    def _handle(self, item: Item) -> None:
        if isinstance(item, Message):
            if item.event == LEAVE:
                self.sender.reply(item.ref, Reply("ok"))
                self._finish(CLOSE, "leave")
                return
        elif isinstance(item, Broadcast) and item.event not in self.channel.intercept:
            self._forward(item)
            return
        self._in_hand = item
        try:
            result = callbacks.handle(self.channel, item)
        except Exception:
            self._handled(Failure(), item)
            return
        if not isawaitable(result):
            self._handled(result, item)
            return
        running = callbacks.as_deferred(result)
        self._running = running
        running.addBoth(self._handled, item)

    def _handled(self, result: object, item: Item) -> None:
        self._running = None
        try:
            if isinstance(result, Failure):
                self._failed(item, result)
            else:
                self._answer(item, result)
        except Exception:
            self._failed(item, Failure())
        self._in_hand = None
        self._pump()

    def _answer(self, item: Item, result: object) -> None:
        answer = callbacks.check_result(self.channel, item, result)
        reply = answer.reply if isinstance(answer, Stop) else answer
        if reply is not None and isinstance(item, Message):
            self.sender.reply(item.ref, reply)
        if isinstance(answer, Stop):
            self._finish(CLOSE if answer.reason in GRACEFUL else ERROR, answer.reason)

    def _failed(self, item: Item, failure: Failure) -> None:
        if self._state is not State.JOINED and failure.check(CancelledError):
            return
        reply = callbacks.answer_to(self.channel, item, failure)
        if reply is None:
            self._finish(ERROR, "crash")
        elif isinstance(item, Message):
            self.sender.reply(item.ref, reply)

    # What the channel hears besides

    @property
    def sources(self) -> Sources:
        """Its timers and subscriptions."""
        if self._sources is None:
            self._sources = Sources(self, self._socket.pubsub, self._socket.clock)
            if self._is_over:
                self._sources.close()
        return self._sources

    @property
    def _is_over(self) -> bool:
        return self._state in (State.ENDING, State.CLOSED)

    def _close_sources(self) -> None:
        if self._sources is not None:
            self._sources.close()

    # What goes out

    def reply(self, ref: Ref, reply: Reply) -> None:
        """Answer a message of the client's."""
        self.sender.reply(ref, reply)

    def broadcast(self, event: str, payload: object, key: str | None, *, without_self: bool) -> int:
        broadcast = Broadcast(self.topic, event, payload, key)
        self.sender.check(broadcast)
        return self._socket.pubsub.publish(broadcast, self if without_self else None)

    def _forward(self, broadcast: Broadcast) -> None:
        try:
            self.sender.forward(broadcast)
        except UnencodablePayload:
            self._log.failure("Broadcast on {channel} cannot be sent", channel=callbacks.name(self.channel))
            self._finish(ERROR, "crash")

    # The end

    def crash(self) -> None:
        """End with ``phx_error``: what the channel stands on has failed."""
        self._finish(ERROR, "crash")

    def _finish(self, event: str, reason: str) -> None:
        if self._state is not State.JOINED:
            return
        self._socket.forget(self)
        self._socket.send(self.sender.control_frame(event))
        self.sender.muted = True
        self.stop(reason)

    def stop(self, reason: str) -> Deferred[None]:
        """End without a frame: no message is handled any more, the one in hand is waited for.

        Returns:
            A Deferred that fires with None when the channel's ``terminate`` has finished.
        """
        if self._ended is None:
            joined = self._state is State.JOINED
            self._state = State.ENDING
            self._reason = reason
            if joined and reason != "closed":  # which the end of the connection tells
                self._socket.note("left", topic=self.topic, reason=reason)
            self._socket.pubsub.unsubscribe(self.topic, self)
            self._close_sources()
            self._clear()
            if self._next_turn is not None:
                self._next_turn.cancel()
                self._next_turn = None
            self._ended = Deferred.fromCoroutine(self._end(reason, joined))
        return self._ended

    def _clear(self) -> list[Message]:
        """Give up what waits; the client's messages among it."""
        messages = self._mailbox.clear()
        self._socket.queued(-len(messages))
        return messages

    async def _end(self, reason: str, joined: bool) -> None:
        if self._running is not None:
            await callbacks.finished(self.channel, self._running, self._socket.clock)
        if joined:
            self.sender.muted = False
            await callbacks.terminate(self.channel, reason, self._socket.clock)
        self._state = State.CLOSED
        self.sender.muted = True
