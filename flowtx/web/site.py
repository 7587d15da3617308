"""The HTTP side of the admin endpoint: requests of a bounded size, and the pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from typing import Any, Final, NamedTuple

from twisted.logger import Logger
from twisted.web import http
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

from flowtx.metrics import Metrics
from flowtx.web.browsers import is_own_host
from flowtx.web.channel import BoundedChannel
from flowtx.web.gate import RETRY_AFTER, Gate
from flowtx.web.requests import ApiError, answer
from flowtx.web.tracing import TracedRequest

MAX_BODY: Final = 1_048_576
IDLE_TIMEOUT: Final = 30
"""Seconds without a byte after which a connection is closed."""

CONTENT_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


class BoundedRequest(TracedRequest):
    """A request whose body is kept in memory, and refused as soon as it is known to be too large.

    Twisted's own writes any body to a file before anybody is asked whether it is wanted.

    Attributes:
        caller: the name of the API key that it came with, or None.
    """

    caller: str | None = None

    def gotLength(self, length: int | None) -> None:
        self.content = self._body = BytesIO()
        if length is not None and length > MAX_BODY:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        if self._body.tell() + len(data) > MAX_BODY:
            self._refuse()
        else:
            super().handleContentChunk(data)

    def _refuse(self) -> None:
        channel: Any = self.channel
        channel.refuse(413, "body_too_large", f"a body may have {MAX_BODY} bytes")


class Page(NamedTuple):
    """A file that is served as it is."""

    content_type: str
    body: bytes


def pages() -> dict[str, Page]:
    """Read the files of the web pages, by name."""
    found = {}
    for file in files("flowtx.web").joinpath("static").iterdir():
        content_type = CONTENT_TYPES.get(file.name.rpartition(".")[2])
        if content_type is not None:
            found[file.name] = Page(content_type, file.read_bytes())
    return found


def _is_text(segments: Sequence[bytes]) -> bool:
    try:
        b"".join(segments).decode()
    except UnicodeDecodeError:
        return False
    return True


class _Refusal(Resource):
    """Answers with an error, whatever is asked for."""

    isLeaf = True

    def __init__(self, error: ApiError, headers: Mapping[str, str]) -> None:
        super().__init__()
        self._error = error
        self._headers = headers

    def render(self, request: Request) -> bytes:
        for name, value in self._headers.items():
            request.setHeader(name, value)
        return answer(request, self._error.status, {"error": self._error.code, "detail": self._error.detail})


class AdminSite(Site):
    """Serves a resource over HTTP/1.1 and logs each request in one line, without its query.

    Args:
        resource: what is served.
        hosts: the names that the header Host may have, see `flowtx.web.browsers.is_own_host`.
        reactor: the time.
        metrics: counts; None where nobody does.

    Attributes:
        gate: is closed when the server stops.
    """

    noisy = False
    protocol = BoundedChannel  # type: ignore[assignment]
    _log = Logger()

    def __init__(
        self,
        resource: IResource,
        *,
        reactor: Any,
        hosts: frozenset[str] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(
            resource,
            requestFactory=BoundedRequest,
            timeout=IDLE_TIMEOUT,
            reactor=reactor,
            parsePOSTFormSubmission=False,
        )
        self._hosts = hosts
        self._metrics = metrics
        self.gate = Gate()

    def getResourceFor(self, request: Request) -> IResource:
        request.responseHeaders.removeHeader("Server")
        if not is_own_host(request.getHeader(b"host"), self._hosts):
            detail = "that host is not known here; --admin-hosts takes the names that a proxy passes on"
            return _Refusal(ApiError(403, "forbidden_host", detail), {})
        if not request.method.isupper():
            return _Refusal(ApiError(400, "bad_request", "a method is written in capitals"), {})
        if b"//" in request.path or not _is_text(request.postpath or ()):
            detail = "a path is UTF-8, and has no two slashes in a row"
            return _Refusal(ApiError(404, "not_found", detail), {})
        if not self.gate.admits(request):
            stopping = ApiError(503, "unavailable", "the server stops; try again")
            return _Refusal(stopping, {"Retry-After": RETRY_AFTER})
        found: IResource = super().getResourceFor(request)
        return found

    def log(self, request: http.Request) -> None:
        self._log.info(
            "{address} {method} {path} {status} {caller}",
            caller=getattr(request, "caller", None) or "-",
            address=getattr(request.getClientAddress(), "host", "unix"),
            method=request.method.decode("ascii", "replace"),
            path=request.path.decode("ascii", "backslashreplace")[:200],
            status=request.code,
            **_ids(request),
        )
        if self._metrics is not None and isinstance(request, TracedRequest):
            self._metrics.http_answered(request.route, request.code, request.seconds)


def _ids(request: http.Request) -> dict[str, str]:
    """What a log event says of which call it is about."""
    call = getattr(request, "call", None)
    if call is None:
        return {}
    traceparent = {} if call.traceparent is None else {"traceparent": call.traceparent}
    return {"request_id": call.request_id, **traceparent}
