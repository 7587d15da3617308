"""Patterns of topics."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flowtx.protocol.topic import TopicPattern


class TopicPatternTests(SynchronousTestCase):
    def test_exact(self) -> None:
        pattern = TopicPattern.parse("users:online")
        self.assertTrue(pattern.matches("users:online"))
        for other in ("users:onlinex", "users:onlin", "", "users:online:"):
            self.assertFalse(pattern.matches(other), other)

    def test_wildcard(self) -> None:
        pattern = TopicPattern.parse("room:*")
        for topic in ("room:", "room:1", "room:a:b", "room:*"):
            self.assertTrue(pattern.matches(topic), topic)
        for topic in ("room", "rooms:1", " room:1", "Room:1"):
            self.assertFalse(pattern.matches(topic), topic)

    def test_other_forms_are_refused(self) -> None:
        for text in ("", "*", "room:*:x", "**", "room:**", "*:room"):
            error = self.assertRaises(ValueError, TopicPattern.parse, text)
            self.assertIn("one trailing *, such as room:*", str(error))

    @settings(deadline=None)
    @given(st.text(min_size=1).filter(lambda text: "*" not in text), st.text())
    def test_a_wildcard_matches_what_begins_with_its_prefix(self, prefix: str, rest: str) -> None:
        self.assertTrue(TopicPattern.parse(prefix + "*").matches(prefix + rest))
        self.assertEqual(TopicPattern.parse(prefix).matches(prefix + rest), not rest)

    def test_as_text(self) -> None:
        for text in ("users:online", "room:*"):
            self.assertEqual(str(TopicPattern.parse(text)), text)

    def test_overlaps(self) -> None:
        for one, other, overlap in (
            ("user:*", "user:*", True),
            ("user:*", "user:42", True),
            ("us*", "user:*", True),
            ("us*", "users:online", True),
            ("users:online", "users:online", True),
            ("users:*", "user:*", False),
            ("user", "user:*", False),
            ("users:online", "users:onlin", False),
        ):
            first, second = TopicPattern.parse(one), TopicPattern.parse(other)
            self.assertEqual(
                (first.overlaps(second), second.overlaps(first)), (overlap, overlap), (one, other)
            )
