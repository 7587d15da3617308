"""The settings themselves: their types, their bounds and their help; see also `flowtx.relations`."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

HMAC_ALGORITHMS: Final = frozenset({"HS256", "HS384", "HS512"})
PUBLIC_KEY_ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)

MAX_NAME: Final = 100
"""Characters of a name that a message shows."""

CLAIMS: Final = "claims"
"""As ``users_query``: users are whoever a valid token names."""

USERS_QUERY: Final = "SELECT id, name, email FROM flow.users WHERE id = ANY(%s)"

LIVE_KEYS: Final = frozenset({"secret_file", "jwt_key_file", "jwt_jwks"})
"""Settings that name keys of tokens."""

LIVE: Final = LIVE_KEYS | {
    "check_origin",
    "device_policy",
    "handshake_concurrency",
    "handshake_rate",
    "handshake_rate_per_address",
    "join_rate",
    "log_level",
    "max_connections_per_address",
    "max_devices",
    "max_sessions",
    "max_topics",
    "outbox_limit",
    "outbox_max_age",
    "ping_rate",
    "rate_limit",
    "trusted_proxies",
}
"""Settings that SIGHUP changes while the server runs; the others need a restart."""

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
        str | None,
        Meta(
            description="postgresql:// URL; without it an embedded PostgreSQL is run",
            examples=["postgresql://flow:PASSWORD@10.0.0.5/crm"],
        ),
    ] = None
    data_dir: Annotated[
        str, Meta(min_length=1, description="directory of the secret, the API key and the embedded database")
    ] = ".flow"
    admin_hosts: Annotated[
        tuple[str, ...] | None,
        Meta(
            description="names in the header Host that admin takes; default localhost where it is loopback",
            examples=[["flow.internal.example.com"]],
        ),
    ] = None
    api_keys: Annotated[
        str | None,
        Meta(
            description="file of further keys of the HTTP API, mode 0600; a line each: NAME SCOPES KEY",
            examples=["/etc/flowtx/api-keys"],
        ),
    ] = None
    secret_file: Annotated[
        str | None,
        Meta(
            description="HMAC key of the tokens, made if absent; default DATA_DIR/secret",
            examples=["/etc/flowtx/secret"],
        ),
    ] = None
    jwt_algorithms: Annotated[
        tuple[str, ...], Meta(min_length=1, description="algorithms of one family, comma-separated")
    ] = ("HS512", "HS256")
    jwt_key_file: Annotated[
        str | None,
        Meta(
            description="PEM file of the public key of RS, ES or EdDSA",
            examples=["/etc/flowtx/jwt-public.pem"],
        ),
    ] = None
    jwt_jwks: Annotated[
        str | None,
        Meta(
            description="JWKS with the public keys: a file or an https URL",
            examples=["https://login.example.com/.well-known/jwks.json"],
        ),
    ] = None
    jwt_issuer: Annotated[
        str | None, Meta(description="what the claim iss must be", examples=["https://login.example.com/"])
    ] = None
    jwt_audience: Annotated[str | None, Meta(description="what the claim aud must be", examples=["crm"])] = (
        None
    )
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
        Meta(
            description="addresses or networks of proxies whose X-Forwarded-For is believed",
            examples=[["10.0.0.0/8"]],
        ),
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
    watchdog: Annotated[
        float,
        Meta(
            ge=0,
            le=3_600,
            description="seconds for which the event loop may be stuck before all stacks are logged; "
            "after three times that the process aborts; 0 for no watchdog",
        ),
    ] = 10.0
    check_origin: Annotated[
        tuple[str, ...] | None,
        Meta(
            description="false, or origins such as //*.example.com; default the listen host",
            examples=[["https://app.example.com", "//*.example.com"]],
        ),
    ] = None
    manhole: Annotated[
        str | None,
        Meta(
            description="Twisted endpoint of the manhole, an SSH shell into the server; off without it",
            examples=["tcp:4002:interface=127.0.0.1"],
        ),
    ] = None
    manhole_keys: Annotated[
        str | None,
        Meta(
            description="authorized_keys file of those who may use the manhole",
            examples=["/etc/flowtx/authorized_keys"],
        ),
    ] = None
    manhole_anywhere: Annotated[
        bool, Meta(description="let the manhole listen where other machines can reach it")
    ] = False
    database_connections: Annotated[
        int, Meta(ge=1, le=100, description="connections to the database, besides those that listen")
    ] = 4
    app: Annotated[
        str | None,
        Meta(
            description="MODULE:NAME of the application's Router, or of a function that returns one",
            examples=["crm.channels:router"],
        ),
    ] = None
    log_format: Annotated[
        Literal["text", "json"], Meta(description="form of the log: text, or one JSON object a line")
    ] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warn", "error"], Meta(description="the least level that is logged")
    ] = "info"
    demo: Annotated[bool, Meta(description="add demo users and print how to try everything")] = False

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.redacted().items())})"

    def redacted(self) -> dict[str, object]:
        """All settings by name, without what is secret in them."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["database"] = redacted_url(self.database)
        if self.jwt_jwks and "://" in self.jwt_jwks:
            shown["jwt_jwks"] = redacted_url(self.jwt_jwks)
        return shown

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


def printable(name: str) -> str:
    """Keep a message in one line, whatever the names of keys and variables."""
    return name if name.isprintable() else ascii(name)


def shortened(name: str) -> str:
    """Keep a message short, however long the name of a key or a variable."""
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…"
