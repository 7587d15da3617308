"""Topics and the patterns that route them: exact text, or a prefix with one trailing ``*``."""

from __future__ import annotations

from typing import NamedTuple


class TopicPattern(NamedTuple):
    """A pattern, taken apart.

    Attributes:
        prefix: the text that a topic must equal, or begin with.
        wildcard: whether it may go on after the prefix.
    """

    prefix: str
    wildcard: bool

    @classmethod
    def parse(cls, pattern: str) -> TopicPattern:
        """Take ``pattern`` apart.

        Raises:
            ValueError: it is empty, or has a ``*`` elsewhere than at its end.
        """
        prefix, star, rest = pattern.partition("*")
        if not prefix or rest:
            raise ValueError(
                f"a topic pattern is text, or a prefix with one trailing *, such as room:*; not {pattern!r}"
            )
        return cls(prefix, bool(star))

    def __str__(self) -> str:
        return f"{self.prefix}{'*' * self.wildcard}"

    def matches(self, topic: str) -> bool:
        return topic.startswith(self.prefix) if self.wildcard else topic == self.prefix

    def overlaps(self, other: TopicPattern) -> bool:
        """Whether there is a topic that both match."""
        if self.wildcard and other.wildcard:
            return self.matches(other.prefix) or other.matches(self.prefix)
        return self.matches(other.prefix) if self.wildcard else other.matches(self.prefix)
