"""The HTTP API for backends and operators: who may call, and what errors become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

from klein import Klein
from twisted.logger import Logger
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from werkzeug.exceptions import MethodNotAllowed, NotFound

from flowtx.web.browsers import is_of_other_site
from flowtx.web.keys import ApiKeys, Scope
from flowtx.web.requests import ApiError, answer, as_api_error

METHODS: Final = (b"DELETE", b"GET", b"HEAD", b"POST", b"PUT")
"""The methods of HTTP that something takes."""


class Query(NamedTuple):
    """A parameter of a call's query.

    Attributes:
        name: e.g. ``limit``.
        type: of its value, as `msgspec` describes it.
        description: what it does, in a sentence.
    """

    name: str
    type: Any
    description: str


class Route(NamedTuple):
    """One call of the API. What is not needed to serve it is for its description in OpenAPI.

    Attributes:
        method: of HTTP.
        path: with parameters as ``<name>``.
        handle: called with the request, and the parameters by name; gives the body, or a Deferred or
            coroutine of it. An exception becomes an error of the API. Its docstring is what is said of
            the call.
        open: whether it needs no key.
        scope: what a key must be for.
        body: the type of the body that it takes, if it takes one.
        answers: the types of its answers by their statuses; text is the media type of one that is no JSON.
        query: the parameters of its query.
        errors: the statuses of its errors, but for those that every call may have.
    """

    method: str
    path: str
    handle: Callable[..., Any]
    open: bool = False
    scope: Scope = "admin"
    body: Any = None
    answers: Mapping[int, Any] = MappingProxyType({})
    query: tuple[Query, ...] = ()
    errors: tuple[int, ...] = ()


class Api:
    """Serves routes.

    Args:
        routes: the calls.
        keys: what ``Authorization: Bearer`` may carry.
    """

    _log = Logger()

    def __init__(self, routes: Iterable[Route], keys: ApiKeys) -> None:
        self._keys = keys
        self._app = Klein()
        # A path is taken as it is: what has two slashes is another one, and nobody is sent elsewhere.
        self._app.url_map.merge_slashes = False
        for route in routes:
            self._add(route)
        self._app.handle_errors(Exception)(self._failed)

    def resource(self) -> IResource:
        """What serves the routes."""
        return cast("IResource", self._app.resource())

    def _add(self, route: Route) -> None:
        def handle(request: IRequest, **parameters: str) -> Any:
            cast("Any", request).route = "pages" if route.open else route.path
            if not route.open:
                self._authorize(request, route.scope)
            return route.handle(request, **parameters)

        endpoint = f"{route.method} {route.path}"
        self._app.route(route.path, methods=[route.method], endpoint=endpoint)(handle)

    def _failed(self, request: IRequest, failure: Any) -> bytes:
        problem = failure.value
        if isinstance(problem, NotFound) and request.method not in METHODS:
            problem = MethodNotAllowed([method.decode() for method in METHODS])
        error = as_api_error(problem)
        if error is None:
            self._log.failure("A request failed", failure)
            error = ApiError(500, "internal_error", "see the log of the server")
        if isinstance(problem, MethodNotAllowed):
            request.setHeader("Allow", ", ".join(sorted(problem.valid_methods or ())))
        if error.retry_after is not None:
            request.setHeader("Retry-After", str(error.retry_after))
        return answer(request, error.status, {"error": error.code, "detail": error.detail})

    def _authorize(self, request: IRequest, scope: Scope) -> None:
        if is_of_other_site(request):
            raise ApiError(403, "cross_site", "pages of other sites may not call this")
        caller = self._keys.caller(request.getHeader(b"authorization"))
        cast("Any", request).caller = None if caller is None else caller.name  # for the line in the log
        if caller is None or scope not in caller.scopes:
            request.setHeader("WWW-Authenticate", "Bearer")
            wanted = "the key in DATA_DIR/api-key, or one of --api-keys"
            raise ApiError(
                401, "unauthorized", f"give Authorization: Bearer and {wanted} with the scope {scope}"
            )
