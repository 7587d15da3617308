"""The reactor on uvloop, for ``twistd --reactor=uvloop``.

It is Twisted's reactor on asyncio, with libuv's loop beneath it, which does the waiting and the timers in C.
That loop takes the wake-up for signals from Twisted, which would not hear of a child process's end any
more: the embedded PostgreSQL would never be found to have started, or to have crashed.
"""

from __future__ import annotations

import asyncio
import signal

import uvloop
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.main import installReactor
from twisted.internet.process import reapAllProcesses


class UvloopReactor(AsyncioSelectorReactor):
    """See the module."""

    def __init__(self) -> None:
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        super().__init__(loop)

    def startRunning(self, installSignalHandlers: bool = True) -> None:  # noqa: N803
        """Start, and look for child processes that have ended whenever one has."""
        super().startRunning(installSignalHandlers=installSignalHandlers)
        if installSignalHandlers:
            # The loop calls Python's handlers as soon as it is woken by the signal.
            signal.signal(signal.SIGCHLD, lambda *_: self.callFromThread(reapAllProcesses))
            signal.siginterrupt(signal.SIGCHLD, False)
            self.callFromThread(reapAllProcesses)  # of those that ended before


def install() -> None:
    """Make it the reactor of this process; called by ``twistd`` for the plugin of that name."""
    installReactor(UvloopReactor())
