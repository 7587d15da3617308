"""Examples of the guides that speak to a running server."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest
import pytest_twisted
from psycopg2.extensions import parse_dsn

from tests.docs.examples import DOCS, Example, Reader, examples
from tests.docs.member import Member
from tests.integration.async_flow_process import until
from tests.integration.flow_process import FlowProcess, eventually, free_port, run, run_sql

CHANNELS = DOCS / "channels.md"
PRESENCE = DOCS / "presence.md"
DJANGO = DOCS / "from-django-channels.md"
CLIENTS = DOCS.parent / "tests" / "clients"
WINDOW = 0.5

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
needs_npm_client = pytest.mark.skipif(
    not shutil.which("node") or not (CLIENTS / "node_modules").exists(),
    reason="there is no node, or no npm client, here",
)


@pytest.fixture
def server(tmp_path: Path, reader: Reader) -> Iterator[FlowProcess]:
    """A server on the reader's database, whose data directory is the reader's ``.flow``."""
    option = f"--reconnect-window={WINDOW}"
    with FlowProcess(tmp_path / "server", option, database=reader.database_url) as server:
        (reader.directory / ".flow").symlink_to(server.data_dir)
        server.sql("INSERT INTO flow.users VALUES ('42', 'Alice'), ('43', 'Bob')")
        yield server


def answers(reader: Reader, server: FlowProcess, example: Example) -> list[Any]:
    """Run lines of curl against this server; what each of them was answered."""
    here = Example("sh", example.text.replace("http://127.0.0.1:4001/", f"{server.admin_url}/"))
    assert here.text != example.text
    return [json.loads(line) for line in reader.succeed(here)]


# --- groups, broadcasts, presence -------------------------------------------------------------------


@needs_curl
@pytest_twisted.ensureDeferred
async def test_groups_and_broadcasts(server: FlowProcess, reader: Reader) -> None:
    guide = examples(CHANNELS)
    alice, bob = await Member.join(server, "42"), await Member.join(server, "43")
    insert, delete = guide["groups"].text.splitlines()
    reader.succeed(Example("sql", insert))
    for member in (alice, bob):
        await member.join_topic("group:sales")
    reader.succeed(Example("sql", delete))
    assert await bob.event("phx_close", "group:sales") == {}

    assert answers(reader, server, guide["broadcasts"]) == [{"delivered": n} for n in (1, 2, 2)]
    assert await alice.event("target", "group:sales") == {"reached": True}
    for member, user_id in ((alice, "42"), (bob, "43")):
        assert await member.event("refresh", f"user:{user_id}") == {}
        assert await member.event("maintenance", f"user:{user_id}") == {"at": "22:00"}
        member.leave()


@needs_curl
@pytest_twisted.ensureDeferred
async def test_presence(server: FlowProcess, reader: Reader) -> None:
    guide = examples(PRESENCE)
    alice = await Member.join(server, "42")
    present, statuses = answers(reader, server, guide["status"])
    assert list(present["presences"]) == ["42"]
    assert statuses["statuses"]["42"]["status"] == "online"
    assert statuses["statuses"]["43"] == {"status": "offline", "last_seen": None}
    eventually(
        lambda: reader.succeed(guide["view"])[0].startswith("Acme|online|20"), "she is recorded as online"
    )
    alice.leave()
    await until(lambda: len(reader.succeed(guide["feed"])) == 2, 10, lambda: "she is still there")
    came, went = (line.split("|") for line in reader.succeed(guide["feed"]))
    assert (came[1:3], went[1:3]) == (["42", "online"], ["42", "offline"])
    assert int(came[0]) < int(went[0])


# --- an application, and the npm client -------------------------------------------------------------


class Started(NamedTuple):
    """A server that an example has started."""

    directory: Path
    address: str

    def token(self, user_id: str) -> str:
        secret = (self.directory / ".flow" / "secret").read_text().strip()
        return jwt.encode({"sub": user_id, "exp": int(time.time()) + 600}, secret, "HS512")


@contextmanager
def started(reader: Reader, example: Example) -> Iterator[Started]:
    """Run an example that starts a server, on free ports."""
    clients, admin = free_port(), free_port()
    environ = {
        "FLOWTX_LISTEN": f"tcp:{clients}:interface=127.0.0.1",
        "FLOWTX_ADMIN": f"tcp:{admin}:interface=127.0.0.1",
        "FLOWTX_DATABASE": reader.database_url,
    }
    operator = Reader(reader.directory, reader.database_url, environ)
    log = reader.directory / "log"
    # In the place of the shell, so that a signal reaches it.
    process = operator.start(Example("sh", f"exec {example.text}"), log)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with ExitStack() as stack:
        stack.callback(_end, process)
        eventually(ready, "it is ready", 30, 0.05)
        yield Started(reader.directory, f"127.0.0.1:{clients}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    finally:
        process.kill()


#: What the page has around the examples; it prints what they call, a line each.
PAGE = """
import {{ Socket }} from "phoenix"
import WebSocket from "ws"

