"""The ports: what the layers ask of each other, and the values that pass through them."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from flowtx.protocol.close import Close
    from flowtx.protocol.message import Broadcast, Frame


class Principal(msgspec.Struct, frozen=True):
    """Whom a verified token names.

    Attributes:
        user_id: the claim ``sub``.
        expires_at: the claim ``exp``, seconds since the epoch.
        token_id: the claim ``jti``, or None.
        groups: the claim ``groups``.
        name: the claim ``name``, or None.
        email: the claim ``email``, or None.
        issued_at: the claim ``iat``, seconds since the epoch, or None.
    """

    user_id: str
    expires_at: float
    token_id: str | None = None
    groups: tuple[str, ...] = ()
    name: str | None = None
    email: str | None = None
    issued_at: float | None = None


class User(msgspec.Struct, frozen=True):
    """A user of the product, as its user directory knows them."""

    id: str
    name: str
    email: str | None


class Notification(msgspec.Struct, frozen=True):
    """One entry of a user's inbox, in the form that clients get.

    Attributes:
        id: a UUID.
        seq: 1, 2, 3… per user, without holes, in the order of commits.
        type: e.g. ``deal.won``.
        payload: JSON.
        inserted_at: ISO 8601, UTC.
        read_at: ISO 8601, UTC, or None while unread.
    """

    id: str
    seq: int
    type: str
    payload: msgspec.Raw
    inserted_at: str
    read_at: str | None


class Pushed(msgspec.Struct, frozen=True):
    """A notification that is on disk."""

    user_id: str
    id: str
    seq: int


class Backlog(msgspec.Struct, frozen=True):
    """What a client that joins has not seen yet.

    Attributes:
        notifications: in the order of seq.
        unread: how many of the inbox are unread.
        last_seq: the highest seq of the inbox, 0 where it is empty.
        truncated: whether older ones were left out.
    """

    notifications: Sequence[Notification]
    unread: int
    last_seq: int
    truncated: bool


class ReadMarks(msgspec.Struct, frozen=True):
    """Which notifications to mark as read: exactly one of the three is set."""

    ids: tuple[str, ...] | None = None
    up_to_seq: int | None = None
    all: bool = False


class FinishedSession(msgspec.Struct, frozen=True):
    """What is kept of a Session that has ended.

    Attributes:
        session_id: names it.
        user_id: whose it was.
        node: the node that it was on.
        connected_at: when it began, seconds since the epoch.
        ended_at: when it ended, seconds since the epoch.
        duration_seconds: how long it lasted, by a clock that nobody sets.
        reason: why it ended, one word.
        connections: how many connections it had.
        restarts: how many times it was restarted after a crash.
        messages_received: how many messages its clients sent.
    """

    session_id: str
    user_id: str
    node: str
    connected_at: float
    ended_at: float
    duration_seconds: float
    reason: str
    connections: int
    restarts: int
    messages_received: int


class IUserDirectory(Interface):
    """Knows the users of the product."""

    def load(principals: Sequence[Principal]) -> Awaitable[Mapping[str, User]]:
        """Look up the users whom ``principals`` name.

        Fires with the users found, by id; an id that is absent is unknown. Fails with
        `flowtx.errors.StorageError` where the directory cannot be asked.
        """


class INotificationStore(Interface):
    """Keeps the inboxes. All of its methods fail with `flowtx.errors.StorageError`."""

    def push(
        user_ids: Sequence[str], type_: str, payload: bytes, idempotency_key: str | None
    ) -> Awaitable[Sequence[Pushed]]:
        """Append to the inbox of each user, all or none.

        Fires once it is on disk, in the order of ``user_ids``. Fails with
        `flowtx.errors.Conflict` where the key was used for something else, and with
        `flowtx.errors.InvalidPayload` where the database refuses a value.
        """

    def backlog(user_id: str, after_seq: int | None, limit: int) -> Awaitable[Backlog]:
        """Read what follows ``after_seq``, or where it is None what is unread.

        Fires with the newest ``limit`` of them.
        """

    def after(cursors: Mapping[str, int], limit: int) -> Awaitable[Mapping[str, Sequence[Notification]]]:
        """Read what follows each user's seq: the first ``limit`` of each user, in the order of seq."""

    def changed(since: str | None) -> Awaitable[tuple[str, frozenset[str]]]:
        """Find whose inbox grew since a mark that an earlier call gave; None sets the first mark.

        Fires with the new mark and the ids of the users. A notification that commits later than
        another one with a higher mark is not skipped.
        """

    def mark_read(user_id: str, marks: ReadMarks) -> Awaitable[int]:
        """Mark notifications of one user as read; ids of others have no effect.

        Fires with the number of those still unread.
        """


