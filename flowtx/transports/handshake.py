"""What an opening handshake asks for: pure functions from its request to what is let in or refused.

The checks that RFC 6455 asks of a server are Autobahn's; here is what flowtx adds: the path, the
version of the protocol, the origin and the token.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from flowtx.errors import Refused
from flowtx.protocol.serializer import Serializer, serializer_for

PATH: Final = "/socket/websocket"
SUBPROTOCOL: Final = "phoenix"
TOKEN_SUBPROTOCOL: Final = "base64url.bearer.phx."  # noqa: S105 - a prefix, not a secret
MAX_HEADER_LINES: Final = 100
MAX_SUBPROTOCOLS: Final = 16

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_ANY: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared with, not bound


class Request(NamedTuple):
    """An opening handshake, as far as flowtx reads it.

    Attributes:
        target: path and query.
        headers: by lower-case name.
        subprotocols: those offered.
    """

    target: str
    headers: Mapping[str, str]
    subprotocols: Sequence[str]


class Accepted(NamedTuple):
    """What a handshake asks for, once everything but its token has been found good.

    Attributes:
        token: still to be verified.
        serializer: speaks the client's version.
        subprotocol: what to answer as Sec-WebSocket-Protocol, or None.
    """

    token: str
    serializer: Serializer
    subprotocol: str | None


class OriginRule:
    """Which values of the header Origin are let in; a request without one always is.

    Args:
        listed: origins such as ``https://example.com`` or ``//*.example.com``, of which any part
            may be missing; None for the hosts that are listened on.
        hosts: the hosts that are listened on. A loopback host stands for all of them, a wildcard
            for the one that the request itself names.
    """

    def __init__(self, listed: Sequence[str] | None, hosts: Sequence[str]) -> None:
        self._listed = None if listed is None else [urlsplit(entry) for entry in listed]
        self._hosts = {host.lower() for host in hosts}
        if self._hosts & _LOOPBACK:
            self._hosts |= _LOOPBACK

    def allows(self, origin: str | None, host_header: str) -> bool:
        """Whether a request with this Origin, or without one, is let in."""
        if origin is None:
            return True
        try:
            asked = urlsplit(origin)
            host, port = asked.hostname, asked.port
            if not host:
                return False
            if self._listed is None:
                own = urlsplit(f"//{host_header}").hostname if self._hosts & _ANY else None
                return host in self._hosts - _ANY or host == own
        except ValueError:
            return False
        return any(
            entry.scheme in ("", asked.scheme)
            and _host_matches(entry.hostname or "", host)
            and entry.port in (None, port)
            for entry in self._listed
        )


def _host_matches(pattern: str, host: str) -> bool:
    if pattern.startswith("*."):
        return host == pattern[2:] or host.endswith(pattern[1:])
    return pattern in ("", host)


def refuse_early(head: bytes) -> Refused | None:
    """Find what is wrong with the head of a request before it is parsed any further."""
    lines = head.split(b"\r\n")
    if len(lines) > MAX_HEADER_LINES:
        return Refused("too_many_headers", 431)
    words = lines[0].split(b" ")
    if len(words) == 3 and words[1].split(b"?")[0].rstrip(b"/") != PATH.encode():
        return Refused("not_found", 404)
    if sum(line[:7].lower() == b"origin:" for line in lines) > 1:
        return Refused("forbidden_origin")
    return None


def accept(request: Request, origins: OriginRule | None) -> Accepted:
    """Read a handshake.

    Args:
        request: the request.
        origins: which origins are let in; None for all.

    Raises:
        Refused: it is not to be let in; with the reason that the client is told.
    """
    if origins is not None and not origins.allows(
        request.headers.get("origin"), request.headers.get("host", "")
    ):
        raise Refused("forbidden_origin")
    # The last of several wins, as in Phoenix; an empty value is a value.
    parameters = dict(parse_qsl(urlsplit(request.target).query, keep_blank_values=True))
    if any(name.startswith("vsn[") for name in parameters):
        raise Refused("unsupported_version")
    serializer = serializer_for(parameters.get("vsn", "1.0.0"))
    if serializer is None:
        raise Refused("unsupported_version")
    offered, subprotocol = _subprotocol(request.subprotocols)
    token = parameters.get("token") or offered or _bearer(request.headers.get("authorization", ""))
    if not token:
        raise Refused("missing_token")
    return Accepted(token, serializer, subprotocol)


def _subprotocol(offered: Sequence[str]) -> tuple[str | None, str | None]:
    """Take the token out of the subprotocols; what it is, and which of the rest to answer."""
    if len(offered) > MAX_SUBPROTOCOLS:
        raise Refused("too_many_subprotocols", 400)
    tokens = [name for name in offered if name.startswith(TOKEN_SUBPROTOCOL)]
    rest = [name for name in offered if not name.startswith(TOKEN_SUBPROTOCOL)]
    if rest and SUBPROTOCOL not in rest:
        raise Refused("unsupported_version")
    # Phoenix takes none where a client gives two.
    token = _decoded(tokens[0].removeprefix(TOKEN_SUBPROTOCOL)) if len(tokens) == 1 else None
    return token, SUBPROTOCOL if rest else None


def _decoded(text: str) -> str:
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise Refused("invalid_token") from None


def _bearer(header: str) -> str | None:
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