const socket = new Socket("ws://{address}/socket", {{ params: {{ token: "{token}" }}, transport: WebSocket }})
const told = (name) => (...values) => console.log(JSON.stringify([name, ...values]))
const show = told("show"), clear = told("clear"), warn = told("warn")
const document = {{ hidden: true, addEventListener: (_, listener) => (document.changed = listener) }}
const user = socket.channel("user:42")
user.join()
socket.connect()
"""


@needs_npm_client
@pytest_twisted.ensureDeferred
async def test_the_application_and_its_page(reader: Reader) -> None:
    channels, presence = examples(CHANNELS), examples(PRESENCE)
    (reader.directory / "rooms.py").write_text(channels["ten-lines"].text, encoding="utf-8")
    with started(reader, channels["run"]) as server:
        run_sql(reader.database_url, "INSERT INTO flow.users VALUES ('42', 'Alice')")
        (reader.directory / "node_modules").symlink_to(CLIENTS / "node_modules")
        page = reader.directory / "page.mjs"
        page.write_text(
            PAGE.format(address=server.address, token=server.token("42"))
            + "\n".join(
                found[name].text
                for found, name in ((channels, "client"), (presence, "online"), (presence, "away"))
            )
            # Once she is online the page is hidden; a second presence is the end.
            + "\nsetTimeout(() => process.exit(1), 20000)\n"
            + "let times = 0\nonline.onJoin(() => { if(++times === 1){ document.changed() } })\n"
            + "online.onSync(() => { const all = online.list((id, { metas }) => metas[0].status);"
            + " show(all); if(all[0] === 'away'){ process.exit(0) } })\n",
            encoding="utf-8",
        )
        outcome = run(["node", str(page)], reader.directory)
    told = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert outcome.status == 0, outcome
    assert ["show", "42", "Hi"] in told
    assert ["clear"] in told
    assert ["show", ["online"]] in told
    assert ["show", ["away"]] in told


# --- beside Django ----------------------------------------------------------------------------------

PROJECT = """
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", **{connection!r}}}}}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
SECRET_KEY = "of no use here"
FLOW_SECRET = {secret!r}
"""

VISIT = """
import os
import django
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.test import RequestFactory
call_command("migrate", verbosity=0)
user = User.objects.create_user("alice", "alice@example.com")
user.groups.add(Group.objects.create(name="sales"))
from live.views import live_token
request = RequestFactory().get("/live-token")
request.user = user
print(user.pk, live_token(request).content.decode())
"""


@pytest_twisted.ensureDeferred
async def test_a_user_of_django(reader: Reader) -> None:
    guide: Mapping[str, Example] = examples(DJANGO)
    secret = "x7Zq" * 20 + "kM2w"
    secret_file = reader.directory / "secret"
    secret_file.write_text(secret)
    secret_file.chmod(0o600)
    (reader.directory / "live").mkdir()
    (reader.directory / "live" / "__init__.py").touch()
    (reader.directory / "live" / "views.py").write_text(guide["token"].text, encoding="utf-8")
    dsn = parse_dsn(reader.database_url)
    connection = {"NAME": dsn["dbname"], "USER": dsn["user"], "HOST": dsn["host"], "PORT": dsn["port"]}
    settings = PROJECT.format(connection=connection, secret=secret)
    (reader.directory / "settings.py").write_text(settings, encoding="utf-8")
    (visited,) = reader.succeed(Example("python", VISIT))
    user_id, answer = visited.split(" ", 1)

    command = guide["users"].text.replace("/etc/flow/secret", str(secret_file))
    with started(reader, Example("sh", command)) as server:
        url = f"ws://{server.address}/socket"
        member = await Member.connect(url, json.loads(answer)["token"], user_id)
        assert member.reply["user"] == {"id": user_id, "name": "alice", "email": "alice@example.com"}
        await member.join_topic("group:sales")
        member.leave()
