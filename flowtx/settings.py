"""The settings themselves: their types, their bounds, and what must hold between them."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta
from twisted.internet.endpoints import serverFromString

from flowtx.errors import ConfigError
from flowtx.limits import Rate

HMAC_ALGORITHMS: Final = frozenset({"HS256", "HS384", "HS512"})
PUBLIC_KEY_ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)

CLAIMS: Final = "claims"
"""As ``users_query``: users are whoever a valid token names."""

USERS_QUERY: Final = "SELECT id, name, email FROM flow.users WHERE id = ANY(%s)"

Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
Frequency = Annotated[float, Meta(ge=1, le=1_000_000)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, checked. The metadata of a field is its help text; units are part of it."""

    listen: Annotated[
        tuple[str, ...], Meta(min_length=1, description="Twisted endpoint for clients; repeatable")
    ] = ("tcp:4000:interface=127.0.0.1",)
    admin: Annotated[str, Meta(min_length=1, description="Twisted endpoint of the HTTP API")] = (
        "tcp:4001:interface=127.0.0.1"
    )
    database: Annotated[
        str | None, Meta(description="postgresql:// URL; without it an embedded PostgreSQL is run")
    ] = None
    data_dir: Annotated[
        str, Meta(min_length=1, description="directory of the secret, the API key and the embedded database")
    ] = ".flow"
    secret_file: Annotated[
        str | None, Meta(description="HMAC key of the tokens, made if absent; default DATA_DIR/secret")
    ] = None
    jwt_algorithms: Annotated[
        tuple[str, ...], Meta(min_length=1, description="algorithms of one family, comma-separated")
    ] = ("HS512", "HS256")
    jwt_key_file: Annotated[str | None, Meta(description="PEM file of the public key of RS, ES or EdDSA")] = (
        None
    )
    jwt_jwks: Annotated[str | None, Meta(description="JWKS with the public keys: a file or an https URL")] = (
        None
    )
    jwt_issuer: Annotated[str | None, Meta(description="what the claim iss must be")] = None
    jwt_audience: Annotated[str | None, Meta(description="what the claim aud must be")] = None
    jwt_audience_list: Annotated[
        bool, Meta(description="take an aud that is a list with ours among others")
    ] = False
    jwt_leeway: Annotated[float, Meta(ge=0, le=300, description="seconds that exp and nbf may be off")] = 10.0
    jwt_max_lifetime: Annotated[
        float, Meta(ge=0, description="seconds from now at which exp may lie at most; 0 for any")
    ] = 86_400.0
    users_query: Annotated[
        str,
        Meta(
            min_length=1,
            description="SQL with one %s, an array of ids, that gives id, name, email; or the word claims",
        ),
    ] = USERS_QUERY
    idle_timeout: Annotated[
        Seconds, Meta(description="seconds without anything but heartbeats after which a Session ends")
    ] = 1_800.0
    reconnect_window: Annotated[
        float, Meta(ge=0, le=86_400, description="seconds for which a Session waits for its user's return")
    ] = 30.0
    max_sessions: Annotated[Count, Meta(description="Sessions on this node")] = 50_000
    max_devices: Annotated[Count, Meta(description="connections of one user")] = 20
    device_policy: Annotated[
        Literal["newest-wins", "refuse"],
        Meta(description="past max-devices: close the user's oldest connection, or refuse the new one"),
    ] = "newest-wins"
    handshake_rate: Annotated[float, Meta(gt=0, le=1_000_000, description="handshakes let in per second")] = (
        500.0
    )
    handshake_concurrency: Annotated[Count, Meta(description="handshakes that may be decided at once")] = (
        1_000
    )
    heartbeat_timeout: Annotated[
        Seconds, Meta(description="seconds without a frame after which a connection is closed")
    ] = 60.0
    ping_interval: Annotated[
        float, Meta(ge=0, le=86_400, description="seconds from a client's Pong to the next Ping; 0 for none")
    ] = 25.0
    pong_timeout: Annotated[
        Seconds, Meta(description="seconds without a Pong after which a connection is closed")
    ] = 10.0
    max_frame_size: Annotated[
        int, Meta(ge=1024, le=16_777_216, description="bytes of a message from a client")
    ] = 65_536
    max_topics: Annotated[Count, Meta(description="topics that one connection may join")] = 100
    rate_limit: Annotated[
        str, Meta(min_length=1, description="messages per second and burst of one connection")
    ] = "50/100"
    join_rate: Annotated[
        Frequency, Meta(description="joins per second of one connection; max-topics more at once")
    ] = 10.0
    ping_rate: Annotated[
        Frequency, Meta(description="pings per second from one connection; twice as many at once")
    ] = 5.0
    handshake_rate_per_address: Annotated[
        Frequency,
        Meta(description="handshakes per second of one public address (IPv6: /64); twice as many at once"),
    ] = 50.0
    max_connections_per_address: Annotated[
        Count, Meta(description="connections of one public address (IPv6: /64)")
    ] = 10_000
    trusted_proxies: Annotated[
        tuple[str, ...] | None,
        Meta(description="addresses or networks of proxies whose X-Forwarded-For is believed"),
    ] = None
    outbox_limit: Annotated[int, Meta(ge=1024, description="bytes that may wait for one connection")] = (
        1_048_576
    )
    outbox_max_age: Annotated[
        Seconds, Meta(description="seconds for which a frame may wait for one connection")
    ] = 10.0
    undelivered_after: Annotated[
        float,
        Meta(
            ge=0,
            le=31_536_000,
            description="seconds after which a notification that nobody got is undelivered; 0 for never",
        ),
    ] = 300.0
    retention_days: Annotated[
        float, Meta(ge=0, le=36_500, description="days for which a notification is kept; 0 for ever")
    ] = 90.0
    retention_count: Annotated[
        int,
        Meta(ge=0, le=1_000_000_000, description="notifications of a user that are kept; 0 for any number"),
    ] = 100_000
    check_origin: Annotated[
        tuple[str, ...] | None,
        Meta(description="false, or origins such as //*.example.com; default the listen host"),
    ] = None
    database_connections: Annotated[
        int, Meta(ge=1, le=100, description="connections to the database, besides those that listen")
    ] = 4
    app: Annotated[
        str | None,
        Meta(description="MODULE:NAME of the application's Router, or of a function that returns one"),
    ] = None
    demo: Annotated[bool, Meta(description="add demo users and print how to try everything")] = False

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["database"] = redacted_url(self.database)
        if self.jwt_jwks and "://" in self.jwt_jwks:
            shown["jwt_jwks"] = redacted_url(self.jwt_jwks)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def origins_checked(self) -> bool:
        """Whether the header Origin is looked at; ``--check-origin false`` turns it off."""
        return self.check_origin != ("false",)


