"""WebSocket connections, on Autobahn.

The protocol here translates and owns nothing: a handshake becomes a claim on the user's Session, a
message a call of the `Socket`. What it adds to Autobahn are guards, each for a trap of Autobahn
26.10 that a real connection can fall into:

- While ``onConnect`` waits, bytes that arrive would be parsed as a second request, and frames among
  them would be delivered twice over: they are held, within 64 KiB, until the handshake is decided.
- A client that leaves meanwhile would be opened after it was closed: a decision that comes late is
  dropped.
- A request's head may be of any length: past 16 KiB it is refused.
- The text of an exception would be sent to the client, and the request with its token would be
  logged: refusals are written here, out of a fixed set of words, and Autobahn's own log is silent.
- ``onClose`` comes for connections that were never opened, too.
- A connection failed for a bad frame would be reset before the client could read its close code.
- Nagle's algorithm stays on, since the setting is read before it is there.
- A message in endlessly many empty fragments would never reach a limit.
"""

from __future__ import annotations

from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, NamedTuple, cast

import msgspec
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from flowtx.auth import TokenVerifier
from flowtx.channels.router import Router
from flowtx.channels.socket import Socket
from flowtx.config import Settings
from flowtx.errors import Refused, StorageError
from flowtx.interfaces import IPubSub, ITransport, Principal
from flowtx.protocol.close import INTERNAL_ERROR, SLOW_CONSUMER, TOO_MANY_FRAGMENTS, Close
from flowtx.protocol.message import Frame
from flowtx.protocol.serializer import Serializer
from flowtx.sessions.service import Claim, SessionService
from flowtx.transports.handshake import OriginRule, Request, accept, refuse_early
from flowtx.transports.outbox import Outbox

MAX_HEAD: Final = 16_384
MAX_HELD: Final = 65_536
MAX_FRAGMENTS: Final = 64
HEAD_TIMEOUT: Final = 5
"""Seconds from the connection to the end of the handshake."""
DECISION_TIMEOUT: Final = 3.0
"""Seconds that the check of a token and the start of a Session may take."""
CLOSE_TIMEOUT: Final = 1
"""Seconds that a client has to answer a close frame, or to take its refusal."""


class _Silent:
    """Takes the place of Autobahn's log, whose lines quote requests with their tokens."""

    def debug(self, *_: object, **__: object) -> None: ...

    info = warn = error = failure = trace = debug


class _Opened(NamedTuple):
    """What a handshake that was let in leaves for the connection."""

    claim: Claim
    principal: Principal
    serializer: Serializer


