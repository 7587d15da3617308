"""An outcome that many may wait for."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


class OneShot:
    """Something that happens once: those who wait are told, those who come later are told at once.

    Unlike a Deferred that is handed to several, it gives everybody the same outcome, and a failure
    that nobody asks for is not an error.
    """

    __slots__ = ("_fired", "_outcome", "_waiting")

    def __init__(self) -> None:
        self._fired = False
        self._outcome: Failure | None = None
        self._waiting: list[Deferred[None]] = []

    def fire(self, outcome: Failure | None = None) -> None:
        """Tell everybody: None for success, or a Failure."""
        self._fired, self._outcome = True, outcome
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            if not deferred.called:
                deferred.callback(outcome)

    def when_fired(self) -> Deferred[None]:
        """Wait.

        Returns:
            A new Deferred that fires with None, or fails as the outcome did. To cancel it does
            nothing but to stop waiting.
        """
        deferred: Deferred[None] = Deferred()
        if self._fired:
            deferred.callback(self._outcome)
        else:
            self._waiting.append(deferred)
        return deferred
