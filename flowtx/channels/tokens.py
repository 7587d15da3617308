"""A connection's token: when it ends, and how its client renews it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx import faultpoints
from flowtx.channels.channel import error, ok
from flowtx.errors import InvalidPayload, Refused, StorageError
from flowtx.interfaces import Principal
from flowtx.protocol.message import Message
from flowtx.protocol.payload import read_payload

if TYPE_CHECKING:
    from flowtx.channels.membership import Membership
    from flowtx.channels.socket import Socket


class Tokens(NamedTuple):
    """What a connection must know of tokens.

    Attributes:
        verify: tells whom a token names, or fails with `Refused` or `StorageError`.
        remaining: seconds for which a principal's token still keeps a connection open.
    """

    verify: Callable[[str], Awaitable[Principal]]
    remaining: Callable[[Principal], float]


class Renewal:
    """See the module.

    Args:
        socket: the connection.
        tokens: what there is to know of tokens; None where the connection needs none.

    Attributes:
        ends_at: when the token ends, seconds of the socket's clock.
        observers: are called when the token has been renewed, before that is answered.
    """

    __slots__ = ("_socket", "_tokens", "_under_way", "ends_at", "observers")

    _log = Logger()

    def __init__(self, socket: Socket, tokens: Tokens | None) -> None:
        self._socket = socket
        self._tokens = tokens
        self._under_way: Deferred[None] | None = None
        self.ends_at = inf
        self.observers: tuple[Callable[[], object], ...] = ()
        self._note_end()

    def _note_end(self) -> None:
        if self._tokens is not None:
            self.ends_at = self._socket.clock.seconds() + self._tokens.remaining(self._socket.principal)

    def renew(self, message: Message, membership: Membership) -> None:
        """Take the client's ``access_token``, and answer it when the token has been verified."""
        if self._tokens is None or self._under_way is not None:
            membership.reply(message.ref, error({"reason": "unavailable"}))
            return
        under_way = Deferred.fromCoroutine(self._verify(message, self._tokens))
        if not under_way.called:
            self._under_way = under_way
        under_way.addBoth(self._answer, message, membership)

    def cancel(self) -> None:
        """Give a renewal under way up."""
        if self._under_way is not None:
            self._under_way.cancel()

    async def _verify(self, message: Message, tokens: Tokens) -> None:
        payload = read_payload(message)
        token = payload.get("access_token") if isinstance(payload, dict) else None
        if not isinstance(token, str):
            raise InvalidPayload("access_token takes an object with the token as access_token")
        principal = await tokens.verify(token)
        if faultpoints.active:
            await faultpoints.active.stall("token.verified")
        if principal.user_id != self._socket.principal.user_id:
            raise Refused("invalid_token")
        self._socket.principal = principal
        self._note_end()

    def _answer(self, result: Failure | None, message: Message, membership: Membership) -> None:
        self._under_way = None
        if result is None:
            self._socket.note("token_renewed")
            self._socket.token_renewed()
            for call in self.observers:
                call()
            reply = ok()
        elif isinstance(result.value, InvalidPayload):
            reply = error({"reason": "invalid_payload", "detail": result.value.detail})
        elif isinstance(result.value, Refused):
            self._socket.note("token_refused", reason=result.value.reason)
            reply = error({"reason": result.value.reason})
        else:
            if not isinstance(result.value, StorageError | CancelledError):
                self._log.failure("A token could not be renewed", result)
            reply = error({"reason": "unavailable"})
        membership.reply(message.ref, reply)
