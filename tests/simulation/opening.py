"""What the network has of a device for one connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.python.failure import Failure

from tests.simulation.ends import End

if TYPE_CHECKING:
    from tests.simulation.clients import Device


class Opening:
    """See the module; a device that has given it up hears nothing more."""

    def __init__(self, device: Device) -> None:
        self.device: Device | None = device

    def connectionMade(self, transport: End) -> None:
        if self.device is None:
            transport.loseConnection()
        else:
            self.device.opened(transport)

    def connectionFailed(self) -> None:
        if self.device is not None:
            self.device.lost()

    def dataReceived(self, data: bytes) -> None:
        if self.device is not None:
            self.device.received(data)

    def connectionLost(self, reason: Failure) -> None:
        if self.device is not None:
            self.device.lost()
