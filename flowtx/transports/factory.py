"""What makes the connections, and what they share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import ceil
from typing import Final

from twisted.internet.interfaces import IReactorTime

from flowtx.auth import TokenVerifier
from flowtx.channels.router import Router
from flowtx.channels.throttle import Quota
from flowtx.channels.tokens import Tokens
from flowtx.config import Settings
from flowtx.errors import Refused
from flowtx.interfaces import IPubSub, Principal
from flowtx.limits import Rate
from flowtx.metrics import Metrics
from flowtx.sessions.service import SessionService
from flowtx.transports.addresses import Addresses, client_address, counted_as, parse_networks
from flowtx.transports.admission import Admission
from flowtx.transports.guards import GuardedFactory
from flowtx.transports.origin import OriginRule
from flowtx.transports.outbox import Bounds
from flowtx.transports.websocket import FlowProtocol

TOKEN_GRACE: Final = 15.0
"""Seconds past its token's end for which a connection stays open, so that it may renew it."""


class FlowFactory(GuardedFactory):
    """Makes the connections and holds what they share.

    Args:
        settings: the settings.
        verifier: verifies tokens.
        sessions: the Sessions.
        router: which Channel serves which topic.
        pubsub: carries broadcasts.
        origins: which origins are let in; None for all.
        admission: how many handshakes are let in.
        metrics: counts.
        reactor: the reactor.
    """

    protocol = FlowProtocol

    def __init__(
        self,
        settings: Settings,
        *,
        verifier: TokenVerifier,
        sessions: SessionService,
        router: Router,
        pubsub: IPubSub,
        origins: OriginRule | None,
        admission: Admission,
        metrics: Metrics,
        reactor: IReactorTime,
    ) -> None:
        super().__init__(settings.max_frame_size, reactor=reactor)
        self.settings = settings
        self.verifier = verifier
        self.sessions = sessions
        self.router = router
        self.pubsub = pubsub
        self.origins = origins
        self.admission = admission
        self.metrics = metrics
        self.addresses = Addresses(
            Rate(settings.handshake_rate_per_address, 2 * settings.handshake_rate_per_address),
            settings.max_connections_per_address,
        )
        self.bounds = Bounds(settings.outbox_limit, settings.outbox_max_age, reactor, metrics)
        joins = settings.max_topics + ceil(settings.join_rate)
        self.quota = Quota(
            Rate.parse(settings.rate_limit),
            Rate(settings.join_rate, joins),
            Rate(settings.ping_rate, 2 * settings.ping_rate),
            lambda limit: metrics.rate_limited.labels(limit).inc(),
        )
        self._trusted = parse_networks(settings.trusted_proxies or ())
        self.tokens = Tokens(
            self._renewed, lambda principal: principal.expires_at + TOKEN_GRACE - time.time()
        )

    def admit(self) -> None:
        """Let a handshake in, before it has cost anything.

        Raises:
            Refused: there are too many, or as many Sessions as this node takes.
        """
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
