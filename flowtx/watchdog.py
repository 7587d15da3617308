"""The watchdog: a thread that sees when the event loop does not turn any more.

A callback that blocks, for ever or for long, keeps the server from everything else: no heartbeat is
answered, no signal is heeded. After ``seconds`` of that the stacks of all threads are logged, once, so that
the culprit can be found. After three times as long the process aborts (SIGABRT), with the stacks on standard
error: whatever runs it starts it again. Nothing that a client was promised is lost by that.

It counts the time in its own short naps. A process that was stopped (SIGSTOP), or a machine that slept,
has not had its loop stuck, and only one nap of it counts.

Code in C that never lets go of the interpreter's lock stops this thread too. systemd's watchdog sees that.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

ABORT_AFTER: Final = 3
"""Times the seconds after which the stacks are logged."""
MAX_DUMP: Final = 32_768
"""Bytes of the stacks that are logged."""
_LONGEST_NAP: Final = 0.5


class Watchdog(Service):
    """See the module.

    Args:
        seconds: for which the loop may be stuck before all stacks are logged.
        reactor: the loop; it counts from when it runs.
    """

    _log = Logger()

    def __init__(self, seconds: float, *, reactor: Any) -> None:
        self._seconds = seconds
        self._nap = min(_LONGEST_NAP, seconds / 10)
        self._reactor = reactor
        self._beats = 0
        self._timer: IDelayedCall | None = None
        self._stopped = threading.Event()

    def startService(self) -> None:
        """Begin to watch."""
        super().startService()
        if sys.__stderr__ is not None:
            with suppress(OSError, ValueError, AttributeError):  # there may be no such file any more
                faulthandler.enable(sys.__stderr__)
        self._stopped.clear()
        self._reactor.callWhenRunning(self._begin)

    def stopService(self) -> None:
        """Watch no more."""
        super().stopService()
        self._stopped.set()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _begin(self) -> None:
        if self.running:
            self._beat()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _beat(self) -> None:
        self._beats += 1
        self._timer = self._reactor.callLater(self._nap, self._beat)

    # In the thread

    def _watch(self) -> None:
        seen, stuck, told = self._beats, 0.0, False
        before = time.monotonic()
        while not self._stopped.wait(self._nap):
            now = time.monotonic()
            napped, before = min(now - before, 2 * self._nap), now
            if self._beats != seen:
                if told:
                    self._log.warn("The event loop turns again, after {seconds:.1f} s", seconds=stuck)
                seen, stuck, told = self._beats, 0.0, False
                continue
            stuck += napped
            if stuck >= self._seconds and not told:
                told = True
                # Its own thread: the log may be what the loop is stuck in.
                threading.Thread(target=self._tell, args=(stuck, stacks()), daemon=True).start()
            if stuck >= ABORT_AFTER * self._seconds:
                os.kill(os.getpid(), signal.SIGABRT)

    def _tell(self, seconds: float, dump: str) -> None:
        self._log.critical(
            "The event loop has been stuck for {seconds:.1f} s; the process is aborted after {limit:.1f} s. "
            "All stacks, the newest call first:",
            seconds=seconds,
            limit=ABORT_AFTER * self._seconds,
        )
        for line in dump.splitlines():
            self._log.critical("{line}", line=line)


def stacks() -> str:
    """Write down the stacks of all threads."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read(MAX_DUMP).decode("utf-8", "replace")
