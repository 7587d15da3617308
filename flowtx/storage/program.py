"""Child processes: their output, their end, and the signals that end them."""

from __future__ import annotations

import os
import re
import signal
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from flowtx.errors import StartupError
from flowtx.oneshot import OneShot

#: How many lines of a program's output are kept, to tell what it complained about.
_REMEMBERED_LINES = 50
#: The longest line of output that is kept, in bytes; the rest of a longer one is dropped.
_LONGEST_LINE = 8192
#: How long a program that is to end by itself may take, in seconds.
_RUN_PATIENCE = 120.0
_STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Program(ProcessProtocol):
    """One child process: its output, its end, and the signals that end it.

    Attributes:
        exited: happens when the process is gone, though others may still hold its pipes.
        drained: happens when the process is gone and all that it wrote has been read.
        lines: the last lines of its output, at most 50.
        exit_code: what it returned; None while it runs and where a signal ended it.
        outcome: how it ended, in words, e.g. ``exit code 1`` or ``signal 9``.
        heard_at: when it last wrote something, by the reactor's clock, in seconds.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        log: Callable[[bytes], None],
        *,
        stdin: bytes,
        ending: tuple[signal.Signals, signal.Signals],
        patience: float,
    ) -> None:
        self._reactor = reactor
        self._log = log
        self._stdin = stdin
        self._ending = ending
        self._patience = patience
        self._escalation: IDelayedCall | None = None
        self._partial = b""
        self.exited = OneShot()
        self.drained = OneShot()
        self.lines: deque[str] = deque(maxlen=_REMEMBERED_LINES)
        self.exit_code: int | None = None
        self.outcome = "still running"
        self.heard_at = reactor.seconds()
        self.pid = 0

    def end(self) -> Deferred[None]:
        """Ask the process to end, and more firmly once its patience has run out.

        Returns:
            A Deferred that fires with None once it has exited. Cancelling it stops the waiting only.
        """
        if not self.exited.fired and self._escalation is None:
            first, second = self._ending
            self._signal(first)
            self._escalation = self._reactor.callLater(self._patience, self._signal, second)
        return self.exited.when_fired()

    def _signal(self, number: signal.Signals) -> None:
        if self.transport is None:
            return
        with suppress(ProcessExitedAlready):  # its end is about to be told
            self.transport.signalProcess(int(number))

    def connectionMade(self) -> None:  # noqa: N802
        """Give the process its input, and the end of it."""
        if self.transport is None:
            return
        self.pid = self.transport.pid or 0
        if self._stdin:
            self.transport.writeToChild(0, self._stdin)
        self.transport.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N802, N803, ARG002
        """Pass the output on to the log and keep its last lines."""
        self.heard_at = self._reactor.seconds()
        self._log(data)
        *whole, partial = (self._partial + data).split(b"\n")
        self._partial = partial[:_LONGEST_LINE]
        self.lines.extend(
            line[:_LONGEST_LINE].decode("utf-8", "backslashreplace") for line in whole if line.strip()
        )

    def processExited(self, reason: Failure) -> None:
        """Note how it ended."""
        if self._escalation is not None and self._escalation.active():
            self._escalation.cancel()
        ended = reason.value
        if isinstance(ended, ProcessDone):
            self.exit_code, self.outcome = 0, "exit code 0"
        else:
            self.exit_code = getattr(ended, "exitCode", None)
            number = getattr(ended, "signal", None)
            self.outcome = f"exit code {self.exit_code}" if number is None else f"signal {number}"
        self.exited.fire()

    def processEnded(self, reason: Failure) -> None:  # noqa: ARG002
        """Keep a last line that had no end."""
        if self._partial.strip():
            self.lines.append(self._partial.decode("utf-8", "backslashreplace"))
            self._partial = b""
        self.drained.fire()


class Programs:
    """Starts programs, one after the other, and owns the one that runs.

    Args:
        reactor: provides IReactorTime and IReactorProcess.
        log: is given all output, in pieces as they come.
    """

    def __init__(self, reactor: IReactorTime, log: Callable[[bytes], None]) -> None:
        self._reactor = reactor
        self._log = log
        self._current: Program | None = None

    def spawn(
        self,
        argv: Sequence[str],
        directory: Path,
        *,
        stdin: bytes = b"",
        ending: tuple[signal.Signals, signal.Signals] = (signal.SIGTERM, signal.SIGKILL),
        patience: float = 10.0,
    ) -> Program:
        """Start a program, without a shell and with an environment that holds none of libpq's variables.

        Args:
            argv: the program and its arguments.
            directory: where it runs.
            stdin: its input.
            ending: the signals that end it, the second one where the first has no effect.
            patience: how long the first one is given, in seconds.

        Raises:
            OSError: no process can be made.
        """
        program = Program(self._reactor, self._log, stdin=stdin, ending=ending, patience=patience)
        path = os.pathsep.join(filter(None, [os.environ.get("PATH"), _STANDARD_PATH]))
        # LC_ALL: its complaints are read by last_complaint, so they have to come in English.
        environment = {"PATH": path, "LC_ALL": "C"} | {k: v for k, v in os.environ.items() if k == "TZ"}
        words = [os.fsencode(word) for word in argv]
        process = IReactorProcess(self._reactor)
        process.spawnProcess(program, words[0], words, environment, os.fsencode(directory))
        self._current = program
        return program

    async def run(self, argv: Sequence[str], directory: Path, stdin: bytes = b"") -> Program:
        """Run a program to its end, whatever that is.

        Cancelling ends the program, and waits for that.

        Raises:
            StartupError: it did not end in time.
            OSError: no process can be made.
        """
        program = self.spawn(argv, directory, stdin=stdin)
        try:
            await program.drained.when_fired().addTimeout(_RUN_PATIENCE, self._reactor)
        except TimeoutError:
            await program.end()
            raise StartupError(f"{' '.join(argv)} took more than {_RUN_PATIENCE:.0f} s") from None
        except CancelledError:
            await program.end()
            raise
        return program

    async def run_well(self, argv: Sequence[str], directory: Path, stdin: bytes = b"") -> None:
        """Run a program that has to succeed.

        Raises:
            StartupError: it failed, or did not end in time.
            OSError: no process can be made.
        """
        program = await self.run(argv, directory, stdin)
        if program.exit_code != 0:
            raise StartupError(
                f"the embedded PostgreSQL cannot be set up: {last_complaint(program.lines)} "
                f"({program.outcome} of {' '.join(argv)})"
            )

    async def end(self) -> None:
        """End the program that runs, if one does, and wait for that."""
        if self._current is not None:
            await self._current.end()


def last_complaint(lines: Sequence[str]) -> str:
    """Return the text of the last error in a program's output, else its last line."""
    for line in reversed(lines):
        if found := re.search(r"(?:FATAL|PANIC|ERROR|error):\s*(.+)", line):
            return found[1].strip()
    return lines[-1].strip() if lines else "it said nothing"
