"""Calls about groups: who is in one, to add and to take away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta
from twisted.web.iweb import IRequest

from flowtx.groups.service import MAX_PAGE, Groups, is_group_name
from flowtx.web.api import Query, Route
from flowtx.web.requests import ApiError, answer, number, parameter, user_id_of


class GroupCalls:
    """See the module.

    Args:
        groups: knows the members.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def routes(self) -> Iterator[Route]:
        """The calls."""
        one = "/api/groups/<group>/members/<user_id>"
        yield Route(
            "GET",
            "/api/groups/<group>/members",
            self.members,
            scope="read",
            query=(
                Query("limit", Annotated[int, Meta(ge=1, le=MAX_PAGE)], "how many at the most"),
                Query("after", str, "only those after this user id"),
            ),
            answers={200: Members},
            errors=(404, 503),
        )
        yield Route("PUT", one, self.add, answers={200: Added}, errors=(404, 503))
        yield Route("DELETE", one, self.remove, answers={200: Removed}, errors=(404, 503))

    async def members(self, request: IRequest, group: str) -> bytes:
        """``GET /api/groups/NAME/members?limit&after``: who is in a group by the table.

        The answer is ``{"members": [USER, …], "next"}``, at most 100 in their order. ``next`` is what to
        give as ``after`` for those that follow, or null.
        """
        limit = number(request, "limit", default=MAX_PAGE, most=MAX_PAGE) or MAX_PAGE
        after = parameter(request, "after") or ""
        # One more than a page tells whether there is another one.
        found = await self._groups.members(_group(group), after=after, limit=limit + 1)
        return answer(request, 200, Members(found[:limit], found[limit - 1] if len(found) > limit else None))

    async def add(self, request: IRequest, group: str, user_id: str) -> bytes:
        """``PUT /api/groups/NAME/members/USER``: ``{"added": …}``, false where the user was in it."""
        added = await self._groups.add_member(_group(group), user_id_of(user_id))
        return answer(request, 200, Added(added))

    async def remove(self, request: IRequest, group: str, user_id: str) -> bytes:
        """``DELETE /api/groups/NAME/members/USER``: ``{"removed": …}``, false where they were not in it."""
        removed = await self._groups.remove_member(_group(group), user_id_of(user_id))
        return answer(request, 200, Removed(removed))


class Members(msgspec.Struct):
    members: Sequence[str]
    next: str | None


class Added(msgspec.Struct):
    added: bool


class Removed(msgspec.Struct):
    removed: bool


def _group(text: str) -> str:
    if not is_group_name(text):
        raise ApiError(404, "not_found", "no group can have such a name")
    return text
