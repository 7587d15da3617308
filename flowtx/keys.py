"""Keys that tokens are verified with: a shared secret, or a public key out of a PEM file."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias, cast

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from twisted.logger import Logger

from flowtx.data_dir import check_secret
from flowtx.errors import ConfigError, Refused, StartupError

MIN_RSA_BITS: Final = 2048

_log = Logger()

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

_KID: Final = re.compile(r"[A-Za-z0-9_.=+-]{1,128}")
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
#: The shortest secrets, in bytes (RFC 7518, section 3.2).
_LENGTHS: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
#: How a public key begins in its usual forms: PEM, OpenSSH and JWK.
_PUBLIC_FORMS: Final = (b"-----BEGIN", b"ssh-", b"ecdsa-sha2-", b"sk-", b"{", b"[")


class VerifyingKey(NamedTuple):
    """A key, and the algorithms that may be used with it."""

    material: bytes | PublicKey
    algorithms: frozenset[str]


class KeySource(Protocol):
    """Has the keys that tokens are verified with."""

    async def find(self, kid: str | None) -> VerifyingKey:
        """Return the key that a token's ``kid`` names.

        Raises:
            Refused: ``invalid_token`` where there is none, ``unavailable`` where it cannot be told.
        """

    def stop(self) -> None:
        """Give up whatever is under way."""


class StaticKey:
    """One key for all tokens, whatever their ``kid``."""

    def __init__(self, key: VerifyingKey) -> None:
        self._key = key

    async def find(self, kid: str | None) -> VerifyingKey:
        """Return the key; refuse a ``kid`` that looks like a path, a query or an address."""
        if kid is not None and not _KID.fullmatch(kid):
            raise Refused("invalid_token")
        return self._key

    def stop(self) -> None:
        """Do nothing."""


def algorithms_of(key: object) -> frozenset[str]:
    """Tell which algorithms fit a key: none for a private key, a weak one or one of another kind."""
    if isinstance(key, RSAPublicKey):
        return _RSA if key.key_size >= MIN_RSA_BITS else frozenset()
    if isinstance(key, EllipticCurvePublicKey):
        return frozenset({_CURVES[key.curve.name]} if key.curve.name in _CURVES else ())
    return frozenset({"EdDSA"} if isinstance(key, Ed25519PublicKey | Ed448PublicKey) else ())


def signing_algorithm(algorithms: Collection[str], secret: bytes) -> str:
    """Choose the first of ``algorithms`` that takes a key of the length of ``secret``.

    Raises:
        StartupError: there is none.
    """
    for algorithm in algorithms:
        if len(secret) >= _LENGTHS.get(algorithm, math.inf):
            return algorithm
    wanted = ", ".join(f"{_LENGTHS[name]} for {name}" for name in algorithms if name in _LENGTHS)
    raise StartupError(
        f"--jwt-algorithms: {', '.join(algorithms)} with a secret of {len(secret)} bytes; "
        + (f"it takes at least {wanted}" if wanted else "a secret takes HS256, HS384 or HS512")
    )


def secret_key(secret: bytes, algorithms: Collection[str]) -> VerifyingKey:
    """Check a shared secret.

    Raises:
        StartupError: it is weak, too short for all of ``algorithms``, or a public key.
    """
    check_secret(secret, "--secret-file")
    if secret.startswith(_PUBLIC_FORMS):
        raise StartupError("--secret-file: got the form of a public key; it takes random text")
    signing_algorithm(algorithms, secret)  # or refuse
    usable = frozenset(name for name in algorithms if len(secret) >= _LENGTHS[name])
    if len(usable) < len(algorithms):
        _log.warn(
            "The secret has {size} bytes, so only tokens signed with {usable} are taken",
            size=len(secret),
            usable=", ".join(sorted(usable)),
        )
    return VerifyingKey(secret, usable)


def pem_key(file: str, algorithms: Collection[str]) -> VerifyingKey:
    """Read a public key.

    Raises:
        ConfigError: it fits none of ``algorithms``.
        StartupError: it cannot be read, is weak, or is something else.
    """
    name = f"--jwt-key-file: {file!r}"
    try:
        with Path(file).open("rb") as opened:
            text = opened.read(65_536)
    except OSError as error:
        raise StartupError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError:
        raise StartupError(f"{name} is not a path") from None
    if b"PRIVATE KEY" in text:
        raise StartupError(f"{name} holds a private key; it takes the public key, in PEM form")
    if text.count(b"-----BEGIN") != 1:
        raise StartupError(f"{name} takes one public key in PEM form, and no secret; a JWKS takes several")
    try:
        key = load_pem_public_key(text)
    except Exception:  # noqa: BLE001, RUF100 - of many kinds, for forms and curves that are not supported
        raise StartupError(f"{name} holds no public key in PEM form (BEGIN PUBLIC KEY)") from None
    fitting = algorithms_of(key)
    if not fitting:
        size = f" of {key.key_size} bits" if hasattr(key, "key_size") else ""
        raise StartupError(
            f"{name} holds a key{size} that no algorithm takes; "
            f"it takes RSA of {MIN_RSA_BITS} bits or more, EC on P-256, P-384 or P-521, Ed25519 or Ed448"
        )
    if fitting.isdisjoint(algorithms):
        raise ConfigError(
            f"--jwt-algorithms: got {', '.join(algorithms)}; "
            f"the key in {file!r} takes {', '.join(sorted(fitting))}"
        )
    return VerifyingKey(cast("PublicKey", key), fitting & frozenset(algorithms))
