"""The recorded cases by the Phoenix clients of the registries, as far as they can be told to play them."""

from __future__ import annotations

import shutil
import sys
import time
from abc import ABC, abstractmethod
from contextlib import closing
from typing import Any, ClassVar

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.clients.driver import Client
from tests.conformance.driver import Case, equal, load_cases
from tests.conformance.script import (
    Act,
    Connect,
    Join,
    Joined,
    Leave,
    Left,
    Push,
    Replied,
    Told,
    Wait,
    script_of,
)
from tests.integration.flow_process import eventually
from tests.integration.test_npm_phoenix import CLIENTS
from tests.integration.test_vectors_socket import RecordedServer

CASES = load_cases("protocol")


class Player(ABC):
    """A client in a process of its own, which plays case after case.

    Attributes:
        version: of the protocol.
        cannot: the cases that it cannot play, each with the reason.
        least: how many it must be able to play.
    """

    version: ClassVar[str]
    cannot: ClassVar[dict[str, str]] = {}
    least: ClassVar[int]
    command: ClassVar[list[str]]

    def __init__(self) -> None:
        self.client = Client(self.command)

    @abstractmethod
    def connect(self, server: RecordedServer, token: str) -> None: ...

    def act(self, act: Act) -> None:
        """Do what a script says, or see that it has come."""
        match act:
            case Join(_, topic, payload):
                self.client.do("join", topic=topic, payload=payload)
            case Push(_, topic, event, payload, ref):
                self.client.do("push", topic=topic, event=event, payload=payload, id=ref)
            case Leave(_, topic):
                self.client.do("leave", topic=topic)
            case Joined(_, topic, status, response):
                same(self.client.expect("join", topic=topic), status=status, response=response)
            case Left(_, topic):
                self.client.expect("left", topic=topic)
            case Replied(_, _, ref, status, response):
                same(self.client.expect("reply", id=ref), status=status, response=response)
            case Told(_, topic, event, payload):
                same(self.client.expect("message", topic=topic, event=event), payload=payload)

    def finish(self) -> None:
        """See that nothing else has come, and disconnect."""
        self.client.do("ping")
        self.client.expect("pong")
        more = [event for event in self.client.untaken("message") if not event["event"].startswith("phx_")]
        assert more == [], more
        self.client.do("disconnect")
        self.client.expect("disconnected")
        self.client.forget()


def same(told: dict[str, Any], **wanted: Any) -> None:
    """Compare what a client tells with what was recorded."""
    for name, value in wanted.items():
        assert equal(value, told[name]), f"expected {name} {value!r}, got {told}"


class Npm(Player):
    """npm ``phoenix``."""

    version = "2"
    cannot: ClassVar = {"C30": "JavaScript has no such numbers", "C31": "no client writes a name twice"}
    least = 33
    command: ClassVar = ["node", str(CLIENTS / "phoenix_client.mjs")]

    def connect(self, server: RecordedServer, token: str) -> None:
        url = f"ws://127.0.0.1:{server.port}/socket"
        self.client.do("connect", url=url, params={"token": token})
        self.client.expect("open")


class Supabase(Npm):
    """npm ``@supabase/phoenix``, a fork of it."""

    command: ClassVar = [*Npm.command, "@supabase/phoenix"]


class OldNpm(Npm):
    """npm ``phoenix-channels``, of the time of version 1."""

    version = "1"
    least = 7
    cannot: ClassVar = {}
    command: ClassVar = [*Npm.command, "phoenix-channels"]


class PhxSocket(Npm):
    """PyPI ``phxsocket``, whose refs are numbers."""

    version = "1"
    least = 7
    cannot: ClassVar = {}
    command: ClassVar = [sys.executable, str(CLIENTS / "phxsocket_client.py")]


