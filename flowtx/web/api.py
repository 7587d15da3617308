"""The HTTP API for backends and operators: JSON, with an API key."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Sequence
from heapq import nsmallest
from typing import Annotated, Any, Final, NoReturn, TypeVar, cast

import msgspec
from klein import Klein
from msgspec import Meta
from prometheus_client import CONTENT_TYPE_LATEST
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException

from flowtx.errors import Conflict, InvalidPayload, StorageError, UnknownOutcome
from flowtx.interfaces import IPubSub, Pushed
from flowtx.metrics import Metrics
from flowtx.notifications.service import MAX_USERS, NotificationService
from flowtx.protocol.message import Broadcast
from flowtx.protocol.payload import read_json
from flowtx.sessions.inspection import SessionInfo, describe
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import socket_topic
from flowtx.web.site import Page

T = TypeVar("T")

Word = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
Key = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
UserId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:@-]{1,128}\Z")]

MAX_PAGE: Final = 100

_JSON: Final = re.compile(rb'application/json\s*(;\s*charset="?utf-8"?\s*)?', re.IGNORECASE)

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


class RevokeBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /api/tokens/revoke``: one of the two."""

    jti: Key | None = None
    user_id: UserId | None = None


class ApiError(Exception):
    """Ends a request with an error.

    Attributes:
        status: the HTTP status.
        code: a word for programs.
        detail: a sentence for people.
    """

    def __init__(self, status: int, code: str, detail: str, retry_after: int | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after = retry_after


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
        body = _read(request, PushBody)
        if len(body.user_ids) > MAX_USERS:
            raise ApiError(
                413, "too_many_users", f"got {len(body.user_ids)} user_ids; a call takes {MAX_USERS}"
            )
        try:
            payload = read_json(bytes(body.payload), max_nodes=None)
        except InvalidPayload as error:
            raise ApiError(422, "invalid_payload", f"payload: {error.detail} - at `$.payload`") from None
        pushed = await self._notifications.push_notifications(
            body.user_ids, body.type, payload, body.idempotency_key
        )
        return _json(request, 202, _PushedList(pushed))

    @_app.route("/api/sessions", methods=["GET"])
    def sessions(self, request: IRequest) -> bytes:
        self._authorize(request)
        limit = _number(request, "limit", default=MAX_PAGE, most=MAX_PAGE)
        after = _parameter(request, "after") or ""
        # Pages by user id: Sessions that come and go meanwhile make no other one appear twice.
        page = nsmallest(limit + 1, (user for user in self._sessions.namedServices if user > after))
        listed = [self._describe(user_id) for user_id in page[:limit]]
        following = page[limit - 1] if len(page) > limit else None
        return _json(request, 200, _SessionList(listed, following))

    @_app.route("/api/sessions/<user_id>", methods=["GET"])
    def session(self, request: IRequest, user_id: str) -> bytes:
        self._authorize(request)
        return _json(request, 200, self._describe(user_id))

    @_app.route("/api/sessions/<user_id>", methods=["DELETE"])
    async def stop_session(self, request: IRequest, user_id: str) -> bytes:
        self._authorize(request)
        if not await self._sessions.stop_session(user_id):
            raise _no_session(user_id)
        return _json(request, 200, {"stopped": True})

    @_app.route("/api/sessions/<user_id>/connections/<connection_id>", methods=["DELETE"])
    def close_connection(self, request: IRequest, user_id: str, connection_id: str) -> bytes:
        self._authorize(request)
        if not self._sessions.close_connection(user_id, connection_id):
            raise ApiError(404, "not_found", "that user has no such connection here")
        return _json(request, 200, {"closed": True})

    @_app.route("/api/users/<user_id>/disconnect", methods=["POST"])
    def disconnect(self, request: IRequest, user_id: str) -> bytes:
        self._authorize(request)
        delivered = self._pubsub.broadcast(Broadcast(socket_topic(user_id), "disconnect", {}))
        return _json(request, 202, {"delivered": delivered})

    @_app.route("/api/tokens/revoke", methods=["POST"])
    async def revoke(self, request: IRequest) -> bytes:
        self._authorize(request)
        body = _read(request, RevokeBody)
        if (body.jti is None) == (body.user_id is None):
            raise ApiError(422, "invalid_payload", 'it takes exactly one of "jti" and "user_id"')
        closed = await self._sessions.revoke(token_id=body.jti, user_id=body.user_id)
        return _json(request, 200, {"revoked": True, "closed": closed})

    @_app.route("/metrics", methods=["GET"])
    def metrics(self, request: IRequest) -> bytes:
        request.setHeader("Content-Type", CONTENT_TYPE_LATEST)
        request.setHeader("Cache-Control", "no-store")
        return self._metrics.expose()

    @_app.route("/health/live", methods=["GET"])
    def live(self, request: IRequest) -> bytes:
        return _json(request, 200, {"status": "ok"})

    @_app.route("/health/ready", methods=["GET"])
    def ready(self, request: IRequest) -> bytes:
        ready = self._is_ready()
        return _json(request, 200 if ready else 503, {"status": "ok" if ready else "unavailable"})

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
        return describe(session, self._clock.seconds(), time.time())

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
        error = _as_api_error(failure.value)
        if error is None:
            self._log.failure("A request failed", failure)
            error = ApiError(500, "internal_error", "see the log of the server")
        if error.retry_after is not None:
            request.setHeader("Retry-After", str(error.retry_after))
        return _json(request, error.status, {"error": error.code, "detail": error.detail})

    def _authorize(self, request: IRequest) -> None:
        given = request.getHeader(b"authorization") or b""
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._api_key):
            request.setHeader("WWW-Authenticate", "Bearer")
            raise ApiError(401, "unauthorized", "give Authorization: Bearer and the key in DATA_DIR/api-key")


