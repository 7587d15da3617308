"""The recorded cases over a real TCP socket: requests of HTTP, frames, and all of the protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import msgspec
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from flowtx.interfaces import Principal, User
from flowtx.protocol.close import DISCONNECT
from flowtx.protocol.message import Frame
from flowtx.storage.memory import MemoryUserDirectory
from flowtx.transports.origin import OriginRule
from tests.conformance.application import make_router
from tests.conformance.driver import Case, Closed, Connect, Pong, Received, Request, load_cases, run_case
from tests.integration.rawclient import BINARY, CLOSE, PONG, TEXT, RawClient, frame, request
from tests.integration.websocket_server import Server, reactor

CASES = load_cases("protocol") + load_cases("socket")
BRIEF = [case for case in CASES if case.seconds < 1]
# Longer ones run all at once; those of a minute run in memory only.
LONG = [case for case in CASES if 1 <= case.seconds < 10]
HANDSHAKES = load_cases("handshake")


def name(case: Case) -> str:
    return case.id


class Anybody(MemoryUserDirectory):
    """Knows whoever asks."""

    async def load(self, principals: Sequence[Principal]) -> Mapping[str, User]:
        ids = [principal.user_id for principal in principals]
        return {user_id: User(user_id, user_id, None) for user_id in ids}


class SocketConnection:
    """A `RawClient` as the driver wants it."""

    def __init__(self, client: RawClient) -> None:
        self._client = client

    async def send_text(self, text: str) -> None:
        self._client.text(text)

    async def send_binary(self, data: bytes) -> None:
        self._client.send(frame(BINARY, data))

    async def send_raw(self, data: bytes) -> None:
        self._client.send(data)

    async def receive(self) -> Received:
        received = await self._client.frame()
        assert (received.fin, received.rsv) == (True, 0), received
        if received.opcode == CLOSE:
            return Closed(received.code)
        if received.opcode == PONG:
            return Pong(received.payload)
        assert received.opcode in (TEXT, BINARY), received
        return Frame(received.payload, received.opcode == BINARY)


class RecordedServer(Server):
    """The recorded application."""

    def __init__(self, failures: int) -> None:
        super().__init__(
            directory=Anybody(),
            router=make_router(reactor, self.disconnect_user),
            failures=failures,
            # One of the recorded messages is larger than is let in by default.
            max_frame_size=200_000,
        )

    def disconnect_user(self, user_id: str) -> None:
        session = self.sessions.get_session(user_id)
        for socket in tuple(session.sockets) if session is not None else ():
            socket.close(DISCONNECT)

    async def connect_as(self, how: Connect) -> SocketConnection:
        # What a connection is made with is read before it is open.
        usual = self.factory.settings
        self.factory.settings = msgspec.structs.replace(
            usual, heartbeat_timeout=how.heartbeat_timeout or usual.heartbeat_timeout
        )
        self.factory.maxMessagePayloadSize = how.max_frame_size or usual.max_frame_size
        try:
            client = await self.connect()
            version = "" if how.vsn is None else f"&vsn={how.vsn}"
            client.send(request(f"/socket/websocket?token={self.token(how.user)}{version}"))
            assert (await client.response()).status == 101
        finally:
            self.factory.settings = usual
        return SocketConnection(client)


async def pause(seconds: float) -> None:
    await deferLater(reactor, seconds)


async def play(case: Case) -> None:
    async with RecordedServer(case.crashes) as server:
        await run_case(case, server.connect_as, pause)


@pytest.mark.parametrize("case", BRIEF, ids=name)
@pytest_twisted.ensureDeferred
async def test_case(case: Case) -> None:
    await play(case)


@pytest_twisted.ensureDeferred
async def test_cases_that_take_their_time() -> None:
    assert {"I07", "I08", "I09", "I10", "I11"} <= {case.id for case in LONG}
    assert all(case.crashes == 0 for case in LONG)
    await gatherResults([Deferred.fromCoroutine(play(case)) for case in LONG], consumeErrors=True)


def to_bytes(asked: Request, server: Server, fill: Mapping[str, tuple[str, int]]) -> bytes:
    """Write a recorded request, with its placeholders filled in."""
    values = {
        "$TOKEN": server.token("anybody"),
        "$EXPIRED": server.token("anybody", ttl=-60),
        "$HOST": f"localhost:{server.port}",
        **{mark: unit * times for mark, (unit, times) in fill.items()},
    }
    text = "\r\n".join([asked.line, *[f"{key}: {value}" for key, value in asked.headers], "", ""])
    for mark, value in values.items():
        text = text.replace(mark, value)
    return text.encode()


@pytest.mark.parametrize("case", HANDSHAKES, ids=name)
@pytest_twisted.ensureDeferred
async def test_handshake(case: Case) -> None:
    async with Server(directory=Anybody(), origins=OriginRule(None, ["localhost"])) as server:
        asked, expected = case.steps
        assert asked.request is not None
        assert expected.expect_status is not None
        client = await server.connect()
        client.send(to_bytes(asked.request, server, asked.fill))
        response = await client.response()
        statuses = expected.expect_status
        assert response.status in (statuses if isinstance(statuses, list) else [statuses])
        if response.status != 101:
            assert await client.ended() == "fin"
        if expected.reason is not None:
            assert json.loads(response.body) == {"reason": expected.reason}
