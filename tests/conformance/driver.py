"""Runs the cases of ``phoenix_vectors.json`` over whatever connects: memory, or a real socket.

Text frames are compared as JSON values, since the order of keys means nothing, but must be compact,
and give refs back to the byte; binary frames are compared byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from flowtx.protocol.message import Frame

VECTORS = Path(__file__).with_name("phoenix_vectors.json")
ANY_TEXT = "$TEXT"

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_REFS_V2 = msgspec.json.Decoder(tuple[msgspec.Raw, msgspec.Raw, Any, Any, Any])


class Closed(NamedTuple):
    """The server closed the connection, with a code or without."""

    code: int | None


class Pong(NamedTuple):
    """The server answered a ping."""

    data: bytes


Received: TypeAlias = Frame | Closed | Pong


class Connect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to connect: ``vsn`` is None where the client gives none."""

    vsn: str | None
    user: str
    heartbeat_timeout: float | None = None
    max_frame_size: int | None = None


class WebSocketFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frame with its framing."""

    opcode: int
    text: str | None = None
    hex: str = ""
    fin: bool = True
    rsv: int = 0
    masked: bool = True

    def to_bytes(self) -> bytes:
        """Write the frame; its mask is all zeros."""
        data = bytes.fromhex(self.hex) if self.text is None else self.text.encode()
        head = bytes([self.fin << 7 | self.rsv << 4 | self.opcode])
        mask_bit = self.masked << 7
        if len(data) < 126:
            size = bytes([mask_bit | len(data)])
        else:
            size = bytes([mask_bit | 126]) + len(data).to_bytes(2, "big")
        return head + size + bytes(4 if self.masked else 0) + data


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An HTTP request, with its placeholders."""

    line: str
    headers: list[tuple[str, str]]


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens next: ``about.steps`` in the vectors says what each field means."""

    on: str = ""
    connect: Connect | None = None
    join: str | None = None
    ref: str = ""
    send: str | None = None
    send_hex: str | None = None
    expect: str | None = None
    expect_hex: str | None = None
    expect_close: int | list[int | None] | None = None
    expect_nothing: bool = False
    or_nothing: bool = False
    wait: float = 0
    repeat: int = 1
    steps: list[Step] = []
    fill: dict[str, tuple[str, int]] = {}
    frame: WebSocketFrame | None = None
    raw: str | None = None
    expect_pong: str | None = None
    request: Request | None = None
    expect_status: int | list[int] | None = None
    reason: str | None = None


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One recorded case."""

    id: str
    title: str
    steps: list[Step]
    level: str = "protocol"
    differs: str = ""
    crashes: int = 0

    @property
    def seconds(self) -> float:
        """How long it waits."""
        return sum(step.wait for step in self.steps)


class Connection(Protocol):
    """A client's end. ``receive`` fails where nothing comes."""

    async def send_text(self, text: str) -> None: ...

    async def send_binary(self, data: bytes) -> None: ...

    async def send_raw(self, data: bytes) -> None: ...

    async def receive(self) -> Received: ...


class _Vectors(msgspec.Struct):
    cases: list[Case]


def load_cases(level: str) -> list[Case]:
    """Read the cases of one level."""
    cases = msgspec.json.decode(VECTORS.read_bytes(), type=_Vectors).cases
    return [case for case in cases if case.level == level]


async def run_case(
    case: Case,
    connect: Callable[[Connect], Awaitable[Connection]],
    pause: Callable[[float], Awaitable[None]],
) -> None:
    """Play a case of the levels ``protocol`` and ``socket``; at its end nothing more may come.

    Args:
        case: the case.
        connect: opens a connection.
        pause: lets so many seconds pass.

    Raises:
        AssertionError: the server did something else, or nothing.
    """
    run = _Run(connect, pause)
    for number, step in enumerate(flat(case.steps)):
        try:
            await run.step(step)
        except AssertionError as problem:
            raise AssertionError(f"{case.id}, {case.title}, step {number}: {problem}") from None
    try:
        await run.finish()
    except AssertionError as problem:
        raise AssertionError(f"{case.id}, {case.title}, after the last step: {problem}") from None


