"""What systemd is told: that the server is ready, reads its settings again, stops, and still turns.

It is systemd's protocol sd_notify: datagrams to the socket that ``NOTIFY_SOCKET`` names. Where there is
none, nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger


class Notifier(Service):
    """See the module.

    Where ``WATCHDOG_USEC`` asks for it, a sign of life is sent twice in that time, from the reactor: a
    loop that is stuck sends none, and systemd ends the process.

    Args:
        clock: the time, monotonic.
        environ: the environment.
        monotonic: the system's monotonic clock, seconds; systemd wants its own time of a reload.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        environ: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A name in the abstract namespace begins with @.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._clock = clock
        self._monotonic = monotonic
        self._interval = _watchdog(environ) / 2
        self._next: IDelayedCall | None = None

    def ready(self) -> None:
        """Tell that the server takes work."""
        self._send("READY=1")
        if self._interval and self._next is None:
            self._turn()

    def reloading(self) -> None:
        """Tell that the settings are being read again; `ready` ends that."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={self._monotonic() * 1_000_000:.0f}")

    def stopping(self) -> None:
        """Tell that the server stops."""
        self._send("STOPPING=1")

    def stopService(self) -> None:
        """Send nothing more by itself."""
        super().stopService()
        following, self._next = self._next, None
        if following is not None:
            following.cancel()

    def _turn(self) -> None:
        self._send("WATCHDOG=1")
        self._next = self._clock.callLater(self._interval, self._turn)

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(text.encode(), self._address)
        except OSError as error:
            self._log.warn("systemd cannot be told {text}: {why}", text=text, why=error.strerror)


def _watchdog(environ: Mapping[str, str]) -> float:
    """Find within how many seconds systemd wants a sign of life; 0 for none."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if text.isascii() and text.isdigit() else 0.0
