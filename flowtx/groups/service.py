"""Groups: who may join ``group:<name>`` by the table of members, and who has lost that.

A user is a member of a group by a row of the table, or because their token says so in its claim
``groups``. Only the first is kept here: the second goes with the token.

Who joins by the table holds a `Place`. It is registered before the table is asked, so that no removal
falls between the answer and the join. Whenever members were taken away, and every few seconds
anyway, the table is asked again about all places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, TypeAlias

from twisted.internet.interfaces import IReactorTime

from flowtx.batches import Batches
from flowtx.errors import InvalidPayload
from flowtx.interfaces import IGroupStore

MAX_PAGE: Final = 100
MAX_CHECKED: Final = 1_000
"""Places that one query asks about."""

_NAME: Final = re.compile("[A-Za-z0-9_.:@-]{1,128}")

Pair: TypeAlias = tuple[str, str]
"""The name of a group and the id of a user."""


def group_topic(group: str) -> str:
    """Name the topic of a group."""
    return f"group:{group}"


def is_group_name(text: str) -> bool:
    """Whether a group can have that name: 1 to 128 of ``A-Z a-z 0-9 _ . : @ -``."""
    return _NAME.fullmatch(text) is not None


class Place:
    """What one channel has of a group: it may stay until the place is lost.

    Attributes:
        pair: the group and the user.
        on_lost: called once when the user is no member any more.
        lost: whether that has been so.
    """

    __slots__ = ("lost", "on_lost", "pair")

    def __init__(self, group: str, user_id: str, on_lost: Callable[[], object]) -> None:
        self.pair: Pair = (group, user_id)
        self.on_lost = on_lost
        self.lost = False


class Groups:
    """See the module.

    Args:
        store: keeps the members.
        clock: the time.
    """

    def __init__(self, store: IGroupStore, *, clock: IReactorTime) -> None:
        self._store = store
        self._batches: Batches[Pair, bool] = Batches(self._ask, clock)
        self._places: dict[Pair, dict[Place, None]] = {}

    # For everybody

    async def add_member(self, group: str, user_id: str) -> bool:
        """Add a user to a group; they can join it at once.

        Args:
            group: its name: 1 to 128 of ``A-Z a-z 0-9 _ . : @ -``. A group is there with its first member.
            user_id: the user.

        Returns:
            Whether that is news.

        Raises:
            InvalidPayload: an argument is not of that form.
            StorageError: the database cannot be asked.
        """
        _check(group, user_id)
        return await self._store.add(group, user_id)

    async def remove_member(self, group: str, user_id: str) -> bool:
        """Take a user out of a group, and send them away from its topic with ``phx_close``.

        Who has the group in the claim of their token stays a member by that.

        Args, Raises: see `add_member`.

        Returns:
            Whether that is news.
        """
        _check(group, user_id)
        removed = await self._store.remove(group, user_id)
        if removed:
            self._lose(tuple(self._places.get((group, user_id), ())))
        return removed

    async def members(self, group: str, *, after: str = "", limit: int = MAX_PAGE) -> Sequence[str]:
        """List the members that a group has by the table, in the order of their ids.

        Args:
            group: its name; one that nobody is in has no members.
            after: only those whose ids follow this one.
            limit: how many, at least 1.

        Raises:
            InvalidPayload, StorageError: see `add_member`.
        """
        _check(group)
        if limit < 1:
            raise InvalidPayload(f"limit: got {limit}; it takes 1 or more")
        return await self._store.members(group, after, limit)

    async def is_member(self, group: str, user_id: str) -> bool:
        """Tell whether a user is in a group by the table; see `add_member`."""
        _check(group, user_id)
        return await self._batches.answer((group, user_id))

    # For channels

    async def hold(self, place: Place) -> bool:
        """Take a place, until `release`; False, and no place, where the user is no member.

        Raises:
            StorageError: the database cannot be asked; there is no place either.
        """
        self._places.setdefault(place.pair, {})[place] = None
        held = False
        try:
            held = await self._batches.answer(place.pair) and not place.lost
        finally:
            if not held:
                self.release(place)
        return held

    def release(self, place: Place) -> None:
        """Give a place up; without effect where it is lost."""
        places = self._places.get(place.pair, {})
        places.pop(place, None)
        if not places:
            self._places.pop(place.pair, None)

    async def wake(self) -> None:
        """Ask the table about all places, and tell those that are lost.

        Raises:
            StorageError: the database cannot be asked.
        """
        # Those that come meanwhile ask for themselves.
        pending = iter([(pair, tuple(places)) for pair, places in self._places.items()])
        while batch := dict(islice(pending, MAX_CHECKED)):
            present = await self._store.present(tuple(batch))
            for pair, places in batch.items():
                if pair not in present:
                    self._lose(places)

    def _lose(self, places: Sequence[Place]) -> None:
        for place in places:
            if place in self._places.get(place.pair, ()):
                self.release(place)
                place.lost = True
                place.on_lost()

    async def _ask(self, pairs: Sequence[Pair]) -> list[bool]:
        present = await self._store.present(tuple(set(pairs)))
        return [pair in present for pair in pairs]


def _check(group: str, user_id: str | None = None) -> None:
    for name, text in (("group", group), ("user_id", user_id)):
        if text is not None and not _NAME.fullmatch(text):
            raise InvalidPayload(f"{name}: got {text[:140]!r}; it takes 1 to 128 of A-Z a-z 0-9 _ . : @ -")
