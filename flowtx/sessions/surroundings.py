"""What a Session is given: its bounds, what all Sessions of a node share, the names of its topics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.interfaces import IReactorTime

from flowtx.interfaces import IPubSub, ISessionObserver, IUserDirectory

if TYPE_CHECKING:
    from flowtx.sessions.session import Session


class Limits(NamedTuple):
    """What bounds a Session; times in seconds.

    Attributes:
        reconnect_window: how long it waits for a user without a connection.
        idle_timeout: how long a connected user may do nothing.
        max_devices: how many connections one user may have.
    """

    reconnect_window: float = 30.0
    idle_timeout: float = 1_800.0
    max_devices: int = 20


@dataclass(slots=True)
class Surroundings:
    """What all Sessions of a node share, so that it can change for all.

    Attributes:
        directory: knows the users.
        observers: are told of each Session, in this order; of its end in reverse.
        pubsub: carries the broadcasts to a user.
        clock: the time, monotonic.
        limits: see `Limits`.
        restarted: called for each restart.
        given_up: called with the id of a user whose Session is given up.
        ended: called with a Session whose teardown has finished.
    """

    directory: IUserDirectory
    observers: Sequence[ISessionObserver]
    pubsub: IPubSub
    clock: IReactorTime
    limits: Limits
    restarted: Callable[[], None]
    given_up: Callable[[str], None]
    ended: Callable[[Session], None]


def user_topic(user_id: str) -> str:
    """Name the topic of a user's own events."""
    return f"user:{user_id}"


def socket_topic(user_id: str) -> str:
    """Name the topic on which ``disconnect`` closes all of a user's connections."""
    return f"users_socket:{user_id}"
