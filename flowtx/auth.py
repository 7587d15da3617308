"""Tokens: whom a JSON Web Token names, if it is sound.

PyJWT checks the signature and nothing else. Its checks of claims take what they should not (an
``exp`` that is text, a ``sub`` given twice), tell the time themselves, and some malformed tokens make
them raise errors of many kinds; so the header and the claims are read here, strictly, and the reason
of a refusal never says more than that a token is invalid or expired.
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Never, cast
from urllib.parse import urlsplit

import jwt
from jwt.algorithms import get_default_algorithms
from twisted.internet.interfaces import IReactorTime

from flowtx.config import HMAC_ALGORITHMS, PUBLIC_KEY_ALGORITHMS, Settings
from flowtx.errors import ConfigError, InvalidPayload, Refused
from flowtx.interfaces import Principal
from flowtx.jwks import JwksFile, JwksUrl
from flowtx.keys import KeySource, StaticKey, VerifyingKey, pem_key, secret_key, signing_algorithm
from flowtx.token_parts import decoded, read_header, read_part

__all__ = ["USER_ID_PATTERN", "KeySource", "TokenVerifier", "key_source", "mint", "signing_algorithm"]

#: What the id of a user, and the name of a group, looks like.
USER_ID_PATTERN: Final = re.compile(r"[A-Za-z0-9_.:@-]{1,128}\Z")

MAX_TOKEN_SIZE: Final = 8192
MAX_GROUPS: Final = 100
MAX_READY: Final = 100
#: Seconds by which the signer's clock may be ahead of ours.
MAX_CLOCK_SKEW: Final = 60.0
#: The end of the year 9999, beyond which Python has no dates.
MAX_EXPIRY: Final = 253_402_300_799

_PART = "[A-Za-z0-9_-]+"
_TOKEN: Final = re.compile(rf"({_PART})\.({_PART})\.({_PART})")
# Without control characters and without lone surrogates, which PostgreSQL would not take.
_LINE: Final = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,256}")
#: Parameters of a header that bring a key along or say where to get one, and extensions: none is known.
_FORBIDDEN: Final = frozenset({"crit", "b64", "jwk", "jku", "x5u", "x5c"})


class TokenVerifier:
    """Verifies tokens."""

    def __init__(self, settings: Settings, keys: KeySource, *, now: Callable[[], float] = time.time) -> None:
        """Verify with ``keys`` and by the rules of ``settings``; ``now`` is the wall clock."""
        self._settings = settings
        self._keys = keys
        self._now = now
        self._algorithms = frozenset(settings.jwt_algorithms)
        known = get_default_algorithms()
        self._verifiers = {name: known[name] for name in self._algorithms}
        self._ready: dict[tuple[str, str], Any] = {}

    def change_keys(self, keys: KeySource) -> None:
        """Verify with other keys from now on."""
        self._keys = keys
        self._ready.clear()

    async def verify(self, token: str) -> Principal:
        """Return whom a token names.

        Raises:
            Refused: ``invalid_token`` or ``expired_token`` with the status 403; ``unavailable`` with 503
                where the keys cannot be had.
        """
        parts = _TOKEN.fullmatch(token) if isinstance(token, str) and len(token) <= MAX_TOKEN_SIZE else None
        if parts is None:
            _refuse()
        header = read_header(parts[1])
        algorithm, kid = self._check_header(header)
        key = await self._keys.find(kid)
        if algorithm not in key.algorithms:
            _refuse()
        # Not by way of PyJWT's `decode`, which would read header and claims once more: 50 us each.
        verifier = self._verifiers[algorithm]
        try:
            signature = decoded(parts[3])
            good = verifier.verify(
                token[: parts.end(2)].encode("ascii"), self._prepared(key, algorithm), signature
            )
        except Exception:  # noqa: BLE001, RUF100
            # PyJWTError for what PyJWT has foreseen; TypeError and cryptography's own errors for the
            # rest. Whatever it is, the signature was not verified.
            _refuse()
        if good is not True:
            _refuse()
        return self._principal(read_part(parts[2]), key.id)

    def _prepared(self, key: VerifyingKey, algorithm: str) -> Any:
        """Get a key in the form that PyJWT verifies with; made once for each."""
        prepared = self._ready.get((key.id, algorithm))
        if prepared is None:
            if len(self._ready) >= MAX_READY:
                self._ready.clear()
            prepared = self._ready[key.id, algorithm] = self._verifiers[algorithm].prepare_key(key.material)
        return prepared

    def _check_header(self, header: Mapping[str, object]) -> tuple[str, str | None]:
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms or header.keys() & _FORBIDDEN:
            _refuse()
        kid = header.get("kid")
        if "kid" in header and not isinstance(kid, str):
            _refuse()
        return algorithm, cast("str | None", kid)

    def _principal(self, claims: Mapping[str, object], key_id: str) -> Principal:
        expires_at = self._check_times(claims)
        self._check_parties(claims)
        user_id = claims.get("sub")
        if not isinstance(user_id, str) or not USER_ID_PATTERN.fullmatch(user_id):
            _refuse()
        token_id = claims.get("jti")
        if "jti" in claims and _line(token_id) is None:
            _refuse()
        return Principal(
            user_id=user_id,
            expires_at=expires_at,
            token_id=_line(token_id),
            issued_at=_instant(claims, "iat"),
            groups=_groups(claims.get("groups", [])),
            name=_line(claims.get("name")),
            email=_line(claims.get("email")),
            key_id=key_id,
        )

    def _check_times(self, claims: Mapping[str, object]) -> float:
        now = self._now()
        leeway = self._settings.jwt_leeway
        longest = self._settings.jwt_max_lifetime
        expires_at = _instant(claims, "exp")
        if expires_at is None or expires_at > MAX_EXPIRY:
            _refuse()
        not_before = _instant(claims, "nbf")
        issued_at = _instant(claims, "iat")
        if not_before is not None and not_before > now + leeway:
            _refuse()
        if issued_at is not None and issued_at > now + MAX_CLOCK_SKEW:
            _refuse()
        if longest and expires_at > now + longest + leeway:
            _refuse()
        if expires_at < now - leeway:
            expired = Refused("expired_token")
            user_id = claims.get("sub")
            if isinstance(user_id, str) and USER_ID_PATTERN.fullmatch(user_id):
                expired.user_id = user_id
            raise expired
        return expires_at

    def _check_parties(self, claims: Mapping[str, object]) -> None:
        issuer = self._settings.jwt_issuer
        audience = self._settings.jwt_audience
        if issuer is not None and claims.get("iss") != issuer:
            _refuse()
        if audience is not None:
            got = claims.get("aud")
            listed = self._settings.jwt_audience_list and isinstance(got, list) and audience in got
            if got != audience and not listed:
                _refuse()
        # Guardian's: a refresh token is not for connecting.
        if claims.get("typ", "access") != "access":
            _refuse()


def mint(
    secret: bytes,
    algorithm: str,
    user_id: str,
    *,
    ttl: float,
    now: float,
    claims: Mapping[str, object] = MappingProxyType({}),
) -> str:
    """Make a token.

    Args:
        secret: the key of the HMAC.
        algorithm: an HS… one that the key is long enough for; see `signing_algorithm`.
        user_id: whom it names.
        ttl: how many seconds it is good for.
        now: the time, in seconds since the epoch.
        claims: further ones; ``jti``, ``iat`` and ``typ`` may be replaced, ``sub`` and ``exp`` not.

    Raises:
        InvalidPayload: a token with that user id, or of that size, would be refused.
        StartupError: a token with that algorithm would be refused, as the key is too short for it.
    """
    signing_algorithm([algorithm], secret)
    if not USER_ID_PATTERN.fullmatch(user_id):
        raise InvalidPayload(f"got the user id {user_id!r:.80}; it takes 1 to 128 of A-Z a-z 0-9 _ . : @ -")
    usual = {"jti": secrets.token_hex(16), "iat": int(now), "typ": "access"}
    body = {**usual, **claims, "sub": user_id, "exp": int(now + ttl)}
    token = jwt.PyJWS().encode(json.dumps(body).encode(), secret, algorithm, {"typ": "JWT"})
    if len(token) > MAX_TOKEN_SIZE:
        raise InvalidPayload(f"got claims for a token of {len(token)} bytes; it takes {MAX_TOKEN_SIZE}")
    return token


def key_source(settings: Settings, secret: bytes | None, *, reactor: IReactorTime) -> KeySource:
    """Find the keys that the settings name.

    Args:
        settings: checked for contradictions between themselves.
        secret: the key of HS… algorithms; None with others.
        reactor: the time, and what a JWKS is fetched with.

    Raises:
        ConfigError: a setting does not go with what it names.
        StartupError: a secret or file cannot be used.
    """
    algorithms = settings.jwt_algorithms
    if HMAC_ALGORITHMS.issuperset(algorithms):
        if secret is None:
            raise ConfigError(f"--jwt-algorithms: {', '.join(algorithms)} needs a secret, got none")
        return StaticKey(secret_key(secret, algorithms))
    if not PUBLIC_KEY_ALGORITHMS.issuperset(algorithms):
        raise ConfigError("--jwt-algorithms: shared secrets and public keys cannot be mixed")
    if settings.jwt_key_file:
        return StaticKey(pem_key(settings.jwt_key_file, algorithms))
    where = settings.jwt_jwks
    if not where:
        raise ConfigError(f"--jwt-algorithms: {', '.join(algorithms)} needs --jwt-key-file or --jwt-jwks")
    if "://" not in where:
        return JwksFile(where, algorithms, reactor)
    _check_url(where)
    return JwksUrl(where, algorithms, reactor)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        sound = bool(parts.hostname) and parts.port != 0 and url.isascii() and url.isprintable()
    except ValueError:
        sound = False
    if not sound or " " in url:
        raise ConfigError(f"--jwt-jwks: got {url!r:.80}; it takes a file or an https URL")
    if "@" in parts.netloc:
        raise ConfigError("--jwt-jwks: got a URL with a user name or password; it takes one without")
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        return
    raise ConfigError(
        f"--jwt-jwks: got {url!r:.80}; it takes a file or an https URL (http from this machine only)"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse() -> Never:
    raise Refused("invalid_token") from None


def _instant(claims: Mapping[str, object], name: str) -> float | None:
    """Take a time out of the claims: a JSON number, where it is present."""
    value = claims.get(name)
    if name not in claims:
        return None
    # True is an int to Python.
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse()
    return float(value)


def _line(value: object) -> str | None:
    return value if isinstance(value, str) and _LINE.fullmatch(value) else None


def _groups(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_GROUPS:
        _refuse()
    for name in value:
        if not isinstance(name, str) or not USER_ID_PATTERN.fullmatch(name):
            _refuse()
    return tuple(dict.fromkeys(value))
