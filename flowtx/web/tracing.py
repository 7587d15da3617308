"""Requests that know which call they are, and for how long they have been handled."""

from __future__ import annotations

import time
from contextvars import copy_context

from twisted.web.server import Request

from flowtx.tracing import CALL, Call, call_of


class TracedRequest(Request):
    """A request whose id is in its answer, and in each line that is logged while it is handled.

    Attributes:
        call: names it; see `flowtx.tracing`.
        route: the path that it was for, with its parameters' names; None where there is no such.
        began_at: when its handling began, of `time.monotonic`.
    """

    call: Call | None = None
    route: str | None = None
    began_at = 0.0

    def process(self) -> None:
        call = self.call = call_in(self)
        self.began_at = time.monotonic()
        self.setHeader(b"X-Request-Id", call.request_id.encode())
        copy_context().run(self._handle, call)

    def _handle(self, call: Call) -> None:
        CALL.set(call)
        super().process()

    @property
    def seconds(self) -> float:
        """For how long it has been handled."""
        return time.monotonic() - self.began_at


def call_in(request: Request) -> Call:
    """Name a request by what came with it."""
    return call_of(_once(request, b"x-request-id"), _once(request, b"traceparent"))


def _once(request: Request, name: bytes) -> str | None:
    given = request.requestHeaders.getRawHeaders(name, [])
    return given[0].decode("latin-1").strip() if len(given) == 1 else None
