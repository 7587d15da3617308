"""The guide to the manhole: each of its lines, typed into a real one by ssh, with a real client connected."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_twisted

from tests.docs.examples import DOCS, Example, Reader, examples
from tests.docs.member import Member
from tests.integration.flow_process import FlowProcess, free_port, run
from tests.integration.ssh_operator import Operator, allow, make_key, needs_ssh, with_manhole
from tests.integration.test_cli import FLOWTX

pytestmark = needs_ssh

GUIDE = examples(DOCS / "manhole.md")


class Manhole(NamedTuple):
    server: FlowProcess
    operator: Operator
    reader: Reader

    def here(self, name: str) -> Example:
        """An example, with this manhole's port, and with what this ssh must be told."""
        command = " ".join(f"'{word}'" for word in self.operator.ssh())
        text = GUIDE[name].text.replace("ssh -p 4002 flow@127.0.0.1", command)
        return Example("sh", text)


@pytest.fixture
def manhole(tmp_path: Path, reader: Reader) -> Iterator[Manhole]:
    port = free_port()
    operator = Operator(tmp_path, port, make_key(tmp_path / "id_ed25519"))
    keys = allow(tmp_path / "keys", tmp_path / "id_ed25519")
    with with_manhole(tmp_path / "server", keys, port, database=reader.database_url) as server:
        (reader.directory / ".flow").symlink_to(server.data_dir)
        server.sql("INSERT INTO flow.users VALUES ('alice', 'Alice'), ('bob', 'Bob')")
        yield Manhole(server, operator, reader)


def test_to_ask(manhole: Manhole) -> None:
    count, *names = manhole.reader.succeed(manhole.here("ask"))
    assert count == "0"
    assert names[0].split() == ["sessions", "The", "Sessions", "of", "this", "node."]
    (shown,) = manhole.reader.succeed(manhole.here("fingerprint"))
    assert f"its host key is {shown.split()[1]}" in manhole.server.log
    assert manhole.reader.succeed(manhole.here("script")) == []


def test_to_turn_it_on() -> None:
    option = "--manhole tcp:4002:interface=127.0.0.1 --manhole-keys manhole-keys"
    assert GUIDE["turn-on"].text.splitlines()[-1] == f"twistd -n flow {option}"
    assert "umask 077\n" in GUIDE["turn-on"].text


@pytest_twisted.ensureDeferred
async def test_the_session(manhole: Manhole) -> None:
    """Each line gives what is printed below it; … stands for anything."""
    alice = await Member.join(manhole.server, "alice")
    text = GUIDE["session"].text
    typed = re.findall(r"(?m)^>>> (.*)$", text)
    assert len(typed) == 9
    shell = manhole.operator.shell()
    for line in typed:
        shell.type(f"{line}\n")
        shell.wait_for(f">>> {line}\x1b[K\r\n")
    shell.wait_for("False\r\n")
    got = await alice.notification()
    assert (got["type"], got["payload"]) == ("deal.won", {"title": "Acme signed"})
    assert await alice.event("notifications_read") == {"all": True, "unread": 0}
    shell.type("\x04")
    assert shell.wait() == 0
    # As somebody sees it who does not look at how the line was drawn.
    seen = re.sub(r"(?:\r>>> \x1b\[K)*\r>>> ", ">>> ", shell.output).replace("\x1b[K", "").replace("\r", "")
    assert re.search(re.sub(r"(?:\\?…)", ".*?", re.escape(text)), seen, re.DOTALL), seen


def test_the_plan_is_there_line_by_line() -> None:
    guide = (DOCS / "manhole.md").read_text(encoding="utf-8")
    for plan in (
        "start_session",
        "get_session",
        "session_exists",
        ":sys.get_state(pid)",
        "push_notification",
        "mark_notifications_read",
        "which_children",
        "stop_session",
    ):
        (row,) = [
            line for line in guide.splitlines() if line.startswith("| `") and plan in line.split("|")[1]
        ]
        name = plan.removeprefix(":sys.").removesuffix("(pid)")
        assert name in row.split("|")[2]
        assert f"{name}(" in GUIDE["session"].text, name


def test_what_stops_the_start_is_said_as_printed(tmp_path: Path) -> None:
    """Each line of the table, by what it is about; … stands for anything."""
    table = (DOCS / "manhole.md").read_text().partition("## When it does not start")[2]
    said = re.findall(r"(?m)^\| `(--.*?)` \|", table)
    make_key(tmp_path / "id_ed25519")
    keys = allow(tmp_path / "manhole-keys", tmp_path / "id_ed25519")
    good = keys.read_text()
    (tmp_path / "data").mkdir(0o700)

    def answer(manhole: str = "tcp:4002:interface=127.0.0.1", **settings: str) -> str:
        settings = settings or {"FLOWTX_MANHOLE_KEYS": "manhole-keys"}
        outcome = run(
            [*FLOWTX, "check-config", "--data-dir=data"], tmp_path, {"FLOWTX_MANHOLE": manhole, **settings}
        )
        assert outcome.status == 1, outcome
        return outcome.stderr.strip().removeprefix("flowtx: ")

    answers = [answer(FLOWTX_LOG_LEVEL="info"), answer("tcp:4002")]
    keys.unlink()
    answers.append(answer())
    keys.write_text(good)
    keys.chmod(0o644)
    answers.append(answer())
    keys.chmod(0o600)
    keys.write_text("")
    answers.append(answer())
    keys.write_text(f'{good}from="10.0.0.0/8" {good}')
    answers.append(answer())
    keys.write_text(good)
    host_key = tmp_path / "data" / "ssh_host_ed25519_key"
    host_key.touch(0o600)
    host_key.write_text("garbage")
    answers.append(answer())
    assert len(said) == len(answers)
    for line, text in zip(said, answers, strict=True):
        assert re.fullmatch(re.escape(line).replace("…", ".*"), text), (line, text)
