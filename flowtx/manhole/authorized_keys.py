"""Who may use the manhole: a file in the form of OpenSSH's ``authorized_keys``.

It is read at each login, so that a key that is taken out is out at once. It is taken as a whole or not at
all: a line that is not understood could be a restriction that its author counts on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from twisted.conch.ssh.keys import FingerprintFormats, Key

from flowtx.errors import StartupError

MAX_FILE: Final = 65_536
MIN_RSA_BITS: Final = 2_048

TYPES: Final = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)
"""The types of keys that are taken."""

HARMLESS: Final = frozenset(
    {"restrict", "no-agent-forwarding", "no-port-forwarding", "no-user-rc", "no-x11-forwarding"}
)
"""Options that forbid what the manhole does not have; all others are refused."""


class AuthorizedKey(NamedTuple):
    """A key that opens the manhole.

    Attributes:
        blob: the public key, as SSH sends it.
        fingerprint: as ``ssh-keygen -l`` shows it.
        comment: what the file says of it; printable.
    """

    blob: bytes
    fingerprint: str
    comment: str


def read_keys(path: str) -> list[AuthorizedKey]:
    """Read the file.

    Raises:
        StartupError: it cannot be read, others may read or change it, it has no key, or a line of it is
            not understood.
    """
    name = f"--manhole-keys: {path!r:.200}"
    try:
        text = _read(path, name)
        keys = list(_parse(text.decode(), name))
    except OSError as error:
        raise StartupError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StartupError(f"{name} is not text; it takes lines as in ~/.ssh/authorized_keys") from None
    except ValueError:
        raise StartupError(f"{name} is not a path") from None
    return keys or _refuse(f"{name} has no key, so nobody could log in")


def _read(path: str, name: str) -> bytes:
    place = Path(path).absolute()
    # Not blocking: what is there may be a pipe.
    with open(place, "rb", opener=lambda file, flags: os.open(file, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            _refuse(f"{name} is not a file")
        if status.st_uid not in (0, os.geteuid()):
            _refuse(f"{name} belongs to user {status.st_uid}; it takes one of root or of the server's user")
        if status.st_mode & 0o026:
            _refuse(
                f"{name} can be read by everybody or changed by others "
                f"(mode {stat.S_IMODE(status.st_mode):04o}); chmod 600 puts that right"
            )
        above = place.parent.stat().st_mode
        if above & 0o022 and not above & stat.S_ISVTX:
            _refuse(f"{name} lies in a directory that others can change; chmod go-w puts that right")
        text = file.read(MAX_FILE + 1)
    if len(text) > MAX_FILE:
        _refuse(f"{name} is larger than {MAX_FILE} bytes")
    return text


def _parse(text: str, name: str) -> Iterator[AuthorizedKey]:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip().split(None, 3)
        if not words or words[0].startswith("#"):
            continue
        where = f"{name}, line {number}"
        if words[0] not in TYPES:
            if HARMLESS.issuperset(words[0].lower().split(",")):
                del words[0]
            elif len(words) > 1:
                _refuse(
                    f"{where}: begins with {words[0]!r:.60}; it takes a key of type {', '.join(TYPES)}, "
                    "and no options"
                )
        if len(words) < 2 or words[0] not in TYPES:
            _refuse(f"{where}: is not a public key; it takes a line such as ssh-keygen writes to a .pub file")
        yield _key(words[0], words[1], " ".join(words[2:]), where)


def _key(kind: str, encoded: str, comment: str, where: str) -> AuthorizedKey:
    try:
        key = Key.fromString(f"{kind} {encoded}".encode())
    except Exception:  # noqa: BLE001, RUF100 - of many kinds, for what only looks like a key
        _refuse(f"{where}: its key cannot be read; it takes one that ssh-keygen -l can read")
    if key.sshType().decode() != kind or not key.isPublic():
        _refuse(f"{where}: says {kind} and holds a key of another type")
    if kind == "ssh-rsa" and key.size() < MIN_RSA_BITS:
        _refuse(f"{where}: its RSA key has {key.size()} bits; it takes {MIN_RSA_BITS} or more")
    fingerprint = f"SHA256:{key.fingerprint(FingerprintFormats.SHA256_BASE64)}".rstrip("=")
    shown = "".join(character if character.isprintable() else "?" for character in comment)
    return AuthorizedKey(key.blob(), fingerprint, shown[:100])


def _refuse(why: str) -> NoReturn:
    raise StartupError(why)
