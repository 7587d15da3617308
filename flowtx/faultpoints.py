"""Places at which a simulation has something go wrong: late, lost, or failed after the fact.

Each costs one look at a variable. In a server that variable is None for ever: nothing in flowtx sets
it, no setting does, and a test reads the sources for that. Who sets it is a test that runs the server
under a clock of its own::

    if faultpoints.active:
        await faultpoints.active.stall("push.committed")
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol


class Faults(Protocol):
    """Decides what goes wrong."""

    def stall(self, place: str) -> Awaitable[None]:
        """Wait at a place for a while, or not at all."""

    def strikes(self, place: str) -> bool:
        """Whether something goes wrong at a place now."""


active: Faults | None = None
"""Who decides; None for nobody."""
