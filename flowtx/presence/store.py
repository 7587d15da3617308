"""What is kept of users' presence: the values, and the port to the store that keeps them.

For each user the store has one row: the status that was told last, when the user was last seen, and by
which node that was told. For each change between online and offline it has an event.

A node is told apart from itself in an earlier life: each run of it is an *instance*, which tells the
store every few seconds that it lives. What an instance told holds until one of these:

- It tells something else.
- It stops in order. Its users then have the reconnection window to be told of again, by its next run
  or by another node; those who are not become offline when the window ends.
- Nothing is heard of it any more, since its process was killed or its machine has gone. Any other
  instance finds that out, its own next run too, and gives its users the window from then on.

So a restart that is faster than the window leaves no event of the users who come back in time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

import msgspec
from zope.interface import Interface

Status: TypeAlias = Literal["online", "away", "offline"]

SILENCE: Final = 10.0
"""Seconds without a word from an instance after which it is taken for dead."""


class Instance(msgspec.Struct, frozen=True):
    """One run of a node.

    Attributes:
        id: names it, and no other one, ever.
        node: the name of the node, for people; it is the same after a restart.
    """

    id: str
    node: str


class PresenceChange(msgspec.Struct, frozen=True):
    """A user's status is another one now.

    Attributes:
        user_id: whose.
        status: the new one.
        age: how many seconds ago that happened.
        seen_age: how many seconds ago the user was last seen.
    """

    user_id: str
    status: Status
    age: float
    seen_age: float


class PresenceEvent(msgspec.Struct, frozen=True):
    """A user came online or went offline.

    Attributes:
        id: grows in the order of commits: who has read up to one has missed none before it.
        user_id: who.
        event: what.
        node: the node that the user came to, or was last on.
        at: when, seconds since the epoch.
    """

    id: int
    user_id: str
    event: Literal["online", "offline"]
    node: str
    at: float


class Seen(msgspec.Struct, frozen=True):
    """What the store knows of a user.

    Attributes:
        status: the user's.
        last_seen: when the user was last seen, seconds since the epoch; about now for one who is here.
    """

    status: Status
    last_seen: float


class IPresenceStore(Interface):
    """See the module. Its methods fail with `flowtx.errors.StorageError`; times are the store's own."""

    def record(instance: Instance, attempt: int, changes: Sequence[PresenceChange]) -> Awaitable[bool]:
        """Keep changes, all or none.

        Each user is in there once. A change to online of a user who is not offline is no event, and a
        change to offline has effect only where this instance told of the user last. What happened
        before another instance told that the user is with it, as they still are, is no news: it may
        have been told before, without an answer. ``attempt`` grows from call to call; one that comes
        after a higher one has no effect.

        Fires with whether the instance is known, which `beat` makes it; if not, nothing is kept.
        """

    def beat(instance: Instance, window: float, silence: float = SILENCE) -> Awaitable[bool]:
        """Say that the instance lives; see to the users of dead ones, and to those whose time is up.

        Args:
            instance: the instance.
            window: seconds that users of a dead instance are given.
            silence: seconds after which an instance is taken for dead.

        Fires with whether this instance is to tell of its users again: it was not known, or taken for
        dead, or another one has gone for good, which may have told last of users who are here too.
        """

    def leave(instance: Instance, window: float, *, for_good: bool = True) -> Awaitable[None]:
        """Give the users of an instance so many seconds to be told of again; it is forgotten.

        Where that is not ``for_good``, it tells of them again itself, at once.
        """

    def seen(user_ids: Sequence[str], asking: str) -> Awaitable[Mapping[str, Seen]]:
        """Fires with what is known of users, by id.

        ``asking`` is the id of the instance that asks, of whose own users it knows better: those whom
        it told of last are offline.
        """

    def events(after: int, limit: int) -> Awaitable[Sequence[PresenceEvent]]:
        """Fires with the first ``limit`` events after an id, in their order."""

    def sweep(max_age: float) -> Awaitable[int]:
        """Delete some events older than that many seconds; fires with how many, 0 when there are no more."""
