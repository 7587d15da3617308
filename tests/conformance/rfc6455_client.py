"""A client that does what a case of the Autobahn|Testsuite tells it, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.endpoints import TCP4ClientEndpoint

ENDS_WITHIN: Final = 60.0
GOOD: Final = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})
GOOD_CLOSE: Final = frozenset({"OK", "INFORMATIONAL"})


class Outcome(NamedTuple):
    """What became of a case.

    Attributes:
        id: e.g. ``5.19``.
        behavior: the suite's word for it.
        close: its word for how the connection ended.
        detail: in a sentence.
    """

    id: str
    behavior: str
    close: str
    detail: str

    @property
    def passed(self) -> bool:
        return self.behavior in GOOD and self.close in GOOD_CLOSE

    def __str__(self) -> str:
        return f"{self.id}: {self.behavior}, close {self.close}: {self.detail}"


class CaseProtocol(WebSocketClientProtocol):
    """Has what the cases call; they give and take text of one character a byte."""

    def __init__(self, case: Any) -> None:
        super().__init__()
        self.connectionWasOpen = False
        self.createWirelog = False
        self.trafficStats = None
        self.txFrameStats: Counter[int] = Counter()
        self.ended: Deferred[None] = Deferred()
        self._clock: Any = None
        self.case = case(self)
        # Equal values need not be pickled to the same bytes, by which the suite compares.
        self.case.compare = lambda one, other: one == other

    def onOpen(self) -> None:
        self.connectionWasOpen = True
        self.case.onOpen()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.case.onMessage(payload.decode("latin-1"), isBinary)

    def onPing(self, payload: bytes) -> None:
        self.case.onPing(payload.decode("latin-1"))
        super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        self.case.onPong(payload.decode("latin-1"))

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.case.onClose(wasClean, code, reason)

    def connectionLost(self, reason: Any) -> None:
        super().connectionLost(reason)
        self.case.onConnectionLost(self.failedByMe)
        self.ended.callback(None)

    def logTxFrame(self, frameHeader: Any, *_: object) -> None:
        self.txFrameStats[frameHeader.opcode] += 1

    def logRxFrame(self, *_: object) -> None: ...

    # What the cases call

    def enableWirelog(self, enable: bool) -> None: ...

    def sendFrame(self, opcode: int, payload: str | bytes = b"", **options: Any) -> None:
        super().sendFrame(opcode, _bytes(payload), **options)

    def sendMessage(self, payload: str | bytes, isBinary: bool = False, **options: Any) -> None:
        super().sendMessage(_bytes(payload), isBinary, **options)

    def sendMessageFrameData(self, payload: str | bytes, sync: bool = False) -> Any:
        return super().sendMessageFrameData(_bytes(payload), sync)

    def sendCloseFrame(
        self, code: int | None = None, reasonUtf8: str | bytes | None = None, isReply: bool = False
    ) -> None:
        super().sendCloseFrame(code, None if reasonUtf8 is None else _bytes(reasonUtf8), isReply)

    def continueLater(self, delay: float, call: Callable[[], None], tag: object = None) -> None:
        self._later(delay, call)

    def killAfter(self, delay: float) -> None:
        self._later(delay, self._fail)

    def closeAfter(self, delay: float) -> None:
        self._later(delay, self.sendClose)

    def _fail(self) -> None:
        self._fail_connection()

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        timer = self.factory.reactor.callLater(delay, call)
        self.ended.addCallback(lambda result: (timer.active() and timer.cancel()) or result)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


async def run_case(id_: str, case: Any, url: str, *, reactor: Any) -> Outcome:
    """Run a case against the echo server at ``url``."""
    factory = WebSocketClientFactory(url, reactor=reactor)
    factory.setProtocolOptions(failByDrop=False, openHandshakeTimeout=30, closeHandshakeTimeout=10)
    factory.logFrames = True
    protocol = CaseProtocol(case)
    factory.protocol = lambda: protocol
    endpoint = TCP4ClientEndpoint(reactor, factory.host, factory.port)
    await endpoint.connect(factory)
    ended: Deferred[None] = Deferred()
    protocol.ended.chainDeferred(ended)
    try:
        await ended.addTimeout(ENDS_WITHIN, reactor)
    except TimeoutError:
        protocol.transport.abortConnection()
        return Outcome(id_, "FAILED", "FAILED", f"not over within {ENDS_WITHIN:g} s")
    done = protocol.case
    return Outcome(id_, done.behavior, done.behaviorClose, f"{done.result} {done.resultClose}")
