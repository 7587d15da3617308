"""``twistd`` with a bug planted: ``python -m tests.faults.planted BUG …``, the rest as for twistd.

What proves that the checker can tell: each bug must turn a run red.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import signature
from typing import Any, Final, NamedTuple

import psycopg2

from tests.faults.checker import Fault


def acknowledge_before_commit() -> None:
    """Have the database answer a COMMIT before it is on disk."""
    connect = psycopg2.connect

    def careless(*args: Any, **kwargs: Any) -> Any:
        return connect(*args, options="-c synchronous_commit=off", **kwargs)

    # Before txpostgres is imported, which keeps what it finds.
    psycopg2.connect = careless


def resume_from_too_low() -> None:
    """Resume two notifications before what the client has."""
    from flowtx.notifications.user_channel import UserChannel  # noqa: PLC0415

    join = UserChannel.join

    async def forgetful(self: UserChannel, payload: Any) -> Any:
        if payload and payload.get("last_seq", 0) > 2:
            payload = {**payload, "last_seq": payload["last_seq"] - 2}
        return await join(self, payload)

    UserChannel.join = forgetful  # type: ignore[method-assign]


def retry_without_key() -> None:
    """Take a push that is tried again for another one."""
    from flowtx.notifications.service import NotificationService  # noqa: PLC0415

    push = NotificationService.push_notifications
    parameters = signature(push)

    def keyless(*args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(*args, **kwargs)
        given.arguments["idempotency_key"] = None
        return push(*given.args, **given.kwargs)

    NotificationService.push_notifications = keyless  # type: ignore[method-assign]


class Bug(NamedTuple):
    """A bug, and what the checker must call it."""

    plant: Callable[[], None]
    fault: Fault


BUGS: Final = {
    "acknowledge-before-commit": Bug(acknowledge_before_commit, Fault.LOST),
    "resume-from-too-low": Bug(resume_from_too_low, Fault.DOUBLED),
    "retry-without-key": Bug(retry_without_key, Fault.DOUBLED),
}


def main() -> None:
    """Plant the bug that the first argument names, and become twistd."""
    BUGS[sys.argv.pop(1)].plant()
    from twisted.scripts.twistd import run  # noqa: PLC0415 - after the bug

    run()


if __name__ == "__main__":
    main()
