"""Which pages of which sites may connect: the rule for the header Origin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from flowtx.config import Settings
from flowtx.errors import ConfigError

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_ANY: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared with, not bound
_PORTS: Final = {"http": 80, "https": 443}


class Origins(Protocol):
    """Tells which values of the header Origin are let in."""

    def allows(self, origin: str | None, host_header: str) -> bool:
        """Whether a request with this Origin, or without one, and with this Host is let in."""


class _Listed(NamedTuple):
    """An entry of a list of origins; a part that is empty or None matches any."""

    scheme: str
    host: str
    port: int | None


class OriginRule:
    """Which values of the header Origin are let in; a request without one always is.

    Args:
        listed: origins such as ``https://example.com`` or ``//*.example.com``, of which the scheme
            and the port may be missing; None for the hosts that are listened on.
        hosts: the hosts that are listened on. A loopback host stands for all of them, a wildcard
            for the one that the request itself names.

    Raises:
        ConfigError: an entry of ``listed`` is no origin.
    """

    def __init__(self, listed: Sequence[str] | None, hosts: Sequence[str]) -> None:
        self._listed = None if listed is None else [_parse_listed(entry) for entry in listed]
        self._hosts = {host.lower() for host in hosts}
        if self._hosts & _LOOPBACK:
            self._hosts |= _LOOPBACK

    def allows(self, origin: str | None, host_header: str) -> bool:
        """Whether a request with this Origin, or without one, is let in."""
        if origin is None:
            return True
        try:
            asked = urlsplit(origin)
            host, port = asked.hostname, asked.port or _PORTS.get(asked.scheme)
            if not host or not asked.scheme:
                return False
            if self._listed is None:
                own = urlsplit(f"//{host_header}").hostname if self._hosts & _ANY else None
                return host in self._hosts - _ANY or host == own
        except ValueError:
            return False
        return any(
            entry.scheme in ("", asked.scheme)
            and _host_matches(entry.host, host)
            and entry.port in (None, port)
            for entry in self._listed
        )


def _parse_listed(entry: str) -> _Listed:
    try:
        parts = urlsplit(entry)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        host, port = "", None
    if not host or "*" in host.removeprefix("*.") or parts.path not in ("", "/"):
        raise ConfigError(
            f"--check-origin: got {entry!r:.80}; it takes false, or origins such as https://example.com "
            "and //*.example.com"
        )
    return _Listed(parts.scheme, host, port)


def _host_matches(pattern: str, host: str) -> bool:
    if pattern.startswith("*."):
        return host == pattern[2:] or host.endswith(pattern[1:])
    return host == pattern


def origin_rule(settings: Settings) -> OriginRule | None:
    """Make the rule that the settings give for origins; None to let all of them in.

    Raises:
        ConfigError: an entry of ``--check-origin`` is no origin.
    """
    if not settings.origins_checked:
        return None
    return OriginRule(settings.check_origin, [listened_host(endpoint) for endpoint in settings.listen])


def listened_host(endpoint: str) -> str:
    """Find the host in the description of an endpoint; empty for all of the machine's."""
    for part in re.split(r"(?<!\\):", endpoint):
        name, _, value = part.partition("=")
        if name == "interface":
            return value.replace("\\:", ":")
    return ""
