"""All rows of the table."""

from __future__ import annotations

from collections.abc import Sequence

from tests.badinput import calls, database, frames, handshakes, messages, processes, tokens
from tests.badinput.ground import Ground
from tests.badinput.table import ABSENT, COUNT, ROWS

__all__ = ["ABSENT", "COUNT", "ROWS", "summary"]

AREAS = (tokens, handshakes, frames, messages, calls, database, processes)


def summary(passed: Sequence[int], ground: Ground) -> str:
    """Tell how many passed, and why some are not there."""
    slowest = f"{1_000 * ground.slowest:.0f} ms"
    absent = [f"  {number}: {why}" for number, why in sorted(ABSENT.items())]
    lines = [f"\nbad input: {len(passed)}/{COUNT} passed; the bystander's slowest round trip: {slowest}"]
    return "\n".join([*lines, f"{len(ABSENT)} do not apply:", *absent, ""])
