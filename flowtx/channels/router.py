"""Which Channel serves which topic."""

from __future__ import annotations

from collections.abc import Callable

from flowtx.channels.channel import Channel
from flowtx.protocol.topic import TopicPattern


class Router:
    """Patterns of topics and what makes their Channels, tried in the order of declaration."""

    def __init__(self) -> None:
        self._routes: list[tuple[TopicPattern, Callable[[], Channel]]] = []

    def channel(self, pattern: str, make: Callable[[], Channel]) -> Router:
        """Serve topics that match ``pattern``.

        Args:
            pattern: exact text, or a prefix with one trailing ``*``, such as ``room:*``.
            make: a Channel class, or anything that gives a new Channel when called.

        Raises:
            ValueError: the pattern has another form.
        """
        self._routes.append((TopicPattern.parse(pattern), make))
        return self

    def extend(self, other: Router) -> Router:
        """Serve what ``other`` serves, after what is served already."""
        self._routes += other._routes
        return self

    def route(self, topic: str) -> Channel | None:
        """Make the Channel for ``topic``; None where no pattern matches."""
        for pattern, make in self._routes:
            if pattern.matches(topic):
                return make()
        return None
