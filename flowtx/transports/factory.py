"""What makes the connections, and what they share."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from math import ceil
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime

from flowtx.bursts import Bursts
from flowtx.channels.router import Router
from flowtx.channels.socket import Socket
from flowtx.channels.throttle import Quota
from flowtx.channels.tokens import Tokens
from flowtx.config import Settings
from flowtx.errors import Refused
from flowtx.interfaces import IPubSub, Principal
from flowtx.limits import Rate, parse_rate
from flowtx.metrics import Metrics
from flowtx.recorder import FlightRecorder
from flowtx.transports.addresses import Addresses, client_address, counted_as, parse_networks
from flowtx.transports.admission import Admission
from flowtx.transports.guards import GuardedFactory
from flowtx.transports.handshake import PATH
from flowtx.transports.origin import Origins
from flowtx.transports.outbox import Bounds
from flowtx.transports.websocket import FlowProtocol

TOKEN_GRACE: Final = 15.0
"""Seconds past its token's end for which a connection stays open, so that it may renew it."""


class Verifier(Protocol):
    """Tells whom a token names; see `flowtx.auth.TokenVerifier`."""

    def verify(self, token: str) -> Awaitable[Principal]: ...


class Place(Protocol):
    """What a connection holds from its handshake to its end; see `flowtx.sessions.service.Claim`."""

    def attach(self, socket: Socket) -> None: ...

    def release(self) -> None: ...


class Places(Protocol):
    """Gives connections their places; see `flowtx.sessions.service.SessionService`."""

    @property
    def full(self) -> bool: ...

    def claim(self, principal: Principal) -> Awaitable[Place]: ...

    def check_revoked(self, principal: Principal) -> Awaitable[None]: ...


class FlowFactory(GuardedFactory):
    """Makes the connections and holds what they share.

    Args:
        settings: the settings.
        verifier: verifies tokens.
        sessions: the Sessions, or what else the connections belong to.
        router: which Channel serves which topic.
        pubsub: carries broadcasts.
        origins: which origins are let in; None for all.
        admission: how many handshakes are let in.
        metrics: counts.
        reactor: the reactor.
        recorder: keeps what last happened to each user; None for one of its own.
        bursts: tells when what is sent to a connection can be joined; None for never.

    Attributes:
        served_path: the only one.
        token_in_query: whether the token may come in the query.
        connections: those that are there, in any state; they keep it themselves.
        draining: whether nobody is let in any more.
    """

    protocol = FlowProtocol
    served_path = PATH
    token_in_query = True

    def __init__(
        self,
        settings: Settings,
        *,
        verifier: Verifier,
        sessions: Places,
        router: Router,
        pubsub: IPubSub,
        origins: Origins | None,
        admission: Admission,
        metrics: Metrics,
        reactor: IReactorTime,
        recorder: FlightRecorder | None = None,
        bursts: Bursts | None = None,
    ) -> None:
        super().__init__(settings.max_frame_size, reactor=reactor)
        self.bursts = bursts
        self.settings = settings
        self.verifier = verifier
        self.sessions = sessions
        self.router = router
        self.pubsub = pubsub
        self.origins = origins
        self.admission = admission
        self.metrics = metrics
        self.recorder = FlightRecorder() if recorder is None else recorder
        self._address_rate = Rate(*_address_rate(settings))
        self.addresses = Addresses(self._address_rate, settings.max_connections_per_address)
        self.bounds = Bounds(settings.outbox_limit, settings.outbox_max_age, reactor, metrics)
        self.quota = Quota(
            Rate.parse(settings.rate_limit),
            Rate(*_join_rate(settings)),
            Rate(*_ping_rate(settings)),
            lambda limit: metrics.rate_limited.labels(limit).inc(),
        )
        self._trusted = parse_networks(settings.trusted_proxies or ())
        self.draining = False
        self.connections: set[FlowProtocol] = set()
        self.tokens = Tokens(
            self._renewed, lambda principal: principal.expires_at + TOKEN_GRACE - time.time()
        )

    def change(self, settings: Settings, origins: Origins | None) -> None:
        """Go by other settings from now on, open connections too as far as they share a limit."""
        self.settings = settings
        self.origins = origins
        self._trusted = parse_networks(settings.trusted_proxies or ())
        self.admission.change(settings.handshake_rate, settings.handshake_concurrency)
        self._address_rate.change(*_address_rate(settings))
        self.addresses.limit_to(settings.max_connections_per_address)
        self.bounds.limit, self.bounds.max_age = settings.outbox_limit, settings.outbox_max_age
        self.quota.messages.change(*parse_rate(settings.rate_limit))
        self.quota.joins.change(*_join_rate(settings))
        self.quota.pings.change(*_ping_rate(settings))

    def shut(self) -> None:
        """Let nobody in any more; see `flowtx.sessions.drainer`."""
        self.draining = True

    def admit(self) -> None:
        """Let a handshake in, before it has cost anything.

        Raises:
            Refused: there are too many, or as many Sessions as this node takes; or the server stops.
        """
        if self.draining:
            raise Refused("unavailable", 503, {"Retry-After": "1"})
        wait = 1 if self.sessions.full else self.admission.admit(self.clock.seconds())
        if wait:
            raise Refused("overloaded", 503, {"Retry-After": str(wait)})

    def client_address(self, peer: str, forwarded: Callable[[], Sequence[str]]) -> str:
        """Find out where a request comes from; ``forwarded`` is asked only where it can matter."""
        return client_address(peer, forwarded(), self._trusted) if self._trusted else peer

    def admit_address(self, address: str) -> str | None:
        """Count a handshake, and a connection, of an address.

        Returns:
            The name that ``addresses`` must release when the connection has gone, or None.

        Raises:
            Refused: the address has too many.
        """
        name = counted_as(address)
        if name is not None:
            try:
                self.addresses.admit(name, self.clock.seconds())
            except Refused:
                self.metrics.rate_limited.labels("addresses").inc()
                raise
        return name

    async def _renewed(self, token: str) -> Principal:
        principal = await self.verifier.verify(token)
        await self.sessions.check_revoked(principal)
        return principal


def _address_rate(settings: Settings) -> tuple[float, float]:
    return settings.handshake_rate_per_address, 2 * settings.handshake_rate_per_address


def _join_rate(settings: Settings) -> tuple[float, float]:
    return settings.join_rate, settings.max_topics + ceil(settings.join_rate)


def _ping_rate(settings: Settings) -> tuple[float, float]:
    return settings.ping_rate, 2 * settings.ping_rate
