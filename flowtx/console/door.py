"""The admin endpoint's door: one port for HTTP and for the console's WebSocket connections.

Which of the two a connection is for is told by its first bytes, before anybody has read them. So
each of the two gets the bytes of the client as they came, with all of its guards, and knows nothing
of the other. A browser opens a connection of its own for a WebSocket, so the first request is enough.
"""

from __future__ import annotations

from typing import Final, cast

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

PATH: Final = "/console/websocket"
FIRST_BYTES_TIMEOUT: Final = 5.0
"""Seconds that a client has to say what it wants, with the handshake of TLS where there is one."""

_FOR_CONSOLE: Final = f"GET {PATH}".encode()


class Door(Factory):
    """See the module.

    Args:
        site: serves HTTP.
        console: serves the connections whose first request is for `PATH`.
        clock: the time.
    """

    noisy = False

    def __init__(self, site: IProtocolFactory, console: IProtocolFactory, *, clock: IReactorTime) -> None:
        self._site = site
        self._console = console
        self.clock = clock

    def doStart(self) -> None:
        super().doStart()
        self._site.doStart()
        self._console.doStart()

    def doStop(self) -> None:
        super().doStop()
        self._site.doStop()
        self._console.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _Visitor(self, cast("IAddress", addr))

    def factory_for(self, first: bytes) -> IProtocolFactory | None:
        """Find who serves a connection that begins like this; None while that cannot be told."""
        if first.startswith(_FOR_CONSOLE):
            return self._console
        return None if _FOR_CONSOLE.startswith(first) else self._site


class _Visitor(Protocol):
    """A connection: what it is for is not known at first, and then it is passed on to another protocol."""

    transport: ITCPTransport

    def __init__(self, door: Door, address: IAddress) -> None:
        self._door = door
        self._address = address
        self._first = b""
        self._served_by: IProtocol | None = None
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self._timer = self._door.clock.callLater(FIRST_BYTES_TIMEOUT, self._timed_out)

    def dataReceived(self, data: bytes) -> None:
        if self._served_by is not None:
            self._served_by.dataReceived(data)
            return
        self._first += data
        factory = self._door.factory_for(self._first)
        if factory is None:
            return
        self._stop_timer()
        served_by = factory.buildProtocol(self._address)
        if served_by is None:
            self.transport.abortConnection()
            return
        first, self._first = self._first, b""
        self._served_by = served_by
        served_by.makeConnection(self.transport)
        served_by.dataReceived(first)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_timer()
        if self._served_by is not None:
            self._served_by.connectionLost(reason)

    def _timed_out(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