class IRevocations(Interface):
    """Keeps which tokens are revoked. Its methods fail with `flowtx.errors.StorageError`."""

    def revoke(token_id: str | None = None, user_id: str | None = None) -> Awaitable[None]:
        """Revoke one token by its ``jti``, or all that a user has now; fires once that is on disk.

        Exactly one of the two is given. To do it again is no error; for a user, the later time counts.
        Fails with `flowtx.errors.InvalidPayload` where it can be no token's ``jti`` or user's id.
        """

    def revoked(principals: Sequence[Principal]) -> Awaitable[frozenset[Principal]]:
        """Fires with those of ``principals`` whose tokens are revoked.

        A user's revocation hits the tokens whose ``iat`` is in the second of the revocation or
        before it, and those without ``iat``: as ``iat`` counts whole seconds, a token made in the
        rest of that second cannot be told from an older one, and is revoked too.
        """


class IHistoryStore(Interface):
    """Keeps what there is to say of Sessions that have ended.

    Its methods fail with `flowtx.errors.StorageError`.
    """

    def add(sessions: Sequence[FinishedSession]) -> Awaitable[None]:
        """Keep them, all or none; one whose session_id is kept already stays as it is.

        Fires once they are on disk. Fails with `flowtx.errors.InvalidPayload` where a value of one
        of them cannot be kept, however often it is tried.
        """

    def latest(user_id: str, limit: int) -> Awaitable[Sequence[FinishedSession]]:
        """Fires with the last ``limit`` of a user's, the one that began last first."""


class ISessionObserver(Interface):
    """Is told of the life of Sessions."""

    def session_ready(session: Any) -> Awaitable[None]:
        """Called when a Session's user is known, before any client is let in; again after a restart."""

    def session_closing(session: Any) -> Awaitable[None]:
        """Called when a Session ends, after its last channel has ended."""


class IPubSub(Interface):
    """Carries broadcasts to the subscribers of a topic."""

    def subscribe(topic: str, subscriber: Subscriber) -> None:
        """Have ``subscriber`` get the broadcasts of ``topic``; at most once, however often called."""

    def unsubscribe(topic: str, subscriber: Subscriber) -> None:
        """Undo `subscribe`; without effect where there is nothing to undo."""

    def broadcast(broadcast: Broadcast, sender: Subscriber | None = None) -> int:
        """Deliver to all subscribers but ``sender``; the number of those on this node."""


class ITransport(Interface):
    """Carries a Socket: one connection to one client."""

    address = Attribute("The client's address, for people to read.")
    user_agent = Attribute("What the client calls itself, or an empty text.")
    waiting_bytes = Attribute("How many bytes wait to be sent.")

    def send(frame: Frame) -> None:
        """Send, or queue within bounds; without effect once closed."""

    def close(close: Close) -> None:
        """Close with a code and a reason; what still waits to be sent is given up."""

    def pause_reading() -> None:
        """Take nothing more from the client for now."""

    def resume_reading() -> None:
        """Undo `pause_reading`."""


class Subscriber(Protocol):
    """What a broadcast is delivered to. Must not raise."""

    def deliver(self, broadcast: Broadcast) -> None: ...
