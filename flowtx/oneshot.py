"""An outcome that many may wait for."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure


class OneShot:
    """Something that happens once: those who wait are told, those who come later are told at once.

    Unlike a Deferred that is handed to several, it gives everybody the same outcome, and a failure
    that nobody asks for is not an error.

    Attributes:
        fired: whether it has happened.
    """

    __slots__ = ("_outcome", "_waiting", "fired")

    def __init__(self) -> None:
        self.fired = False
        self._outcome: Failure | None = None
        self._waiting: list[Deferred[None]] = []

    def fire(self, outcome: Failure | None = None) -> None:
        """Tell everybody, in the order in which they came: None for success, or a Failure."""
        self.fired, self._outcome = True, outcome
        while self._waiting:
            self._waiting.pop(0).callback(outcome)

    def when_fired(self) -> Deferred[None]:
        """Wait.

        Returns:
            A new Deferred that fires with None, or fails as the outcome did. To cancel it does
            nothing but to stop waiting.
        """
        if self.fired:
            return succeed(None).addCallback(lambda _: self._outcome)
        deferred: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(deferred)
        return deferred
