"""Bugs, each of which must turn a run red: what proves that the simulation can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

import flowtx.transports.factory
from flowtx.channels.tokens import Renewal
from flowtx.errors import StorageError
from flowtx.inbox import Backlog, Push, Pushed
from flowtx.notifications.delivery import Delivery
from flowtx.notifications.pushing import Pushing
from flowtx.notifications.reader import Client, Reader
from flowtx.notifications.service import NotificationService
from flowtx.notifications.user_channel import UserChannel
from flowtx.presence.tracker import Tracker
from flowtx.sessions.machine import ENDING
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Session
from flowtx.storage.listener import Listener
from flowtx.storage.slot import SETUP, Slot
from flowtx.transports.outbox import Bounds
from flowtx.transports.websocket import FlowProtocol
from tests.faults.planted import resume_from_too_low, retry_without_key

Patch = tuple[object, str, object]


def acknowledge_before_commit() -> list[Patch]:
    """Answer a push at once, whatever becomes of it."""
    push = Pushing.push

    def hasty(self: Pushing, pushed: Push) -> Deferred[Sequence[Pushed]]:
        push(self, pushed).addErrback(lambda _: None)
        return succeed([])

    return [(Pushing, "push", hasty)]


def acknowledge_what_is_unknown() -> list[Patch]:
    """Take a push for stored of which nobody knows."""
    push = Pushing.push

    def hoped(failure: Failure) -> list[Pushed]:
        failure.trap(StorageError)
        return []

    return [(Pushing, "push", lambda self, pushed: push(self, pushed).addErrback(hoped))]


def resume_too_high() -> list[Patch]:
    """Resume one notification after what the client has."""
    join = UserChannel.join

    async def skipping(self: UserChannel, payload: Any) -> Any:
        if payload and payload.get("last_seq"):
            payload = {**payload, "last_seq": payload["last_seq"] + 1}
        return await join(self, payload)

    return [(UserChannel, "join", skipping)]


def no_handshake_guard() -> list[Patch]:
    """Open a connection whose client left before its handshake was decided."""
    closed = FlowProtocol.onClose

    def oblivious(self: FlowProtocol, *args: Any) -> None:
        self._deciding = None
        closed(self, *args)

    return [(FlowProtocol, "_is_late", lambda self: False), (FlowProtocol, "onClose", oblivious)]


def no_outbox_limit() -> list[Patch]:
    """Keep whatever a client does not read."""

    def boundless(limit: int, *others: Any) -> Bounds:
        return Bounds(1_000 * limit, *others)

    return [(flowtx.transports.factory, "Bounds", boundless)]


def listen_only_once() -> list[Patch]:
    """Do not LISTEN again on a new connection, and do not look without being woken."""
    drop = Slot._drop

    def forgetful(self: Slot, reason: str) -> None:
        self._setup = SETUP
        drop(self, reason)

    return [(Slot, "_drop", forgetful), *no_poll()]


def no_poll() -> list[Patch]:
    """Do not look without being woken."""
    init = Listener.__init__

    def patient(self: Listener, *args: Any, **options: Any) -> None:
        init(self, *args, **{**options, "poll_interval": 86_400.0})

    return [(Listener, "__init__", patient)]


def no_presence_leaves() -> list[Patch]:
    """Tell nobody who has left."""
    return [(Tracker, "untrack", lambda self, topic, key, ref: None)]


def backlog_before_watching() -> list[Patch]:
    """Watch an inbox only after its backlog was read."""
    begin = Delivery.begin

    def unwatched(self: Delivery, user_id: str, client: Client) -> Reader:
        return Reader(user_id, client)

    async def late(self: Delivery, reader: Reader, after_seq: int | None) -> Backlog:
        backlog = await begin(self, reader, after_seq)
        if not reader.closed:
            self._readers.setdefault(reader.user_id, {})[reader] = None
        return backlog

    return [(Delivery, "open", unwatched), (Delivery, "begin", late)]


def two_sessions() -> list[Patch]:
    """Free a user's name before the Session has ended."""
    end = Session._end

    def early(self: Session, *args: Any) -> None:
        before = self.state
        end(self, *args)
        if before not in ENDING and self.state in ENDING and self.parent is not None:
            cast("SessionService", self.parent).removeService(self)

    def once(self: SessionService, service: Any) -> None:
        name = service.name
        if self.namedServices.get(name) is service:
            del self.namedServices[name]

    return [(Session, "_end", early), (SessionService, "removeService", once)]


def tokens_never_end() -> list[Patch]:
    """Keep a connection open however long ago its token has ended."""
    return [(Renewal, "_note_end", lambda self: None)]


def _of_the_fault_test(plant: Callable[[], None], where: object, name: str) -> Callable[[], list[Patch]]:
    """Take a bug that is planted for good, to be taken out again."""

    def patches() -> list[Patch]:
        before = getattr(where, name)
        plant()
        after = getattr(where, name)
        setattr(where, name, before)
        return [(where, name, after)]

    return patches


BUGS: Final[dict[str, Callable[[], list[Patch]]]] = {
    "acknowledge-before-commit": acknowledge_before_commit,
    "acknowledge-what-is-unknown": acknowledge_what_is_unknown,
    "resume-from-too-low": _of_the_fault_test(resume_from_too_low, UserChannel, "join"),
    "resume-from-too-high": resume_too_high,
    "retry-without-key": _of_the_fault_test(retry_without_key, NotificationService, "push_notifications"),
    "backlog-before-watching": backlog_before_watching,
    "no-handshake-guard": no_handshake_guard,
    "no-outbox-limit": no_outbox_limit,
    "listen-only-once": listen_only_once,
    "no-poll": no_poll,
    "no-presence-leaves": no_presence_leaves,
    "two-sessions": two_sessions,
    "tokens-never-end": tokens_never_end,
}


@contextmanager
def planted(bug: str) -> Iterator[None]:
    """Have a bug, for a while."""
    patches = BUGS[bug]()
    before = [(where, name, getattr(where, name)) for where, name, _ in patches]
    for where, name, value in patches:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)
