"""Calls about inboxes: push, list, mark as read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta
from twisted.web.iweb import IRequest

from flowtx.inbox import Notification, Pushed, ReadMarks
from flowtx.notifications.service import MAX_PAGE, MAX_USERS, NotificationService
from flowtx.web.api import Route
from flowtx.web.requests import (
    ApiError,
    Key,
    UserId,
    Word,
    answer,
    flag,
    invalid,
    number,
    read_body,
    user_id_of,
)


class PushBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /api/notifications``."""

    user_ids: Annotated[list[UserId], Meta(min_length=1)]
    type: Word
    payload: msgspec.Raw
    idempotency_key: Key | None = None
    expires_at: datetime | None = None
    collapse_key: Word | None = None


class ReadBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /api/users/USER/notifications/read``: exactly one of the three."""

    ids: Annotated[list[UUID], Meta(max_length=1_000)] | None = None
    up_to_seq: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    all: Literal[True] | None = None


class InboxCalls:
    """See the module.

    Args:
        notifications: the inboxes.
    """

    def __init__(self, notifications: NotificationService) -> None:
        self._notifications = notifications

    def routes(self) -> Iterator[Route]:
        """The calls."""
        yield Route("POST", "/api/notifications", self.push)
        yield Route("GET", "/api/users/<user_id>/notifications", self.notifications)
        yield Route("POST", "/api/users/<user_id>/notifications/read", self.read)

    async def push(self, request: IRequest) -> bytes:
        body = read_body(request, PushBody)
        if len(body.user_ids) > MAX_USERS:
            raise ApiError(
                413, "too_many_users", f"got {len(body.user_ids)} user_ids; a call takes {MAX_USERS}"
            )
        pushed = await self._notifications.push_notifications(
            body.user_ids,
            body.type,
            body.payload,
            body.idempotency_key,
            expires_at=body.expires_at,
            collapse_key=body.collapse_key,
        )
        return answer(request, 202, _PushedList(pushed))

    async def notifications(self, request: IRequest, user_id: str) -> bytes:
        listed = await self._notifications.list_notifications(
            user_id_of(user_id),
            number(request, "before_seq", default=None, least=0),
            number(request, "limit", default=MAX_PAGE, most=MAX_PAGE) or MAX_PAGE,
            unread=flag(request, "unread"),
        )
        return answer(request, 200, _NotificationList(listed.notifications, listed.unread, listed.truncated))

    async def read(self, request: IRequest, user_id: str) -> bytes:
        body = read_body(request, ReadBody)
        if sum(given is not None for given in (body.ids, body.up_to_seq, body.all)) != 1:
            invalid('it takes exactly one of "ids", "up_to_seq" and "all"')
        marks = ReadMarks(
            ids=None if body.ids is None else tuple(map(str, body.ids)),
            up_to_seq=body.up_to_seq,
            all=body.all is True,
        )
        unread = await self._notifications.mark_notifications_read(user_id_of(user_id), marks)
        return answer(request, 200, {"unread": unread})


class _PushedList(msgspec.Struct):
    notifications: Sequence[Pushed]


class _NotificationList(msgspec.Struct, omit_defaults=True):
    notifications: Sequence[Notification]
    unread: int
    truncated: bool = False
