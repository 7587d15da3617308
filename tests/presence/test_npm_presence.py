"""What the stock JavaScript client, npm ``phoenix``, makes of what a Tracker tells."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.internet.task import Clock

from flowtx.presence.presence import Presence
from flowtx.presence.tracker import PERIOD, Tracker
from flowtx.protocol.message import Broadcast
from flowtx.pubsub.memory import MemoryPubSub
from tests.presence.client import ModelClient

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "clients" / "node_modules" / "phoenix"
TOPIC = "users:online"
KEYS = ("alice", "bob", "7", "10", "é☃", "__proto", "hasOwn", "then", "length")


class Recorder:
    """One client: keeps what it is sent."""

    def __init__(self, presence: Presence, pubsub: MemoryPubSub) -> None:
        self.presence = presence
        self.pubsub = pubsub
        self.script: list[Any] = []
        self.model = ModelClient()

    def join(self, number: int) -> None:
        state = msgspec.json.decode(self.presence.state(TOPIC))
        self.script += [["join", str(number)], ["state", state]]
        self.model.joined()
        self.model.receive_state(state)
        self.pubsub.subscribe(TOPIC, self)

    def lose(self) -> None:
        self.pubsub.unsubscribe(TOPIC, self)

    def deliver(self, broadcast: Broadcast) -> None:
        diff = msgspec.json.decode(msgspec.json.encode(broadcast.payload))
        self.script.append(["diff", diff])
        self.model.receive_diff(diff)


def record(seed: int) -> tuple[list[Recorder], dict[str, Any]]:
    """Have clients join and lose their connections at any moment of a topic's life; the end of it."""
    choose = random.Random(seed)
    clock, pubsub = Clock(), MemoryPubSub()
    presence = Presence(Tracker(pubsub, clock=clock))
    presence.startService()
    recorders = [Recorder(presence, pubsub) for _ in range(5)]
    tracked: list[tuple[str, int]] = []
    for number in range(120):
        match choose.choice(("track", "track", "update", "update", "untrack", "time", "join", "lose")):
            case "track":
                tracked.append((choose.choice(KEYS), number))
                presence.track(TOPIC, tracked[-1][0], {"n": number}, owner=number)
            case "update" if tracked:
                key, owner = choose.choice(tracked)
                presence.update(TOPIC, key, {"n": number, "status": "away"}, owner=owner)
            case "untrack" if tracked:
                key, owner = tracked.pop(choose.randrange(len(tracked)))
                presence.untrack(TOPIC, key, owner=owner)
            case "time":
                clock.advance(PERIOD * choose.random())
            case "join":
                choose.choice(recorders).join(number)
            case "lose":
                choose.choice(recorders).lose()
    for number, recorder in enumerate(recorders):
        recorder.join(1_000 + number)
    presence.stopService()
    return recorders, presence.list(TOPIC)


def test_the_stock_client_ends_with_what_is_listed() -> None:
    if shutil.which("node") is None or not PACKAGE.exists():
        message = f"THERE IS NO node OR NO {PACKAGE} HERE: the JavaScript Presence is not tested"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    recorded = [
        (recorder, listed)
        for seed in range(40)
        for recorders, listed in [record(seed)]
        for recorder in recorders
    ]
    played = subprocess.run(
        ["node", str(HERE / "npm_presence.mjs")],
        input=json.dumps([recorder.script for recorder, _ in recorded]),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    ends = json.loads(played.stdout)
    assert len(ends) == len(recorded) == 200
    for end, (recorder, listed) in zip(ends, recorded, strict=True):
        assert dict(end) == listed
        # What the model in Python is for rests on its doing the same.
        assert recorder.model.state == listed
    assert sum(len(listed) > 3 for _, listed in recorded) > 100
