"""Calls about presence: who is on a topic, and the status of many users at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta
from twisted.web.iweb import IRequest

from flowtx.presence.online import OnlineUsers
from flowtx.presence.presence import Presence
from flowtx.presence.state import Presences
from flowtx.presence.store import Seen
from flowtx.web.api import Query, Route
from flowtx.web.requests import ApiError, UserId, answer, number, parameter, read_body

MAX_PAGE: Final = 1_000
MAX_USERS: Final = 500


class StatusBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /api/presence/status``."""

    user_ids: Annotated[list[UserId], Meta(min_length=1)]


class PresenceCalls:
    """See the module.

    Args:
        presence: who is on which topic.
        users: who is online.
    """

    def __init__(self, presence: Presence, users: OnlineUsers) -> None:
        self._presence = presence
        self._users = users

    def routes(self) -> Iterator[Route]:
        """The calls."""
        yield Route(
            "GET",
            "/api/presence/<path:topic>",
            self.present,
            scope="read",
            query=(
                Query("limit", Annotated[int, Meta(ge=1, le=MAX_PAGE)], "how many keys at the most"),
                Query("after", str, "only the keys after this one"),
            ),
            answers={200: Present},
            errors=(404,),
        )
        yield Route(
            "POST",
            "/api/presence/status",
            self.statuses,
            scope="read",
            body=StatusBody,
            answers={200: Statuses},
            errors=(503,),
        )

    def present(self, request: IRequest, topic: str) -> bytes:
        """``GET /api/presence/TOPIC?limit&after``: who is on a topic of this node.

        TOPIC is percent-encoded where it has other characters than a path takes. The answer is
        ``{"topic", "presences": {KEY: {"metas": [META, …]}}, "next"}``, at most 1,000 keys in their
        order. ``next`` is what to give as ``after`` for those that follow, or null. Where nobody is,
        ``presences`` is empty, whether or not there is such a topic.
        """
        limit = number(request, "limit", default=MAX_PAGE, most=MAX_PAGE) or MAX_PAGE
        page, following = self._presence.page(topic, parameter(request, "after") or "", limit)
        return answer(request, 200, Present(topic, page, following))

    async def statuses(self, request: IRequest) -> bytes:
        """``POST /api/presence/status {"user_ids": […]}``: the status of up to 500 users.

        The answer is ``{"statuses": {USER: {"status", "last_seen"}}}`` with an entry for each user that
        was asked for: ``online``, ``away`` or ``offline``, and when the user was last seen, ISO 8601,
        UTC. That is now for those who are connected, when the last connection ended for those who may
        still come back within the reconnection window and for those who are offline, and null for who
        was never online.
        """
        user_ids = read_body(request, StatusBody).user_ids
        if len(user_ids) > MAX_USERS:
            raise ApiError(413, "too_many_users", f"got {len(user_ids)} user_ids; a call takes {MAX_USERS}")
        known = await self._users.statuses(user_ids)
        return answer(request, 200, Statuses({user_id: _shown(known, user_id) for user_id in user_ids}))


class Present(msgspec.Struct):
    topic: str
    presences: Presences
    next: str | None


class Status(msgspec.Struct):
    status: Literal["online", "away", "offline"]
    last_seen: str | None


class Statuses(msgspec.Struct):
    statuses: Mapping[str, Status]


def _shown(known: Mapping[str, Seen], user_id: str) -> Status:
    seen = known.get(user_id)
    if seen is None:
        return Status("offline", None)
    last_seen = datetime.fromtimestamp(seen.last_seen, UTC).isoformat(timespec="milliseconds")
    return Status(seen.status, last_seen.replace("+00:00", "Z"))
