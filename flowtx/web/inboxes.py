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
from flowtx.web.api import Query, Route
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
        yield Route(
            "POST",
            "/api/notifications",
            self.push,
            scope="notify",
            body=PushBody,
            answers={202: PushedList},
            errors=(409, 503),
        )
        yield Route(
            "GET",
            "/api/users/<user_id>/notifications",
            self.notifications,
            scope="read",
            query=(
                Query("before_seq", Annotated[int, Meta(ge=0, le=2**63 - 1)], "only those before this seq"),
                Query("limit", Annotated[int, Meta(ge=1, le=MAX_PAGE)], "how many at the most"),
                Query("unread", bool, "only those that are unread"),
            ),
            answers={200: NotificationList},
            errors=(404, 503),
        )
        yield Route(
            "POST",
            "/api/users/<user_id>/notifications/read",
            self.read,
            body=ReadBody,
            answers={200: Unread},
            errors=(404, 503),
        )

    async def push(self, request: IRequest) -> bytes:
        """Push a notification to up to 10,000 users; answered once it is on disk.

        All of them get it or none. ``idempotency_key`` makes a repetition harmless for 24 hours; with
        another body it is a conflict.
        """
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
        return answer(request, 202, PushedList(pushed))

    async def notifications(self, request: IRequest, user_id: str) -> bytes:
        """List a user's notifications, the newest first."""
        listed = await self._notifications.list_notifications(
            user_id_of(user_id),
            number(request, "before_seq", default=None, least=0),
            number(request, "limit", default=MAX_PAGE, most=MAX_PAGE) or MAX_PAGE,
            unread=flag(request, "unread"),
        )
        return answer(request, 200, NotificationList(listed.notifications, listed.unread, listed.truncated))

    async def read(self, request: IRequest, user_id: str) -> bytes:
        """Mark a user's notifications as read: exactly one of the three says which."""
        body = read_body(request, ReadBody)
        if sum(given is not None for given in (body.ids, body.up_to_seq, body.all)) != 1:
            invalid('it takes exactly one of "ids", "up_to_seq" and "all"')
        marks = ReadMarks(
            ids=None if body.ids is None else tuple(map(str, body.ids)),
            up_to_seq=body.up_to_seq,
            all=body.all is True,
        )
        unread = await self._notifications.mark_notifications_read(user_id_of(user_id), marks)
        return answer(request, 200, Unread(unread))


class PushedList(msgspec.Struct):
    notifications: Sequence[Pushed]


class Unread(msgspec.Struct):
    unread: int


class NotificationList(msgspec.Struct, omit_defaults=True):
    notifications: Sequence[Notification]
    unread: int
    truncated: bool = False
