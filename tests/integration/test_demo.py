"""The first minute: what ``--demo`` prints works when it is pasted into a shell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.integration.flow_process import FlowProcess, eventually


def test_the_printed_lines_push_notifications(tmp_path: Path) -> None:
    directory = tmp_path / "a path with a space"
    directory.mkdir()
    with FlowProcess(directory, "--demo") as server:
        # It is ready before it has said so.
        eventually(lambda: "flow.notify" in server.log, "the printed lines")
        printed = server.log.splitlines()
        (curl,) = (line for line in printed if line.startswith("curl "))
        (psql,) = (line for line in printed if "psql" in line and "flow.notify" in line)
        answers = [
            subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
            for line in (curl, psql)
        ]
        assert '"seq":1' in answers[0].stdout
        assert re.search(r"^\s*2$", answers[1].stdout, re.MULTILINE)
        (page,) = re.findall(r"Open +(http\S+)/demo#socket=(ws\S+)&token=(\S+)", server.log)
        assert page[0] == server.admin_url
        assert page[1].startswith("ws://127.0.0.1:")
        tokens = re.findall(r"^eyJ\S+$", server.log, re.MULTILINE)
        assert len(tokens) == 1
