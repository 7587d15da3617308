"""A connection to the admin endpoint: what it takes of HTTP/1.1, and for how long.

Twisted's own channel waits for a request for as long as a byte comes now and then, joins header lines
that are folded, and closes without a word on lines that are too long. Here a request has to be whole
within ten seconds, and every refusal says why.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IDelayedCall, ISSLTransport
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from flowtx.tracing import call_of
from flowtx.web.tracing import call_in

REQUEST_TIMEOUT: Final = 10.0
"""Seconds from the first byte of a request to its last."""
LINGER: Final = 2.0
"""Seconds for which a refused client may go on sending, so that it gets to read the answer."""

_REASONS: Final = {
    400: b"Bad Request",
    408: b"Request Timeout",
    413: b"Content Too Large",
    431: b"Request Header Fields Too Large",
}


class BoundedChannel(HTTPChannel):
    """See the module."""

    transport: Any

    def connectionMade(self) -> None:
        super().connectionMade()
        self._deadline: IDelayedCall | None = None
        self._refused = self._gone = False

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._gone = True
        self._give(None)
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        if not self._refused:
            super().dataReceived(data)
            self._watch()

    def lineReceived(self, line: bytes) -> None:
        if self._refused:
            return
        if self._receivedHeaderSize + len(line) > self.totalHeadersSize:
            self._refuse_head()
        elif line[:1] in (b" ", b"\t"):
            self.refuse(400, "bad_request", "a line of the header is folded")
        else:
            super().lineReceived(line)

    def headerReceived(self, line: bytes) -> bool:
        if self._receivedHeaderCount >= self.maxHeaders:
            self._refuse_head()
            return False
        taken: bool = super().headerReceived(line)
        return taken

    def lineLengthExceeded(self, _: bytes) -> None:
        self._refuse_head()

    def rawDataReceived(self, data: bytes) -> None:
        if not self._refused:
            super().rawDataReceived(data)

    def allHeadersReceived(self) -> None:
        hosts = self.requests[-1].requestHeaders.getRawHeaders(b"host", [])
        if len(hosts) > 1 or (not hosts and self._version == b"HTTP/1.1"):
            self.refuse(400, "bad_request", "a request takes the header Host once")
        else:
            super().allHeadersReceived()

    def allContentReceived(self) -> None:
        if not self._refused:
            self._give(None)
            super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        super().requestDone(request)
        self._watch()

    def refuse(self, status: int, code: str, detail: str) -> None:
        """Answer a request that is not whole, and close the connection."""
        if self._refused:
            return
        self._refused = True
        call = call_in(self.requests[-1]) if self.requests else call_of(None)
        body = msgspec.json.encode({"error": code, "detail": detail})
        self.transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nConnection: close\r\nX-Request-Id: %b\r\n"
            b"Content-Length: %d\r\n\r\n%b"
            % (status, _REASONS[status], call.request_id.encode(), len(body), body)
        )
        # What is still sent is thrown away: closed at once, the system would take the answer back.
        self._give(LINGER, self.transport.abortConnection)
        self.transport.unregisterProducer()
        if ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def _refuse_head(self) -> None:
        limits = f"{self.totalHeadersSize} bytes in {self.maxHeaders} lines"
        self.refuse(431, "header_too_large", f"a header may have {limits}")

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(400, "bad_request", "that is not HTTP/1.1 as it can be understood")

    def _send100Continue(self) -> None:
        if not self._refused:
            super()._send100Continue()

    def _watch(self) -> None:
        """Give a request that has begun to come its time."""
        began = not self._handlingRequest and bool(self._buffer or self.requests)
        if began and self._deadline is None and not self._gone:
            self._give(REQUEST_TIMEOUT, self._late)

    def _late(self) -> None:
        self._deadline = None
        self.refuse(408, "request_timeout", f"a request has to be whole within {REQUEST_TIMEOUT:.0f} s")

    def _give(self, seconds: float | None, end: Any = None) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.callLater(seconds, end)
