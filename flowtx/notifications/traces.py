"""Pushes that somebody traces: the log tells when they were pushed, and when a client was given them.

Whoever calls with a ``traceparent`` whose flag *sampled* is set wants to see what becomes of the call.
Which notifications it was for is remembered on this node, for the latest thousand; nothing of it is
stored or sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from twisted.logger import Logger

from flowtx.inbox import Notification, Pushed, Undeliverable
from flowtx.tracing import CALL, Call

MAX_TRACED: Final = 1_000
_SAMPLED: Final = 0x01


class Traces:
    """See the module."""

    _log = Logger()

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}

    def pushed(self, pushed: Sequence[Pushed]) -> None:
        """Note what the call that is being handled has pushed."""
        call = CALL.get()
        if call is None or call.traceparent is None or not int(call.traceparent[53:55], 16) & _SAMPLED:
            return
        self._log.info(
            "Pushed {count} notifications, the first to {user_id}",
            count=len(pushed),
            user_id=pushed[0].user_id,
            seq=pushed[0].seq,
            id=pushed[0].id,
            **call._asdict(),
        )
        for one in pushed[:MAX_TRACED]:
            self._calls[one.id] = call
        while len(self._calls) > MAX_TRACED:
            del self._calls[next(iter(self._calls))]

    def given(
        self, user_id: str, entries: Sequence[Notification | Undeliverable], after: int, up_to: int
    ) -> None:
        """Note what a client has been given: those of ``entries`` that follow ``after``, up to ``up_to``."""
        if not self._calls:
            return
        for entry in entries:
            call = self._calls.get(entry.id)
            if call is not None and after < entry.seq <= up_to:
                self._log.info(
                    "Gave notification {seq} to a client of {user_id}",
                    user_id=user_id,
                    seq=entry.seq,
                    id=entry.id,
                    **call._asdict(),
                )
