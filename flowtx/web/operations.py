"""What needs no key: health, metrics and the pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST
from twisted.web.iweb import IRequest

from flowtx.metrics import Metrics
from flowtx.web.api import Route
from flowtx.web.requests import ApiError, answer
from flowtx.web.site import Page

_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class OperationCalls:
    """See the module.

    Args:
        metrics: what ``/metrics`` shows.
        is_ready: tells whether the server takes work.
        pages: files by name; ``index.html`` is served as ``/``.
    """

    def __init__(self, metrics: Metrics, is_ready: Callable[[], bool], pages: dict[str, Page]) -> None:
        self._metrics = metrics
        self._is_ready = is_ready
        self._pages = pages

    def routes(self) -> Iterator[Route]:
        """The calls."""
        yield Route("GET", "/metrics", self.metrics, open=True)
        yield Route("GET", "/health/live", self.live, open=True)
        yield Route("GET", "/health/ready", self.ready, open=True)
        yield Route("GET", "/", self.index, open=True)
        yield Route("GET", "/static/<name>", self.static, open=True)

    def metrics(self, request: IRequest) -> bytes:
        request.setHeader("Content-Type", CONTENT_TYPE_LATEST)
        request.setHeader("Cache-Control", "no-store")
        return self._metrics.expose()

    def live(self, request: IRequest) -> bytes:
        return answer(request, 200, {"status": "ok"})

    def ready(self, request: IRequest) -> bytes:
        ready = self._is_ready()
        return answer(request, 200 if ready else 503, {"status": "ok" if ready else "unavailable"})

    def index(self, request: IRequest) -> bytes:
        return self._page(request, "index.html")

    def static(self, request: IRequest, name: str) -> bytes:
        return self._page(request, name)

    def _page(self, request: IRequest, name: str) -> bytes:
        page = self._pages.get(name)
        if page is None:
            raise ApiError(404, "not_found", "there is no such page")
        for header, value in _SECURITY_HEADERS.items():
            request.setHeader(header, value)
        request.setHeader("Content-Type", page.content_type)
        return page.body
