"""The operators: connections that an API key has opened, and not a user's token."""

from __future__ import annotations

from typing import Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from flowtx.channels.router import Router
from flowtx.channels.socket import Socket
from flowtx.config import Settings
from flowtx.console.door import PATH
from flowtx.errors import Refused
from flowtx.interfaces import IPubSub, Principal
from flowtx.metrics import Metrics
from flowtx.protocol.close import DRAIN, TOKEN_REVOKED
from flowtx.transports.admission import Admission
from flowtx.transports.factory import FlowFactory
from flowtx.web.browsers import is_own_host, is_own_origin, own_hosts
from flowtx.web.keys import ApiKey, ApiKeys

MAX_OPERATORS: Final = 20
HANDSHAKE_RATE: Final = 20.0
GONE_WITHIN: Final = 5.0
CHECK_EVERY: Final = 5.0
"""Seconds after which a key that is not taken any more has lost its connections."""

_NEVER: Final = float("inf")


class Operator(Principal, frozen=True, kw_only=True):
    """Whom an API key names: ``user_id`` is the key's name, ``groups`` are its scopes.

    Attributes:
        key: the key, by its digest.
    """

    key: ApiKey


class Seat:
    """What an operator's connection holds from its handshake to its end."""

    __slots__ = ("_operators", "socket")

    def __init__(self, operators: Operators) -> None:
        self._operators = operators
        self.socket: Socket | None = None

    def attach(self, socket: Socket) -> None:
        """Tell that the connection is open."""
        self.socket = socket
        self._operators.opened(socket)

    def release(self) -> None:
        """Tell that the connection has ended; a second call has no effect."""
        self._operators.left(self)


class Operators(Service):
    """Knows the keys, and the connections that they have opened.

    Its `verify` and `claim` are to an operator's connection what `flowtx.auth.TokenVerifier` and
    `flowtx.sessions.service.SessionService` are to a user's.

    Args:
        keys: those that are taken.
        clock: the time.
    """

    _log = Logger()

    def __init__(self, keys: ApiKeys, *, clock: IReactorTime) -> None:
        self._keys = keys
        self.clock = clock
        self._seats: set[Seat] = set()
        self._timer: IDelayedCall | None = None
        self._gone: Deferred[None] | None = None

    def __len__(self) -> int:
        return len(self._seats)

    def stopService(self) -> Deferred[None]:
        """Close all connections, whose pages come back by themselves; fires when they have gone."""
        super().stopService()
        self._stop_timer()
        for seat in tuple(self._seats):
            if seat.socket is not None:
                seat.socket.close(DRAIN)
        if not self._seats:
            return succeed(None)
        gone = self._gone = Deferred()
        # A client that does not answer is cut off before that.
        return gone.addTimeout(GONE_WITHIN, self.clock).addErrback(lambda _: None)

    # For the handshake

    @property
    def full(self) -> bool:
        """Whether there are as many as one server takes, or it takes none any more."""
        return not self.running or len(self._seats) >= MAX_OPERATORS

    async def verify(self, token: str) -> Operator:
        """Tell whom a key names.

        Raises:
            Refused: it is not taken.
        """
        key = self._keys.find(token.encode())
        if key is None:
            raise Refused("invalid_token")
        return Operator(key.name, _NEVER, groups=tuple(sorted(key.scopes)), key=key)

    async def check_revoked(self, principal: Principal) -> None:
        """Do nothing: a key that has just been found is good."""

    async def claim(self, principal: Principal) -> Seat:
        """Give a connection its seat.

        Raises:
            Refused: there is none.
        """
        if self.full:
            raise Refused("unavailable", 503, {"Retry-After": "1"})
        self._log.info("The console is opened with the key {key}", key=principal.user_id)
        seat = Seat(self)
        self._seats.add(seat)
        return seat

    # From the seats

    def opened(self, socket: Socket) -> None:
        """Watch the key of a connection."""
        if not self.running:
            socket.close(DRAIN)
        elif self._timer is None:
            self._timer = self.clock.callLater(CHECK_EVERY, self._check)

    def left(self, seat: Seat) -> None:
        """Forget a connection."""
        self._seats.discard(seat)
        if not self._seats:
            self._stop_timer()
            gone, self._gone = self._gone, None
            if gone is not None:
                gone.callback(None)

    def _check(self) -> None:
        self._timer = self.clock.callLater(CHECK_EVERY, self._check)
        for seat in tuple(self._seats):
            if seat.socket is not None and not self._is_good(seat.socket.principal):
                seat.socket.close(TOKEN_REVOKED)

    def _is_good(self, principal: Principal) -> bool:
        return isinstance(principal, Operator) and self._keys.has(principal.key)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


class OwnPages:
    """Lets in what comes from the pages of the endpoint itself, and what no page sends.

    Args:
        hosts: the names that the header Host may have, see `flowtx.web.browsers.is_own_host`.
    """

    def __init__(self, hosts: frozenset[str] | None) -> None:
        self._hosts = hosts

    def allows(self, origin: str | None, host_header: str) -> bool:
        """See `flowtx.transports.origin.Origins`."""
        host = host_header.encode()
        return is_own_host(host, self._hosts) and (origin is None or is_own_origin(origin.encode(), host))


class OperatorFactory(FlowFactory):
    """Makes the operators' connections: as the clients' are, with an API key in the place of the token.

    A URL is kept in many places, so there the key is not looked for.

    Args:
        settings: the settings.
        operators: knows the keys.
        router: serves their topics.
        pubsub: carries broadcasts.
        reactor: the reactor.
    """

    served_path = PATH
    token_in_query = False

    def __init__(
        self,
        settings: Settings,
        operators: Operators,
        router: Router,
        pubsub: IPubSub,
        *,
        reactor: IReactorTime,
    ) -> None:
        super().__init__(
            settings,
            verifier=operators,
            sessions=operators,
            router=router,
            pubsub=pubsub,
            origins=OwnPages(own_hosts(settings)),
            admission=Admission(HANDSHAKE_RATE, MAX_OPERATORS),
            # Of its own: who watches is not among those who are counted.
            metrics=Metrics(),
            reactor=reactor,
        )
