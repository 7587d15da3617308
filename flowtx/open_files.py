"""How many files this process may have open, of which each connection is one."""

from __future__ import annotations

import resource
from typing import Final

from twisted.logger import Logger

OTHERS: Final = 64
"""Files besides the clients' connections: the database, the log, the endpoints, the API's."""

_log = Logger()


def allow_open_files(sessions: int) -> None:
    """Take as many as the system gives, and log a line where they are too few.

    Args:
        sessions: how many Sessions the settings allow.
    """
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY and most < sessions + OTHERS:
        _log.warn(
            "--max-sessions: {sessions} Sessions need at least {needed} open files, and this process may "
            "have {most}; raise its limit (LimitNOFILE, ulimit -n), or lower --max-sessions",
            sessions=sessions,
            needed=sessions + OTHERS,
            most=most,
        )
