"""Which processes work on a PostgreSQL cluster, and what an earlier server of it left behind."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path


def postmaster_status(cluster: Path) -> tuple[int, str] | None:
    """Read the cluster's ``postmaster.pid``.

    Returns:
        The process id and the status that the server gave last (``starting``, ``ready``, …); None
        without such a file or where it is not (yet) whole.
    """
    try:
        lines = (cluster / "postmaster.pid").read_text("utf-8", "replace").splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""
    except (FileNotFoundError, IndexError, ValueError):
        return None


def is_server_of(pid: int, cluster: Path) -> bool:
    """Tell whether a process is a PostgreSQL one that works on this cluster (its working directory).

    A number in a file proves nothing: after a crash it may be any other program's.
    """
    try:
        program = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        return os.path.basename(program) == "postgres" and os.path.samestat(
            os.stat(f"/proc/{pid}/cwd"), cluster.stat()
        )
    except OSError:
        return False


def servers_of(cluster: Path) -> list[int]:
    """Return the ids of all PostgreSQL processes that work on this cluster, of a dead postmaster too."""
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except FileNotFoundError:  # not on Linux
        return []
    return [pid for pid in numbers if is_server_of(pid, cluster)]


def signal_server(pid: int, cluster: Path, number: signal.Signals) -> bool:
    """Send a signal to a PostgreSQL process of this cluster, and to no other that took its number since.

    Returns:
        False where there is no such process any more.
    """
    try:
        handle = os.pidfd_open(pid)
    except OSError as problem:
        if problem.errno == errno.ESRCH:
            return False
        handle = -1  # a kernel without pidfd
    try:
        if not is_server_of(pid, cluster):
            return False
        if handle >= 0:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        return False
    finally:
        if handle >= 0:
            os.close(handle)
    return True


def drop_stale_lock(lock: Path, cluster: Path) -> None:
    """Remove a lock file of PostgreSQL's that names another program's process, or none.

    PostgreSQL takes any living process of its own user for its holder, so a number that was
    given anew (always so in a container) would keep it from starting for ever. A file that names a
    dead process is left for it to judge: it also looks at the shared memory noted there.
    """
    try:
        first_line = lock.read_text("utf-8", "replace").partition("\n")[0].strip()
    except FileNotFoundError:
        return
    if first_line:
        try:
            pid = abs(int(first_line))
        except ValueError:
            return  # PostgreSQL says what is wrong with it
        if not os.path.exists(f"/proc/{pid}") or is_server_of(pid, cluster):
            return
    elif servers_of(cluster):
        return
    lock.unlink(missing_ok=True)
