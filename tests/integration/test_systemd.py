"""Under systemd, which a socket for its notifications and a listening socket stand for."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flowtx.config import load
from tests.integration.flow_process import FlowProcess, run

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy" / "systemd"


class Systemd:
    """The socket that a service notifies."""

    def __init__(self, address: str) -> None:
        self.name = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(30)

    def told(self) -> dict[str, str]:
        """Wait for the next notification."""
        text = self._socket.recv(4096).decode()
        return dict(line.split("=", 1) for line in text.splitlines())

    def told_of(self, name: str) -> dict[str, str]:
        """Wait for a notification, past signs of life."""
        while name not in (told := self.told()):
            assert told == {"WATCHDOG": "1"}, told
        return told

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    with closing(Systemd(f"@flowtx-test-{os.getpid()}-{time.monotonic_ns()}")) as systemd:
        yield systemd


def test_systemd_is_told(tmp_path: Path, systemd: Systemd) -> None:
    environ = {"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "400000"}
    (tmp_path / "flow.toml").write_text("")
    with FlowProcess(tmp_path, "--config=flow.toml", environ=environ) as server:
        assert systemd.told() == {"READY": "1"}  # and nothing before
        began = time.monotonic()
        assert [systemd.told() for _ in range(5)] == [{"WATCHDOG": "1"}] * 5
        assert time.monotonic() - began > 0.7  # the first at once, then twice in the time asked for
        server.send_signal(signal.SIGHUP)
        reloading = systemd.told_of("RELOADING")
        assert abs(int(reloading["MONOTONIC_USEC"]) / 1e6 - time.monotonic()) < 30
        assert systemd.told_of("READY") == {"READY": "1"}
        (tmp_path / "flow.toml").write_text("wrong = 1")
        server.send_signal(signal.SIGHUP)
        assert systemd.told_of("RELOADING")
        assert systemd.told_of("READY")
        server.stop()
        assert systemd.told_of("STOPPING") == {"STOPPING": "1"}


def test_a_stuck_loop_gives_no_sign_of_life(tmp_path: Path, systemd: Systemd) -> None:
    environ = {"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "400000"}
    with FlowProcess(tmp_path, environ=environ) as server:
        systemd.told_of("READY")
        systemd.told_of("WATCHDOG")
        server.send_signal(signal.SIGSTOP)
        try:
            systemd._socket.settimeout(1.5)
            with pytest.raises(TimeoutError):
                for _ in range(10):  # one or two may be on their way
                    systemd.told()
        finally:
            server.send_signal(signal.SIGCONT)
        systemd._socket.settimeout(30)
        systemd.told_of("WATCHDOG")


def test_no_watchdog_unless_asked_for(tmp_path: Path) -> None:
    with closing(Systemd(str(tmp_path / "notify"))) as systemd:
        environ = {"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}
        with FlowProcess(tmp_path / "run", environ=environ) as server:
            assert systemd.told() == {"READY": "1"}
            server.stop()
            assert systemd.told() == {"STOPPING": "1"}


def test_nobody_to_tell(tmp_path: Path) -> None:
    with FlowProcess(tmp_path, environ={"NOTIFY_SOCKET": str(tmp_path / "nowhere")}) as server:
        server.stop()
        assert "systemd cannot be told READY=1: No such file or directory" in server.log


# --- sockets ------------------------------------------------------------------------------------------


GIVE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="flowtx")
os.execv(sys.argv[2], sys.argv[2:])
"""


def activated(server: FlowProcess, listening: socket.socket, endpoint: str) -> FlowProcess:
    """Have a server given a socket as systemd gives it."""
    options = [word for word in server._command if not word.startswith("--listen")]
    give = [sys.executable, "-c", GIVE, str(listening.fileno())]
    server._command = [*give, *options, f"--listen={endpoint}"]
    return server


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=16)) as listening:
        listening.set_inheritable(True)
        yield listening


@pytest.mark.parametrize("endpoint", ["systemd:domain=INET:index=0", "systemd:domain=INET:name=flowtx"])
def test_socket_activation(
    tmp_path: Path, listening: socket.socket, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: popen(*a, **k, pass_fds=[listening.fileno()]))
    server = activated(FlowProcess(tmp_path), listening, endpoint)
    port = listening.getsockname()[1]
    server.socket_url = f"ws://127.0.0.1:{port}/socket"
    # Who comes before the server, or while it restarts, waits and is not refused.
    with closing(socket.create_connection(("127.0.0.1", port), 60)) as early:
        early.sendall(b"GET /socket/websocket HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        with server:
            assert early.recv(4096).startswith(b"HTTP/1.1 ")
            assert "403" in server.handshake("none")
            server.stop()
            with closing(socket.create_connection(("127.0.0.1", port), 60)) as between:
                between.sendall(b"GET /socket/websocket HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                server.start()
                assert between.recv(4096).startswith(b"HTTP/1.1 ")


def test_socket_that_systemd_did_not_give(tmp_path: Path) -> None:
    server = FlowProcess(tmp_path)
    command = [word for word in server._command if not word.startswith("--listen")]
    outcome = run([*command, "--listen=systemd:domain=INET:index=0"], tmp_path)
    assert outcome.status == 1
    assert outcome.stderr == (
        "flowtx: --listen: systemd has given no socket that 'systemd:domain=INET:index=0' names; "
        "it takes a start by a .socket unit\n"
    )


# --- the units ----------------------------------------------------------------------------------------


def values(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)


def test_the_service_is_what_it_is_tested_as() -> None:
    assert values("flowtx.service", "Type") == ["notify"]
    variables = dict(value.split("=", 1) for value in values("flowtx.service", "Environment"))
    file = variables.pop("FLOWTX_CONFIG")
    assert file.startswith("/etc/flowtx/")
    settings = load({}, variables)
    assert settings.listen == ("systemd:domain=INET:index=0",)
    assert settings.data_dir == "/var/lib/flowtx"
    assert values("flowtx.service", "StateDirectory") == ["flowtx"]
    assert values("flowtx.service", "ExecStart") == ["/opt/flowtx/bin/twistd --nodaemon --pidfile= flow"]
    assert values("flowtx.service", "ExecReload")[-1] == "/bin/kill -HUP $MAINPID"
    assert values("flowtx.service", "KillMode") == ["mixed"]
    (seconds,) = values("flowtx.service", "TimeoutStopSec")
    assert int(seconds) > 30
    assert int(values("flowtx.service", "LimitNOFILE")[0]) > settings.max_sessions
    assert values("flowtx.socket", "ListenStream") == ["127.0.0.1:4000"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for unit in ("flowtx.service", "flowtx.socket"):
        # The programs are where the guide says to put them, which is not here.
        text = (UNITS / unit).read_text().replace("/opt/flowtx/bin/", "/bin/true /")
        (tmp_path / unit).write_text(text)
    outcome = run(
        ["systemd-analyze", "verify", str(tmp_path / "flowtx.service"), str(tmp_path / "flowtx.socket")],
        tmp_path,
    )
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, "", "")
    (tmp_path / "flowtx.service").write_text(text + "\nNonsense=1\n")
    broken = run(["systemd-analyze", "verify", str(tmp_path / "flowtx.service")], tmp_path)
    assert "Nonsense" in broken.stderr
