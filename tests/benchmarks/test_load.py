"""The generator of the benchmarks: that it does, and counts, what it is told to."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.load.generator import Generator, LoadError, build
from benchmarks.peers.process import cpu_seconds, memory
from flowtx.auth import mint
from tests.integration.flow_process import FlowProcess, eventually, free_port

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc here")

USERS = 40


@pytest.fixture
def floor() -> Iterator[int]:
    """The server in C; its port."""
    port = free_port()
    with subprocess.Popen([str(build("floor")), str(port)]) as process:
        try:
            eventually(lambda: listens(port), "the floor listens")
            yield port
        finally:
            process.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """Users with tokens that only the floor takes."""
    path = tmp_path / "users"
    path.write_text("".join(f"user-{number} token\n" for number in range(USERS)))
    return path


def direct(load: Generator, port: int, path: str = "/?token=") -> None:
    """Have the generator go to a server."""
    load.command(f"target 127.0.0.1 {port} {path}")
    load.command(f"api 127.0.0.1 {port} -")


def test_connects_round_trips_and_broadcasts(floor: int, users: Path) -> None:
    with Generator(users) as load:
        direct(load, floor)
        joined = load.command("connect 30 10 20 user: group:live")
        assert (joined.units, joined.answer["joined"], joined.answer["frames"]) == (30, 30, 60)
        turned = load.command("roundtrip 30 0.2 0 activity")
        assert turned.units >= 30
        assert turned.units <= turned.answer["frames"] <= turned.units + 30
        paced = load.command("roundtrip 30 0.5 100 heartbeat")
        assert 0 < paced.units <= 51
        sent = load.command("broadcast 4 3 20 64 group:live")
        assert (sent.units, sent.answer["frames"]) == (12, 12 * 30)
        load.command("connect 10 10 20 user:")
        with pytest.raises(LoadError, match="there are 40 users, and 40 of them have connected"):
            load.command("connect 1 1 20 user:")


def test_who_does_not_come_back_is_told_of(floor: int, users: Path) -> None:
    with Generator(users, skipped=USERS - 3) as load:
        direct(load, floor)
        load.command("connect 3 3 20 user:")
        with pytest.raises(LoadError, match="0 of 3 are back"):
            load.command("storm 0.2")


def test_commands_that_are_none(users: Path) -> None:
    with Generator(users) as load:
        for text in ("dance", "target 192.0.2.1 80 /", "users 0 /nowhere"):
            with pytest.raises(LoadError):
                load.command(text)
        assert load.command("idle 0.01").units == 0


def test_a_server_that_is_restarted(tmp_path: Path) -> None:
    with FlowProcess(tmp_path, "--users-query=claims") as server:
        secret = (server.data_dir / "secret").read_bytes().strip()
        users = tmp_path / "users"
        tokens = [mint(secret, "HS256", f"user-{n}", ttl=600, now=time.time()) for n in range(USERS)]
        users.write_text("".join(f"user-{n} {token}\n" for n, token in enumerate(tokens)))
        port = int(server.socket_url.rpartition(":")[2].partition("/")[0])
        with Generator(users) as load:
            direct(load, port, "/socket/websocket?vsn=2.0.0&token=")
            load.command(f"connect {USERS} 10 20 user:")
            assert load.command(f"roundtrip {USERS} 0.5 100 activity").units > 0
            assert memory(server.pid) > 1_000_000
            assert cpu_seconds(server.pid) > 0
            load.begin("storm 60")
            server.kill()
            server.start()
            back = load.finish()
        assert (back.units, back.answer["joined"]) == (USERS, USERS)
        assert back.answer["no_listener"] > 0