def redacted_url(url: str | None) -> str | None:
    """Take the password out of a URL, and everything else that may hold one."""
    if url is None:
        return None
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "(unreadable)"
    # A password may hold anything if it was not quoted; all up to the last @ is taken for one.
    login, at, host = rest.rpartition("@")
    user, place = re.split("[:@/?#]", login)[0], re.split("[?#&]", host)[0]
    return f"{scheme}://{user}{at}{place}"


def check_relations(settings: Settings) -> None:
    """Check what the type of no single setting can say.

    Raises:
        ConfigError: two settings contradict each other, or one has a form that it must not have.
    """
    known = HMAC_ALGORITHMS | PUBLIC_KEY_ALGORITHMS
    for algorithm in settings.jwt_algorithms:
        if algorithm not in known:
            raise ConfigError(f"--jwt-algorithms: got {algorithm!r}; it takes {', '.join(sorted(known))}")
    algorithms = ", ".join(settings.jwt_algorithms)
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
    for endpoint in settings.listen:
        _check_endpoint("listen", endpoint)
    _check_endpoint("admin", settings.admin)
    if settings.check_origin and "false" in settings.check_origin and settings.origins_checked:
        got = ", ".join(settings.check_origin)
        raise ConfigError(f"--check-origin: got {got!r:.80}; it takes either false or a list of origins")
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


def _check_limits(settings: Settings) -> None:
    try:
        Rate.parse(settings.rate_limit)
    except ValueError:
        form = "messages per second and how many at once, such as 50/100"
        raise ConfigError(f"--rate-limit: got {settings.rate_limit!r:.80}; it takes {form}") from None
    for proxy in settings.trusted_proxies or ():
        try:
            ip_network(proxy)
        except ValueError as error:
            takes = "addresses and networks such as 10.0.0.0/8"
            raise ConfigError(f"--trusted-proxies: got {proxy!r:.80}; it takes {takes} ({error})") from None


def _check_endpoint(name: str, text: str) -> None:
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


def printable(name: str) -> str:
    """Keep a message in one line, whatever the names of keys and variables."""
    return name if name.isprintable() else ascii(name)


_PORT: Final = re.compile(r"(?:tcp[46]?|ssl):(?:[a-zA-Z]+=[^:]*:)*(?:port=)?(-?[0-9]+)")
_APP: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
