"""WebSocket connections, on Autobahn.

The protocol here translates and owns nothing: a handshake becomes a claim on the user's Session, a
message a call of the `Socket`. What it adds to Autobahn's handshake are guards, each for a trap of
Autobahn 26.10 that a real connection can fall into (`flowtx.transports.guards` has those of open
connections):

- While ``onConnect`` waits, bytes that arrive would be parsed as a second request, and frames among
  them would be delivered twice over: they are held, within 64 KiB, until the handshake is decided.
- A client that leaves meanwhile would be opened after it was closed: a decision that comes late is
  dropped.
- A request's head may be of any length: past 16 KiB it is refused.
- The text of an exception would be sent to the client, and the request with its token would be
  kept for life: refusals are written here, out of a fixed set of words, and what the handshake
  leaves behind is dropped.
- ``onClose`` comes for connections that were never opened, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, cast

from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from flowtx.channels.socket import Socket
from flowtx.errors import Refused, StorageError
from flowtx.interfaces import ITransport, Principal
from flowtx.protocol.close import DRAIN, SLOW_CONSUMER
from flowtx.protocol.message import Frame
from flowtx.protocol.serializer import Serializer
from flowtx.tracing import CALL
from flowtx.transports.endings import note_ended, note_opened, note_refused
from flowtx.transports.framing import wire_of
from flowtx.transports.guards import GuardedProtocol
from flowtx.transports.handshake import Request, accept, call_in, check_head, forwarded_for, refusal
from flowtx.transports.lean import slim
from flowtx.transports.reading import MAILBOXES

if TYPE_CHECKING:
    from flowtx.transports.factory import FlowFactory, Place

MAX_HEAD: Final = 16_384
MAX_HELD: Final = 65_536


class _Opened(NamedTuple):
    """What a handshake that was let in leaves for the connection."""

    claim: Place
    principal: Principal
    serializer: Serializer


@implementer(ITransport)
class FlowProtocol(GuardedProtocol):
    """One connection; see the module.

    Attributes:
        head_timeout: seconds from the connection to the end of its request.
        decision_timeout: seconds that the check of a token and the start of a Session may take.
        user_agent: what the client calls itself.
        counted_as: under which name the connection counts among those of its address, or None.
    """

    head_timeout: ClassVar[float] = 5.0
    decision_timeout: ClassVar[float] = 3.0
    user_agent = ""
    counted_as: str | None = None

    factory: FlowFactory
    data: bytes
    _log = Logger()
    _deciding: Deferred[Any] | None = None
    _opened: _Opened | None = None
    _claim: Place | None = None
    _socket: Socket | None = None
    _forwarded_for: str | None = None
    _asking: str | None = None

    @property
    def address(self) -> str:
        return self._forwarded_for or super().address

    # The handshake

    def connectionMade(self) -> None:
        super().connectionMade()
        self.factory.connections.add(self)
        self.wait(self.head_timeout, self._handshake_timed_out)

    def _dataReceived(self, data: bytes) -> None:
        if self.state == self.STATE_CLOSED:
            return
        if self._deciding is not None:
            self._hold(data)
        else:
            super()._dataReceived(data)

    def _hold(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > MAX_HELD:
            self._refuse(Refused("bad_request", 400))

    def processHandshake(self) -> None:
        head, end, rest = self.data.partition(b"\r\n\r\n")
        try:
            if len(head) > MAX_HEAD:
                raise Refused("request_too_large", 431)
            if not end:
                return
            self._call = call_in(head)
            CALL.set(self._call)
            self._count(head)
            check_head(head, self.factory.origins, self.factory.served_path)
            self.factory.admit()
        except Refused as refused:
            self._refuse(refused)
            return
        # Autobahn would take this byte for the end of a line.
        self.data = head.replace(b"\x85", b"?") + end + rest
        super().processHandshake()

    def _count(self, head: bytes) -> None:
        """Count the handshake by the client's address, before it has cost anything more."""
        peer = super().address
        address = self.factory.client_address(peer, lambda: forwarded_for(head))
        if address != peer:
            self._forwarded_for = address
        self.counted_as = self.factory.admit_address(address)

    def onConnect(self, request: ConnectionRequest) -> Deferred[str | None]:
        # Deflate would cost 100 KiB a connection: no extension is taken, whatever is offered.
        self.websocket_extensions: list[object] = []
        admission = self.factory.admission
        admission.under_way += 1
        deciding = Deferred.fromCoroutine(self._decide(request))
        deciding.addBoth(admission.decided)
        if not deciding.called:
            self._deciding = deciding
            self.wait(self.decision_timeout, self._handshake_timed_out)
        return deciding.addErrback(self._denied)

    async def _decide(self, request: ConnectionRequest) -> str | None:
        factory = self.factory
        self.user_agent = request.headers.get("user-agent", "")[:256]
        asked = accept(
            Request(self.http_request_uri, request.headers, request.protocols),
            token_in_query=factory.token_in_query,
        )
        principal = await factory.verifier.verify(asked.token)
        self._asking = principal.user_id
        claim = await factory.sessions.claim(principal)
        if self._is_late():
            claim.release()
            raise CancelledError
        self._opened = _Opened(claim, principal, asked.serializer)
        return asked.subprotocol

    def _is_late(self) -> bool:
        """Whether the client has gone, or has been refused, before its handshake was decided."""
        return bool(self.state != self.STATE_CONNECTING)

    def _denied(self, failure: Failure) -> None:
        """Turn whatever kept a client out into a refusal that says no more than it may."""
        problem = failure.value
        if isinstance(problem, Refused):
            self._refuse(problem)
        elif isinstance(problem, StorageError | CancelledError):
            self._refuse(_unavailable())
        else:
            self._log.failure("A handshake of {address} failed", failure, **self.named)
            self._answer(Refused("internal_error", 500))
        # The client has been answered; this keeps Autobahn from going on.
        raise ConnectionDeny(ConnectionDeny.FORBIDDEN)

    def _handshake_timed_out(self) -> None:
        deciding, self._deciding = self._deciding, None
        if deciding is None:
            self._refuse(Refused("handshake_timeout", 408))
            if not self.data and ISSLTransport.providedBy(self.transport):
                self._abort()  # it may not have got through TLS, and cannot be told anything
        else:
            self._refuse(_unavailable())
            deciding.cancel()

    def succeedHandshake(self, res: str | None) -> None:
        self._deciding = None
        self.stop_waiting()
        self.guard(super().succeedHandshake, res)
        if self.state == self.STATE_OPEN:
            slim(self)

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:  # noqa: ARG002
        # The reason is Autobahn's and may quote the request, so the client gets ours.
        headers = {name: str(value) for name, value in responseHeaders or ()}
        self._refuse(Refused("bad_request", code, headers))

    def _refuse(self, refused: Refused) -> None:
        if self.state == self.STATE_CONNECTING:
            self.factory.metrics.handshake_ended(refused.reason)
            self._log.info(
                "Refused {address}: {status} {reason}",
                **self.named,
                status=refused.status,
                reason=refused.reason,
            )
            note_refused(self, refused, refused.user_id or self._asking)
            self._answer(refused)

    def _answer(self, refused: Refused) -> None:
        if self.state == self.STATE_CONNECTING:
            self.transport.write(refusal(refused, self.call.request_id))
            self.dropConnection()

    # The connection

    def onOpen(self) -> None:
        factory = self.factory
        opened = cast("_Opened", self._opened)
        self._claim, self._opened = opened.claim, None
        self.open_outbox(factory.bounds)
        self._socket = Socket(
            self,
            opened.serializer,
            opened.principal,
            router=factory.router,
            pubsub=factory.pubsub,
            clock=factory.clock,
            max_topics=factory.settings.max_topics,
            heartbeat_timeout=factory.settings.heartbeat_timeout,
            ping_interval=factory.settings.ping_interval,
            pong_timeout=factory.settings.pong_timeout,
            quota=factory.quota,
            tokens=factory.tokens,
            recorder=factory.recorder,
        )
        note_opened(self, self._socket)
        factory.metrics.handshake_ended("ok")
        factory.metrics.connections.inc()
        opened.claim.attach(self._socket)
        if factory.draining:
            self.drain()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        socket = self._socket
        if socket is None or self.state != self.STATE_OPEN:
            return
        self.factory.metrics.messages_received += 1
        if isBinary:
            socket.binary_received(payload)
        else:
            socket.text_received(payload)

    def onPing(self, payload: bytes) -> None:
        if self._socket is not None:
            self._socket.ping_received()
        super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        if self._socket is not None:
            self._socket.pong_received(payload)

    def broke_down(self) -> None:
        if self.state == self.STATE_CONNECTING:
            self._answer(Refused("internal_error", 500))
        else:
            super().broke_down()

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        super().onClose(wasClean, code, reason)
        self.factory.connections.discard(self)
        counted_as, self.counted_as = self.counted_as, None
        if counted_as is not None:
            self.factory.addresses.release(counted_as)
        deciding, self._deciding = self._deciding, None
        if deciding is not None:
            deciding.cancel()
        socket, self._socket = self._socket, None
        opened, self._opened = self._opened, None
        claim = self._claim if opened is None else opened.claim
        self._claim = None
        if claim is not None:
            if socket is not None:
                self.factory.metrics.connections.dec()
                note_ended(self, socket)
            ended = succeed(None) if socket is None else maybeDeferred(socket.connection_lost)
            ended.addErrback(self._ended_badly).addBoth(lambda _: claim.release())

    def _ended_badly(self, failure: Failure) -> None:
        self._log.failure("The channels of a connection did not end cleanly", failure)

    # The end of the server; see `flowtx.sessions.drainer`

    def drain(self) -> None:
        """Tell the client to come back; one whose handshake is being decided is told after that."""
        if self._socket is not None:
            self._socket.close(DRAIN)
        elif self._deciding is None:
            self._refuse(_unavailable())

    def cut(self) -> None:
        """End the connection now, whatever the client does."""
        self._abort()

    # ITransport; `ping`, `close`, `waiting_bytes` and `reading` are inherited

    def send(self, frame: Frame) -> None:
        outbox = self._outbox
        if outbox is not None:
            self.factory.metrics.frames_sent += 1
            outbox.send(frame.wire or wire_of(frame), frame.key)

    def pause_reading(self) -> None:
        if self.state == self.STATE_OPEN:
            self.stop_reading(MAILBOXES)

    def resume_reading(self) -> None:
        self.go_on_reading(MAILBOXES)

    def go_on_reading(self, why: int) -> None:
        super().go_on_reading(why)
        if self._socket is not None:
            self._socket.read_again()

    def overflowed(self, waited: int) -> None:
        self.factory.metrics.slow_consumers.inc()
        if self._socket is not None:
            self._socket.note("slow_consumer", waiting_bytes=waited)
            self._socket.closing(SLOW_CONSUMER)
        super().overflowed(waited)


def _unavailable() -> Refused:
    return Refused("unavailable", 503, {"Retry-After": "1"})
