"""One Channel on one Socket: its mailbox, its state and the frames it sends.

A membership takes the place of Phoenix's channel process. It handles one message at a time; what
comes meanwhile waits in the mailbox, and what the channel sends before its join is answered is held
until the answer is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable
from enum import Enum
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx.channels.channel import Channel, Reply, Stop, UnhandledEvent, error
from flowtx.errors import InvalidPayload, StorageError
from flowtx.protocol.message import (
    CLOSE,
    ERROR,
    LEAVE,
    NULL_REF,
    SERVER_EVENTS,
    Broadcast,
    Frame,
    Message,
    Ref,
    UnencodablePayload,
)
from flowtx.protocol.payload import read_payload

if TYPE_CHECKING:
    from flowtx.channels.socket import Socket

STOP_TIMEOUT: Final = 5.0
"""Seconds that a handler under way may still take when its channel ends, and ``terminate`` after it."""


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
        self._held: list[Frame] | None = []
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
            reply = await self._ask_to_join(message)
            self._running = None
            if self._state is State.JOINING:
                self._answer_join(message, reply)
            elif reply.status == "ok":
                # Another join took the topic meanwhile, or the connection has gone.
                await self._terminate(self._reason)
        if replaced is not None:
            self._socket.send(replaced.control_frame(CLOSE))
        while self._state is State.CLOSED and self._mailbox:
            self._socket.queued(-1)
            self._socket.dispatch(self._mailbox.popleft())
        self._pump()

    async def _ask_to_join(self, message: Message) -> Reply:
        try:
            result = self._channel.join(read_payload(message))
            if isawaitable(result):
                result = await result
            if result is None:
                return Reply("ok")
            if isinstance(result, Reply) and result.status in ("ok", "error"):
                return result
            raise _illegal(self._channel, "join", result, "None, ok(…) or error(…)")
        except InvalidPayload as refused:
            return _invalid_payload(refused)
        except StorageError as failed:
            self._log.warn("Join of {channel} refused: {error}", channel=_name(self._channel), error=failed)
            return error({"reason": "unavailable"})
        except Exception as crash:
            if self._state is State.JOINING or not isinstance(crash, CancelledError):
                self._log.failure("Channel {channel} crashed in join", channel=_name(self._channel))
            return _join_crashed()

    def _answer_join(self, message: Message, reply: Reply) -> None:
        """Write the join's answer, then what was held."""
        serializer = self._socket.serializer
        try:
            frame = serializer.reply(message.join_ref, message.ref, self.topic, reply.status, reply.response)
        except UnencodablePayload:
            self._log.failure("Channel {channel} crashed in join", channel=_name(self._channel))
            reply = _join_crashed()
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
            self._socket.send(waiting)

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
            if not isinstance(message.event, str) or message.event in SERVER_EVENTS:
                raise UnhandledEvent(message.event)
            result = self._channel.handle_in(message.event, read_payload(message))
            if not isawaitable(result):
                self._answer(message, result)
                return
        except Exception:
            self._failed(message, Failure())
            return
        running = _deferred(result)
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
        if isinstance(result, Reply):
            self.reply(message.ref, result)
        elif isinstance(result, Stop):
            if result.reply is not None:
                self.reply(message.ref, result.reply)
            self._finish(CLOSE if result.reason in Channel.close_reasons else ERROR, result.reason)
        elif result is not None:
            raise _illegal(self._channel, "handle_in", result, "None, ok(…), error(…), a Reply or a Stop")

    def _failed(self, message: Message, failure: Failure) -> None:
        problem = failure.value
        if self._state is not State.JOINED and isinstance(problem, CancelledError):
            return
        if isinstance(problem, InvalidPayload):
            self.reply(message.ref, _invalid_payload(problem))
        elif isinstance(problem, StorageError):
            self._log.warn(
                "{channel} could not answer {event}: {error}",
                channel=_name(self._channel),
                event=message.event,
                error=problem,
            )
            self.reply(message.ref, error({"reason": "unavailable"}))
        else:
            if isinstance(problem, UnhandledEvent):
                event = repr(message.event)[:64]
                self._log.warn("{channel} has no event {event}", channel=_name(self._channel), event=event)
            else:
                self._log.failure(
                    "Channel {channel} crashed in handle_in", failure, channel=_name(self._channel)
                )
            self._finish(ERROR, "crash")

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
            self._log.failure("Broadcast on {channel} cannot be sent", channel=_name(self._channel))
            self._finish(ERROR, "crash")
        else:
            self._send(frame)

    def control_frame(self, event: str) -> Frame:
        payload = {"reason": "channel_crash"} if event == ERROR else {}
        return self._socket.serializer.control(self.join_ref, self.topic, event, payload)

    def _send(self, frame: Frame) -> None:
        if self._held is None:
            self._socket.send(frame)
        else:
            self._held.append(frame)

    # The end

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
            await self._wait_for(self._running)
        if joined:
            await self._terminate(reason)
        self._state = State.CLOSED

    async def _terminate(self, reason: str) -> None:
        try:
            result = self._channel.terminate(reason)
            if isawaitable(result):
                await self._wait_for(_deferred(result).addErrback(self._terminate_failed))
        except Exception:
            self._terminate_failed(Failure())

    def _terminate_failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("Channel {channel} crashed in terminate", failure, channel=_name(self._channel))

    def _wait_for(self, running: Deferred[Any]) -> Deferred[None]:
        """Fire when ``running`` has; past the timeout cancel it, and wait for it no longer."""
        ended: Deferred[None] = Deferred()

        def give_up() -> None:
            self._log.warn(
                "{channel} is busy {seconds} s after its end; not waited for",
                channel=_name(self._channel),
                seconds=STOP_TIMEOUT,
            )
            running.cancel()
            if not ended.called:
                ended.callback(None)

        def over(result: object) -> object:
            if timeout.active():
                timeout.cancel()
            if not ended.called:
                ended.callback(None)
            return result

        timeout = self._socket.clock.callLater(STOP_TIMEOUT, give_up)
        running.addBoth(over)
        return ended


def _deferred(result: object) -> Deferred[Any]:
    if isinstance(result, Deferred):
        return result
    return ensureDeferred(_awaited(cast("Awaitable[Any]", result)))


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _join_crashed() -> Reply:
    return error({"reason": "join crashed"})


def _invalid_payload(problem: InvalidPayload) -> Reply:
    return error({"reason": "invalid_payload", "detail": problem.detail})


def _illegal(channel: Channel, method: str, value: object, legal: str) -> TypeError:
    return TypeError(f"{_name(channel)}.{method} returned {type(value).__name__}; it may return {legal}")


def _name(channel: Channel) -> str:
    return type(channel).__name__
