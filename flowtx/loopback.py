"""Which Twisted endpoints only this machine can reach."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final

_TCP: Final = frozenset({"tcp", "tcp4", "tcp6", "ssl"})
_PART: Final = re.compile(r"((?:[^:\\]|\\.)*)(?::|\Z)", re.DOTALL)


def is_loopback(endpoint: str) -> bool:
    """Whether nobody outside of this machine can connect to an endpoint.

    Args:
        endpoint: such as ``tcp:4002:interface=127.0.0.1``. One of a kind that is not known here counts
            as reachable from outside.
    """
    kind, *parts = [re.sub(r"\\(.)", r"\1", part) for part in _PART.findall(endpoint)]
    if kind == "unix":
        return True
    interfaces = [part.removeprefix("interface=") for part in parts if part.startswith("interface=")]
    return kind in _TCP and bool(interfaces) and all(map(is_loopback_host, interfaces))


def is_loopback_host(host: str) -> bool:
    """Whether a host, by address or name, is this machine, seen only by itself."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