class Python(Player):
    """PyPI ``phoenix-channels-python-client``: its joins have no payload, and tell no response."""

    version = "2"
    cannot: ClassVar = dict.fromkeys(
        ("B06", "B07", "B08", "B31"), "it drops the answer to a join of no topic, as that has no join_ref"
    )
    least = 25
    command: ClassVar = [sys.executable, str(CLIENTS / "python_client.py")]

    def connect(self, server: RecordedServer, token: str) -> None:
        url = f"ws://127.0.0.1:{server.port}/socket/websocket?token={token}"
        self.client.do("connect", url=url, version=f"{self.version}.0", heartbeat=0.05)
        self.client.expect("connected")

    def act(self, act: Act) -> None:
        match act:
            case Join(_, topic, _):
                self.client.do("join", topic=topic)
            case Push(_, topic, event, payload, ref):
                self.client.do("push", topic=topic, event=event, payload=payload, ref=f"case-{ref}")
            case Joined(_, topic, "ok", _):
                self.client.expect("joined", topic=topic)
            case Joined(_, topic, _, response):
                told = self.client.expect("refused", topic=topic)
                assert response.get("reason", "") in told["error"], told
            case Replied(_, topic, ref, status, response):
                told = self.client.expect("message", topic=topic, event="phx_reply", ref=f"case-{ref}")
                same(told, payload={"status": status, "response": response})
            case _:
                super().act(act)

    def finish(self) -> None:
        # The second of the answers from now on is to one that was sent after all else.
        wanted = len(self.client.all("heartbeat")) + 2
        eventually(lambda: len(self.client.all("heartbeat")) >= wanted, "heartbeats are answered")
        more = [event for event in self.client.untaken("message") if not event["event"].startswith("phx_")]
        assert more == [], more
        self.client.do("disconnect")
        self.client.expect("ended")
        self.client.forget()


class OldPython(Python):
    """PyPI ``phoenix-channels-python-client``, told to speak version 1."""

    version = "1"
    cannot: ClassVar = {}
    least = 5


def chosen(kind: type[Player]) -> list[tuple[Case, list[Act]]]:
    """The cases that a client can play."""
    found = []
    for case in CASES:
        script = script_of(case, kind.version)
        if script is None or case.id in kind.cannot:
            continue
        if issubclass(kind, Python) and any(isinstance(act, Join) and act.payload for act in script):
            continue
        found.append((case, script))
    return found


class Players(dict[str, Player]):
    """A client for each name of a connection, kept from case to case."""

    def __init__(self, kind: type[Player]) -> None:
        super().__init__()
        self._kind = kind

    def __missing__(self, on: str) -> Player:
        player = self[on] = self._kind()
        return player

    def close(self) -> None:
        """End them all."""
        for player in self.values():
            player.client.close()
        self.clear()


def play(kind: type[Player], server: RecordedServer, scripts: list[tuple[Case, list[Act]]]) -> list[str]:
    """Play all of them; what went wrong."""
    wrong = []
    with closing(Players(kind)) as players:
        for case, script in scripts:
            try:
                _play(players, server, script)
            except AssertionError as problem:
                wrong.append(f"{case.id} {case.title}: {problem}")
                players.close()
    return wrong


def _play(players: Players, server: RecordedServer, script: list[Act]) -> None:
    # In every case they are called otherwise.
    place: dict[str, str] = {}
    for act in script:
        if isinstance(act, Wait):
            time.sleep(act.seconds)
            continue
        player = players[place.setdefault(act.on, str(len(place)))]
        if isinstance(act, Connect):
            player.connect(server, server.token(act.user))
        else:
            player.act(act)
    for name in place.values():
        players[name].finish()


@pytest.mark.parametrize("kind", [Npm, Supabase, OldNpm, PhxSocket, Python, OldPython])
@pytest_twisted.ensureDeferred
async def test_cases(kind: type[Player], capsys: pytest.CaptureFixture[str]) -> None:
    if kind.command[0] == "node" and not (shutil.which("node") and (CLIENTS / "node_modules").exists()):
        pytest.skip("there is no node here, or none of its packages")
    scripts = chosen(kind)
    async with RecordedServer(sum(case.crashes for case, _ in scripts)) as server:
        wrong = await deferToThread(play, kind, server, scripts)
    name = (kind.__doc__ or "").split(",")[0].split(":")[0].rstrip(".")
    with capsys.disabled():
        print(f"\n{name}, version {kind.version}: {len(scripts) - len(wrong)} of {len(scripts)} cases")  # noqa: T201
    assert not wrong, "\n".join(wrong)
    assert len(scripts) >= kind.least


@pytest_twisted.ensureDeferred
async def test_what_differs_is_found() -> None:
    case, script = next(one for one in chosen(PhxSocket) if one[0].id == "V09")
    changed = [act._replace(payload={"another": 1}) if isinstance(act, Told) else act for act in script]
    assert changed != script
    async with RecordedServer(0) as server:
        [wrong] = await deferToThread(play, PhxSocket, server, [(case, changed)])
    assert "another" in wrong
