"""The HTTP side of the admin endpoint: requests of a bounded size, and the pages."""

from __future__ import annotations

from importlib.resources import files
from io import BytesIO
from typing import Any, Final, NamedTuple

from twisted.logger import Logger
from twisted.web import http
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

MAX_BODY: Final = 1_048_576
IDLE_TIMEOUT: Final = 30
"""Seconds without a byte after which a connection is closed."""

_TOO_LARGE: Final = b'{"error":"body_too_large","detail":"a body may have 1048576 bytes"}'

CONTENT_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


class BoundedRequest(Request):
    """A request whose body is kept in memory, and refused as soon as it is known to be too large.

    Twisted's own writes any body to a file before anybody is asked whether it is wanted.
    """

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
        channel.transport.write(
            b"HTTP/1.1 413 Content Too Large\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(_TOO_LARGE), _TOO_LARGE)
        )
        channel.loseConnection()


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


class AdminSite(Site):
    """Serves a resource over HTTP/1.1 and logs each request in one line, without its query."""

    noisy = False
    _log = Logger()

    def __init__(self, resource: IResource, *, reactor: Any) -> None:
        super().__init__(resource, requestFactory=BoundedRequest, timeout=IDLE_TIMEOUT, reactor=reactor)

    def log(self, request: http.Request) -> None:
        self._log.info(
            "{address} {method} {path} {status}",
            address=getattr(request.getClientAddress(), "host", "unix"),
            method=request.method.decode("ascii", "replace"),
            path=request.path.decode("ascii", "backslashreplace")[:200],
            status=request.code,
        )
