"""How much one client may ask for, and what becomes of one that asks for more.

A message over the limit is answered ``rate_limited`` with the time after which it may be sent again,
and is not handled. The third within 10 seconds closes the connection with 1008; the reason tells after
how long all that is allowed at once is allowed again: ``rate_limited retry_after_ms=2000``.

A Ping has no answer that could say so: one over the limit closes at once. A heartbeat counts, but is
always answered, as a client without its answer would leave: after one over the limit nothing is read
from the client until there is room again.

Joins have a bucket of their own, deep enough for a client that joins all its topics again at once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Final, NamedTuple

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from flowtx.limits import Rate, Strikes, TokenBucket
from flowtx.protocol.close import rate_limited
from flowtx.protocol.message import HEARTBEAT, JOIN, PHOENIX_TOPIC, Message

if TYPE_CHECKING:
    from flowtx.channels.socket import Socket

MAX_STRIKES: Final = 3
STRIKES_PERIOD: Final = 10.0

MESSAGES: Final = "messages"
JOINS: Final = "joins"
PINGS: Final = "pings"

FULL: Final = 1_000_000
"""As if so many messages waited in mailboxes: nothing more is read."""


class Quota(NamedTuple):
    """What each connection may do, shared by all of them.

    Attributes:
        messages: messages that are no joins; heartbeats too.
        joins: joins.
        pings: Pings of the client's.
        exceeded: called with the name of the limit for each that is over it.
    """

    messages: Rate
    joins: Rate
    pings: Rate
    exceeded: Callable[[str], None]


class Throttle:
    """What is left of a `Quota` to one connection; see the module."""

    __slots__ = ("_joins", "_messages", "_pings", "_quota", "_slowed", "_socket", "_strikes")

    _log = Logger()

    def __init__(self, socket: Socket, quota: Quota) -> None:
        self._socket = socket
        self._quota = quota
        self._messages = TokenBucket(quota.messages)
        self._joins = TokenBucket(quota.joins)
        # Most clients never send a Ping, and never go over a limit.
        self._pings: TokenBucket | None = None
        self._strikes: Strikes | None = None
        self._slowed: IDelayedCall | None = None

    def admits(self, message: Message, now: float) -> bool:
        """Count a message, and answer it where it is over the limit.

        Args:
            message: what has come.
            now: seconds, monotonic.

        Returns:
            Whether it is to be handled.
        """
        joins = message.event == JOIN
        wait = (self._joins if joins else self._messages).take(now)
        if not wait:
            return True
        self._quota.exceeded(JOINS if joins else MESSAGES)
        self._socket.note("rate_limited", limit=JOINS if joins else MESSAGES)
        if message.event == HEARTBEAT and message.topic == PHOENIX_TOPIC:
            self._slow_down(wait)
            return True
        socket = self._socket
        response = {"reason": "rate_limited", "retry_after_ms": _milliseconds(wait)}
        socket.send(socket.serializer.reply(message.join_ref, message.ref, message.topic, "error", response))
        if self._strikes is None:
            self._strikes = Strikes(MAX_STRIKES, STRIKES_PERIOD)
        if self._strikes.add(now) is not None:
            self._close((self._quota.joins if joins else self._quota.messages).span)
        return False

    def pinged(self, now: float) -> None:
        """Count a Ping."""
        if self._pings is None:
            self._pings = TokenBucket(self._quota.pings)
        if self._pings.take(now):
            self._quota.exceeded(PINGS)
            self._socket.note("rate_limited", limit=PINGS)
            self._close(self._quota.pings.span)

    def cancel(self) -> None:
        """Forget what is still to be done: the connection has gone."""
        slowed, self._slowed = self._slowed, None
        if slowed is not None:
            slowed.cancel()

    def _slow_down(self, wait: float) -> None:
        if self._slowed is None:
            self._slowed = self._socket.clock.callLater(wait, self._go_on)
            self._socket.queued(FULL)

    def _go_on(self) -> None:
        self._slowed = None
        self._socket.queued(-FULL)

    def _close(self, retry_after: float) -> None:
        close = rate_limited(_milliseconds(retry_after))
        address = self._socket.transport.address
        self._log.warn("Closing {address}: {code} {reason}", address=address, **close._asdict())
        self._socket.close(close)


def _milliseconds(seconds: float) -> int:
    """Round up, so that whoever waits for so long has waited long enough."""
    return ceil(seconds * 1_000)
