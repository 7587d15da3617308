"""Judges a recorded run: what was lost, what came twice, what came out of order, what came from nowhere.

The database at the end is held against what the writers were told, and each reader against the
database. A reader resumes with the ``last_seq`` it gives with its join; so a notification is doubled
where it comes twice upon one join, or at or below that ``last_seq``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf

from tests.faults.history import History, Join, Outcome, Push, Reader, Row, Seen, Way


class Fault(Enum):
    """What can be wrong, in the words of the report."""

    LOST = "lost"
    DOUBLED = "doubled"
    OUT_OF_ORDER = "out of order"
    PHANTOM = "phantom"  # nobody pushed it, or it was rolled back


@dataclass(frozen=True)
class Offence:
    """One thing that is wrong."""

    fault: Fault
    what: str


@dataclass(frozen=True)
class Verdict:
    """What the checker found.

    Attributes:
        pushed: how many notifications are stored that somebody pushed.
        repeated: how many came again to readers that had forgotten them, as they must.
        offences: all that is wrong.
    """

    pushed: int
    repeated: int
    offences: tuple[Offence, ...]

    def count(self, fault: Fault) -> int:
        """How many offences of a kind there are."""
        return sum(offence.fault is fault for offence in self.offences)

    @property
    def counts(self) -> str:
        """All counts, as text."""
        return " · ".join(f"{fault.value} {self.count(fault)}" for fault in Fault)


def check(history: History) -> Verdict:
    """Judge a run whose readers had the time to catch up."""
    inboxes: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in history.rows:
        inboxes[row.user][row.seq] = row
    offences = [
        *_check_pushes(history),
        *_check_inboxes(history, inboxes),
        *_check_order(history, inboxes),
        *(offence for reader in history.readers for offence in _check_reader(reader, inboxes[reader.user])),
    ]
    known = {push.marker for push in history.pushes}
    return Verdict(
        pushed=sum(row.marker in known for row in history.rows),
        repeated=sum(_count_repeated(reader) for reader in history.readers),
        offences=tuple(offences),
    )


def _check_pushes(history: History) -> Iterator[Offence]:
    """Whatever was acknowledged is stored once, whatever failed is not stored."""
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in history.rows:
        rows[row.marker, row.user].append(row)
    for push in history.pushes:
        found = {user: rows.pop((push.marker, user), []) for user in push.users}
        must = _must_be_stored(push, history.orders)
        if must is None:  # all of it or nothing
            must = any(found.values())
        for user, stored in found.items():
            what = f"{push.marker} of {user} ({push.way.value}, {push.outcome.value})"
            if len(stored) > 1:
                yield Offence(Fault.DOUBLED, f"{what} is stored as {[row.seq for row in stored]}")
            if stored and not must:
                yield Offence(Fault.PHANTOM, f"{what} is stored as {stored[0].seq}")
            if must and not stored:
                yield Offence(Fault.LOST, f"{what} is not stored")
            place = push.places.get(user)
            if place and stored and not any(_is_at(row, place.seq, place.id) for row in stored):
                yield Offence(Fault.LOST, f"{what} was told to be {place} and is {stored[0]}")
        if push.way is Way.SQL and push.outcome is Outcome.OK and push.marker not in history.orders:
            yield Offence(Fault.LOST, f"the business row of {push.marker} is not stored")
        if push.way is Way.SQL and push.outcome is Outcome.FAILED and push.marker in history.orders:
            yield Offence(Fault.PHANTOM, f"the business row of {push.marker} is stored")
    for (marker, user), strangers in rows.items():
        yield Offence(Fault.PHANTOM, f"nobody pushed {marker} to {user}, stored as {strangers[0].seq}")


def _must_be_stored(push: Push, orders: frozenset[str]) -> bool | None:
    if push.outcome is not Outcome.UNKNOWN:
        return push.outcome is Outcome.OK
    # The row beside it tells how a transaction ended whose COMMIT had no answer.
    return push.marker in orders if push.way is Way.SQL else None


def _is_at(row: Row, seq: int, id_: str | None) -> bool:
    return row.seq == seq and id_ in {None, row.id}


def _check_inboxes(history: History, inboxes: Mapping[str, Mapping[int, Row]]) -> Iterator[Offence]:
    """The seqs of a user are 1 to n, each once."""
    for (user, seq), times in Counter((row.user, row.seq) for row in history.rows).items():
        if times > 1:
            yield Offence(Fault.DOUBLED, f"seq {seq} of {user} is stored {times} times")
    for user, inbox in inboxes.items():
        for seq in sorted(set(range(1, max(inbox, default=0) + 1)) - inbox.keys()):
            yield Offence(Fault.LOST, f"seq {seq} of {user} is a hole")
        for seq in sorted(seq for seq in inbox if seq < 1):
            yield Offence(Fault.PHANTOM, f"{user} has a seq {seq}")


def _check_order(history: History, inboxes: Mapping[str, Mapping[int, Row]]) -> Iterator[Offence]:
    """What was acknowledged before something else was tried has the lower seq."""
    pushes = {push.marker: push for push in history.pushes}
    for user, inbox in inboxes.items():
        earliest, marker = inf, ""
        for seq in sorted(inbox, reverse=True):
            push = pushes.get(inbox[seq].marker)
            if push is None:
                continue
            if earliest < push.invoked_at:
                yield Offence(
                    Fault.OUT_OF_ORDER,
                    f"{push.marker} of {user}, seq {seq}, was tried after {marker}, which has a higher one",
                )
            if push.completed_at < earliest:
                earliest, marker = push.completed_at, push.marker


def _check_reader(reader: Reader, inbox: Mapping[int, Row]) -> Iterator[Offence]:
    """A reader has seen what its user's inbox holds, ascending, each once."""
    who = f"reader {reader.name}"
    seen: set[int] = set()
    for number, join in enumerate(reader.joins, 1):
        yield from _check_join(f"{who}, join {number} after {join.after}", join)
        seen.update(entry.seq for entry in join.seen)
        for entry in join.seen:
            if not _is_stored(entry, inbox):
                stored = inbox.get(entry.seq)
                yield Offence(Fault.PHANTOM, f"{who} saw {entry}; stored is {stored}")
    for seq in sorted(inbox.keys() - seen):
        yield Offence(Fault.LOST, f"{who} never saw seq {seq}, {inbox[seq].marker}")


def _count_repeated(reader: Reader) -> int:
    seen: set[int] = set()
    repeated = 0
    for join in reader.joins:
        shown = {entry.seq for entry in join.seen if entry.seq > join.after}
        repeated += len(shown & seen)
        seen |= shown
    return repeated


def _check_join(who: str, join: Join) -> Iterator[Offence]:
    shown: set[int] = set()
    highest = join.after
    for entry in join.seen:
        if entry.seq <= join.after or entry.seq in shown:
            yield Offence(Fault.DOUBLED, f"{who}: seq {entry.seq} again")
        elif entry.seq < highest:
            yield Offence(Fault.OUT_OF_ORDER, f"{who}: seq {entry.seq} after {highest}")
        shown.add(entry.seq)
        highest = max(highest, entry.seq)
    for seq in sorted(set(range(join.after + 1, highest)) - shown):
        yield Offence(Fault.LOST, f"{who}: seq {seq} was skipped")


def _is_stored(entry: Seen, inbox: Mapping[int, Row]) -> bool:
    row = inbox.get(entry.seq)
    return row is not None and (row.id, row.marker) == (entry.id, entry.marker)
