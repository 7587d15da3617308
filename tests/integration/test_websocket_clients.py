"""Stock clients answer the server's Pings: the npm client under node, and a Python one."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from tests.integration.flow_process import FlowProcess
from tests.integration.test_npm_phoenix import NpmClient, npm_packages  # noqa: F401 - a fixture
from tests.integration.test_python_phoenix import PythonClient

PONG_TIMEOUT = 1.5


def test_they_are_not_taken_for_gone(tmp_path: Path) -> None:
    options = ("--ping-interval=0.2", f"--pong-timeout={PONG_TIMEOUT}")
    with FlowProcess(tmp_path, *options) as server, ExitStack() as clients:
        npm = clients.enter_context(NpmClient())
        user = server.new_user()
        npm.do("connect", url=server.socket_url, params={"token": server.token(user)})
        npm.expect("open")
        npm.join(user)
        python = clients.enter_context(PythonClient())
        python.connect(server, server.token(server.new_user()))
        python.expect("connected")
        began = time.monotonic()
        while time.monotonic() - began < 2 * PONG_TIMEOUT:
            # Which is no sign of life that would be enough.
            npm.round_trip()
            python.expect("heartbeat")
            time.sleep(0.1)
        assert len(npm.all("open")) == 1
        assert npm.all("close") == []
        assert python.all("disconnected") == []
        assert "heartbeat_timeout" not in server.log
