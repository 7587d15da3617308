from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flowtx.notifications.patterns import matches


class PatternsTests(SynchronousTestCase):
    def test_a_type_and_the_beginning_of_types(self) -> None:
        for pattern, type_, expected in (
            ("deal.won", "deal.won", True),
            ("deal.won", "deal.won.late", False),
            ("deal.won", "deal", False),
            ("deal.*", "deal.won", True),
            ("deal.*", "deal.", True),
            ("deal.*", "deal", False),
            ("deal.*", "task.deal.won", False),
            ("*", "anything", True),
            ("de", "deal", False),
            ("Deal.*", "deal.won", False),
            ("ż*", "żółw", True),
        ):
            self.assertEqual(matches([pattern], type_), expected, (pattern, type_))

    def test_any_of_several_will_do(self) -> None:
        self.assertTrue(matches(("task.due", "deal.*"), "deal.won"))
        self.assertFalse(matches(("task.due", "deal.*"), "task.done"))

    def test_no_pattern_matches_nothing(self) -> None:
        self.assertFalse(matches((), "deal.won"))

    @given(st.text(min_size=1).filter(lambda text: "*" not in text), st.text())
    def test_a_beginning_matches_whatever_follows(self, beginning: str, rest: str) -> None:
        self.assertTrue(matches([f"{beginning}*"], beginning + rest))
        self.assertEqual(matches([beginning], beginning + rest), rest == "")
