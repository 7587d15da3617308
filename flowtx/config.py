"""The settings: one typed value out of the command line, the environment and a TOML file.

A command-line option beats the environment (``FLOWTX_MAX_TOPICS``), which beats the file
(``max-topics``). Everything is checked here, and what is wrong is said in one line that names the
setting, what it got and what it takes.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta
from twisted.internet.endpoints import serverFromString

from flowtx.errors import ConfigError

ENVIRONMENT_PREFIX: Final = "FLOWTX_"

HMAC_ALGORITHMS: Final = frozenset({"HS256", "HS384", "HS512"})
PUBLIC_KEY_ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)

CLAIMS: Final = "claims"
"""As ``users_query``: users are whoever a valid token names."""

USERS_QUERY: Final = "SELECT id, name, email FROM flow.users WHERE id = ANY(%s)"

Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
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
    heartbeat_timeout: Annotated[
        Seconds, Meta(description="seconds without a frame after which a connection is closed")
    ] = 60.0
    max_frame_size: Annotated[
        int, Meta(ge=1024, le=16_777_216, description="bytes of a message from a client")
    ] = 65_536
    max_topics: Annotated[Count, Meta(description="topics that one connection may join")] = 100
    outbox_limit: Annotated[int, Meta(ge=1024, description="bytes that may wait for one connection")] = (
        1_048_576
    )
    check_origin: Annotated[
        tuple[str, ...] | None,
        Meta(description="false, or origins such as //*.example.com; default the listen host"),
    ] = None
    database_connections: Annotated[
        int, Meta(ge=1, le=100, description="connections to the database, besides one that listens")
    ] = 4
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


class Option(NamedTuple):
    """One setting as the command line sees it.

    Attributes:
        name: e.g. ``max-topics``.
        help: what it means.
        default: None, or what to show as such.
        flag: whether it takes no value.
        repeatable: whether it may be given several times.
    """

    name: str
    help: str
    default: str | None
    flag: bool
    repeatable: bool

    @property
    def text(self) -> str:
        """The help with the default."""
        return self.help if self.default is None else f"{self.help} [default: {self.default}]"


class Source(NamedTuple):
    """Where a value came from: its name there, for messages, and the value itself."""

    name: str
    value: object


def options() -> list[Option]:
    """List the settings in the order of their declaration."""
    result = []
    for field in msgspec.structs.fields(Settings):
        hint = _HINTS[field.name]
        plain, meta = _plain(hint), _description(hint)
        default = field.default
        shown = ",".join(default) if isinstance(default, tuple) else default
        result.append(
            Option(
                name=field.name.replace("_", "-"),
                help=meta,
                default=None if shown is None or plain is bool else f"{shown}",
                flag=plain is bool,
                repeatable=field.name == "listen",
            )
        )
    return result


def load(given: Mapping[str, object], environ: Mapping[str, str] | None = None) -> Settings:
    """Make the settings.

    Args:
        given: the command line: option names, and text, lists of text, or True for flags. The name
            ``config`` names the TOML file.
        environ: the environment; None for this process's own.

    Raises:
        ConfigError: see the module.
    """
    environment = os.environ if environ is None else environ
    variables = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): Source(_printable(name), value)
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }
    line = {name.replace("-", "_"): Source(_printable(f"--{name}"), value) for name, value in given.items()}
    sources: dict[str, Source] = {}
    file = line.pop("config", None) or variables.get("config")
    variables.pop("config", None)
    if file is not None:
        sources |= _read_file(str(file.value))
    sources |= variables
    sources |= line
    settings = Settings(**{name: _convert(name, source) for name, source in sources.items()})
    _check_relations(settings)
    return settings


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


def _read_file(path: str) -> dict[str, Source]:
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path!r}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"--config: {path!r} is not a TOML file: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"--config: {path!r} is not a TOML file: {error}") from None
    sources: dict[str, Source] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        source = Source(_printable(f"{path}: {key}"), value)
        if name in sources:
            raise ConfigError(f"{source.name}: is given twice, as {sources[name].name} too")
        sources[name] = source
    return sources


def _convert(name: str, source: Source) -> Any:
    hint = _HINTS.get(name)
    if hint is None:
        close = get_close_matches(name, _HINTS, n=1)
        guess = f"; did you mean {close[0].replace('_', '-')}?" if close else ""
        raise ConfigError(f"{source.name}: there is no such setting{guess}")
    value = source.value
    if name == "check_origin" and f"{value}".strip().lower() == "false":
        value = ["false"]
    if _is_list(hint) and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, str) and _plain(hint) is bool:
        value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(
            value.lower(), value
        )
    try:
        converted = msgspec.convert(value, hint, strict=not isinstance(value, str))
    except (msgspec.MsgspecError, ValueError, OverflowError):  # ValueError: bytes that are no UTF-8
        converted = None
    # NaN passes every bound, and infinity where there is no upper one.
    endless = isinstance(converted, float) and not math.isfinite(converted)
    hollow = isinstance(converted, tuple) and not (converted and all(part.strip() for part in converted))
    if converted is None or endless or hollow:
        raise ConfigError(f"{source.name}: got {_shown(name, source.value)}; it takes {_takes(hint)}")
    return converted


def _printable(name: str) -> str:
    """Keep a message in one line, whatever the names of keys and variables."""
    return name if name.isprintable() else ascii(name)


def _shown(name: str, value: object) -> str:
    if name == "database":
        return "a value that is not shown"
    try:
        return f"{value!r:.80}"
    except ValueError:  # an int of thousands of digits
        return f"a value of type {type(value).__name__}"


def _takes(hint: Any) -> str:
    """Say in words what a setting takes."""
    plain = _plain(hint)
    kinds = [kind for kind in (get_args(plain) or (plain,)) if kind is not type(None)]
    if _is_list(hint):
        return "a list of text, not empty"
    word = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kinds[0]]
    for meta in get_args(hint)[1:]:
        if kinds[0] is str and meta.min_length:
            word += ", not empty"
        for bound, name in (("ge", "at least"), ("gt", "more than"), ("le", "at most")):
            value = getattr(meta, bound, None)
            if value is not None:
                word += f", {name} {value:.0f}"
    return word


def _check_relations(settings: Settings) -> None:
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
    if settings.database and not settings.database.startswith(("postgresql://", "postgres://")):
        raise ConfigError("--database: got a value that is not shown; it takes a postgresql:// URL")
    if settings.users_query != CLAIMS and settings.users_query.count("%s") != 1:
        got = f"{settings.users_query[:60]!r}"
        raise ConfigError(f"--users-query: got {got}; it takes SQL with exactly one %s, or the word {CLAIMS}")


def _check_endpoint(name: str, text: str) -> None:
    try:
        serverFromString(None, text)  # which needs its reactor only to listen
        port = _PORT.match(text)
        if port and not 0 <= int(port[1]) <= 65_535:
            raise ValueError("a port is 0 to 65535")
    except (ValueError, TypeError, LookupError) as error:
        raise ConfigError(
            f"--{name}: got {text!r:.80}; it takes a Twisted endpoint such as tcp:4000 "
            f"({_printable(str(error))[:200]})"
        ) from None
    except Exception:  # noqa: S110 - of many kinds, for a certificate
        # A file that cannot be used matters to the server only, which says so when it starts.
        pass


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_list(hint: Any) -> bool:
    plain = _plain(hint)
    return any(get_origin(part) is tuple for part in (plain, *get_args(plain)))


def _description(hint: Any) -> str:
    return next(str(meta.description) for meta in get_args(hint)[1:] if meta.description)


_PORT: Final = re.compile(r"(?:tcp[46]?|ssl):(?:[a-zA-Z]+=[^:]*:)*(?:port=)?(-?[0-9]+)")
_HINTS: Final = get_type_hints(Settings, include_extras=True)
