"""The recorded cases as what a client of Phoenix is told to do, and what it must see.

A client chooses its own refs and speaks no frame but those that its calls make, so not every case can be
asked of it: `script_of` gives None for one that cannot.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple, TypeAlias

from tests.conformance.driver import Case, Step, flat

MAX_WAIT: Final = 1.0
"""Seconds; what takes longer is for the tests that play all cases."""


class Connect(NamedTuple):
    """Connect as a user."""

    on: str
    user: str


class Join(NamedTuple):
    """Join a topic."""

    on: str
    topic: str
    payload: Any


class Push(NamedTuple):
    """Push an event; ``ref`` is the recorded one."""

    on: str
    topic: str
    event: str
    payload: Any
    ref: str


class Leave(NamedTuple):
    """Leave a topic."""

    on: str
    topic: str


class Joined(NamedTuple):
    """See the answer to a join."""

    on: str
    topic: str
    status: str
    response: Any


class Left(NamedTuple):
    """See the answer to a leave."""

    on: str
    topic: str


class Replied(NamedTuple):
    """See the answer to a push, by its recorded ref."""

    on: str
    topic: str
    ref: str
    status: str
    response: Any


class Told(NamedTuple):
    """See an event."""

    on: str
    topic: str
    event: str
    payload: Any


class Wait(NamedTuple):
    """Let time pass."""

    seconds: float


Act: TypeAlias = Connect | Join | Push | Leave | Joined | Left | Replied | Told | Wait


class _NotSayableError(Exception):
    pass


def script_of(case: Case, version: str) -> list[Act] | None:
    """Turn a case into a script for clients of a version, ``1`` or ``2``; None where that cannot be."""
    if case.level != "protocol" or any(step.fill for step in case.steps):
        return None
    writer = _Writer(version)
    try:
        for step in flat(case.steps):
            writer.add(step)
    except _NotSayableError:
        return None
    # Of one that says nothing but hello there is nothing to learn.
    return writer.script if any(not isinstance(act, Connect | Wait) for act in writer.script) else None


class _Writer:
    def __init__(self, version: str) -> None:
        self.script: list[Act] = []
        self._version = version
        self._joined: dict[tuple[str, str], str | None] = {}
        self._sent: dict[tuple[str, str], tuple[str, str]] = {}

    def add(self, step: Step) -> None:
        on = step.on
        if step.wait:
            if step.wait > MAX_WAIT:
                raise _NotSayableError
            self.script.append(Wait(step.wait))
        elif step.connect is not None:
            spoken = (step.connect.vsn or "1.0.0")[0]
            if spoken != self._version or step.connect.heartbeat_timeout or step.connect.max_frame_size:
                raise _NotSayableError
            self.script.append(Connect(on, step.connect.user))
        elif step.join is not None:
            self._send(on, step.ref, step.ref, step.join, "phx_join", {})
            self._joined[on, step.join] = step.ref
            self.script.append(Joined(on, step.join, "ok", {}))
        elif step.send is not None:
            self._send(on, *self._read(step.send))
        elif step.expect is not None:
            self._expect(on, *self._read(step.expect))
        elif not step.expect_nothing:
            raise _NotSayableError

    def _read(self, text: str) -> tuple[Any, Any, Any, Any, Any]:
        try:
            value = json.loads(text)
        except ValueError:
            raise _NotSayableError from None
        if self._version == "1":
            if not isinstance(value, dict) or value.keys() != {"topic", "event", "payload", "ref"}:
                raise _NotSayableError
            return None, value["ref"], value["topic"], value["event"], value["payload"]
        if not isinstance(value, list) or len(value) != 5:
            raise _NotSayableError
        return value[0], value[1], value[2], value[3], value[4]

    def _send(self, on: str, join_ref: Any, ref: Any, topic: Any, event: Any, payload: Any) -> None:
        if not isinstance(ref, str) or not isinstance(topic, str) or (on, ref) in self._sent:
            raise _NotSayableError
        if not isinstance(event, str) or not isinstance(payload, dict):
            raise _NotSayableError
        own = self._version == "1" or join_ref == (
            ref if event == "phx_join" else self._joined.get((on, topic))
        )
        is_joined = (on, topic) in self._joined
        if topic == "phoenix" or not own or is_joined == (event == "phx_join"):
            raise _NotSayableError
        self._sent[on, ref] = (topic, event)
        if event == "phx_join":
            self._joined[on, topic] = join_ref
            self.script.append(Join(on, topic, payload))
        elif event == "phx_leave":
            self.script.append(Leave(on, topic))
        elif event.startswith("phx_"):
            raise _NotSayableError
        else:
            self.script.append(Push(on, topic, event, payload, ref))

    def _expect(self, on: str, join_ref: Any, ref: Any, topic: Any, event: Any, payload: Any) -> None:
        if event != "phx_reply":
            if event in ("phx_close", "phx_error"):
                # The end of a channel is for the client to see to; it is no more told of to anybody.
                self._joined.pop((on, topic), None)
                return
            self.script.append(Told(on, topic, event, payload))
            return
        if (on, ref) not in self._sent:
            raise _NotSayableError
        _, asked = self._sent[on, ref]
        status, response = payload["status"], payload["response"]
        if asked == "phx_join":
            self.script.append(Joined(on, topic, status, response))
            if status != "ok":
                # A client joins again by and by.
                del self._joined[on, topic]
        elif asked == "phx_leave":
            self.script.append(Left(on, topic))
        else:
            self.script.append(Replied(on, topic, ref, status, response))
