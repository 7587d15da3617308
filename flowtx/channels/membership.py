"""One Channel on one Socket: its mailbox, its state and the frames it sends.

A membership takes the place of Phoenix's channel process. It handles one message at a time; what
comes meanwhile waits in the mailbox, and what the channel sends before its join is answered is held
until the answer is written.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx.channels import callbacks
from flowtx.channels.channel import GRACEFUL, Channel, Reply, Stop
from flowtx.protocol.message import (
    CLOSE,
    ERROR,
    LEAVE,
    NULL_REF,
    Broadcast,
    Frame,
    Message,
    Ref,
    UnencodablePayload,
)

if TYPE_CHECKING:
    from flowtx.channels.socket import Socket


class State(Enum):
    JOINING = "joining"
    JOINED = "joined"
    ENDING = "ending"
    """No message is handled any more; ``terminate`` may still send."""
    CLOSED = "closed"


class Membership:
    """See the module; made by `flowtx.channels.socket.Socket` for each ``phx_join``.

    Attributes:
        topic: the topic.
        join_ref: what the client's later messages must carry, unless one of the two is null.
        ref: names the message in hand.
    """

    __slots__ = (
        "_channel",
        "_ended",
        "_frame_ref",
        "_held",
        "_mailbox",
        "_pumping",
        "_reason",
        "_running",
        "_socket",
        "_state",
        "join_ref",
        "ref",
        "topic",
    )

    _log = Logger()

    def __init__(self, socket: Socket, channel: Channel, message: Message) -> None:
        self._socket = socket
        self._channel = channel
        self.topic: str = message.topic
        self.join_ref: Ref = message.join_ref
        self.ref: Ref = message.ref
        self._frame_ref: Ref = message.ref if message.join_ref == NULL_REF else message.join_ref
        self._state = State.JOINING
        self._mailbox: deque[Message] = deque()
        self._held: list[Frame | bytes] | None = []
        self._running: Deferred[Any] | None = None
        self._pumping = False
        self._ended: Deferred[None] | None = None
        self._reason = ""
        channel.topic = message.topic
        channel.socket = socket
        channel.assigns = {}
        channel._membership = self  # noqa: SLF001 - the two are one thing, seen from two sides

    def accepts(self, join_ref: Ref) -> bool:
        """Whether a message with ``join_ref`` is for this join of the topic."""
        return join_ref in (self.join_ref, NULL_REF) or self.join_ref == NULL_REF

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
            reply = await callbacks.join(self._channel, message)
            self._running = None
            if self._state is State.JOINING:
                self._answer_join(message, reply)
            elif reply.status == "ok":
                # Another join took the topic meanwhile, or the connection has gone.
                await callbacks.terminate(self._channel, self._reason, self._socket.clock)
        if replaced is not None:
            self._socket.send(replaced.control_frame(CLOSE))
        while self._state is State.CLOSED and self._mailbox:
            self._socket.queued(-1)
            self._socket.dispatch(self._mailbox.popleft())
        self._pump()

    def _answer_join(self, message: Message, reply: Reply) -> None:
        """Write the join's answer, then what was held."""
        serializer = self._socket.serializer
        try:
            frame = serializer.reply(message.join_ref, message.ref, self.topic, reply.status, reply.response)
        except UnencodablePayload:
            self._log.failure("Channel {channel} crashed in join", channel=callbacks.name(self._channel))
            reply = callbacks.JOIN_CRASHED
            frame = serializer.reply(message.join_ref, message.ref, self.topic, reply.status, reply.response)
        self._socket.send(frame)
        held, self._held = self._held, None
        if reply.status != "ok":
            self._state = State.CLOSED
            self._socket.forget(self)
            return
        self._state = State.JOINED
        self._socket.pubsub.subscribe(self.topic, self)
        for waiting in held or ():
            self._send(waiting)

    # Messages of the client

    def receive(self, message: Message) -> None:
        """Take a message for this topic; it is handled when those before it are."""
        self._mailbox.append(message)
        self._socket.queued(1)
        self._pump()

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._mailbox and self._running is None and self._state is State.JOINED:
                self._socket.queued(-1)
                self._handle(self._mailbox.popleft())
        finally:
            self._pumping = False

    def _handle(self, message: Message) -> None:
        self.ref = message.ref
        if message.event == LEAVE:
            self.reply(message.ref, Reply("ok"))
            self._finish(CLOSE, "leave")
            return
        try:
            result = callbacks.handle(self._channel, message)
            if not isawaitable(result):
                self._answer(message, result)
                return
        except Exception:
            self._failed(message, Failure())
            return
        running = callbacks.as_deferred(result)
        self._running = running
        running.addBoth(self._handled, message)

    def _handled(self, result: object, message: Message) -> None:
        self._running = None
        if isinstance(result, Failure):
            self._failed(message, result)
        else:
            try:
                self._answer(message, result)
            except Exception:
                self._failed(message, Failure())
        self._pump()

    def _answer(self, message: Message, result: object) -> None:
        answer = callbacks.check_result(self._channel, result)
        reply = answer.reply if isinstance(answer, Stop) else answer
        if reply is not None:
            self.reply(message.ref, reply)
        if isinstance(answer, Stop):
            self._finish(CLOSE if answer.reason in GRACEFUL else ERROR, answer.reason)

    def _failed(self, message: Message, failure: Failure) -> None:
        if self._state is not State.JOINED and failure.check(CancelledError):
            return
        reply = callbacks.answer_to(self._channel, message, failure)
        if reply is None:
            self._finish(ERROR, "crash")
        else:
            self.reply(message.ref, reply)

    # What goes out

    def reply(self, ref: Ref, reply: Reply) -> None:
        if self._state is not State.CLOSED:
            self._send(
                self._socket.serializer.reply(self._frame_ref, ref, self.topic, reply.status, reply.response)
            )

    def push(self, event: str, payload: object) -> None:
        frame = self._socket.serializer.push(self._frame_ref, self.topic, event, payload)
        if self._state is not State.CLOSED:
            self._send(frame)

    def broadcast(self, event: str, payload: object, *, without_self: bool = False) -> int:
        broadcast = Broadcast(self.topic, event, payload)
        # Encoded here, so that a payload that cannot be sent fails its sender, not its receivers.
        self._socket.serializer.broadcast(self._frame_ref, broadcast)
        return self._socket.pubsub.broadcast(broadcast, self if without_self else None)

    def deliver(self, broadcast: Broadcast) -> None:
        """Send a broadcast on this topic to the client."""
        if self._state is not State.JOINED:
            return
        try:
            frame = self._socket.serializer.broadcast(self._frame_ref, broadcast)
        except UnencodablePayload:
            self._log.failure("Broadcast on {channel} cannot be sent", channel=callbacks.name(self._channel))
            self._finish(ERROR, "crash")
        else:
            self._send(frame)

    def ping(self, payload: bytes) -> None:
        if self._state is not State.CLOSED:
            self._send(payload)

    def control_frame(self, event: str) -> Frame:
        payload = {"reason": "channel_crash"} if event == ERROR else {}
        return self._socket.serializer.control(self.join_ref, self.topic, event, payload)

    def _send(self, frame: Frame | bytes) -> None:
        """Send a frame, or a Ping with a payload, behind what was sent before."""
        if self._held is not None:
            self._held.append(frame)
        elif isinstance(frame, Frame):
            self._socket.send(frame)
        else:
            self._socket.ping(frame)

    # The end

    def crash(self) -> None:
        """End with ``phx_error``: what the channel stands on has failed."""
        self._finish(ERROR, "crash")

    def _finish(self, event: str, reason: str) -> None:
        if self._state is not State.JOINED:
            return
        self._socket.forget(self)
        self._socket.send(self.control_frame(event))
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
            self._socket.pubsub.unsubscribe(self.topic, self)
            self._socket.queued(-len(self._mailbox))
            self._mailbox.clear()
            self._ended = Deferred.fromCoroutine(self._end(reason, joined))
        return self._ended

    async def _end(self, reason: str, joined: bool) -> None:
        if self._running is not None:
            await callbacks.finished(self._channel, self._running, self._socket.clock)
        if joined:
            await callbacks.terminate(self._channel, reason, self._socket.clock)
        self._state = State.CLOSED