class _PushedList(msgspec.Struct):
    notifications: Sequence[Pushed]


class _SessionList(msgspec.Struct):
    sessions: Sequence[SessionInfo]
    next: str | None


def _no_session(user_id: str) -> ApiError:
    return ApiError(404, "not_found", f"there is no Session of {user_id!r:.140} here")


def _parameter(request: IRequest, name: str) -> str | None:
    values = request.args.get(name.encode())
    return values[-1].decode("utf-8", "replace") if values else None


def _number(request: IRequest, name: str, *, default: int, most: int) -> int:
    text = _parameter(request, name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise ApiError(422, "invalid_parameter", f"{name}: got {text!r:.40}; it takes 1 to {most}")
    return int(text)


def _as_api_error(problem: Exception) -> ApiError | None:
    found = None
    match problem:
        case ApiError():
            found = problem
        case HTTPException():
            code = (problem.name or "error").lower().replace(" ", "_")
            found = ApiError(problem.code or 500, code, problem.description or code)
        case InvalidPayload():
            found = ApiError(422, "invalid_payload", problem.detail)
        case Conflict():
            found = ApiError(409, "conflict", str(problem))
        case UnknownOutcome():
            detail = f"{problem}; repeat the call with an idempotency_key"
            found = ApiError(503, "unknown_outcome", detail, retry_after=1)
        case StorageError():
            found = ApiError(503, "unavailable", str(problem), retry_after=1)
    return found


def _read(request: IRequest, form: type[T]) -> T:
    content_type = request.getHeader(b"content-type") or b""
    if not _JSON.fullmatch(content_type):
        raise ApiError(415, "unsupported_media_type", "give Content-Type: application/json")
    try:
        return msgspec.json.decode(request.content.read(), type=form)
    except RecursionError:
        _invalid("nested too deep")
    except ValueError as error:
        _invalid(str(error))


def _invalid(detail: str) -> NoReturn:
    raise ApiError(422, "invalid_payload", detail)


def _json(request: IRequest, status: int, value: object) -> bytes:
    request.setResponseCode(status)
    request.setHeader("Content-Type", "application/json")
    request.setHeader("Cache-Control", "no-store")
    return msgspec.json.encode(value)
