"""Calling an application's Channel: what it may return, and what becomes of what it raises."""

from __future__ import annotations

from collections.abc import Awaitable
from inspect import isawaitable
from typing import Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx import faultpoints
from flowtx.channels.channel import Channel, Reply, Stop, UnhandledEvent, error
from flowtx.channels.mailbox import MAX_WAITING, Info, Item
from flowtx.errors import InvalidPayload, PresenceFull, StorageError
from flowtx.protocol.message import SERVER_EVENTS, Broadcast, Message
from flowtx.protocol.payload import read_payload

STOP_TIMEOUT: Final = 5.0
"""Seconds that a handler under way may still take when its channel ends, and ``terminate`` after it."""

JOIN_CRASHED: Final = error({"reason": "join crashed"})

_log = Logger()


async def join(channel: Channel, message: Message) -> Reply:
    """Ask ``channel`` to let a client in; the answer, whatever happens."""
    try:
        if faultpoints.active:
            await faultpoints.active.stall("channel.join")
        result = channel.join(read_payload(message))
        if isawaitable(result):
            result = await result
        if result is None:
            return Reply("ok")
        if isinstance(result, Reply) and result.status in ("ok", "error"):
            return result
        raise _illegal(channel, "join", result, "None, ok(…) or error(…)")
    except CancelledError:
        return JOIN_CRASHED
    except Exception as problem:
        refusal = _refusal(channel, message, problem)
        if refusal is not None:
            return refusal
        _log.failure("Channel {channel} crashed in join", channel=name(channel))
        _note_crash(channel, "join", problem)
        return JOIN_CRASHED


def handle(channel: Channel, item: Item) -> object:
    """Give ``channel`` a message, an info or a broadcast; what it returns, which may have to be awaited.

    Raises:
        UnhandledEvent: only a server may send that event.
        Exception: whatever the channel raises.
    """
    if isinstance(item, Info):
        return channel.handle_info(item.message)
    if isinstance(item, Broadcast):
        return channel.handle_out(item.event, item.payload)
    if not isinstance(item.event, str) or item.event in SERVER_EVENTS:
        raise UnhandledEvent(item.event)
    return channel.handle_in(item.event, read_payload(item))


def check_result(channel: Channel, item: Item, result: object) -> Reply | Stop | None:
    """Pass on what the handler of ``item`` may return.

    Raises:
        TypeError: it may not return that.
    """
    if isinstance(item, Message):
        if result is None or isinstance(result, Reply | Stop):
            return result
        raise _illegal(channel, "handle_in", result, "None, ok(…), error(…), a Reply or a Stop")
    if result is None or (isinstance(result, Stop) and result.reply is None):
        return result
    raise _illegal(channel, _method(item), result, "None or a Stop without a reply")


def answer_to(channel: Channel, item: Item, failure: Failure) -> Reply | None:
    """Find the answer to what a handler failed at; None where the channel has crashed."""
    problem = failure.value
    if isinstance(item, Message):
        refusal = _refusal(channel, item, problem)
        if refusal is not None:
            return refusal
        if isinstance(problem, UnhandledEvent):
            # The client's fault: a line, no stack.
            event = repr(item.event)[:64]
            _log.warn("{channel} has no event {event}", channel=name(channel), event=event)
            return None
    method = _method(item)
    _log.failure("Channel {channel} crashed in {method}", failure, channel=name(channel), method=method)
    _note_crash(channel, method, problem)
    return None


def log_overflow(channel: Channel) -> None:
    """Log that too much waits for a channel."""
    _log.error(
        "Channel {channel} ends: more than {count} infos and broadcasts wait for it",
        channel=name(channel),
        count=MAX_WAITING,
    )


async def terminate(channel: Channel, reason: str, clock: IReactorTime) -> None:
    """Tell ``channel`` that it has ended, and wait for it within bounds; does not raise."""

    def failed(failure: Failure) -> None:
        if not failure.check(CancelledError):
            _log.failure("Channel {channel} crashed in terminate", failure, channel=name(channel))

    try:
        if faultpoints.active:
            await faultpoints.active.stall("channel.end")
        result: Any = channel.terminate(reason)
        if isawaitable(result):
            running = as_deferred(result).addCallback(lambda given: _check_nothing(channel, given))
            await finished(channel, running.addErrback(failed), clock)
        else:
            _check_nothing(channel, result)
    except Exception:
        failed(Failure())


def finished(channel: Channel, running: Deferred[Any], clock: IReactorTime) -> Deferred[None]:
    """Fire when ``running`` has; past the timeout cancel it, and wait for it no longer."""
    ended: Deferred[None] = Deferred()

    def give_up() -> None:
        _log.warn(
            "{channel} is busy {seconds} s after its end; not waited for",
            channel=name(channel),
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

    timeout = clock.callLater(STOP_TIMEOUT, give_up)
    running.addBoth(over)
    return ended


def as_deferred(result: object) -> Deferred[Any]:
    """Make a Deferred of anything that can be awaited."""
    if isinstance(result, Deferred):
        return result
    return ensureDeferred(_awaited(cast("Awaitable[Any]", result)))


def name(channel: Channel) -> str:
    """Name a channel in the log."""
    return type(channel).__name__


def _note_crash(channel: Channel, method: str, problem: BaseException | None) -> None:
    # The class alone: the text of an exception may hold anything.
    kind = type(problem).__name__
    where = {"topic": channel.topic, "channel": name(channel), "method": method}
    channel.socket.note("channel_crashed", error=kind, **where)


def _method(item: Item) -> str:
    if isinstance(item, Message):
        return "handle_in"
    return "handle_info" if isinstance(item, Info) else "handle_out"


def _check_nothing(channel: Channel, result: object) -> None:
    if result is not None:
        raise _illegal(channel, "terminate", result, "None")


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _refusal(channel: Channel, message: Message, problem: BaseException | None) -> Reply | None:
    """Find the answer to a message whose handling failed without the channel having crashed."""
    if isinstance(problem, InvalidPayload):
        return error({"reason": "invalid_payload", "detail": problem.detail})
    if not isinstance(problem, StorageError | PresenceFull):
        return None
    _log.warn(
        "{channel} could not answer {event}: {error}",
        channel=name(channel),
        event=message.event,
        error=problem,
    )
    return error({"reason": "unavailable" if isinstance(problem, StorageError) else "presence_full"})


def _illegal(channel: Channel, method: str, value: object, legal: str) -> TypeError:
    return TypeError(f"{name(channel)}.{method} returned {type(value).__name__}; it may return {legal}")
