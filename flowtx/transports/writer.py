"""Sending without the detour through the reactor.

Twisted's ``transport.write`` keeps what it is given, asks the reactor to tell when the socket takes
something, sends in a later turn, and asks the reactor to be silent again: four calls of the kernel for one
frame. Here a frame goes into the socket at once where nothing waits before it; only what the socket does
not take is given to the transport, with all that Twisted does for it.

What is sent while a burst lasts is joined, within `MAX_JOINED` bytes; see `flowtx.bursts`.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.tcp import Connection

from flowtx.bursts import Bursts

MAX_JOINED: Final = 16_384


class TransportWriter:
    """Writes to one transport; see the module.

    Args:
        transport: the transport.
        bursts: tells when to join; None for never.
    """

    __slots__ = ("_at_once", "_bursts", "_joined", "_transport")

    def __init__(self, transport: Any, bursts: Bursts | None = None) -> None:
        self._transport = transport
        self._bursts = bursts
        # TLS has its own buffers; and what is no socket has its own ways.
        self._at_once = isinstance(transport, Connection) and not transport.TLS
        self._joined: bytearray | None = None

    def write(self, data: bytes) -> None:
        """Write a whole frame, now or at the end of the turn."""
        joined = self._joined
        if joined is None:
            bursts = self._bursts
            if bursts is None or not bursts.joining:
                self._send(data)
                return
            joined = self._joined = bytearray()
            bursts.at_end(self.uncork)
        joined += data
        if len(joined) > MAX_JOINED:
            self._joined = bytearray()
            self._send(bytes(joined))

    def cork(self) -> None:
        """Join what is written from here on, until `uncork`."""
        if self._joined is None:
            self._joined = bytearray()

    def uncork(self) -> None:
        """Send what was joined; without effect where nothing was."""
        joined, self._joined = self._joined, None
        if joined:
            self._send(bytes(joined))

    def _send(self, data: bytes) -> None:
        transport = self._transport
        # What Twisted keeps has to go first; it says so nowhere else.
        if self._at_once and not (transport._tempDataBuffer or transport.dataBuffer):  # noqa: SLF001
            try:
                sent = transport.socket.send(data)
            except (OSError, AttributeError):
                # Full, or broken, or gone: Twisted finds out which, and what follows from it.
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        transport.write(data)
