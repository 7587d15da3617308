"""What needs no key: health, metrics and the pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Literal

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from twisted.web.iweb import IRequest

from flowtx.metrics import Metrics
from flowtx.web.api import Route
from flowtx.web.requests import ApiError, answer
from flowtx.web.site import CONTENT_TYPES, Page

_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_TO_ANY_SOCKET: Final = {
    "Content-Security-Policy": _SECURITY_HEADERS["Content-Security-Policy"].replace(
        "connect-src 'self'", "connect-src 'self' ws: wss:"
    )
}
"""The demo page connects to the clients' port, wherever that is."""


class Health(msgspec.Struct):
    """Whether all is well."""

    status: Literal["ok", "unavailable"]


class OperationCalls:
    """See the module.

    Args:
        metrics: what ``/metrics`` shows.
        is_ready: tells whether the server takes work.
        pages: files by name; ``index.html``, the console, is served as ``/``, ``demo.html`` as ``/demo``.
    """

    def __init__(self, metrics: Metrics, is_ready: Callable[[], bool], pages: dict[str, Page]) -> None:
        self._metrics = metrics
        self._is_ready = is_ready
        self._pages = pages

    def routes(self) -> Iterator[Route]:
        """The calls."""
        files = tuple(CONTENT_TYPES.values())
        yield Route("GET", "/metrics", self.metrics, open=True, answers={200: CONTENT_TYPE_LATEST})
        yield Route("GET", "/health/live", self.live, open=True, answers={200: Health})
        yield Route("GET", "/health/ready", self.ready, open=True, answers={200: Health, 503: Health})
        yield Route("GET", "/", self.index, open=True, answers={200: CONTENT_TYPES["html"]})
        yield Route("GET", "/demo", self.demo, open=True, answers={200: CONTENT_TYPES["html"]})
        yield Route("GET", "/static/<name>", self.static, open=True, answers={200: files}, errors=(404,))

    def metrics(self, request: IRequest) -> bytes:
        """Show the metrics, in the text format of Prometheus."""
        request.setHeader("Content-Type", CONTENT_TYPE_LATEST)
        request.setHeader("Cache-Control", "no-store")
        return self._metrics.expose()

    def live(self, request: IRequest) -> bytes:
        """Tell that the process lives."""
        return answer(request, 200, Health("ok"))

    def ready(self, request: IRequest) -> bytes:
        """Tell whether the server takes work."""
        ready = self._is_ready()
        return answer(request, 200 if ready else 503, Health("ok" if ready else "unavailable"))

    def index(self, request: IRequest) -> bytes:
        """Show the page of this server."""
        return self._page(request, "index.html")

    def demo(self, request: IRequest) -> bytes:
        """Show the demo page."""
        return self._page(request, "demo.html", _TO_ANY_SOCKET)

    def static(self, request: IRequest, name: str) -> bytes:
        """Serve a file of the page."""
        return self._page(request, name)

    def _page(self, request: IRequest, name: str, headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
        page = self._pages.get(name)
        if page is None:
            raise ApiError(404, "not_found", "there is no such page")
        for header, value in {**_SECURITY_HEADERS, **headers}.items():
            request.setHeader(header, value)
        request.setHeader("Content-Type", page.content_type)
        return page.body
