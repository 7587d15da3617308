"""The HTTP API for backends and operators: who may call, and what errors become."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

from klein import Klein
from twisted.logger import Logger
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource

from flowtx.web.requests import ApiError, answer, as_api_error


class Route(NamedTuple):
    """One call of the API.

    Attributes:
        method: of HTTP.
        path: with parameters as ``<name>``.
        handle: called with the request, and the parameters by name; gives the body, or a Deferred or
            coroutine of it. An exception becomes an error of the API.
        open: whether it needs no key.
    """

    method: str
    path: str
    handle: Callable[..., Any]
    open: bool = False


class Api:
    """Serves routes.

    Args:
        routes: the calls.
        api_key: what ``Authorization: Bearer`` must carry.
    """

    _log = Logger()

    def __init__(self, routes: Iterable[Route], api_key: str) -> None:
        self._api_key = api_key.encode()
        self._app = Klein()
        for route in routes:
            self._add(route)
        self._app.handle_errors(Exception)(self._failed)

    def resource(self) -> IResource:
        """What serves the routes."""
        return cast("IResource", self._app.resource())

    def _add(self, route: Route) -> None:
        def handle(request: IRequest, **parameters: str) -> Any:
            if not route.open:
                self._authorize(request)
            return route.handle(request, **parameters)

        endpoint = f"{route.method} {route.path}"
        self._app.route(route.path, methods=[route.method], endpoint=endpoint)(handle)

    def _failed(self, request: IRequest, failure: Any) -> bytes:
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
