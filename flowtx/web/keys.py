"""The keys of the HTTP API: who calls, and what they may do.

There is always the key in the file ``api-key`` of the data directory, which may do everything. A file
named by ``--api-keys`` has others, one a line: a name, what the key may do, and the key or its SHA-256
(``printf %s KEY | sha256sum``)::

    # NAME     SCOPES        KEY
    billing    notify        sha256:7c0f…
    dashboard  read          Qm9vZ2llLXdvb2dpZS1idWdsZS1ib3ktMTk0MQ
    nightly    notify,read   sha256:11d2…

In memory there are digests only, and all of them are compared, each in constant time.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from flowtx.data_dir import check_secret
from flowtx.errors import StartupError

Scope: TypeAlias = Literal["notify", "read", "admin"]
"""``notify`` pushes and broadcasts, ``read`` looks, ``admin`` does everything."""

SCOPES: Final[tuple[Scope, ...]] = ("notify", "read", "admin")
EVERYTHING: Final = frozenset(SCOPES)
NOTHING: Final[frozenset[Scope]] = frozenset()

OWN_NAME: Final = "api-key"
"""The name of the key in the data directory."""

MAX_FILE: Final = 262_144
"""Bytes of a file of keys."""
MAX_KEYS: Final = 1_000

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")


class ApiKey(NamedTuple):
    """A key, by its digest.

    Attributes:
        name: whose it is, for the log.
        digest: the SHA-256 of the key.
        scopes: what it may do; ``admin`` brings the others along.
    """

    name: str
    digest: bytes
    scopes: frozenset[Scope]


class ApiKeys:
    """The keys that are taken.

    Args:
        own: reads the key of the data directory.
        file: the file of the others, or None.

    Raises:
        StartupError: one of the two cannot be used.
    """

    def __init__(self, own: Callable[[], str], file: str | None = None) -> None:
        self._own = own
        self._file = None if file is None else Path(file).absolute()
        self._keys = self._read()

    def find(self, key: bytes) -> ApiKey | None:
        """Find a key by its text; None where it is unknown."""
        digest = sha256(key).digest()
        found = None
        for known in self._keys:
            if hmac.compare_digest(known.digest, digest):
                found = known
        return found

    def has(self, key: ApiKey) -> bool:
        """Whether a key that was found is still taken, for the same as then."""
        return key in self._keys

    def caller(self, header: bytes | None) -> ApiKey | None:
        """Find the key in a header ``Authorization: Bearer KEY``; None where there is none that is known."""
        scheme, _, key = (header or b"").partition(b" ")
        return self.find(key.strip()) if scheme.lower() == b"bearer" else None

    def check(self, header: bytes | None) -> frozenset[Scope]:
        """Tell what a header ``Authorization: Bearer KEY`` allows; nothing without a known key."""
        caller = self.caller(header)
        return NOTHING if caller is None else caller.scopes

    def reload(self) -> bool:
        """Read the keys again; whether they have changed.

        Raises:
            StartupError: they cannot be used; the old ones stay.
        """
        before, self._keys = self._keys, self._read()
        return before != self._keys

    def _read(self) -> tuple[ApiKey, ...]:
        own = ApiKey(OWN_NAME, sha256(self._own().encode()).digest(), EVERYTHING)
        return (own, *(read_keys(self._file) if self._file is not None else ()))


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read a file of keys.

    Raises:
        StartupError: it cannot be read, others can, or a line of it has another form.
    """
    name = f"--api-keys: {str(path)!r}"
    lines = _private_text(path, name).splitlines()
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key = _parse(line, f"{name}, line {number}")
        if key.name in keys or key.name == OWN_NAME:
            raise StartupError(f"{name}, line {number}: the name {key.name} is taken; each key has its own")
        keys[key.name] = key
    if len(keys) > MAX_KEYS:
        raise StartupError(f"{name} has {len(keys)} keys; it takes {MAX_KEYS}")
    return tuple(keys.values())


def add_key(path: Path, name: str, scopes: frozenset[Scope]) -> str:
    """Make a key and add its SHA-256 to a file, which is made where there is none.

    Returns:
        The key, which nobody can find out afterwards.

    Raises:
        StartupError: the file cannot be used, or has that name already.
    """
    if not _NAME.fullmatch(name) or name == OWN_NAME:
        raise StartupError(
            f"NAME: got {name!r:.80}; it takes 1 to 64 of A-Z a-z 0-9 _ . - but not {OWN_NAME}"
        )
    said = f"--api-keys: {str(path)!r}"
    if path.exists():
        if any(key.name == name for key in read_keys(path)):
            raise StartupError(f"{said} has a key named {name}; take its line out, or take another name")
        text = path.read_text()
    else:
        text = "# NAME SCOPES KEY\n"
    key = secrets.token_urlsafe(48)
    shown = ",".join(scope for scope in SCOPES if scope in scopes)
    text += "" if text.endswith("\n") else "\n"
    text += f"{name} {shown} sha256:{sha256(key.encode()).hexdigest()}\n"
    # By way of another file, as a server may read it at any time.
    fresh = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with open(fresh, "x", opener=lambda at, flags: os.open(at, flags, 0o600)) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise StartupError(f"{said} cannot be written: {error.strerror}") from None
    return key


def _private_text(path: Path, name: str) -> str:
    try:
        # Not blocking: what is there may be a pipe.
        with open(path, "rb", opener=lambda at, flags: os.open(at, flags | os.O_NONBLOCK)) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise StartupError(f"{name} is not a file")
            if mode & 0o077:
                raise StartupError(
                    f"{name} is open to others (mode {stat.S_IMODE(mode):04o}); chmod 600 puts that right"
                )
            text = file.read(MAX_FILE + 1)
    except OSError as error:
        raise StartupError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError:
        raise StartupError(f"{name} is not a path") from None
    if len(text) > MAX_FILE:
        raise StartupError(f"{name} is larger than {MAX_FILE} bytes")
    try:
        return text.decode("ascii")
    except UnicodeDecodeError:
        raise StartupError(f"{name} is not ASCII text") from None


def _parse(line: str, where: str) -> ApiKey:
    """Read a line; an error shows nothing of it, as a key may stand in any place of a wrong one."""
    words = line.split()
    if len(words) != 3 or not _NAME.fullmatch(words[0]):
        raise StartupError(f"{where}: it takes NAME SCOPES KEY, such as: billing notify sha256:HEX")
    name, listed, key = words
    scopes = frozenset(scope for scope in SCOPES if scope in listed.split(","))
    if len(scopes) != len(listed.split(",")):
        raise StartupError(f"{where}: the key {name} has scopes that there are not; {', '.join(SCOPES)} are")
    return ApiKey(name, _digest(key, f"{where}: the key {name}"), EVERYTHING if "admin" in scopes else scopes)


def _digest(text: str, name: str) -> bytes:
    if not text.startswith("sha256:"):
        check_secret(text.encode(), name)
        return sha256(text.encode()).digest()
    found = _DIGEST.fullmatch(text)
    if found is None:
        raise StartupError(f"{name} has no SHA-256; it takes sha256: and 64 hexadecimal digits")
    digest = bytes.fromhex(found[1])
    if digest == sha256(b"").digest():
        raise StartupError(f"{name} has the SHA-256 of an empty text; hash the key itself")
    return digest