@implementer(ITransport)
class FlowProtocol(WebSocketServerProtocol):  # type: ignore[misc]
    """One connection; see the module."""

    log = _Silent()
    factory: FlowFactory
    _log = Logger()
    _deciding: Deferred[Any] | None = None
    _refused: Refused | None = None
    _opened: _Opened | None = None
    _socket: Socket | None = None
    _outbox: Outbox | None = None
    _abort: Any = None
    _fragments = 0
    user_agent = ""

    @property
    def address(self) -> str:
        return str(getattr(self.transport.getPeer(), "host", "unix"))

    # The handshake

    def connectionMade(self) -> None:
        super().connectionMade()
        # A unix socket has no such thing.
        with suppress(AttributeError, OSError):
            self.transport.setTcpNoDelay(True)

    def _dataReceived(self, data: bytes) -> None:
        if self.state == self.STATE_CLOSED:
            return
        if self.state == self.STATE_CONNECTING:
            if self._deciding is not None:
                self._hold(data)
                return
            if b"\r\n\r\n" not in self.data[-3:] + data and len(self.data) + len(data) > MAX_HEAD:
                self._refuse(Refused("request_too_large", 431))
                return
        super()._dataReceived(data)

    def _hold(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > MAX_HELD:
            self.dropConnection(abort=True)
        else:
            self.transport.pauseProducing()

    def processHandshake(self) -> None:
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        refused = Refused("request_too_large", 431) if end > MAX_HEAD else refuse_early(self.data[:end])
        if refused is not None:
            self._refuse(refused)
        else:
            super().processHandshake()

    def onConnect(self, request: ConnectionRequest) -> Deferred[str | None]:
        deciding = Deferred.fromCoroutine(self._decide(request))
        if not deciding.called:
            self._deciding = deciding
            deciding.addTimeout(DECISION_TIMEOUT, self.factory.clock)
        return deciding.addErrback(self._denied)

    async def _decide(self, request: ConnectionRequest) -> str | None:
        factory = self.factory
        self.user_agent = request.headers.get("user-agent", "")[:256]
        asked = accept(Request(self.http_request_uri, request.headers, request.protocols), factory.origins)
        principal = await factory.verifier.verify(asked.token)
        claim = await factory.sessions.claim(principal)
        if self.state != self.STATE_CONNECTING:
            claim.release()
            raise CancelledError
        self._opened = _Opened(claim, principal, asked.serializer)
        return asked.subprotocol

    def _denied(self, failure: Any) -> None:
        """Turn whatever kept a client out into a refusal that says no more than it may."""
        problem = failure.value
        if isinstance(problem, Refused):
            self._refused = problem
        elif isinstance(problem, StorageError | CancelledError | defer.TimeoutError):
            self._refused = Refused("unavailable", 503, {"Retry-After": "1"})
        else:
            self._log.failure("A handshake failed", failure)
            self._refused = Refused("internal_error", 500)
        raise ConnectionDeny(self._refused.status, self._refused.reason)

    def succeedHandshake(self, res: str | None) -> None:
        if self.state != self.STATE_CONNECTING:
            return
        if self._deciding is not None:
            self._deciding = None
            self.transport.resumeProducing()
        super().succeedHandshake(res)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:  # noqa: ARG002
        # The reason is Autobahn's and may quote the request, so the client gets ours.
        headers = {name: str(value) for name, value in responseHeaders or ()}
        self._refuse(self._refused or Refused("bad_request", code, headers))

    def onOpenHandshakeTimeout(self) -> None:
        self.openHandshakeTimeoutCall = None
        self._refuse(Refused("handshake_timeout", 408))

    def _refuse(self, refused: Refused) -> None:
        if self.state != self.STATE_CONNECTING:
            return
        self._log.info(
            "Refused {address}: {status} {reason}",
            address=self.address,
            status=refused.status,
            reason=refused.reason,
        )
        body = msgspec.json.encode({"reason": refused.reason})
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **refused.headers,
        }
        lines = [f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode("ascii") + body)
        self.dropConnection(abort=False)
        # A client that does not take its refusal, or hold a TLS connection open, is not waited for.
        self._abort = self.factory.clock.callLater(CLOSE_TIMEOUT, self.transport.abortConnection)

    # The connection

    def onOpen(self) -> None:
        factory = self.factory
        opened = cast("_Opened", self._opened)
        self._outbox = Outbox(self._write, factory.settings.outbox_limit, self._overflowed)
        self.transport.registerProducer(self._outbox, True)
        self._socket = Socket(
            self,
            opened.serializer,
            opened.principal,
            router=factory.router,
            pubsub=factory.pubsub,
            clock=factory.clock,
            max_topics=factory.settings.max_topics,
            heartbeat_timeout=factory.settings.heartbeat_timeout,
        )
        opened.claim.attach(self._socket)

    def onMessageBegin(self, isBinary: bool) -> None:
        self._fragments = 0
        super().onMessageBegin(isBinary)

    def onMessageFrameBegin(self, length: int) -> None:
        self._fragments += 1
        if self._fragments > MAX_FRAGMENTS:
            self.close(TOO_MANY_FRAGMENTS)
        super().onMessageFrameBegin(length)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        socket = self._socket
        if socket is None or self.state != self.STATE_OPEN:
            return
        try:
            if isBinary:
                socket.binary_received(payload)
            else:
                socket.text_received(payload)
        except Exception:
            # Autobahn would drop the connection without a word.
            self._log.failure("A message could not be handled")
            self.close(INTERNAL_ERROR)

    def onPing(self, payload: bytes) -> None:
        super().onPing(payload)
        self._touched()

    def onPong(self, payload: bytes) -> None:  # noqa: ARG002
        self._touched()

    def _touched(self) -> None:
        if self._socket is not None:
            self._socket.touched()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:  # noqa: ARG002
        deciding, self._deciding = self._deciding, None
        if deciding is not None:
            deciding.cancel()
        if self._abort is not None and self._abort.active():
            self._abort.cancel()
        socket, self._socket = self._socket, None
        opened, self._opened = self._opened, None
        if opened is None:
            return
        if socket is None:
            opened.claim.release()
        else:
            socket.connection_lost().addBoth(lambda _: opened.claim.release())

    # ITransport

    def send(self, frame: Frame) -> None:
        if self._outbox is not None and self.state == self.STATE_OPEN:
            self._outbox.send(frame)

    def close(self, close: Close) -> None:
        if self._outbox is not None:
            self._outbox.clear()
        self.sendClose(close.code, close.reason)

    def pause_reading(self) -> None:
        self.transport.pauseProducing()

    def resume_reading(self) -> None:
        if self.state == self.STATE_OPEN:
            self.transport.resumeProducing()

    def _write(self, frame: Frame) -> None:
        self.sendMessage(frame.payload, frame.binary)

    def _overflowed(self) -> None:
        self._log.warn(
            "Closing {address}: more than {limit} bytes wait for it",
            address=self.address,
            limit=self.factory.settings.outbox_limit,
        )
        self.close(SLOW_CONSUMER)


class FlowFactory(WebSocketServerFactory):  # type: ignore[misc]
    """Makes the connections and holds what they share.

    Args:
        settings: the settings.
        verifier: verifies tokens.
        sessions: the Sessions.
        router: which Channel serves which topic.
        pubsub: carries broadcasts.
        origins: which origins are let in; None for all.
        reactor: the reactor.
    """

    protocol = FlowProtocol
    noisy = False

    def __init__(
        self,
        settings: Settings,
        *,
        verifier: TokenVerifier,
        sessions: SessionService,
        router: Router,
        pubsub: IPubSub,
        origins: OriginRule | None,
        reactor: IReactorTime,
    ) -> None:
        super().__init__(server="", reactor=reactor)
        self.settings = settings
        self.verifier = verifier
        self.sessions = sessions
        self.router = router
        self.pubsub = pubsub
        self.origins = origins
        self.clock = reactor
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            maxFramePayloadSize=settings.max_frame_size,
            maxMessagePayloadSize=settings.max_frame_size,
            failByDrop=False,
            echoCloseCodeReason=True,
            openHandshakeTimeout=HEAD_TIMEOUT,
            closeHandshakeTimeout=CLOSE_TIMEOUT,
            # Origins are checked by `flowtx.transports.handshake`.
            allowedOrigins=["*"],
            allowNullOrigin=True,
        )
