"""Users whose clients come back as those of npm's ``phoenix`` do."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any, Final

from twisted.internet import reactor as global_reactor
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from flowtx.auth import mint
from tests.integration.async_flow_process import until

reactor: Any = global_reactor

RECONNECT_AFTER: Final = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0, 2.0)
RECONNECT_THEN: Final = 5.0
REJOIN_AFTER: Final = (1.0, 2.0, 5.0, 10.0)
JOIN_WITHIN: Final = 10.0
HEARTBEAT_EVERY: Final = 30.0
ALL_BACK_WITHIN: Final = 400.0
AT_ONCE: Final = 400
"""Connections that are opened in one go before the restart."""

_SEQ: Final = re.compile(rb'"seq":(\d+)')
_TEXT, _CLOSE, _PING, _PONG = 0x81, 0x88, 0x89, 0x8A


class Member:
    """A user with one client that never gives up.

    Attributes:
        joined: whether it is on its topic now.
        seqs: what it was given, in order.
    """

    def __init__(self, crowd: Crowd, number: int) -> None:
        self.user_id = f"user-{number}"
        self.joined = False
        self.seqs: list[int] = []
        self.crowd = crowd
        self.source = f"127.0.0.{number % 8 + 2}"
        self._tries = 0

    def connect(self) -> None:
        """Try to connect."""
        reactor.connectTCP(
            "127.0.0.1", self.crowd.port, _Factory(self), timeout=20, bindAddress=(self.source, 0)
        )

    def opened(self) -> None:
        """Note that the handshake has succeeded."""
        self._tries = 0

    def ended(self, how: str) -> None:
        """Note the end of a connection, or of an attempt; try again, as phoenix.js does."""
        self.joined = False
        self.crowd.ended(how)
        after = RECONNECT_AFTER[self._tries] if self._tries < len(RECONNECT_AFTER) else RECONNECT_THEN
        self._tries += 1
        if not self.crowd.leaving:
            reactor.callLater(after, self.connect)


class _Factory(ClientFactory):
    noisy = False

    def __init__(self, member: Member) -> None:
        self._member = member

    def buildProtocol(self, _: object) -> _Connection:
        return _Connection(self._member)

    def clientConnectionFailed(self, _: object, reason: Failure) -> None:  # noqa: N802
        self._member.ended(f"no connection: {type(reason.value).__name__}")


class _Connection(Protocol):
    """A connection of a member, as lean as can be."""

    transport: Any

    def __init__(self, member: Member) -> None:
        self._member = member
        self._buffer = b""
        self._open = False
        self._how = "broken"
        self._joins = 0
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:  # noqa: N802
        crowd, user_id = self._member.crowd, self._member.user_id
        crowd.connections.add(self)
        self.transport.write(
            f"GET /socket/websocket?token={crowd.token(user_id)}&vsn=2.0.0 HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{crowd.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        self._buffer += data
        if not self._open:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._how = f"refused {head[9:12].decode()}"
                self.transport.loseConnection()
                return
            self._open, self._buffer = True, rest
            self._member.opened()
            self._join()
        while (taken := self._take()) is not None:
            self._frame(*taken)

    def _join(self) -> None:
        """Join; it is tried again where it is refused, or no answer comes."""
        if not self._open or self._member.joined:
            return
        self._joins += 1
        last = self._member.seqs[-1] if self._member.seqs else 0
        topic, ref = f"user:{self._member.user_id}", self._joins
        self._say(f'["{ref}","{ref}","{topic}","phx_join",{{"last_seq":{last}}}]')
        self._again(JOIN_WITHIN)

    def _again(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = reactor.callLater(seconds, self._join)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _take(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, start = buffer[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(buffer[2:start])
        if len(buffer) < start + length:
            return None
        self._buffer = buffer[start + length :]
        return buffer[0], buffer[start : start + length]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self._send(_PONG, payload)
        elif opcode == _CLOSE:
            self._how = str(int.from_bytes(payload[:2]))
            self._send(_CLOSE, payload[:2])
        elif b'"notification",{' in payload[:200]:
            found = _SEQ.search(payload)
            assert found, payload
            self._member.seqs.append(int(found[1]))
        elif b'"phx_reply"' in payload[:200] and b'"session_id"' in payload:
            self._member.joined = True
            self._stop_timer()
        elif b'"phx_reply"' in payload[:200] and b'"status":"error"' in payload:
            self._member.crowd.ended("join refused")
            self._again(REJOIN_AFTER[min(self._joins, len(REJOIN_AFTER)) - 1])

    def heartbeat(self) -> None:
        """Say that the client lives, as phoenix.js does."""
        if self._open:
            self._say('[null,"h","phoenix","heartbeat",{}]')

    def _say(self, text: str) -> None:
        self._send(_TEXT, text.encode())

    def _send(self, opcode: int, payload: bytes) -> None:
        # Clients have to mask; a key of zeros is one, and leaves the payload as it is.
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
        self.transport.write(bytes((opcode,)) + length + b"\0\0\0\0" + payload)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        self._open = False
        self._stop_timer()
        self._member.crowd.connections.discard(self)
        self._member.ended(self._how)


class Crowd:
    """Many members.

    Args:
        size: how many.
        port: where they connect to.
        secret: signs their tokens.

    Attributes:
        ends: how connections, and attempts, ended.
        leaving: whether nobody comes back any more.
    """

    def __init__(self, size: int, port: int, secret: bytes) -> None:
        self.port = port
        self.members = [Member(self, number) for number in range(size)]
        self.connections: set[_Connection] = set()
        self.ends: Counter[str] = Counter()
        self.leaving = False
        self._secret = secret
        self._beats()

    def token(self, user_id: str) -> str:
        """Sign a token."""
        return mint(self._secret, "HS512", user_id, ttl=3600, now=time.time())

    def ended(self, how: str) -> None:
        """Count the end of a connection, or of an attempt."""
        self.ends[how] += 1

    async def come(self) -> None:
        """Have all connect and join, a few at a time."""
        for start in range(0, len(self.members), AT_ONCE):
            some = self.members[start : start + AT_ONCE]
            for member in some:
                member.connect()
            await until(lambda some=some: all(m.joined for m in some), ALL_BACK_WITHIN, self.state)  # type: ignore[misc]

    async def leave(self) -> None:
        """End all connections."""
        self.leaving = True
        for connection in tuple(self.connections):
            connection.transport.abortConnection()
        await until(lambda: not self.connections, 30)

    def all_joined(self) -> bool:
        return all(member.joined for member in self.members)

    def state(self) -> str:
        """Say who is there, for whoever waits in vain."""
        return f"{sum(m.joined for m in self.members)} of {len(self.members)} are there; {dict(self.ends)}"

    def _beats(self) -> None:
        if not self.leaving:
            for connection in self.connections:
                connection.heartbeat()
            reactor.callLater(HEARTBEAT_EVERY, self._beats)
