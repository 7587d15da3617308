"""What must hold between the settings, and what their types cannot say."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Final

from twisted.internet.endpoints import serverFromString

from flowtx.errors import ConfigError
from flowtx.limits import Rate
from flowtx.loopback import is_loopback
from flowtx.settings import CLAIMS, HMAC_ALGORITHMS, PUBLIC_KEY_ALGORITHMS, Settings, printable

_PORT: Final = re.compile(r"(?:tcp[46]?|ssl):(?:[a-zA-Z]+=[^:]*:)*(?:port=)?(-?[0-9]+)")
_INTERFACE: Final = re.compile(r":interface=((?:[^:\\]|\\.)*)")
_APP: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_SOCKET_UNIT: Final = re.compile(
    r"systemd:(domain=(INET6?|UNIX):(index=[0-9]{1,4}|name=[^:=\s]+)"
    r"|(index=[0-9]{1,4}|name=[^:=\s]+):domain=(INET6?|UNIX))"
)


def check_relations(settings: Settings) -> None:
    """Check what the type of no single setting can say.

    Raises:
        ConfigError: two settings contradict each other, or one has a form that it must not have.
    """
    known = HMAC_ALGORITHMS | PUBLIC_KEY_ALGORITHMS
    for algorithm in settings.jwt_algorithms:
        if algorithm not in known:
            raise ConfigError(f"--jwt-algorithms: got {algorithm!r:.80}; it takes {', '.join(sorted(known))}")
    algorithms = f"{', '.join(settings.jwt_algorithms):.80}"
    hmac = HMAC_ALGORITHMS.issuperset(settings.jwt_algorithms)
    if not hmac and not PUBLIC_KEY_ALGORITHMS.issuperset(settings.jwt_algorithms):
        mixed = "shared secrets (HS…) and public keys (RS…, PS…, ES…, EdDSA) cannot be mixed"
        raise ConfigError(f"--jwt-algorithms: got {algorithms}; {mixed}")
    keys = [name for name in ("jwt-key-file", "jwt-jwks") if getattr(settings, name.replace("-", "_"))]
    if hmac and keys:
        other = "give RS256 or another public-key algorithm"
        raise ConfigError(f"--{keys[0]}: holds public keys, but --jwt-algorithms is {algorithms}; {other}")
    if not hmac and len(keys) != 1:
        needed = f"one of --jwt-key-file and --jwt-jwks, got {len(keys)} of them"
        raise ConfigError(f"--jwt-algorithms: {algorithms} needs {needed}")
    if not hmac and settings.secret_file:
        raise ConfigError(f"--secret-file: is for HS… only, but --jwt-algorithms is {algorithms}")
    if settings.jwt_audience_list and settings.jwt_audience is None:
        raise ConfigError("--jwt-audience-list: needs --jwt-audience, one of the list")
    for endpoint in settings.listen:
        _check_endpoint("listen", endpoint)
    _check_endpoint("admin", settings.admin)
    if settings.check_origin and "false" in settings.check_origin and settings.origins_checked:
        got = ", ".join(settings.check_origin)
        raise ConfigError(f"--check-origin: got {got!r:.80}; it takes either false or a list of origins")
    _check_manhole(settings)
    _check_places(settings)
    _check_limits(settings)
    if settings.database and not settings.database.startswith(("postgresql://", "postgres://")):
        raise ConfigError("--database: got a value that is not shown; it takes a postgresql:// URL")
    if settings.app is not None and not _APP.fullmatch(settings.app):
        raise ConfigError(
            f"--app: got {settings.app!r:.80}; it takes MODULE:NAME, such as crm.channels:router"
        )
    if settings.users_query != CLAIMS and settings.users_query.count("%s") != 1:
        got = f"{settings.users_query[:60]!r}"
        raise ConfigError(f"--users-query: got {got}; it takes SQL with exactly one %s, or the word {CLAIMS}")


def _check_manhole(settings: Settings) -> None:
    if settings.manhole is None:
        return
    _check_endpoint("manhole", settings.manhole)
    if not settings.manhole_keys:
        raise ConfigError("--manhole: needs --manhole-keys, an authorized_keys file: there are no passwords")
    if not settings.manhole_anywhere and not is_loopback(settings.manhole):
        raise ConfigError(
            f"--manhole: got {settings.manhole!r:.80}, which other machines can reach; it takes "
            "interface=127.0.0.1 or unix:, or --manhole-anywhere besides"
        )


def _check_places(settings: Settings) -> None:
    """Check that no two endpoints are to listen in the same place."""
    taken: dict[tuple[str, str], str] = {}
    endpoints = [*(("listen", one) for one in settings.listen), ("admin", settings.admin)]
    endpoints += [("manhole", settings.manhole)] if settings.manhole else []
    for name, endpoint in endpoints:
        port = _PORT.match(endpoint)
        interface = _INTERFACE.search(endpoint)
        place = (port[1], interface[1] if interface else "") if port else (endpoint, "")
        if place in taken and place[0] != "0":
            raise ConfigError(
                f"--{name}: got {endpoint!r:.80}, where --{taken[place]} listens; give another one"
            )
        taken[place] = name


def _check_limits(settings: Settings) -> None:
    try:
        Rate.parse(settings.rate_limit)
    except ValueError:
        form = "messages per second and how many at once, such as 50/100"
        raise ConfigError(f"--rate-limit: got {settings.rate_limit!r:.80}; it takes {form}") from None
    kept = settings.retention_days * 86_400
    if 0 < kept <= settings.undelivered_after:
        raise ConfigError(
            f"--undelivered-after: got {settings.undelivered_after:g}, but a notification is kept for "
            f"{kept:g} seconds only (--retention-days); it takes less than that"
        )
    for proxy in settings.trusted_proxies or ():
        try:
            ip_network(proxy)
        except ValueError as error:
            takes = "addresses and networks such as 10.0.0.0/8"
            raise ConfigError(
                f"--trusted-proxies: got {proxy!r:.80}; it takes {takes} ({error!s:.120})"
            ) from None


def _check_endpoint(name: str, text: str) -> None:
    if text.startswith("systemd:"):
        _check_socket_unit(name, text)
        return
    try:
        serverFromString(None, text)  # which needs its reactor only to listen
        port = _PORT.match(text)
        if port and not 0 <= int(port[1]) <= 65_535:
            raise ValueError("a port is 0 to 65535")
    except (ValueError, TypeError, LookupError) as error:
        raise ConfigError(
            f"--{name}: got {text!r:.80}; it takes a Twisted endpoint such as tcp:4000 "
            f"({printable(str(error))[:200]})"
        ) from None
    except Exception:  # noqa: S110 - of many kinds, for a certificate
        # A file that cannot be used matters to the server only, which says so when it starts.
        pass


def _check_socket_unit(name: str, text: str) -> None:
    # Twisted can tell only in a process that systemd has given sockets to.
    if not _SOCKET_UNIT.fullmatch(text):
        takes = "systemd:domain=INET:index=0, or name=NAME for index; the domain may be INET6 or UNIX too"
        raise ConfigError(f"--{name}: got {text!r:.80}; it takes {takes}")
