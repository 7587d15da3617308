"""Every cell of state and event, and the diagram in the documentation."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from flowtx.sessions.machine import ENDING, TRANSITIONS, Event, IllegalTransition, State, after, diagram

DOCUMENT = Path(__file__).parents[2] / "docs" / "sessions.md"

# Rows are states, columns events; "." is what cannot come.
TABLE = """
          loaded  refused   claimed   left      abandoned crashed   ended     torn_down
starting  ready   draining  starting  starting  draining  starting  draining  .
ready     .       .         ready     away      draining  starting  draining  .
away      .       .         ready     .         .         starting  draining  .
draining  .       .         .         draining  draining  draining  draining  stopped
stopped   .       .         .         .         .         stopped   stopped   .
"""


def cells() -> dict[tuple[State, Event], State | None]:
    header, *rows = (line.split() for line in TABLE.strip().splitlines())
    return {
        (State[row[0].upper()], Event[event.upper()]): None if behind == "." else State[behind.upper()]
        for row in rows
        for event, behind in zip(header, row[1:], strict=True)
    }


class MachineTests(SynchronousTestCase):
    def test_the_table_here_has_every_cell(self) -> None:
        self.assertEqual(set(cells()), set(product(State, Event)))

    def test_every_cell(self) -> None:
        for (before, event), behind in cells().items():
            with self.subTest(state=before.value, event=event.value):
                if behind is None:
                    with self.assertRaises(IllegalTransition):
                        after(before, event)
                else:
                    self.assertIs(after(before, event), behind)

    def test_an_illegal_event_is_told_with_those_that_are_legal(self) -> None:
        with self.assertRaises(IllegalTransition) as caught:
            after(State.AWAY, Event.LOADED)
        self.assertEqual(
            str(caught.exception),
            "a Session that is away cannot be loaded; it takes: claimed, crashed, ended",
        )

    def test_there_is_no_way_back_from_the_end(self) -> None:
        for (before, _), behind in TRANSITIONS.items():
            if before in ENDING:
                self.assertIn(behind, ENDING)

    def test_the_diagram_has_each_change_and_nothing_else(self) -> None:
        drawn = {line.strip() for line in diagram().splitlines()}
        self.assertIn("[*] --> starting", drawn)
        self.assertIn("starting --> draining: refused, abandoned, ended", drawn)
        self.assertIn("stopped --> [*]", drawn)
        changes = {(before, behind) for (before, _), behind in TRANSITIONS.items() if before is not behind}
        self.assertEqual(len(drawn), 1 + 2 + len(changes))

    def test_the_documentation_has_the_diagram(self) -> None:
        text = DOCUMENT.read_text(encoding="utf-8")
        _, begin, rest = text.partition("<!-- diagram: begin -->\n")
        drawn, end, _ = rest.partition("<!-- diagram: end -->")
        self.assertTrue(begin and end)
        self.assertEqual(drawn, f"```mermaid\n{diagram()}```\n")
