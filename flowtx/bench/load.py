"""The load, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import deferLater
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool, ResponseFailed, readBody
from twisted.web.http_headers import Headers

from flowtx.bench.client import BenchError, Client, TurnedAway
from flowtx.bench.plan import Plan

AT_ONCE: Final = 10
"""Handshakes under way at once."""

ANSWER_WITHIN: Final = 10.0
TRIES: Final = 30
"""Times that a client comes again where the server has too much to do."""

EVENT: Final = "flowtx_bench"
_TURN: Final = 0.002


class Line(NamedTuple):
    """What one kind of load came to.

    Attributes:
        what: was done.
        seconds: how long it took in all.
        times: how long each took, in seconds.
        note: what else there is to say.
    """

    what: str
    seconds: float
    times: Sequence[float]
    note: str = ""

    def __str__(self) -> str:
        times = sorted(self.times)
        p50, p99, most = (1_000 * times[int(share * (len(times) - 1))] for share in (0.5, 0.99, 1))
        rate = f"{self.what:10}{len(times):8,}{len(times) / self.seconds:9,.0f}/s"
        return f"{rate}  p50 {p50:.1f} ms  p99 {p99:.1f} ms  max {most:.1f} ms  {self.note}".rstrip()


async def put_load(plan: Plan, say: Callable[[Line], object], reactor: Any) -> None:
    """Connect all clients, have them send, broadcast to them, and let them go.

    Args:
        plan: what is to be done.
        say: told what each kind of load came to.
        reactor: makes the connections and tells the time.

    Raises:
        ConfigError: it cannot be done.
        BenchError: the server cannot be reached, does not let the clients in, or does not answer.
    """
    plan.check()
    crowd = Crowd(plan, reactor)
    try:
        say(await crowd.connect())
        say(await crowd.send("heartbeat", Client.heartbeat))
        say(await crowd.send("activity", Client.activity))
        say(await crowd.broadcast())
    finally:
        crowd.close()


class Crowd:
    """All clients."""

    def __init__(self, plan: Plan, reactor: Any) -> None:
        self._plan = plan
        self._reactor = reactor
        self._clients: list[Client] = []
        place = plan.place
        self._host = place.name
        self._endpoint: IStreamClientEndpoint = HostnameEndpoint(reactor, place.host, place.port)
        if place.secure:
            self._endpoint = wrapClientTLS(optionsForClientTLS(place.host), self._endpoint)
        self._pool = HTTPConnectionPool(reactor)
        self._agent = Agent(reactor, connectTimeout=ANSWER_WITHIN, pool=self._pool)
        self._turned_away = 0
        self._awaited = 0
        self._all_have_it: Deferred[None] = Deferred()

    async def connect(self) -> Line:
        """Have all connect and join their own topics."""
        times: list[float] = []
        left = list(self._plan.tokens.items())[::-1]

        async def enter() -> None:
            while left:
                user_id, token = left.pop()
                began = self._now()
                client = await self._open(user_id, token)
                self._clients.append(client)
                await self._in_time(client.join(), f"{user_id} joins")
                times.append(self._now() - began)

        began = self._now()
        await _all([Deferred.fromCoroutine(enter()) for _ in range(min(AT_ONCE, len(left)))])
        note = f"turned away {self._turned_away} times, and came again" if self._turned_away else ""
        return Line("connect", self._now() - began, times, note)

    async def _open(self, user_id: str, token: str) -> Client:
        for _ in range(TRIES):
            request = f"/socket/websocket?token={quote(token)}&vsn=2.0.0"
            client = Client(user_id, request, self._host, self._came)
            try:
                await self._in_time(connectProtocol(self._endpoint, client), f"{user_id} connects")
                await self._in_time(client.opened, f"{user_id} connects")
            except (OSError, ConnectError) as error:
                raise BenchError(f"{self._plan.url}: {error}") from None
            except TurnedAway as refusal:
                if refusal.status != 503:
                    raise BenchError(f"{refusal}; --tokens takes a file of tokens that it lets in") from None
                self._turned_away += 1
                await deferLater(self._reactor, max(1, refusal.retry_after))
            else:
                return client
        raise BenchError(f"{user_id} was turned away {TRIES} times: the server has too much to do")

    async def send(self, what: str, message: Callable[[Client], Deferred[Any]]) -> Line:
        """Have each client send messages at its rate, all of them evenly in turn."""
        plan, times, under_way = self._plan, [], []
        rate = plan.rate * len(self._clients)
        about = f"{what}, {plan.rate:g} a second of each client (the server takes its --rate-limit)"
        began, sent = self._now(), 0

        def answered(_: object, at: float) -> None:
            times.append(self._now() - at)

        while (passed := self._now() - began) < plan.seconds:
            while sent <= passed * rate:
                reply = message(self._clients[sent % len(self._clients)])
                under_way.append(self._in_time(reply.addCallback(answered, self._now()), about))
                sent += 1
            await deferLater(self._reactor, _TURN)
        await _all(under_way)
        return Line(what, self._now() - began, times)

    async def broadcast(self) -> Line:
        """Broadcast to all, again as soon as all have it."""
        times: list[float] = []
        began = self._now()
        while not times or self._now() - began < self._plan.seconds:
            at = self._now()
            self._awaited, self._all_have_it = len(self._clients), Deferred()
            await self._post({"user_ids": list(self._plan.tokens), "event": EVENT, "payload": {}})
            await self._in_time(self._all_have_it, "a broadcast")
            times.append(self._now() - at)
        seconds = self._now() - began
        frames = len(times) * len(self._clients)
        note = f"until all {len(self._clients):,} have it: {frames / seconds:,.0f} frames/s"
        return Line("broadcast", seconds, times, note)

    def _came(self, event: str, _: object) -> None:
        if event == EVENT:
            self._awaited -= 1
            if not self._awaited:
                self._all_have_it.callback(None)

    async def _post(self, body: object) -> None:
        url = f"{self._plan.api.rstrip('/')}/api/broadcasts"
        headers = Headers(
            {"Authorization": [f"Bearer {self._plan.api_key}"], "Content-Type": ["application/json"]}
        )
        producer = FileBodyProducer(BytesIO(msgspec.json.encode(body)))
        try:
            response = await self._in_time(
                self._agent.request(b"POST", url.encode(), headers, producer), "the HTTP API"
            )
            text = await self._in_time(readBody(response), "the HTTP API")
        except (OSError, ConnectError, ResponseFailed) as error:
            raise BenchError(f"{self._plan.api}: {error}") from None
        if response.code != 202:
            raise BenchError(f"{url} answers {response.code}: {text.decode('utf-8', 'replace')[:200]}")

    def close(self) -> None:
        """Let all clients go."""
        for client in self._clients:
            client.close()
        self._pool.closeCachedConnections()

    def _now(self) -> float:
        now: float = self._reactor.seconds()
        return now

    def _in_time(self, awaited: Deferred[Any], what: str) -> Deferred[Any]:
        def late(*_: object) -> None:
            raise BenchError(f"{what}: no answer within {ANSWER_WITHIN:g} s")

        return awaited.addTimeout(ANSWER_WITHIN, self._reactor, onTimeoutCancel=late)


async def _all(awaited: Sequence[Deferred[Any]]) -> None:
    """Wait for all; the first failure of one, as it is."""
    try:
        await gatherResults(awaited, consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
