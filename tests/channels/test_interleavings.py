"""Channels under any interleaving of what comes to them and of how long they take for it."""

from __future__ import annotations

from itertools import count
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from flowtx.channels.channel import Channel, Stop, error, ok
from flowtx.channels.router import Router
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.testing.memory import connect
from tests.channels.scripted import Client

OUTCOMES = ("nothing", "boom", "stop")

topics = st.sampled_from(["room:a", "room:a", "room:b"])
takes_time = st.booleans()


class Boom(Exception):  # noqa: N818
    """What the Channels crash with."""


class Watched(Channel):
    """Notes what it is asked to do, and finishes when it is told to."""

    intercept = ("cut",)

    def __init__(self, world: Interleavings) -> None:
        self._world = world
        self._busy = False
        self.handled: list[int] = []
        self.let_in = False
        self.terminated = 0

    async def join(self, payload: Any) -> Any:
        self._world.channels.append(self)
        self.subscribe("elsewhere")
        if await self._work(payload) == "nothing":
            self.let_in = True
            return ok()
        return error()

    async def handle_in(self, event: str, payload: Any) -> Any:
        return await self._handle(payload) or ok(payload)

    async def handle_out(self, event: str, payload: Any) -> Any:
        stop = await self._handle(payload)
        if stop is None:
            self.push(event, payload)
        return stop

    def handle_info(self, message: Any) -> Any:
        return self._handle({"n": message, "slow": False} if isinstance(message, int) else message.payload)

    async def _handle(self, payload: Any) -> Stop | None:
        self.handled.append(payload["n"])
        return Stop() if await self._work(payload) == "stop" else None

    async def _work(self, payload: Any) -> str:
        assert not self._busy, "two things at a time"
        self._busy = True
        outcome = "nothing"
        if payload["slow"]:
            gate: Deferred[str] = Deferred()
            self._world.gates.append(gate)
            try:
                outcome = await gate
            finally:
                self._busy = False
        self._busy = False
        if outcome == "boom":
            raise Boom
        return outcome

    def terminate(self, reason: str) -> None:
        assert not self._busy, "terminated while it works"
        self.terminated += 1


@implementer(ILogObserver)
class Log:
    """Keeps the failures that no Channel here makes."""

    def __init__(self) -> None:
        self.others: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        if "log_failure" in event and not event["log_failure"].check(Boom):
            self.others.append(event)


class Interleavings(RuleBasedStateMachine):
    """One client, two topics."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.pubsub = MemoryPubSub()
        self.channels: list[Watched] = []
        self.gates: list[Deferred[str]] = []
        router = Router().channel("room:*", lambda: Watched(self))
        self.client = Client(connect(router, "42", self.clock, pubsub=self.pubsub, heartbeat_timeout=1e9))
        self.numbers = count(1)
        self.joins: dict[str, str] = {}
        self.frames: list[Any] = []
        self.log = Log()
        globalLogPublisher.addObserver(self.log)

    def payload(self, slow: bool) -> dict[str, Any]:
        return {"n": next(self.numbers), "slow": slow}

    @rule(topic=topics, slow=takes_time)
    def join(self, topic: str, slow: bool) -> None:
        payload = self.payload(slow)
        self.joins[topic] = str(payload["n"])
        self.client.send(self.joins[topic], self.joins[topic], topic, "phx_join", payload)

    @precondition(lambda self: self.joins)
    @rule(topic=topics, slow=takes_time)
    def message(self, topic: str, slow: bool) -> None:
        payload = self.payload(slow)
        self.client.send(self.joins.get(topic), f"m{payload['n']}", topic, "work", payload)

    @precondition(lambda self: self.joins)
    @rule(topic=topics)
    def leave(self, topic: str) -> None:
        self.client.send(self.joins.get(topic), f"l{next(self.numbers)}", topic, "phx_leave")

    @rule(topic=topics, events=st.lists(st.sampled_from(["cut", "plain"]), min_size=1, max_size=4))
    def broadcast(self, topic: str, events: list[str]) -> None:
        for event in events:
            self.pubsub.broadcast(topic, event, self.payload(slow=True))

    @rule(slow=takes_time)
    def broadcast_elsewhere(self, slow: bool) -> None:
        self.pubsub.broadcast("elsewhere", "news", self.payload(slow))

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def info(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.channels)).send_info(next(self.numbers))

    @precondition(lambda self: self.gates)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def finish(self, data: st.DataObject, outcome: str) -> None:
        gate = self.gates.pop(data.draw(st.integers(0, len(self.gates) - 1)))
        if not gate.called:
            gate.callback(outcome)

    @rule()
    def crash_all(self) -> None:
        self.client.socket.crash_channels()

    @rule()
    def time_passes(self) -> None:
        self.clock.advance(1)

    @invariant()
    def in_order(self) -> None:
        for channel in self.channels:
            assert channel.handled == sorted(channel.handled)
            assert channel.terminated <= channel.let_in
        self.frames += self.client.received()
        for join_ref in {frame[0] for frame in self.frames} - {None}:
            # The answer to a leave is the Socket's own where the topic is not joined any more.
            own = [frame for frame in self.frames if frame[0] == join_ref and f"{frame[1]}"[0] != "l"]
            ends = [place for place, frame in enumerate(own) if frame[3] in ("phx_close", "phx_error")]
            assert ends in ([], [len(own) - 1]), own
            answered = [frame for frame in own if frame[1] == join_ref and frame[3] == "phx_reply"]
            # One that was superseded before it was answered is only closed.
            assert answered == own[:1] or (not answered and own[0][3] in ("phx_close", "phx_reply")), own
            broadcasts = [frame[4]["n"] for frame in own if frame[3] in ("cut", "plain")]
            assert broadcasts == sorted(broadcasts), own
        refs = [frame[1] for frame in self.frames if frame[3] == "phx_reply"]
        assert len(refs) == len(set(refs)), refs

    def teardown(self) -> None:
        lost: list[None] = []
        self.client.lose().addCallback(lost.append)
        # A channel that had ended before is not waited for, and may take a little longer.
        while not lost or any(not gate.called for gate in self.gates):
            for gate in self.gates:
                if not gate.called:
                    gate.callback("nothing")
            self.clock.advance(1)
        globalLogPublisher.removeObserver(self.log)
        self.in_order()
        assert self.log.others == []
        assert lost == [None]
        assert [channel.terminated for channel in self.channels] == [
            channel.let_in for channel in self.channels
        ]
        assert self.pubsub._topics == {}
        assert self.clock.getDelayedCalls() == []


Interleavings.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
InterleavingTests = Interleavings.TestCase
