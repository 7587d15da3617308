"""Calling an application's Channel: what it may return, and what becomes of what it raises."""

from __future__ import annotations

from collections.abc import Awaitable
from inspect import isawaitable
from typing import Any, Final, cast

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx.channels.channel import Channel, Reply, Stop, UnhandledEvent, error
from flowtx.errors import InvalidPayload, StorageError
from flowtx.protocol.message import SERVER_EVENTS, Message
from flowtx.protocol.payload import read_payload

STOP_TIMEOUT: Final = 5.0
"""Seconds that a handler under way may still take when its channel ends, and ``terminate`` after it."""

JOIN_CRASHED: Final = error({"reason": "join crashed"})

_log = Logger()


async def join(channel: Channel, message: Message) -> Reply:
    """Ask ``channel`` to let a client in; the answer, whatever happens."""
    try:
        result = channel.join(read_payload(message))
        if isawaitable(result):
            result = await result
        if result is None:
            return Reply("ok")
        if isinstance(result, Reply) and result.status in ("ok", "error"):
            return result
        raise _illegal(channel, "join", result, "None, ok(…) or error(…)")
    except InvalidPayload as refused:
        return _invalid_payload(refused)
    except StorageError as failed:
        _log.warn("Join of {channel} refused: {error}", channel=name(channel), error=failed)
        return error({"reason": "unavailable"})
    except CancelledError:
        return JOIN_CRASHED
    except Exception:
        _log.failure("Channel {channel} crashed in join", channel=name(channel))
        return JOIN_CRASHED


def handle(channel: Channel, message: Message) -> object:
    """Give ``channel`` a message; what it returns, which may have to be awaited.

    Raises:
        UnhandledEvent: only a server may send that event.
        Exception: whatever the channel raises.
    """
    if not isinstance(message.event, str) or message.event in SERVER_EVENTS:
        raise UnhandledEvent(message.event)
    return channel.handle_in(message.event, read_payload(message))


def check_result(channel: Channel, result: object) -> Reply | Stop | None:
    """Pass on what ``handle_in`` may return.

    Raises:
        TypeError: it may not return that.
    """
    if result is None or isinstance(result, Reply | Stop):
        return result
    raise _illegal(channel, "handle_in", result, "None, ok(…), error(…), a Reply or a Stop")


def answer_to(channel: Channel, message: Message, failure: Failure) -> Reply | None:
    """Find the answer to a message whose handler failed; None where the channel has crashed."""
    problem = failure.value
    if isinstance(problem, InvalidPayload):
        return _invalid_payload(problem)
    if isinstance(problem, StorageError):
        _log.warn(
            "{channel} could not answer {event}: {error}",
            channel=name(channel),
            event=message.event,
            error=problem,
        )
        return error({"reason": "unavailable"})
    if isinstance(problem, UnhandledEvent):
        # The client's fault: a line, no stack.
        event = repr(message.event)[:64]
        _log.warn("{channel} has no event {event}", channel=name(channel), event=event)
    else:
        _log.failure("Channel {channel} crashed in handle_in", failure, channel=name(channel))
    return None


async def terminate(channel: Channel, reason: str, clock: IReactorTime) -> None:
    """Tell ``channel`` that it has ended, and wait for it within bounds; does not raise."""

    def failed(failure: Failure) -> None:
        if not failure.check(CancelledError):
            _log.failure("Channel {channel} crashed in terminate", failure, channel=name(channel))

    try:
        result = channel.terminate(reason)
        if isawaitable(result):
            await finished(channel, as_deferred(result).addErrback(failed), clock)
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


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _invalid_payload(problem: InvalidPayload) -> Reply:
    return error({"reason": "invalid_payload", "detail": problem.detail})


def _illegal(channel: Channel, method: str, value: object, legal: str) -> TypeError:
    return TypeError(f"{name(channel)}.{method} returned {type(value).__name__}; it may return {legal}")
