"""What a server's process uses, and where it may run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

_OF_ALL_THREADS: Final = 2  # with a process id, what clock_getcpuclockid(3) gives

CORES: Final = sorted(os.sched_getaffinity(0))
SERVER_CORES: Final = {CORES[0]} if len(CORES) > 1 else None
LOAD_CORES: Final = {CORES[1]} if len(CORES) > 1 else None
"""With one core there is nothing to choose."""


def cpu_seconds(pid: int) -> float:
    """Find the seconds of processor time, user and system, of all the threads that a process has had.

    It is what proc(5)'s ``stat`` has in hundredths of a second, to the nanosecond.
    """
    return time.clock_gettime(~pid << 3 | _OF_ALL_THREADS)


def memory(pid: int) -> int:
    """Find the bytes of memory of a process, its part of what it shares counted in (PSS)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))


def pin(pid: int, cores: set[int] | None) -> None:
    """Let all the threads of a process run on these cores only, and those that they start."""
    if cores is not None:
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)
