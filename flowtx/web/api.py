"""The HTTP API for backends and operators: JSON, with an API key."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from heapq import nsmallest
from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

import msgspec
from klein import Klein
from msgspec import Meta
from prometheus_client import CONTENT_TYPE_LATEST
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource

from flowtx.inbox import Notification, Pushed, ReadMarks
from flowtx.interfaces import IPubSub
from flowtx.metrics import Metrics
from flowtx.notifications.service import MAX_USERS, NotificationService
from flowtx.protocol.message import Broadcast
from flowtx.sessions.inspection import SessionInfo, describe
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import socket_topic
from flowtx.web.requests import (
    ApiError,
    Key,
    UserId,
    Word,
    answer,
    as_api_error,
    flag,
    invalid,
    number,
    parameter,
    read_body,
)
from flowtx.web.site import Page

MAX_PAGE: Final = 100
_USER_ID: Final = re.compile("[A-Za-z0-9_.:@-]{1,128}")

_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


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


class RevokeBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /api/tokens/revoke``: one of the two."""

    jti: Key | None = None
    user_id: UserId | None = None


class Api:
    """The routes.

    Args:
        notifications: where pushes go.
        sessions: the Sessions.
        pubsub: carries ``disconnect``.
        metrics: what ``/metrics`` shows.
        clock: the time that Sessions go by.
        api_key: what ``Authorization: Bearer`` must carry.
        is_ready: tells whether the server takes work.
        pages: files by name; ``index.html`` is served as ``/``.
    """

    _app = Klein()
    _log = Logger()

    def __init__(
        self,
        notifications: NotificationService,
        sessions: SessionService,
        *,
        pubsub: IPubSub,
        metrics: Metrics,
        clock: IReactorTime,
        api_key: str,
        is_ready: Callable[[], bool],
        pages: dict[str, Page],
    ) -> None:
        self._notifications = notifications
        self._sessions = sessions
        self._pubsub = pubsub
        self._metrics = metrics
        self._clock = clock
        self._api_key = api_key.encode()
        self._is_ready = is_ready
        self._pages = pages

    def resource(self) -> IResource:
        """What serves the routes."""
        return cast("IResource", self._app.resource())

    @_app.route("/api/notifications", methods=["POST"])
    async def push(self, request: IRequest) -> bytes:
        self._authorize(request)
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

    @_app.route("/api/users/<user_id>/notifications", methods=["GET"])
    async def notifications(self, request: IRequest, user_id: str) -> bytes:
        self._authorize(request)
        listed = await self._notifications.list_notifications(
            _known_form(user_id),
            number(request, "before_seq", default=None, least=0),
            number(request, "limit", default=MAX_PAGE, most=MAX_PAGE) or MAX_PAGE,
            unread=flag(request, "unread"),
        )
        return answer(request, 200, _NotificationList(listed.notifications, listed.unread, listed.truncated))

    @_app.route("/api/users/<user_id>/notifications/read", methods=["POST"])
    async def read(self, request: IRequest, user_id: str) -> bytes:
        self._authorize(request)
        body = read_body(request, ReadBody)
        if sum(given is not None for given in (body.ids, body.up_to_seq, body.all)) != 1:
            invalid('it takes exactly one of "ids", "up_to_seq" and "all"')
        marks = ReadMarks(
            ids=None if body.ids is None else tuple(map(str, body.ids)),
            up_to_seq=body.up_to_seq,
            all=body.all is True,
        )
        unread = await self._notifications.mark_notifications_read(_known_form(user_id), marks)
        return answer(request, 200, {"unread": unread})

    @_app.route("/api/sessions", methods=["GET"])
    def sessions(self, request: IRequest) -> bytes:
        self._authorize(request)
        limit = number(request, "limit", default=MAX_PAGE, most=MAX_PAGE) or MAX_PAGE
        after = parameter(request, "after") or ""
        # Pages by user id: Sessions that come and go meanwhile make no other one appear twice.
        page = nsmallest(limit + 1, (user for user in self._sessions.namedServices if user > after))
        listed = [self._describe(user_id) for user_id in page[:limit]]
        following = page[limit - 1] if len(page) > limit else None
        return answer(request, 200, _SessionList(listed, following))

    @_app.route("/api/sessions/<user_id>", methods=["GET"])
    def session(self, request: IRequest, user_id: str) -> bytes:
        self._authorize(request)
        return answer(request, 200, self._describe(user_id))

    @_app.route("/api/sessions/<user_id>", methods=["DELETE"])
    async def stop_session(self, request: IRequest, user_id: str) -> bytes:
        self._authorize(request)
        if not await self._sessions.stop_session(user_id):
            raise _no_session(user_id)
        return answer(request, 200, {"stopped": True})

    @_app.route("/api/sessions/<user_id>/connections/<connection_id>", methods=["DELETE"])
    def close_connection(self, request: IRequest, user_id: str, connection_id: str) -> bytes:
        self._authorize(request)
        if not self._sessions.close_connection(user_id, connection_id):
            raise ApiError(404, "not_found", "that user has no such connection here")
        return answer(request, 200, {"closed": True})

    @_app.route("/api/users/<user_id>/disconnect", methods=["POST"])
    def disconnect(self, request: IRequest, user_id: str) -> bytes:
        self._authorize(request)
        delivered = self._pubsub.broadcast(Broadcast(socket_topic(user_id), "disconnect", {}))
        return answer(request, 202, {"delivered": delivered})

    @_app.route("/api/tokens/revoke", methods=["POST"])
    async def revoke(self, request: IRequest) -> bytes:
        self._authorize(request)
        body = read_body(request, RevokeBody)
        if (body.jti is None) == (body.user_id is None):
            raise ApiError(422, "invalid_payload", 'it takes exactly one of "jti" and "user_id"')
        closed = await self._sessions.revoke(token_id=body.jti, user_id=body.user_id)
        return answer(request, 200, {"revoked": True, "closed": closed})

    @_app.route("/metrics", methods=["GET"])
    def metrics(self, request: IRequest) -> bytes:
        request.setHeader("Content-Type", CONTENT_TYPE_LATEST)
        request.setHeader("Cache-Control", "no-store")
        return self._metrics.expose()

    @_app.route("/health/live", methods=["GET"])
    def live(self, request: IRequest) -> bytes:
        return answer(request, 200, {"status": "ok"})

    @_app.route("/health/ready", methods=["GET"])
    def ready(self, request: IRequest) -> bytes:
        ready = self._is_ready()
        return answer(request, 200 if ready else 503, {"status": "ok" if ready else "unavailable"})

    @_app.route("/", methods=["GET"])
    def index(self, request: IRequest) -> bytes:
        return self._page(request, "index.html")

    @_app.route("/static/<name>", methods=["GET"])
    def static(self, request: IRequest, name: str) -> bytes:
        return self._page(request, name)

    def _describe(self, user_id: str) -> SessionInfo:
        session = self._sessions.get_session(user_id)
        if session is None:
            raise _no_session(user_id)
        types = self._notifications.subscriptions(user_id)
        return describe(session, self._clock.seconds(), time.time(), types)

    def _page(self, request: IRequest, name: str) -> bytes:
        page = self._pages.get(name)
        if page is None:
            raise ApiError(404, "not_found", "there is no such page")
        for header, value in _SECURITY_HEADERS.items():
            request.setHeader(header, value)
        request.setHeader("Content-Type", page.content_type)
        return page.body

    @_app.handle_errors(Exception)
    def failed(self, request: IRequest, failure: Any) -> bytes:
        error = as_api_error(failure.value)
        if error is None:
            self._log.failure("A request failed", failure)
            error = ApiError(500, "internal_error", "see the log of the server")
        if error.retry_after is not None:
            request.setHeader("Retry-After", str(error.retry_after))
        return answer(request, error.status, {"error": error.code, "detail": error.detail})

    def _authorize(self, request: IRequest) -> None:
        given = request.getHeader(b"authorization") or b""
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._api_key):
            request.setHeader("WWW-Authenticate", "Bearer")
            raise ApiError(401, "unauthorized", "give Authorization: Bearer and the key in DATA_DIR/api-key")


class _PushedList(msgspec.Struct):
    notifications: Sequence[Pushed]


class _NotificationList(msgspec.Struct, omit_defaults=True):
    notifications: Sequence[Notification]
    unread: int
    truncated: bool = False


class _SessionList(msgspec.Struct):
    sessions: Sequence[SessionInfo]
    next: str | None


def _no_session(user_id: str) -> ApiError:
    return ApiError(404, "not_found", f"there is no Session of {user_id!r:.140} here")


def _known_form(user_id: str) -> str:
    if not _USER_ID.fullmatch(user_id):
        raise ApiError(404, "not_found", "no user can have such an id")
    return user_id
