"""The inbox: the values that pass between notifications and what keeps them, and the port between the two."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from zope.interface import Interface

from flowtx.errors import Conflict

MAX_PAYLOAD = 65_536
"""Bytes of a notification's payload."""


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


class Undeliverable(msgspec.Struct, frozen=True):
    """In the place of a notification that cannot be sent, in the form that clients get.

    Attributes:
        id: that of the notification.
        seq: that of the notification.
        reason: ``too_large`` or ``unencodable``.
    """

    id: str
    seq: int
    reason: str


class Push(msgspec.Struct, frozen=True):
    """A notification that is to be appended to inboxes.

    Attributes:
        user_ids: to whose; each once.
        type: e.g. ``deal.won``.
        payload: JSON.
        idempotency_key: what makes a repetition harmless for 24 hours, per user.
        expires_at: from when on it is neither listed nor sent.
        collapse_key: it takes the place of an unread one with the same key.
    """

    user_ids: tuple[str, ...]
    type: str
    payload: bytes
    idempotency_key: str | None = None
    expires_at: datetime | None = None
    collapse_key: str | None = None


class Pushed(msgspec.Struct, frozen=True):
    """A notification that is on disk."""

    user_id: str
    id: str
    seq: int


class Busy(msgspec.Struct, frozen=True):
    """Somebody else's transaction holds an inbox that a push is for; nothing of the push was stored."""


Outcome = tuple[Pushed, ...] | Conflict | Busy
"""What became of a push: where it is, in the order of its users; or why nothing of it was stored."""


class Want(msgspec.Struct, frozen=True):
    """A question for what follows in an inbox.

    Attributes:
        user_id: whose.
        after_seq: what follows this.
        unread_up_to: where it is set, only what is unread, and nothing after this seq.
    """

    user_id: str
    after_seq: int
    unread_up_to: int | None = None


class Page(msgspec.Struct, frozen=True):
    """What follows in an inbox; expired notifications are left out.

    Attributes:
        entries: in the order of seq.
        more: whether there are more.
        types: the patterns of types that the user has subscribed to; none for all types.
    """

    entries: Sequence[Notification | Undeliverable]
    more: bool
    types: tuple[str, ...] = ()


class Backlog(msgspec.Struct, frozen=True):
    """What a client that joins has not seen yet.

    Attributes:
        page: the first of it.
        unread: how many of the inbox are unread.
        last_seq: the highest seq of the inbox, 0 where it is empty.
        truncated: whether older ones were left out.
    """

    page: Page
    unread: int
    last_seq: int
    truncated: bool


class Listed(msgspec.Struct, frozen=True):
    """A page of the list of a user's notifications, the newest first.

    Attributes:
        notifications: the page; one that cannot be sent has the payload null.
        unread: how many of the inbox are unread.
        truncated: whether there are fewer than asked for because they are large.
    """

    notifications: Sequence[Notification]
    unread: int
    truncated: bool


class ReadMarks(msgspec.Struct, frozen=True):
    """Which notifications to mark as read: exactly one of the three is set."""

    ids: tuple[str, ...] | None = None
    up_to_seq: int | None = None
    all: bool = False


class Receipts(msgspec.Struct, frozen=True):
    """What clients have proved to have.

    Attributes:
        exact: users with the seqs of single notifications.
        up_to: users with a seq up to which they have all that was sent to them.
    """

    exact: Sequence[tuple[str, int]] = ()
    up_to: Sequence[tuple[str, int]] = ()


class Joining(NamedTuple):
    """Who asks for a backlog.

    Attributes:
        user_id: whose inbox.
        after_seq: what follows this; None for what is unread.
    """

    user_id: str
    after_seq: int | None


class INotificationStore(Interface):
    """Keeps the inboxes. All of its methods fail with `flowtx.errors.StorageError`."""

    def push(pushes: Sequence[Push], wait: bool) -> Awaitable[Sequence[Outcome]]:
        """Append to inboxes, in one transaction; each push to all of its users or to none.

        No two pushes have the same idempotency_key. Where ``wait`` is false no inbox is waited for
        that somebody else's transaction holds: the outcome is `Busy`.

        Fires once what is stored is on disk, with the outcomes in the order of ``pushes``. Fails with
        `flowtx.errors.InvalidPayload` where the database refuses a value; nothing is stored then.
        """

    def backlogs(asked: Sequence[Joining], limit: int, page_size: int) -> Awaitable[Sequence[Backlog]]:
        """Read, for each who joins, what follows ``after_seq``, or where it is None what is unread.

        Of more than ``limit`` the older ones are left out. Fires with the first page of the rest, for
        each of them.
        """

    def pages(wants: Sequence[Want], page_size: int) -> Awaitable[Sequence[Page]]:
        """Read a page for each want, of at most ``page_size`` entries and about 256 KiB."""

    def changed(since: str | None) -> Awaitable[tuple[str, frozenset[str] | None]]:
        """Find whose inbox grew since a mark that an earlier call gave; None sets the first mark.

        Fires with the new mark and the ids of the users, or None in their place where they are too
        many to name. A notification that commits later than another one with a higher mark is not
        skipped.
        """

    def mark_read(user_id: str, marks: ReadMarks) -> Awaitable[int]:
        """Mark notifications of one user as read; ids of others have no effect.

        Fires with the number of those still unread.
        """

    def list_page(user_id: str, before_seq: int | None, limit: int, unread: bool) -> Awaitable[Listed]:
        """Read the newest ``limit`` before a seq, only unread ones if asked; about 512 KiB at most."""

    def subscribe(user_id: str, add: Sequence[str], remove: Sequence[str]) -> Awaitable[tuple[str, ...]]:
        """Change the patterns of types that a user has subscribed to.

        Fires with those that there are then, sorted. Fails with `flowtx.errors.InvalidPayload` where
        there would be more than 100.
        """

    def mark_delivered(receipts: Receipts) -> Awaitable[None]:
        """Keep when notifications were first known to be received."""

    def find_undelivered(after_seconds: float, limit: int) -> Awaitable[int]:
        """Put what nobody got within that time into the list of the undelivered, once each.

        Fires with how many, at most ``limit``.
        """

    def sweep(max_age: float, max_count: int) -> Awaitable[int]:
        """Delete some of what need not be kept any more; a short transaction.

        What has expired, what is older than ``max_age`` seconds (0 for any age), what is beyond the
        newest ``max_count`` of its user (0 for any number), and idempotency keys of 24 hours.

        Fires with how many rows went; 0 when there are no more.
        """
