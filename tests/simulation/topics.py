"""A channel of phoenix.js: its states, and its schedule to join again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IDelayedCall

from tests.simulation.clock import NodeClock

if TYPE_CHECKING:
    from tests.simulation.clients import Device

REJOIN_AFTER: Final = (1.0, 2.0, 5.0)
REJOIN_MOST: Final = 10.0
TIMEOUT: Final = 10.0
"""Seconds for a connection to open, and for a join to be answered."""


class Timer:
    """A call that is made later, unless it is set anew or unset before."""

    def __init__(self, clock: NodeClock, call: Callable[[], None]) -> None:
        self._clock = clock
        self._call = call
        self._waiting: IDelayedCall | None = None

    def set(self, seconds: float) -> None:
        self.unset()
        self._waiting = self._clock.callLater(seconds, self._go)

    def unset(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()

    def _go(self) -> None:
        self._waiting = None
        self._call()


class Topic:
    """A channel of phoenix.js.

    Attributes:
        state: ``closed``, ``joining``, ``joined`` or ``errored``.
        join_ref: names the latest join.
    """

    def __init__(self, device: Device, name: str, payload: Callable[[], dict[str, Any]]) -> None:
        self.device = device
        self.name = name
        self.state = "closed"
        self.join_ref = ""
        self._payload = payload
        self._tries = 0
        self._rejoin = Timer(device.clock, self.join)
        self._timeout = Timer(device.clock, self._timed_out)

    def join(self) -> None:
        if self.device.is_open:
            self.state = "joining"
            self.join_ref = self.device.next_ref()
            self._timeout.set(TIMEOUT)
            self.device.send([self.join_ref, self.join_ref, self.name, "phx_join", self._payload()])

    def push(self, event: str, payload: dict[str, Any]) -> str:
        ref = self.device.next_ref()
        self.device.send([self.join_ref, ref, self.name, event, payload])
        return ref

    def answered(self, status: str) -> None:
        """Take the answer to the join."""
        if self.state == "joining":
            self._timeout.unset()
            if status == "ok":
                self.state = "joined"
                self._tries = 0
            else:
                self._errored()

    def _timed_out(self) -> None:
        self.push("phx_leave", {})
        self._errored()

    def crashed(self) -> None:
        """Take ``phx_error``, or ``phx_close``: the application joins again anyway."""
        self._timeout.unset()
        self._errored()

    def _errored(self) -> None:
        self.state = "errored"
        if self.device.is_open:
            after = REJOIN_AFTER[self._tries] if self._tries < len(REJOIN_AFTER) else REJOIN_MOST
            self._tries += 1
            self._rejoin.set(after)

    def disconnected(self) -> None:
        """Note that the connection has gone; the next one joins at once."""
        self._rejoin.unset()
        self._timeout.unset()
        self.state = "errored"
