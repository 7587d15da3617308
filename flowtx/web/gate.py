"""The gate of the admin endpoint: what is let in while the server stops, and what is under way."""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred
from twisted.web.http import Request

from flowtx.oneshot import OneShot

RETRY_AFTER: Final = "2"
"""Seconds after which the next server may be there."""
_READING: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class Gate:
    """Lets requests in, and counts them; once closed, only those that change nothing.

    Attributes:
        closed: whether it is.
        under_way: how many requests are being answered.
    """

    def __init__(self) -> None:
        self.closed = False
        self.under_way = 0
        self._idle: OneShot | None = None

    def close(self) -> None:
        """Refuse what would change something from now on; what is under way goes on."""
        self.closed = True

    def admits(self, request: Request) -> bool:
        """Whether a request is let in; it then counts until it is answered, or its connection is lost."""
        if self.closed and request.method not in _READING:
            return False
        # A connection that becomes a WebSocket is nothing that will be answered.
        if request.getHeader(b"upgrade") is None:
            self.under_way += 1
            request.notifyFinish().addBoth(self._over)
        return True

    def when_idle(self) -> Deferred[None]:
        """Wait until no request is under way; those that come meanwhile are waited for too."""
        if self._idle is None:
            self._idle = OneShot()
        if not self.under_way:
            self._idle.fire()
        return self._idle.when_fired()

    def _over(self, _: object) -> None:
        self.under_way -= 1
        if not self.under_way and self._idle is not None:
            self._idle.fire()
