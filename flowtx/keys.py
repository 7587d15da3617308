"""Keys that tokens are verified with: a shared secret, or public keys out of a PEM file or a JWKS."""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from twisted.logger import Logger

from flowtx.data_dir import check_secret
from flowtx.errors import ConfigError, Refused, StartupError

MIN_RSA_BITS: Final = 2048

_log = Logger()

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

# With it, an id that gets into a log is no hash of a secret that could be guessed at.
_SALT: Final = secrets.token_bytes(32)
_KID: Final = re.compile(r"[A-Za-z0-9_.=+-]{1,128}")
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
#: The shortest secrets, in bytes (RFC 7518, section 3.2).
_LENGTHS: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
#: What gives a public key away in its usual forms: PEM, OpenSSH and JWK.
_PUBLIC_FORM: Final = re.compile(rb'-----BEGIN |\A(?:sk-)?(?:ssh|ecdsa)-[a-z0-9]+|"kty"')
_LOADERS: Final[Mapping[object, Callable[[dict[str, Any]], object]]] = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
}


class VerifyingKey(NamedTuple):
    """A key, and the algorithms that may be used with it.

    Attributes:
        id: names it in this process, whatever its ``kid``; says nothing of it to anybody else.
    """

    material: bytes | PublicKey
    algorithms: frozenset[str]
    id: str


class KeySet(NamedTuple):
    """The keys of a JWKS that can be used.

    Attributes:
        keys: all of them.
        by_kid: those that have a name; of two with the same name the first.
        private: how many were left out because their private half is there too.
    """

    keys: list[VerifyingKey]
    by_kid: dict[str, VerifyingKey]
    private: int

    @property
    def ids(self) -> frozenset[str]:
        """The ids of all of them."""
        return frozenset(key.id for key in self.keys)

    def find(self, kid: str | None) -> VerifyingKey | None:
        """Look up a key; without a name there is an answer only where there is no choice."""
        if kid is not None:
            return self.by_kid.get(kid)
        return self.keys[0] if len(self.keys) == 1 else None


class KeySource(Protocol):
    """Has the keys that tokens are verified with.

    Attributes:
        ids: of the keys that it has now.
    """

    @property
    def ids(self) -> Collection[str]: ...

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
        self.ids = frozenset({key.id})

    async def find(self, kid: str | None) -> VerifyingKey:
        """Return the key; refuse a ``kid`` that looks like a path, a query or an address."""
        if kid is not None and not _KID.fullmatch(kid):
            raise Refused("invalid_token")
        return self._key

    def stop(self) -> None:
        """Do nothing."""


def key_id(material: bytes | PublicKey) -> str:
    """Make the id of a key."""
    if not isinstance(material, bytes):
        material = material.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.blake2b(material, key=_SALT, digest_size=16).hexdigest()


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
    if _PUBLIC_FORM.search(secret):
        raise StartupError("--secret-file: got the form of a public key; it takes random text")
    signing_algorithm(algorithms, secret)  # or refuse
    usable = frozenset(name for name in algorithms if len(secret) >= _LENGTHS[name])
    if len(usable) < len(algorithms):
        _log.warn(
            "The secret has {size} bytes, so only tokens signed with {usable} are taken",
            size=len(secret),
            usable=", ".join(sorted(usable)),
        )
    return VerifyingKey(secret, usable, key_id(secret))


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
    public = cast("PublicKey", key)
    return VerifyingKey(public, fitting & frozenset(algorithms), key_id(public))


def parse_jwks(text: bytes, algorithms: Collection[str]) -> KeySet:
    """Read a JWKS, leaving out what cannot verify a token signed with one of ``algorithms``.

    Raises:
        ValueError: it is not a JWKS.
    """
    try:
        document = json.loads(text.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not an object with a list named keys")  # noqa: TRY004 - a matter of its content
    found = KeySet([], {}, sum(isinstance(entry, dict) and "d" in entry for entry in entries))
    for entry in entries:
        key = _usable(entry, algorithms)
        if key is not None:
            found.keys.append(key)
            kid = entry.get("kid")
            if isinstance(kid, str):
                found.by_kid.setdefault(kid, key)
    return found


def _usable(entry: object, algorithms: Collection[str]) -> VerifyingKey | None:
    # A key with "d" is a private one, and whoever can read it can sign.
    if not isinstance(entry, dict) or "d" in entry or entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops", ["verify"])
    kind = entry.get("kty")
    # Shared secrets ("oct") have no loader: they are never taken out of a JWKS.
    loader = _LOADERS.get(kind) if isinstance(kind, str) else None
    if loader is None or not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        material = loader(entry)
    except Exception:  # noqa: BLE001, RUF100 - its members may be of any type, and PyJWT checks few of them
        return None
    fitting = algorithms_of(material) & frozenset(algorithms)
    if "alg" in entry:
        fitting &= {entry["alg"]} if isinstance(entry["alg"], str) else frozenset()
    if not fitting:
        return None
    public = cast("PublicKey", material)
    return VerifyingKey(public, fitting, key_id(public))
