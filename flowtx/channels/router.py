"""Which Channel serves which topic."""

from __future__ import annotations

from collections.abc import Callable

from flowtx.channels.channel import Channel
from flowtx.protocol.topic import TopicPattern


class Router:
    """Patterns of topics and what makes their Channels, tried in the order of declaration::

        router = Router().channel("room:lobby", LobbyChannel).channel("room:*", RoomChannel)

    A Channel that needs more than its topic is given it where it is made::

        Router().channel("deal:*", lambda: DealChannel(deals, services.notifications))
    """

    def __init__(self) -> None:
        self._routes: list[tuple[TopicPattern, Callable[[], Channel]]] = []

    @property
    def patterns(self) -> tuple[TopicPattern, ...]:
        """What is served, in the order of declaration."""
        return tuple(pattern for pattern, _ in self._routes)

    def channel(self, pattern: str, make: Callable[[], Channel]) -> Router:
        """Serve topics that match ``pattern``.

        Args:
            pattern: exact text, or a prefix with one trailing ``*``, such as ``room:*``.
            make: a Channel class, or anything that gives a new Channel when called.

        Raises:
            ValueError: the pattern has another form.
            TypeError: ``make`` cannot be called.
        """
        if not callable(make):
            raise TypeError(
                f"{pattern!r}: got {make!r:.80}; it takes a Channel class, or a function that makes a Channel"
            )
        self._routes.append((TopicPattern.parse(pattern), make))
        return self

    def extend(self, other: Router) -> Router:
        """Serve what ``other`` serves, after what is served already."""
        self._routes += other._routes
        return self

    def route(self, topic: str) -> Channel | None:
        """Make the Channel for ``topic``; None where no pattern matches.

        Raises:
            TypeError: what the topic's pattern was declared with gave no new Channel.
        """
        for pattern, make in self._routes:
            if pattern.matches(topic):
                channel = make()
                if not isinstance(channel, Channel):
                    raise TypeError(f"{pattern}: got {type(channel).__name__}; it takes a Channel")
                if channel.is_taken:
                    raise TypeError(f"{pattern}: got a {type(channel).__name__} that a client has already")
                return channel
        return None
