"""What a request tells of the page that makes it, and which pages may.

A page of another site can have a browser send requests here, with whatever the browser knows of us;
of flowtx that is nothing, as no cookie is ever set. All the same such a request is refused before
anything else is looked at: nobody's backend is a page of another site.

A page can also have its own name stand for an address of this machine (DNS rebinding), which makes it
same-origin to the browser. Only the header Host tells then.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from twisted.web.iweb import IRequest

from flowtx.loopback import is_loopback
from flowtx.settings import Settings

_OWN_SITES = frozenset({b"same-origin", b"none"})


def is_of_other_site(request: IRequest) -> bool:
    """Whether a request comes from a page that is not our own.

    Our own is the page whose ``Origin`` has the host and port of the request's own ``Host``, whatever
    its scheme: a proxy in front may have taken the TLS off.
    """
    origins = request.requestHeaders.getRawHeaders(b"origin", [])
    sites = request.requestHeaders.getRawHeaders(b"sec-fetch-site", [])
    if any(site.strip().lower() not in _OWN_SITES for site in sites):
        return True
    host = request.getHeader(b"host") or b""
    return not all(is_own_origin(origin, host) for origin in origins)


def is_own_origin(origin: bytes, host: bytes) -> bool:
    """Whether an ``Origin`` has the host and port of the request's own ``Host``."""
    return _place(origin) == host.strip().lower()


def own_hosts(settings: Settings) -> frozenset[str] | None:
    """Find the names by which the admin endpoint may be asked for; None for any.

    Where nothing is said, a TCP port that only this machine reaches is ``localhost``. Any other one has
    the names that its operator's DNS gives it.
    """
    if settings.admin_hosts is not None:
        return frozenset(name.lower() for name in settings.admin_hosts)
    local = is_loopback(settings.admin) and not settings.admin.startswith("unix:")
    return frozenset() if local else None


def is_own_host(header: bytes | None, names: frozenset[str] | None) -> bool:
    """Whether a header Host names this server.

    Addresses do in any case, as do ``localhost`` and names below it: no DNS gives those to a page.

    Args:
        header: the header; None where there is none.
        names: further names; None for any.
    """
    if names is None or header is None:
        return True
    try:
        host = urlsplit(f"//{header.decode('ascii')}").hostname or ""
    except ValueError:
        return False
    if host in names or f".{host}".endswith(".localhost"):
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _place(origin: bytes) -> bytes | None:
    """The host and port of an origin; None where it is none, such as ``null``."""
    try:
        parts = urlsplit(origin.strip().lower())
    except ValueError:
        return None
    return (parts.netloc or None) if parts.scheme in (b"http", b"https") and not parts.path else None
