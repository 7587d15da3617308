"""What is done about the inboxes from time to time: old notifications go, undelivered ones are found."""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IReactorTime

from flowtx.inbox import INotificationStore
from flowtx.metrics import Metrics
from flowtx.periodic import Periodic
from flowtx.service import OrderedMultiService

SWEEP_EVERY: Final = 60.0
LOOK_EVERY: Final = 5.0
_MAX_STEPS: Final = 1_000
_AT_ONCE: Final = 500
_DAY: Final = 86_400.0


class InboxUpkeep(OrderedMultiService):
    """See the module.

    Args:
        store: keeps the inboxes.
        clock: the time.
        metrics: counts.
        undelivered_after: seconds after which a notification that nobody got is undelivered; 0 for never.
        retention_days: days for which a notification is kept; 0 for ever.
        retention_count: how many notifications of a user are kept; 0 for any number.
    """

    def __init__(
        self,
        store: INotificationStore,
        *,
        clock: IReactorTime,
        metrics: Metrics,
        undelivered_after: float,
        retention_days: float,
        retention_count: int,
    ) -> None:
        super().__init__()
        self._store = store
        self._metrics = metrics
        self._undelivered_after = undelivered_after
        self._max_age = retention_days * _DAY
        self._max_count = retention_count
        Periodic("To delete old notifications", self.sweep, SWEEP_EVERY, clock=clock).setServiceParent(self)
        if undelivered_after:
            every = min(LOOK_EVERY, max(0.1, undelivered_after / 4))
            name = "To find undelivered notifications"
            Periodic(name, self.find_undelivered, every, clock=clock).setServiceParent(self)

    async def sweep(self) -> None:
        """Delete what need not be kept any more, in many short transactions."""
        for _ in range(_MAX_STEPS):
            if not self.running or not await self._store.sweep(self._max_age, self._max_count):
                return

    async def find_undelivered(self) -> None:
        """Find what nobody got in time."""
        for _ in range(_MAX_STEPS):
            found = await self._store.find_undelivered(self._undelivered_after, _AT_ONCE)
            self._metrics.notifications_undelivered.inc(found)
            if found < _AT_ONCE or not self.running:
                return
