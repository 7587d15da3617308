"""What a run does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        kills: how many, half of them of flowtx, half of PostgreSQL.
        seed: of all chances.
        bug: the name of the bug that flowtx runs with; see `tests.faults.planted`.
        users: how many users there are; each has a raw reader and one of npm phoenix.
        http_writers: how many writers push by HTTP.
        sql_writers: how many push by SQL.
        patience: seconds in which all writers must be done and all readers must have caught up, once
            nothing is killed any more.
    """

    kills: int
    seed: int
    bug: str | None = None
    users: int = 24
    http_writers: int = 4
    sql_writers: int = 2
    patience: float = 60.0

    @classmethod
    def proof(cls, seed: int, bug: str) -> Plan:
        """Make the plan of a short run that must turn red."""
        # Transactions that are flushed would take to disk what a careless one has left in memory.
        return cls(kills=10, seed=seed, bug=bug, sql_writers=0, patience=10.0)

    @property
    def seconds(self) -> float:
        """How long a run may take before it is given up."""
        return 180.0 + 6.0 * self.kills
