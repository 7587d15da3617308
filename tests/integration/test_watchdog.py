"""A loop that is stuck, in a real process: what is logged, and what ends it."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from pathlib import Path

from tests.integration.flow_process import FlowProcess, eventually
from tests.integration.rawclient import TEXT, frame
from tests.integration.test_shutdown import Line, finish, open_line

APP = """
import time
import urllib.request
from flowtx import Channel, Router, ok

class Blocking(Channel):
    def join(self, payload):
        return None

    def handle_in(self, event, payload):
        time.sleep(payload["seconds"])
        return ok({})

router = Router().channel("block", Blocking)
"""


def stuck(server: FlowProcess, seconds: float) -> Line:
    """Have a callback of the application block the loop."""
    line = open_line(server, "whoever")
    line.send(frame(TEXT, b'["1","1","block","phx_join",{}]'))
    line.send(frame(TEXT, b'["1","2","block","wait",{"seconds":%f}]' % seconds))
    return line


def blocking_server(directory: Path, watchdog: float, *options: str) -> FlowProcess:
    (directory / "blocking.py").write_text(APP)
    options = ("--app=blocking:router", "--users-query=claims", f"--watchdog={watchdog}", *options)
    return FlowProcess(directory, *options)


def test_stacks_are_logged_once_and_the_server_lives_on(tmp_path: Path) -> None:
    with blocking_server(tmp_path, 0.5) as server, stuck(server, 1.2):
        eventually(lambda: "The event loop turns again, after" in server.log, "it goes on")
        assert server.log.count("The event loop has been stuck for") == 1
        # The culprit, by file and function.
        assert 'blocking.py", line 11 in handle_in' in server.log
        assert server.request("GET", "/health/ready")[0] == 200
        with stuck(server, 0.8):
            eventually(
                lambda: server.log.count("The event loop has been stuck for") == 2,
                "another time is logged too",
            )


def test_it_aborts_where_that_does_not_end(tmp_path: Path) -> None:
    with blocking_server(tmp_path, 0.4) as server, stuck(server, 60):
        assert finish(server) == -signal.SIGABRT
        assert server.log.count("The event loop has been stuck for") == 1
        # And once more by the signal itself.
        assert "Fatal Python error: Aborted" in (tmp_path / "stderr").read_text()
        eventually(lambda: server.postgres_processes == [], "its PostgreSQL ends", 20)


def test_a_process_that_was_stopped_is_not_stuck(tmp_path: Path) -> None:
    with blocking_server(tmp_path, 0.4) as server:
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(2)  # five times what would be logged
        os.kill(server.pid, signal.SIGCONT)
        assert server.request("GET", "/health/ready")[0] == 200
        assert "The event loop" not in server.log


def test_off(tmp_path: Path) -> None:
    with blocking_server(tmp_path, 0) as server, stuck(server, 1):
        assert server.request("GET", "/health/ready")[0] == 200
        assert "The event loop" not in server.log
        assert not any(
            (Path(f"/proc/{server.pid}/task") / task / "comm").read_text() == "watchdog\n"
            for task in os.listdir(f"/proc/{server.pid}/task")
        )


def test_lag_is_measured(tmp_path: Path) -> None:
    with blocking_server(tmp_path, 10) as server, stuck(server, 0.7):

        def late() -> bool:
            with urllib.request.urlopen(f"{server.admin_url}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
            within = float(lines['flowtx_reactor_lag_seconds_bucket{le="0.1"}'])
            return float(lines["flowtx_reactor_lag_seconds_count"]) - within >= 1

        eventually(late, "a measurement that is late is counted", 10, 0.1)
