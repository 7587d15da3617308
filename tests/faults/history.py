"""What happened in a run: recorded while it runs, judged after it by the checker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any, NamedTuple


class Way(Enum):
    """How a notification was pushed."""

    HTTP = "http"
    SQL = "sql"


class Outcome(Enum):
    """What a writer was told of its push."""

    OK = "acknowledged"
    FAILED = "refused or rolled back"
    UNKNOWN = "unknown"


class Place(NamedTuple):
    """Where a push landed, as the writer was told; SQL does not tell the id to everybody."""

    seq: int
    id: str | None


@dataclass
class Push:
    """One operation of a writer.

    Attributes:
        marker: what its payload carries; no other push has it.
        users: whom it is for.
        way: how it was pushed.
        invoked_at: when it was first tried, monotonic seconds.
        completed_at: when its outcome was known, monotonic seconds.
        outcome: what the writer was told in the end.
        places: the place in each user's inbox, where the outcome is OK.
    """

    marker: str
    users: tuple[str, ...]
    way: Way
    invoked_at: float
    completed_at: float = inf
    outcome: Outcome = Outcome.UNKNOWN
    places: Mapping[str, Place] = field(default_factory=dict)


class Seen(NamedTuple):
    """A notification that a reader was shown."""

    seq: int
    id: str
    marker: str

    @classmethod
    def of(cls, notification: Mapping[str, Any]) -> Seen:
        """Take what a client got as event ``notification``."""
        return cls(notification["seq"], notification["id"], notification["payload"]["marker"])


@dataclass
class Join:
    """One join of a reader, and what it was shown upon it.

    Attributes:
        after: the ``last_seq`` that it gave.
        seen: in the order in which it came.
        taken: the highest seq that the reader has taken.
    """

    after: int
    seen: list[Seen] = field(default_factory=list)
    taken: int = field(init=False)

    def __post_init__(self) -> None:
        self.taken = self.after

    def take(self, entry: Seen) -> None:
        """Note what came."""
        self.seen.append(entry)
        self.taken = max(self.taken, entry.seq)


@dataclass
class Reader:
    """All joins of a client of one user, which resumes with what it has taken durably."""

    name: str
    user: str
    joins: list[Join] = field(default_factory=list)

    @property
    def taken(self) -> int:
        """The highest seq that it has taken; what it forgot is not."""
        return self.joins[-1].taken if self.joins else 0


class Row(NamedTuple):
    """A row of ``flow.notifications``."""

    user: str
    seq: int
    id: str
    marker: str


@dataclass
class History:
    """A whole run.

    Attributes:
        pushes: what the writers did.
        readers: what the readers saw.
        rows: ``flow.notifications`` at the end.
        orders: the markers of the business rows at the end: one for each push by SQL that committed.
        failed_starts: starts that were given up, which whoever supervises a server tries again.
        surprises: what no fault explains, e.g. an answer with the status 500.
    """

    pushes: list[Push] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    orders: frozenset[str] = frozenset()
    failed_starts: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
