"""The 301 cases of the Autobahn|Testsuite against this server's connections, as ``twistd flow`` makes them.

Groups 12 and 13 are about compression, which is never switched on here: no extension is taken.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults

from flowtx.channels.socket import Socket
from flowtx.protocol.message import Frame
from flowtx.transports import reading
from flowtx.transports.websocket import FlowProtocol
from tests.conformance.rfc6455 import COUNT, GROUPS, CasesError, load
from tests.conformance.rfc6455_client import Outcome, run_case
from tests.integration.websocket_server import Server, reactor

AT_ONCE: Final = {"9": 6}  # of a group; many messages of 16 MiB would keep each other from their deadlines
SIZE: Final = 16 * 2**20


class EchoSocket(Socket):
    """Sends back what comes: the cases are about frames, not about messages."""

    def text_received(self, data: bytes) -> None:
        self.transport.send(Frame(bytes(data)))

    def binary_received(self, data: bytes) -> None:
        self.transport.send(Frame(bytes(data), binary=True))


class EchoProtocol(FlowProtocol):
    """A connection as it comes, up to its Socket."""

    def onOpen(self) -> None:
        super().onOpen()
        assert self._socket is not None
        self._socket.__class__ = EchoSocket


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> Iterator[Mapping[str, Any]]:
    try:
        yield load(request.config.cache.mkdir("autobahn-testsuite"))
    except CasesError as problem:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"The cases cannot be had: {problem}")


@pytest_twisted.ensureDeferred
async def test_all_cases(
    cases: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # They send a message of 4 MiB in 65,536 fragments.
    monkeypatch.setattr(reading, "MAX_FRAGMENTS", SIZE)
    chosen = {id_: case for id_, case in cases.items() if id_.split(".")[0] in GROUPS}
    assert len(chosen) == COUNT
    settings: dict[str, Any] = {"max_frame_size": SIZE, "outbox_limit": 2 * SIZE, "ping_rate": 1000.0}
    async with Server(protocol=EchoProtocol, guarded=False, **settings) as server:

        async def run(ids: Collection[str], at_once: int) -> list[Outcome]:
            gate = DeferredSemaphore(at_once)

            def start(id_: str) -> Deferred[Outcome]:
                url = f"ws://127.0.0.1:{server.port}{server.target()}"
                case = run_case(id_, chosen[id_], url, reactor=reactor)
                return gate.run(Deferred.fromCoroutine, case)

            return list(await gatherResults([start(id_) for id_ in ids]))

        outcomes: list[Outcome] = []
        for group in GROUPS:
            ids = [id_ for id_ in chosen if id_.split(".")[0] == group]
            outcomes += await run(ids, AT_ONCE.get(group, 16))
        # A case has a second or less to be answered in, which a busy machine may take away.
        again = await run([outcome.id for outcome in outcomes if not outcome.passed], 1)
    failed = [outcome for outcome in again if not outcome.passed]
    with capsys.disabled():
        print(f"\nRFC 6455: {len(outcomes) - len(failed)} of {len(outcomes)} cases passed")  # noqa: T201
    assert not failed, "\n".join(map(str, failed))


@pytest_twisted.ensureDeferred
async def test_they_find_a_fault(cases: Mapping[str, Any]) -> None:
    async with Server(protocol=EchoProtocol, guarded=False) as server:
        url = f"ws://127.0.0.1:{server.port}{server.target()}"
        # More than a client may send here.
        outcome = await run_case("9.1.1", cases["9.1.2"], url, reactor=reactor)
    assert not outcome.passed, outcome
