"""What happened in a run, as a hash: two runs of one seed are the same where their hashes are."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b


class Trace:
    """Takes down what happens.

    Args:
        now: the time.
        tell: is given each line, for people to read; None for nobody.
    """

    def __init__(self, now: Callable[[], float], tell: Callable[[str], object] | None = None) -> None:
        self._now = now
        self._tell = tell
        self._hash = blake2b(digest_size=16)

    def note(self, what: str) -> None:
        """Note an event."""
        line = f"{self._now():.6f} {what}"
        self._hash.update(line.encode())
        if self._tell is not None:
            self._tell(line)

    def data(self, where: str, data: bytes) -> None:
        """Note bytes that arrive somewhere."""
        self._hash.update(f"{self._now():.6f} {where} {len(data)} ".encode())
        self._hash.update(data)
        if self._tell is not None:
            self._tell(f"{self._now():.6f} {where} {len(data)} {data[:160]!r}")

    @property
    def digest(self) -> str:
        """The hash of all so far."""
        return self._hash.hexdigest()
