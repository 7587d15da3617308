"""What an opening handshake asks for: pure functions from its request to what is let in or refused.

The checks that RFC 6455 asks of a server are Autobahn's; here is what flowtx adds: the form of the
request, the path, the origin, the version of the protocol and the token.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from flowtx.errors import Refused
from flowtx.protocol.serializer import Serializer, serializer_for
from flowtx.tracing import Call, call_of
from flowtx.transports.origin import Origins

PATH: Final = "/socket/websocket"
SUBPROTOCOL: Final = "phoenix"
TOKEN_SUBPROTOCOL: Final = "base64url.bearer.phx."  # noqa: S105 - a prefix, not a secret
MAX_HEADER_LINES: Final = 100
MAX_SUBPROTOCOLS: Final = 16

_HEADERS: Final = {405: {"Allow": "GET"}, 426: {"Upgrade": "websocket", "Connection": "Upgrade, close"}}

_REQUEST_LINE: Final = re.compile(rb"[A-Za-z]+ ([!-~]+) HTTP/[0-9]\.[0-9]")
# RFC 9110, section 5.5: neither folded nor with control characters, which parsers tell apart differently.
_HEADER_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")
_TRACING: Final = re.compile(rb"\r\n(X-Request-Id|traceparent):[ \t]*([^\r\n]*)", re.IGNORECASE)
_FORWARDED_FOR: Final = re.compile(rb"\r\nX-Forwarded-For:([^\r\n]*)", re.IGNORECASE)


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


def check_head(head: bytes, origins: Origins | None, path: str = PATH) -> None:
    """Check the head of a request before it is parsed any further.

    Args:
        head: all up to the empty line.
        origins: which origins are let in; None for all.
        path: the only one that there is.

    Raises:
        Refused: it is not to be let in; with the reason that the client is told.
    """
    first, *lines = head.split(b"\r\n")
    if len(lines) > MAX_HEADER_LINES:
        raise Refused("too_many_headers", 431)
    request_line = _REQUEST_LINE.fullmatch(first)
    headers = [_HEADER_LINE.fullmatch(line) for line in lines]
    if request_line is None or None in headers:
        raise Refused("bad_request", 400)
    if request_line[1].split(b"?")[0].removesuffix(b"/") != path.encode():
        raise Refused("not_found", 404)
    if origins is None:
        return
    values: dict[bytes, list[str]] = {b"origin": [], b"host": [""]}
    for header in headers:
        if header is not None and header[1].lower() in values:
            values[header[1].lower()].append(header[2].decode("latin-1").strip())
    asked = values[b"origin"]
    if len(asked) > 1 or not all(origins.allows(origin, values[b"host"][-1]) for origin in asked):
        raise Refused("forbidden_origin")


def forwarded_for(head: bytes) -> list[str]:
    """List the addresses of all headers ``X-Forwarded-For``, in order; for a head not checked yet."""
    found = _FORWARDED_FOR.findall(head)
    return [part.strip().decode("latin-1") for value in found for part in value.split(b",")]


def call_in(head: bytes) -> Call:
    """Name a connection by its request; for a head not checked yet."""
    given = {name.lower(): value.strip().decode("latin-1") for name, value in _TRACING.findall(head)}
    return call_of(given.get(b"x-request-id"), given.get(b"traceparent"))


def accept(request: Request, *, token_in_query: bool = True) -> Accepted:
    """Read a handshake.

    Args:
        request: the handshake.
        token_in_query: whether the token may come in the query.

    Raises:
        Refused: it is not to be let in; with the reason that the client is told.
    """
    # The last of several wins, as in Phoenix; an empty value is a value.
    parameters = dict(parse_qsl(request.target.partition("?")[2], keep_blank_values=True))
    if any(name.startswith("vsn[") for name in parameters):
        raise Refused("unsupported_version")
    serializer = serializer_for(parameters.get("vsn", "1.0.0"))
    if serializer is None:
        raise Refused("unsupported_version")
    offered, subprotocol = _subprotocol(request.subprotocols)
    in_query = parameters.get("token") if token_in_query else None
    token = in_query or offered or _bearer(request.headers.get("authorization", ""))
    if not token:
        raise Refused("missing_token")
    return Accepted(token, serializer, subprotocol)


def _subprotocol(offered: Sequence[str]) -> tuple[str | None, str | None]:
    """Take the token out of the subprotocols; what it is, and which of the rest to answer."""
    if len(offered) > MAX_SUBPROTOCOLS:
        raise Refused("bad_request", 400)
    tokens = [name for name in offered if name.startswith(TOKEN_SUBPROTOCOL)]
    rest = [name for name in offered if not name.startswith(TOKEN_SUBPROTOCOL)]
    if rest and SUBPROTOCOL not in rest:
        raise Refused("unsupported_version")
    # Phoenix takes none where a client gives two.
    token = _decoded(tokens[0].removeprefix(TOKEN_SUBPROTOCOL)) if len(tokens) == 1 else None
    return token, SUBPROTOCOL if rest else None


def _decoded(text: str) -> str:
    """Decode base64 of either alphabet, with padding or without; phoenix.js sends the plain one."""
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        raise Refused("invalid_token") from None


def _bearer(header: str) -> str | None:
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def refusal(refused: Refused, request_id: str) -> bytes:
    """Write the answer to a request that is refused."""
    body = msgspec.json.encode({"reason": refused.reason})
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "X-Request-Id": request_id,
        **_HEADERS.get(refused.status, {}),
        **refused.headers,
    }
    lines = [f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
