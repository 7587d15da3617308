"""Each reactor that twistd can be given: the server works on it, and its time is the monotonic one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from flowtx.storage.cluster import cluster_directory
from flowtx.storage.postmaster import postmaster_status
from tests.integration.flow_process import TWISTD, FlowProcess, eventually, run
from tests.integration.rawclient import TEXT, frame
from tests.integration.test_shutdown import finish, open_line

REACTORS = ["epoll", "poll", "select", "asyncio", "uvloop"]

# What Twisted's own clock would show if somebody set the machine's an hour on: the class's clock is that
# of the wall, and ours takes its place.
APP = """
import time
from pathlib import Path
from twisted.internet.base import ReactorBase
from flowtx import Router

began = time.monotonic()
ReactorBase.seconds = staticmethod(lambda: time.time() + (3600 if time.monotonic() > began + 2 else 0))

def make_router(services):
    clock = services.clock
    due = clock.callLater(60, fired).getTime()
    Path("clock").write_text(f"{due - time.monotonic() - 60:.3f}")
    clock.callLater(4, lambda: Path("later").write_text("four seconds"))
    return Router()

def fired():
    Path("fired").write_text("")
"""


@pytest.mark.parametrize("reactor", REACTORS)
def test_a_whole_life(tmp_path: Path, reactor: str) -> None:
    (tmp_path / "clocks.py").write_text(APP)
    server = FlowProcess(tmp_path, "--app=clocks:make_router", reactor=reactor)
    with server:
        user = server.new_user()
        with open_line(server, user, join=True) as line:
            assert server.push(user) == 1
            eventually(lambda: b'"notification",{' in more(line), "it is notified")
            # The wall clock is an hour on by the time that the timer of four seconds fires.
            eventually((tmp_path / "later").exists, "four seconds pass", 20)
            assert not (tmp_path / "fired").exists()
            assert abs(float((tmp_path / "clock").read_text())) < 0.1
            line.send(frame(TEXT, b'[null,"7","phoenix","heartbeat",{}]'))
            eventually(lambda: b'"7","phoenix","phx_reply"' in more(line), "its connection lives")
            # That a child process has ended is noticed, which on uvloop takes some doing.
            found = postmaster_status(cluster_directory(server.data_dir))
            assert found is not None
            os.kill(found[0], signal.SIGQUIT)
            eventually(lambda: server.log.count("is back after") >= 3, "the database comes back", 20)
            line._received = b""
            os.kill(server.pid, signal.SIGTERM)
            assert line.close_code() == 1012
            assert line.ended()
        assert finish(server) == -signal.SIGTERM
        assert server.postgres_processes == []
        assert reactor in ("epoll", "uvloop") or f"{reactor}reactor" in server.log
        assert reactor != "uvloop" or "flowtx.reactors.UvloopReactor" in server.log


def more(line: object) -> bytes:
    """Read what has come, and keep it."""
    line._more()  # type: ignore[attr-defined]
    received: bytes = line._received  # type: ignore[attr-defined]
    return received


def test_a_daemon_on_uvloop(tmp_path: Path) -> None:
    pid_file, log = tmp_path / "twistd.pid", tmp_path / "twistd.log"
    places = [f"--pidfile={pid_file}", f"--logfile={log}", "--reactor=uvloop"]
    addresses = ["--listen=tcp:0:interface=127.0.0.1", "--admin=tcp:0:interface=127.0.0.1"]
    command = [*TWISTD, *places, "flow", f"--data-dir={tmp_path / 'data'}", *addresses]
    assert os.spawnv(os.P_WAIT, command[0], command) == 0
    try:
        eventually(lambda: log.read_text().count("starting on") >= 2, "it listens", 30)
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        eventually(lambda: not pid_file.exists(), "the daemon ends", 20)
        assert "Embedded PostgreSQL stopped" in log.read_text()
    finally:
        if pid_file.exists():
            os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_uvloop_is_offered_where_it_is_installed(tmp_path: Path) -> None:
    offered = run([*TWISTD, "--help-reactors"], tmp_path).stdout.partition("not available")[0]
    assert "    uvloop\t" in offered
    # Where it is not, a module of that name that cannot be imported stands for that.
    (tmp_path / "uvloop.py").write_text("raise ImportError(\"No module named 'uvloop'\")\n")
    launch = "import sys; sys.path.insert(0, ''); from twisted.scripts.twistd import run; run()"
    without = [sys.executable, "-c", launch]
    offered, _, others = run([*without, "--help-reactors"], tmp_path).stdout.partition("not available")
    assert "uvloop" not in offered
    assert "!uvloop" in others
    refused = run([*without, "--reactor=uvloop", "flow"], tmp_path)
    assert refused.status == 1
    assert "No module named 'uvloop'" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr
