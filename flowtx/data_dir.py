"""The directory in which a server keeps its secrets, and the lock that keeps a second server out.

The secret is text: 64 random bytes in base64 where flowtx makes it. The key of the HMAC is **that text
itself** without the white space around it, not the bytes that it encodes, because that is what other
programs take when they are given the text as their key (Guardian's ``secret_key``, PyJWT's ``key``):
whoever signs tokens for flowtx reads the file and uses what is written there.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from twisted.logger import Logger

from flowtx.errors import DataDirInUse, StartupError

_log = Logger()

#: In bytes.
MIN_SECRET: Final = 32
MAX_SECRET: Final = 65_536

# What people write where a secret belongs: the defaults of examples, and rows of keys.
_COMMON: Final = """
a access admin and app apple at auth banana bit bits byte bytes change changed changeit changeme
char character characters chars default demo dev development do dummy example flow flowtx foo bar
baz foobar for guardian hello here hmac in insecure is it json jwt keep key letmein long least
length master me min minimum more must my nobody of or pass passphrase password phoenix phrase
placeholder please private prod production qwerty random replace safe sample secret secure server
session shared should sign signing some something string super test testing than that the this
to todo token unsafe use user valid value very web which with world xxx you your zone zzz
0123456789 1234567890 123456789 0123456789abcdef abcdef abcdefghijklmnopqrstuvwxyz
qwertyuiop qwertyuiopasdfghjklzxcvbnm asdfghjkl zxcvbnm deadbeef cafebabe
"""
# Long words first, as the first one that fits is taken out.
_COMMON_WORD: Final = re.compile("|".join(sorted(_COMMON.split(), key=len, reverse=True)))


def check_secret(secret: bytes, name: str) -> None:
    """Refuse a secret that could be guessed.

    Args:
        secret: the secret.
        name: the setting or file that it comes from, to begin the message with.

    Raises:
        StartupError: it is shorter than 32 bytes, or made of common words and repetitions.
    """
    if len(secret) < MIN_SECRET:
        raise StartupError(f"{name}: got a secret of {len(secret)} bytes; it takes at least {MIN_SECRET}")
    # What is left of a random secret has dozens of characters, of eight or more kinds even if all of
    # them are digits.
    left = _COMMON_WORD.sub("", secret.decode("utf-8", "replace").lower())
    if len(left) < 16 or len(set(left)) < 6:
        raise StartupError(
            f"{name}: got a secret that is well known or easily guessed; "
            "it takes random text, such as `openssl rand -base64 64` prints"
        )


def check_creatable(path: Path, name: str) -> None:
    """Refuse a path at which nothing could be made.

    Args:
        path: where there is nothing yet.
        name: what it is, to begin the message with.

    Raises:
        StartupError: it lies below a file, or in a directory that cannot be written to.
    """
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise StartupError(f"{name} lies below a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise StartupError(f"{name} cannot be made: {str(above)!r} cannot be written to")


class DataDir:
    """A data directory.

    Attributes:
        path: where it is; absolute, as a daemon changes its working directory.
    """

    def __init__(self, path: Path, lock: int | None) -> None:
        """See `open` and `peek`."""
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Make the directory where there is none, and keep other servers out until `close`.

        Raises:
            StartupError: another server has it, or it cannot be used.
        """
        where = _absolute(path)
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                where.mkdir(0o700)
            _check_directory(where)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(where / "lock", flags, 0o600)
        except (FileExistsError, NotADirectoryError):
            raise StartupError(f"--data-dir: {str(where)!r} lies below a file") from None
        except OSError as error:
            raise StartupError(f"--data-dir: cannot use {str(where)!r}: {error.strerror}") from None
        try:
            _take(lock, where)
            data_dir = cls(where, lock)
            data_dir.note_pid()
        except BaseException:
            os.close(lock)
            raise
        return data_dir

    @classmethod
    def peek(cls, path: str | Path) -> Self:
        """Use the directory of a server that may be running; nothing is made in it.

        Raises:
            StartupError: there is no such directory.
        """
        where = _absolute(path)
        if not where.is_dir():
            raise StartupError(
                f"--data-dir: there is no directory {str(where)!r}; the server makes it when it first starts"
            )
        return cls(where, None)

    @classmethod
    def foresee(cls, path: str | Path) -> Self:
        """Look at the directory as `open` would, and make nothing.

        Returns:
            What reads the files that are there; one that is missing is an error to it, although a
            server would make it.

        Raises:
            StartupError: it cannot be used.
        """
        where = _absolute(path)
        try:
            if where.exists():
                _check_directory(where)
            else:
                check_creatable(where, f"--data-dir: {str(where)!r}")
        except OSError as error:
            raise StartupError(f"--data-dir: cannot use {str(where)!r}: {error.strerror}") from None
        return cls(where, None)

    def note_pid(self) -> None:
        """Write this process's id into the lock, for the message to a second server.

        The lock itself survives a fork, as of a daemon that has left its terminal; the id changes.
        """
        if self._lock is None:
            return
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            raise StartupError(f"--data-dir: cannot write {str(self.path)!r}: {error.strerror}") from None

    def close(self) -> None:
        """Let another server have the directory; without effect the second time."""
        # The file stays: a server that has just opened it would else lock one that nobody else sees.
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def secret(self, file: str | None = None) -> bytes:
        """Read the key of the tokens' HMAC, and make it before where there is none.

        Args:
            file: where it is, if not in ``secret`` in this directory.

        Returns:
            The text of the file without the white space around it.

        Raises:
            StartupError: it cannot be read or made, is weak, or others may read it.
        """
        path = self.path / "secret" if file is None else _absolute(file)
        name = "--data-dir" if file is None else "--secret-file"
        text = self._text(path, name, lambda: base64.b64encode(secrets.token_bytes(64)))
        check_secret(text, f"{name}: {str(path)!r}")
        return text

    def api_key(self) -> str:
        """Read the key of the HTTP API, in ``api-key``, and make it before where there is none.

        Raises:
            StartupError: it cannot be read or made, is weak, is no header's text, or others may read it.
        """
        path = self.path / "api-key"
        text = self._text(path, "--data-dir", lambda: secrets.token_urlsafe(48).encode())
        check_secret(text, f"--data-dir: {str(path)!r}")
        if not re.fullmatch(rb"[\x21-\x7e]+", text):
            raise StartupError(f"--data-dir: {str(path)!r} takes ASCII characters without spaces")
        return text.decode()

    def existing_api_key(self) -> str:
        """Read the key of the HTTP API; see `api_key`.

        Raises:
            StartupError: as there; and there is none.
        """
        path = self.path / "api-key"
        if not path.exists():
            made = "the server makes it when it first starts"
            raise StartupError(f"--data-dir: there is no {str(path)!r}; {made}")
        return self.api_key()

    def host_key(self, make: Callable[[], bytes]) -> bytes:
        """Read the host key of the manhole, in ``ssh_host_ed25519_key``; make it where there is none.

        Args:
            make: makes the text of a key.

        Raises:
            StartupError: it cannot be read or made.
        """
        return self._text(self.path / "ssh_host_ed25519_key", "--data-dir", make)

    def _text(self, path: Path, name: str, make: Callable[[], bytes]) -> bytes:
        try:
            if self._lock is not None and not os.path.lexists(path):
                _create(path, make() + b"\n")
            return _read_private(path, name)
        except FileNotFoundError:
            hint = "" if self._lock is not None else "; the server makes it when it first starts"
            raise StartupError(f"{name}: there is no {str(path)!r}{hint}") from None
        except OSError as error:
            raise StartupError(f"{name}: cannot use {str(path)!r}: {error.strerror}") from None


def _check_directory(where: Path) -> None:
    status = where.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise StartupError(f"--data-dir: {str(where)!r} is not a directory")
    if status.st_mode & 0o022:
        raise StartupError(
            f"--data-dir: {str(where)!r} can be written to by others; chmod 700 puts that right"
        )


def _absolute(path: str | Path) -> Path:
    if "\0" in str(path):
        raise StartupError(f"--data-dir: {str(path)!r} is not a path")
    return Path(path).absolute()


def _take(lock: int, where: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise StartupError(f"--data-dir: cannot lock {str(where)!r}: {error.strerror}") from None
        holder = os.pread(lock, 32, 0).strip()
        pid = f" (pid {holder.decode()})" if holder.isdigit() else ""
        raise DataDirInUse(f"--data-dir: {str(where)!r} is in use by another flowtx{pid}") from None


def _create(path: Path, text: bytes) -> None:
    # Written under another name first: whoever finds the file finds all of it, even after a power cut,
    # and link(), unlike rename(), leaves one that another process has made meanwhile.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # O_EXCL, mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_private(path: Path, name: str) -> bytes:
    # Not blocking: what is there may be a pipe.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise StartupError(f"{name}: {str(path)!r} is not a file")
        if status.st_mode & 0o077:
            # Not refused: containers mount their secrets so, in a place that nobody else reaches.
            _log.warn(
                "{name}: {path} can be read by others (mode {mode}); chmod 600 puts that right",
                name=name,
                path=str(path),
                mode=f"{stat.S_IMODE(status.st_mode):04o}",
            )
        text = file.read(MAX_SECRET + 1)
    if len(text) > MAX_SECRET:
        raise StartupError(f"{name}: {str(path)!r} is larger than {MAX_SECRET} bytes")
    try:
        text.decode()
    except UnicodeDecodeError:
        raise StartupError(f"{name}: {str(path)!r} is not text; base64 makes text of random bytes") from None
    return text.strip()
