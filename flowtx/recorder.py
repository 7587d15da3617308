"""The flight recorder: what last happened to each user, kept in memory for whoever asks why they dropped.

It keeps the last 200 events and the last 10 ends of connections of each user, within a total of bytes
and of users; whose last event is the oldest goes first. An event is kept as the bytes of its JSON:
its size is known, and Python's garbage collector never looks at it.

Nothing in here is a secret: details are cut to 200 characters, and one whose name sounds like a token,
a password or a payload is dropped.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import msgspec

MAX_EVENTS: Final = 200
MAX_ENDS: Final = 10
MAX_DETAIL: Final = 200
MAX_DETAILS: Final = 12
MAX_USERS: Final = 50_000
MAX_BYTES: Final = 32 * 1_048_576

SECRET_NAME: Final = re.compile("token|secret|password|authorization|payload|api_?key|cookie", re.IGNORECASE)
"""What the name of a detail must not hold."""

Detail = str | int | float | bool | None

_EVENT_COST: Final = 48
"""Bytes that Python needs for a bytes object and its place in a list."""
_USER_COST: Final = 640
"""Bytes that Python needs for a user's two lists and its place in the dictionary."""

_encoder = msgspec.json.Encoder()
_buffer = bytearray()


class _Tape:
    """What is kept of one user, the newest last."""

    __slots__ = ("cost", "ends", "events")

    def __init__(self, user_id: str) -> None:
        self.events: list[bytes] = []
        self.ends: list[bytes] = []
        self.cost = _USER_COST + 4 * len(user_id)

    def add(self, kept: list[bytes], line: bytes, most: int) -> int:
        """Keep a line; by how many bytes that changes what all of it costs."""
        change = len(line) + _EVENT_COST
        kept.append(line)
        if len(kept) > most:
            change -= len(kept[0]) + _EVENT_COST
            del kept[0]
        self.cost += change
        return change


class FlightRecorder:
    """See the module.

    Args:
        clock: the time, in seconds since the epoch.
        max_users: of how many users anything is kept.
        max_bytes: what all of it may cost.

    Attributes:
        cost: about how many bytes it takes.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        max_users: int = MAX_USERS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.cost = 0
        self._clock = clock
        self._max_users = max_users
        self._max_bytes = max_bytes
        self._tapes: OrderedDict[str, _Tape] = OrderedDict()

    def __len__(self) -> int:
        """Of how many users anything is kept."""
        return len(self._tapes)

    def note(self, user_id: str, event: str, **detail: Detail) -> None:
        """Keep an event of a user's. Never raises.

        Args:
            user_id: whose.
            event: one word.
            detail: what else there is to say; see the module.
        """
        tape = self._tape(user_id)
        self._keep(user_id, tape, tape.events, _line(self._clock(), event, detail), MAX_EVENTS)

    def ended(
        self,
        user_id: str,
        *,
        reason: str,
        code: int | None,
        by: str,
        duration: float,
        **detail: Detail,
    ) -> None:
        """Keep the end of a connection of a user's, which is an event too. Never raises.

        Args:
            user_id: whose.
            reason: the word of the close, or what the client gave.
            code: the close code; None where there was none.
            by: who ended it: ``client``, ``server``, ``silence`` or ``network``.
            duration: for how many seconds it was open.
            detail: what else there is to say.
        """
        now = self._clock()
        own: dict[str, Detail] = {"reason": reason, "code": code, "by": by, "duration": round(duration, 3)}
        line = _line(now, "closed", own | detail, connected_at=now - duration)
        tape = self._tape(user_id)
        self._keep(user_id, tape, tape.ends, line, MAX_ENDS)
        # Again, as the place may have been taken from under it.
        tape = self._tape(user_id)
        self._keep(user_id, tape, tape.events, line, MAX_EVENTS)

    def events(self, user_id: str) -> list[dict[str, Any]]:
        """Tell what happened to a user, the newest last: ``at`` (ISO 8601, UTC), ``event`` and details."""
        tape = self._tapes.get(user_id)
        return [] if tape is None else [_read(line) for line in tape.events]

    def ends(self, user_id: str) -> list[dict[str, Any]]:
        """Tell how a user's connections ended, the newest last.

        Each has ``at``, ``connected_at``, ``reason``, ``code``, ``by`` and ``duration`` (seconds), and
        the details that were given.
        """
        tape = self._tapes.get(user_id)
        ends = [] if tape is None else [_read(line) for line in tape.ends]
        for end in ends:
            del end["event"]
        return ends

    def forget(self, user_id: str) -> None:
        """Drop all that is kept of a user; without effect where there is nothing."""
        tape = self._tapes.pop(user_id, None)
        if tape is not None:
            self.cost -= tape.cost

    def _tape(self, user_id: str) -> _Tape:
        tape = self._tapes.get(user_id)
        if tape is None:
            tape = self._tapes[user_id] = _Tape(user_id)
            self.cost += tape.cost
        else:
            self._tapes.move_to_end(user_id)
        return tape

    def _keep(self, user_id: str, tape: _Tape, kept: list[bytes], line: bytes, most: int) -> None:
        self.cost += tape.add(kept, line, most)
        while self.cost > self._max_bytes or len(self._tapes) > self._max_users:
            oldest = next(iter(self._tapes), user_id)
            self.forget(oldest)
            if oldest == user_id:
                return


def _line(now: float, event: str, detail: dict[str, Detail], connected_at: float | None = None) -> bytes:
    known: dict[str, Detail] = {"at": now, "event": event[:MAX_DETAIL]}
    if connected_at is not None:
        known["connected_at"] = connected_at
    for name, value in detail.items():
        if len(known) > MAX_DETAILS + 2 or name in known or _is_secret(name):
            continue
        if isinstance(value, str):
            known[name] = value[:MAX_DETAIL]
        elif (
            value is None
            or isinstance(value, bool | float)
            or (isinstance(value, int) and -(2**63) <= value < 2**63)
        ):
            known[name] = value
        else:
            known[name] = type(value).__name__
    try:
        _encoder.encode_into(known, _buffer)
    except UnicodeEncodeError:  # a lone surrogate
        _encoder.encode_into({name: _whole(value) for name, value in known.items()}, _buffer)
    # What msgspec makes itself has up to half as much room again, unused.
    return bytes(_buffer)


@lru_cache(256)
def _is_secret(name: str) -> bool:
    return SECRET_NAME.search(name) is not None


def _whole(value: Detail) -> Detail:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _read(line: bytes) -> dict[str, Any]:
    event: dict[str, Any] = msgspec.json.decode(line)
    for name in ("at", "connected_at"):
        if name in event:
            event[name] = _iso(event[name])
    return event


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
