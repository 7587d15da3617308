"""flowtx does what Phoenix 1.7.24 was recorded doing, save where a case says that it differs."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.router import Router
from flowtx.protocol.close import DISCONNECT
from flowtx.protocol.message import Frame
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.testing.memory import MemoryTransport, connect
from tests.conformance.application import make_router
from tests.conformance.driver import Case, Closed, Connect, Connection, Received, load_cases, run_case

CASES = load_cases("protocol")


class MemoryConnection:
    """A `MemoryTransport` as the driver wants it: what was not sent at once will not come."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self._unread: list[Frame] = []

    async def send_text(self, text: str) -> None:
        self.transport.text(text)

    async def send_binary(self, data: bytes) -> None:
        self.transport.binary(data)

    async def send_raw(self, data: bytes) -> None:
        raise NotImplementedError("there is no framing in memory")

    async def receive(self) -> Received:
        self._unread += self.transport.take()
        if self._unread:
            return self._unread.pop(0)
        if self.transport.closed is not None:
            return Closed(self.transport.closed.code)
        raise AssertionError("nothing was sent")


class MemoryServer:
    """The recorded application under a Clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pubsub = MemoryPubSub()
        self.router: Router = make_router(self.clock, self.disconnect)
        self.transports: list[MemoryTransport] = []

    async def connect(self, how: Connect) -> Connection:
        transport = connect(
            self.router,
            how.user,
            self.clock,
            vsn=how.vsn or "1.0.0",
            pubsub=self.pubsub,
            heartbeat_timeout=how.heartbeat_timeout or 60,
        )
        self.transports.append(transport)
        return MemoryConnection(transport)

    async def pause(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def disconnect(self, user_id: str) -> None:
        for transport in self.transports:
            if transport.socket.principal.user_id == user_id:
                transport.socket.close(DISCONNECT)


class VectorTests(SynchronousTestCase):
    """One test for each case, in memory."""

    def run_case(self, case: Case) -> None:
        server = MemoryServer()
        self.successResultOf(Deferred.fromCoroutine(run_case(case, server.connect, server.pause)))
        self.assertEqual(len(self.flushLoggedErrors()), case.crashes, "failures logged")
        for transport in server.transports:
            self.successResultOf(transport.lose())
        self.assertEqual(server.clock.getDelayedCalls(), [])


def _test(case: Case) -> Callable[[VectorTests], None]:
    def test(self: VectorTests) -> None:
        self.run_case(case)

    test.__name__ = f"test_{case.id}"
    test.__qualname__ = f"VectorTests.test_{case.id}"
    return test


for _case in CASES:
    setattr(VectorTests, f"test_{_case.id}", _test(_case))
del _case


class VectorFileTests(SynchronousTestCase):
    """The file itself."""

    def test_nothing_is_left_out_unseen(self) -> None:
        counts = {level: len(load_cases(level)) for level in ("protocol", "socket", "handshake")}
        self.assertEqual(counts, {"protocol": 129, "socket": 31, "handshake": 45})

    def test_ids_are_unique(self) -> None:
        ids = [case.id for level in ("protocol", "socket", "handshake") for case in load_cases(level)]
        self.assertEqual(len(ids), len(set(ids)))