class _Run:
    def __init__(
        self,
        connect: Callable[[Connect], Awaitable[Connection]],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._connect = connect
        self._pause = pause
        self._open: dict[str, Connection] = {}
        self._v1: set[str] = set()
        self._probes = 0

    async def step(self, step: Step) -> None:
        name = step.on
        if step.wait:
            await self._pause(step.wait)
        elif step.connect is not None:
            self._open[name] = await self._connect(step.connect)
            if (step.connect.vsn or "1.0.0").startswith("1"):
                self._v1.add(name)
        elif step.join is not None:
            await self._open[name].send_text(self._message(name, step.ref, step.ref, step.join, "phx_join"))
            await self._expect_text(name, self._reply(name, step.ref, step.ref, step.join))
        elif step.send is not None:
            await self._open[name].send_text(step.send)
        elif step.send_hex is not None:
            await self._open[name].send_binary(bytes.fromhex(step.send_hex))
        elif step.frame is not None:
            await self._open[name].send_raw(step.frame.to_bytes())
        elif step.raw is not None:
            await self._open[name].send_raw(bytes.fromhex(step.raw))
        else:
            await self._expect(name, step)

    async def _expect(self, name: str, step: Step) -> None:
        if step.expect is not None and step.or_nothing:
            probe = await self._send_probe(name)
            received = await self._open[name].receive()
            try:
                self._same_text(name, probe, received)
            except AssertionError:
                self._same_text(name, step.expect, received)
                await self._expect_text(name, probe)
        elif step.expect is not None:
            await self._expect_text(name, step.expect)
        elif step.expect_nothing:
            await self._probe(name)
        elif step.expect_hex is not None:
            _same(Frame(bytes.fromhex(step.expect_hex), binary=True), await self._open[name].receive())
        elif step.expect_pong is not None:
            _same(Pong(bytes.fromhex(step.expect_pong)), await self._open[name].receive())
        elif step.expect_close is not None:
            codes = step.expect_close if isinstance(step.expect_close, list) else [step.expect_close]
            received = await self._open[name].receive()
            if received not in [Closed(code) for code in codes]:
                raise AssertionError(f"expected a close with {codes}, got {received}")
            # The connection stays, to send what the client still may, but is asked for nothing.
            self._v1.discard(name)
            self._open[name] = _Ended(self._open[name])
        else:
            raise AssertionError(f"a step for another runner: {step}")

    async def finish(self) -> None:
        for name, connection in self._open.items():
            if not isinstance(connection, _Ended):
                await self._probe(name)

    async def _probe(self, name: str) -> None:
        """Find that the next frame is the answer to a heartbeat that is sent now."""
        await self._expect_text(name, await self._send_probe(name))

    async def _send_probe(self, name: str) -> str:
        """Send a heartbeat; its answer."""
        self._probes += 1
        ref = f"probe-{self._probes}"
        await self._open[name].send_text(self._message(name, None, ref, "phoenix", "heartbeat"))
        return self._reply(name, None, ref, "phoenix")

    async def _expect_text(self, name: str, expected: str) -> None:
        self._same_text(name, expected, await self._open[name].receive())

    def _same_text(self, name: str, expected: str, received: Received) -> None:
        if not isinstance(received, Frame) or received.binary:
            raise AssertionError(f"expected {expected[:300]}, got {received}")
        text = received.payload.decode()
        v1 = name in self._v1
        if re.search(r"\s", _STRING.sub("", text)):
            raise AssertionError(f"not compact: {text[:300]}")
        if not equal(json.loads(expected), json.loads(text)) or _refs(expected, v1) != _refs(text, v1):
            raise AssertionError(f"expected {expected[:300]}, got {text[:300]}")

    def _message(self, name: str, join_ref: str | None, ref: str, topic: str, event: str) -> str:
        if name in self._v1:
            return json.dumps({"topic": topic, "event": event, "payload": {}, "ref": ref})
        return json.dumps([join_ref, ref, topic, event, {}])

    def _reply(self, name: str, join_ref: str | None, ref: str, topic: str) -> str:
        payload = {"status": "ok", "response": {}}
        if name in self._v1:
            return json.dumps({"topic": topic, "event": "phx_reply", "payload": payload, "ref": ref})
        return json.dumps([join_ref, ref, topic, "phx_reply", payload])


class _Ended:
    """A connection that the server closed: it may be sent to, and asked for nothing."""

    def __init__(self, connection: Connection) -> None:
        self.send_text = connection.send_text
        self.send_binary = connection.send_binary
        self.send_raw = connection.send_raw

    async def receive(self) -> Received:
        raise AssertionError("the connection was closed before")


def flat(steps: list[Step]) -> Iterator[Step]:
    """Write out what is repeated and filled in."""
    for step in steps:
        for number in range(step.repeat):
            for inner in step.steps:
                yield msgspec.structs.replace(
                    inner,
                    on=step.on,
                    send=inner.send and inner.send.replace("#", str(number)),
                    expect=inner.expect and inner.expect.replace("#", str(number)),
                )
        if not step.steps:
            yield msgspec.structs.replace(
                step, send=_filled(step.send, step), expect=_filled(step.expect, step)
            )


def _filled(text: str | None, step: Step) -> str | None:
    if text is not None:
        for mark, (unit, times) in step.fill.items():
            text = text.replace(mark, unit * times)
    return text


def _refs(text: str, v1: bool) -> tuple[bytes, ...]:
    """The JSON text of join_ref and ref, or of ref alone."""
    if v1:
        return (bytes(msgspec.json.decode(text, type=dict[str, msgspec.Raw])["ref"]),)
    return tuple(bytes(ref) for ref in _REFS_V2.decode(text)[:2])


def equal(expected: Any, got: Any) -> bool:
    """Compare JSON values by their types too: 1 is neither 1.0 nor true."""
    if expected == ANY_TEXT:
        return isinstance(got, str)
    if isinstance(expected, dict) and isinstance(got, dict):
        return expected.keys() == got.keys() and all(equal(expected[key], got[key]) for key in expected)
    if isinstance(expected, list) and isinstance(got, list):
        return len(expected) == len(got) and all(map(equal, expected, got))
    return repr(expected) == repr(got)


def _same(expected: Received, received: Received) -> None:
    if received != expected:
        raise AssertionError(f"expected {expected}, got {received}")
