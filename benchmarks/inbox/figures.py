"""The figures, and the lines of their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Load:
    """What was used of the processors, as shares of one core."""

    server: float
    postgres: float
    generator: float


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: what was measured.
        value: how much it was; None where the server refused.
        unit: of the value and the reference.
        reference_name: what it is compared with.
        reference: how much that was.
        ratios: of the two, round by round.
        at_least: the aim for the ratio of the two.
        at_most: the aim for the value.
        load: what was used meanwhile.
    """

    name: str
    value: float | None
    unit: str
    reference_name: str = ""
    reference: float | None = None
    ratios: Sequence[float] = ()
    at_least: float | None = None
    at_most: float | None = None
    load: Load | None = None

    @property
    def ratio(self) -> float | None:
        """The value for each one of the reference; of several rounds the median."""
        if self.ratios:
            return median(self.ratios)
        return self.value / self.reference if self.reference and self.value is not None else None

    @property
    def kept(self) -> bool | None:
        """Whether the aim is reached; None where there is none."""
        if self.at_least is not None:
            return self.ratio is not None and self.ratio >= self.at_least
        if self.at_most is not None:
            return self.value is not None and self.value <= self.at_most
        return None

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {**asdict(self), "ratio": self.ratio, "kept": self.kept}


HEADING = (
    f"{'':44}{'figure':>12} {'':4}{'against':>12} {'':32}{'ratio':>8} {'rounds':11}"  # as in `line`
    f"{'server':>8}{'postgres':>9}{'load':>6}  aim"
)


def line(figure: Figure) -> str:
    """Set a figure out in the columns of `HEADING`."""
    value = "refused" if figure.value is None else f"{figure.value:,.2f}"
    reference = "" if figure.reference is None else f"{figure.reference:,.2f}"
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    spread = f"{min(figure.ratios):.2f}-{max(figure.ratios):.2f}" if figure.ratios else ""
    load = figure.load
    used = "" if load is None else f"{load.server:8.0%}{load.postgres:9.0%}{load.generator:6.0%}"
    return (
        f"{figure.name:44}{value:>12} {figure.unit:4}{reference:>12} {figure.reference_name:32}"
        f"{ratio:>8} {spread:11}{used:23}  {_aim(figure)}".rstrip()
    )


def _aim(figure: Figure) -> str:
    if figure.kept is None:
        return ""
    if figure.at_least is not None:
        aim = f"ratio >= {figure.at_least:g}"
    else:
        aim = f"<= {figure.at_most:g} {figure.unit}"
    return f"{aim}: {'kept' if figure.kept else 'NOT kept'}"
