"""Signals: whoever sends a second SIGTERM or Ctrl-C does not want to wait for the orderly end."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Final

from twisted.logger import Logger

EXIT_AT_ONCE: Final = 1
"""The exit status; the orderly end has the signal's own, or 0."""

_log = Logger()


def ignore_user_signals() -> None:
    """Have SIGUSR1 and SIGUSR2 do nothing where nobody handles them, instead of ending the process.

    twistd rotates its log at a SIGUSR1, if it has a file for it; and who knows that sends it to any twistd.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


def end_at_next_signal() -> None:
    """End the process at once, with exit status 1, when SIGINT or SIGTERM comes from now on.

    Nothing is waited for: what was not yet written is lost, and clients see their connection break. An
    embedded PostgreSQL notices that this process has gone, and stops in order.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    name = signal.Signals(number).name
    text = f"ended at once by a second {name}; what was not yet written is lost"
    # It may have come amid the writing of another line.
    with suppress(Exception):
        _log.critical("flowtx {text}", text=text)
    with suppress(Exception):
        print(f"flowtx: {text}", file=sys.__stderr__, flush=True)
    os._exit(EXIT_AT_ONCE)
