"""Who signs in: users and revocations are asked for many at a time, and users remembered for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import inf
from typing import Final

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from flowtx.batches import Batches
from flowtx.interfaces import IRevocations, IUserDirectory, Principal, User

FOUND_FOR: Final = 5.0
"""Seconds for which a user who was found is remembered."""
UNKNOWN_FOR: Final = 1.0
"""Seconds for which it is remembered that a user is unknown."""
MAX_REMEMBERED: Final = 10_000


@implementer(IUserDirectory)
class BatchedUserDirectory:
    """Asks another directory for many users at once, and remembers them for some seconds.

    Args:
        directory: the other one; what it says of a user hangs on nothing but the user's id.
        clock: the time.
    """

    def __init__(self, directory: IUserDirectory, *, clock: IReactorTime) -> None:
        self._directory = directory
        self._clock = clock
        self._batches = Batches(self._ask, clock)
        self._remembered: OrderedDict[str, tuple[User | None, float]] = OrderedDict()

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        found: dict[str, User | None] = {}
        unsure = {}
        for principal in principals:
            user_id = principal.user_id
            if self._remembers(user_id):
                found[user_id] = self._remembered[user_id][0]
            else:
                unsure[user_id] = principal
        if unsure:
            found.update(zip(unsure, await self._batches.answers(unsure.values()), strict=True))
        return {user_id: user for user_id, user in found.items() if user is not None}

    def _remembers(self, user_id: str) -> bool:
        _, until = self._remembered.get(user_id, (None, -inf))
        if until <= self._clock.seconds():
            self._remembered.pop(user_id, None)
            return False
        self._remembered.move_to_end(user_id)
        return True

    async def _ask(self, principals: Sequence[Principal]) -> list[User | None]:
        distinct = {principal.user_id: principal for principal in principals}
        found = await self._directory.load(tuple(distinct.values()))
        now = self._clock.seconds()
        for user_id in distinct:
            user = found.get(user_id)
            self._remembered[user_id] = user, now + (UNKNOWN_FOR if user is None else FOUND_FOR)
            self._remembered.move_to_end(user_id)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return [found.get(principal.user_id) for principal in principals]


@implementer(IRevocations)
class BatchedRevocations:
    """Asks other revocations about many tokens at once; remembers nothing.

    Args:
        revocations: the others.
        clock: the time.
    """

    def __init__(self, revocations: IRevocations, *, clock: IReactorTime) -> None:
        self._revocations = revocations
        self._batches = Batches(self._ask, clock)

    async def revoke(self, token_id: str | None = None, user_id: str | None = None) -> None:
        await self._revocations.revoke(token_id=token_id, user_id=user_id)

    async def revoked(self, principals: Sequence[Principal]) -> frozenset[Principal]:
        answers = await self._batches.answers(principals)
        return frozenset(
            principal for principal, is_revoked in zip(principals, answers, strict=True) if is_revoked
        )

    async def _ask(self, principals: Sequence[Principal]) -> list[bool]:
        revoked = await self._revocations.revoked(tuple(set(principals)))
        return [principal in revoked for principal in principals]
