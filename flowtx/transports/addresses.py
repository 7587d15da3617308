"""Whose connections they are, by address, and how many one address may have.

An IPv6 customer has a /64 at least: its addresses count as one. Addresses that are not global are not
counted: loopback, private networks and unix sockets hold load tests, neighbours and proxies, whose
address stands for any number of clients. A proxy with a global address must be named as trusted;
then the address that it gives in ``X-Forwarded-For`` counts. From anybody else that header is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from math import ceil
from typing import Final, TypeAlias

from flowtx.errors import Refused
from flowtx.limits import Rate, TokenBucket

Network: TypeAlias = IPv4Network | IPv6Network

FEW: Final = 1_024
"""So many addresses may be known before it is looked for those that can be forgotten."""


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Read networks such as ``10.0.0.0/8``, and single addresses.

    Raises:
        ValueError: one of them is no network.
    """
    return tuple(ip_network(text) for text in texts)


def client_address(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """Find out where a request comes from.

    Args:
        peer: the address that is connected.
        forwarded: what ``X-Forwarded-For`` lists, in order.
        trusted: the proxies that are believed.

    Returns:
        The last address in the chain that is no trusted proxy.
    """
    address = peer
    for claimed in reversed(forwarded):
        found = _parsed(address)
        if found is None or not any(found in network for network in trusted):
            break
        if _parsed(claimed) is None:
            break
        address = claimed
    return address


@lru_cache(1024)
def counted_as(address: str) -> str | None:
    """Tell under which name an address is counted; None where it is not."""
    found = _parsed(address)
    if found is None or not found.is_global:
        return None
    if isinstance(found, IPv6Address):
        return str(ip_network((found, 64), strict=False))
    return str(found)


def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


class _Known:
    """What is known of one address."""

    __slots__ = ("bucket", "connections")

    def __init__(self, rate: Rate) -> None:
        self.bucket = TokenBucket(rate)
        self.connections = 0


class Addresses:
    """Counts connections and handshakes by address.

    Args:
        rate: handshakes of one address.
        limit: connections of one address.
    """

    def __init__(self, rate: Rate, limit: int) -> None:
        self._rate = rate
        self._limit = limit
        self._known: dict[str, _Known] = {}
        self._sweep_at = FEW

    def __len__(self) -> int:
        return len(self._known)

    def limit_to(self, limit: int) -> None:
        """Change how many connections one address may have; those that are open stay so."""
        self._limit = limit

    def admit(self, name: str, now: float) -> None:
        """Count a handshake, and until `release` a connection.

        Args:
            name: see `counted_as`.
            now: seconds, monotonic.

        Raises:
            Refused: the address has too many; not to be released.
        """
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= self._sweep_at:
                self._sweep(now)
            known = self._known[name] = _Known(self._rate)
        wait = known.bucket.take(now)
        if not wait and known.connections >= self._limit:
            wait = 1.0
        if wait:
            raise Refused("rate_limited", 429, {"Retry-After": str(ceil(wait))})
        known.connections += 1

    def release(self, name: str) -> None:
        """Count a connection no more."""
        self._known[name].connections -= 1

    def _sweep(self, now: float) -> None:
        """Forget those of whom nothing is left to know."""
        self._known = {
            name: known
            for name, known in self._known.items()
            if known.connections or not known.bucket.is_full(now)
        }
        self._sweep_at = max(FEW, 2 * len(self._known))
