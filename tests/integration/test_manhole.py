"""The manhole of a real server, with real ssh: who gets in, what they can do there, and what is not there."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.integration.flow_process import FlowProcess, eventually, free_port, run
from tests.integration.ssh_operator import PATIENCE, Operator, allow, make_key, needs_ssh, with_manhole
from tests.integration.test_process import complaint, start

pytestmark = needs_ssh

DENIED = "Permission denied (publickey)."


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manhole")


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def ada(place: Path, port: int) -> Operator:
    return Operator(place, port, make_key(place / "ada"))


@pytest.fixture(scope="module")
def keys(place: Path, ada: Operator) -> Path:
    return allow(place / "keys", place / "ada")


@pytest.fixture(scope="module")
def server(place: Path, keys: Path, port: int) -> Iterator[FlowProcess]:
    with with_manhole(place / "server", keys, port) as server:
        yield server


def test_a_command(server: FlowProcess, ada: Operator) -> None:
    outcome = ada.command("sessions.count()")
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, "0\n", "")
    outcome = ada.command("1/0")
    assert (outcome.status, outcome.stdout.splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_other_kinds_of_keys(server: FlowProcess, keys: Path, port: int, tmp_path: Path, kind: str) -> None:
    before = keys.read_text()
    key = make_key(tmp_path / "key", kind)
    with keys.open("a") as file:
        file.write(key.with_name("key.pub").read_text())
    try:
        assert Operator(tmp_path, port, key).command("'in'").stdout == "'in'\n"
    finally:
        keys.write_text(before)
    # Taken out again, it is out.
    assert Operator(tmp_path, port, key).command("'in'").stderr.strip().endswith(DENIED)


def test_who_does_not_get_in(server: FlowProcess, port: int, place: Path, tmp_path: Path) -> None:
    stranger = Operator(tmp_path, port, make_key(tmp_path / "stranger"))
    root = Operator(tmp_path, port, place / "ada", user="root")
    for operator, options in (
        (stranger, []),
        (root, []),
        (stranger, ["-oPreferredAuthentications=password,keyboard-interactive"]),
    ):
        outcome = operator.command("'in'", *options)
        assert (outcome.status, outcome.stdout) == (255, ""), outcome
        assert outcome.stderr.strip().endswith(DENIED)
    assert "refused b'flow' from 127.0.0.1: its key is not in --manhole-keys" in server.log
    assert "refused b'root' from 127.0.0.1: the user name is flow" in server.log


def test_a_shell_at_a_terminal(server: FlowProcess, ada: Operator) -> None:
    shell = ada.shell()
    shell.type("def double(x):\n    return 2 * x\n\ndouble(21)\n")
    shell.wait_for("\r\n42\r\n")
    shell.type("from twisted.internet.defer import Deferred\nDeferred()\n")
    shell.wait_for("Deferred()\x1b[K\r\n")
    shell.type("\x03'Gr" + "\N{LATIN SMALL LETTER U WITH DIAERESIS}" + "\N{LATIN SMALL LETTER SHARP S}e'\n")
    shell.wait_for("\r\nInterrupted")
    shell.wait_for("\r\n'Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}\N{LATIN SMALL LETTER SHARP S}e'\r\n")
    shell.type("sess\t.cou\t\n")
    shell.wait_for(">>> sessions.count()\x1b[K\r\n0\r\n")
    assert shell.output.count("\r\n") == shell.output.count("\n")
    shell.type("exit()\n")
    assert shell.wait() == 0


def test_a_script_on_standard_input(server: FlowProcess, ada: Operator) -> None:
    done = ada.pipe("for n in range(2):\n    print(n)\nawait storage.query('SELECT 1 AS one')\n", "-T")
    assert (done.returncode, done.stdout) == (0, "0\n1\n[{'one': 1}]\n")


def test_the_server_goes_on_meanwhile(server: FlowProcess, ada: Operator) -> None:
    shell = ada.shell()
    shell.type("from twisted.internet.defer import Deferred\nDeferred()\n")
    shell.wait_for("Deferred()\x1b[K\r\n")
    assert server.request("GET", "/health/ready")[0] == 200
    # Nor does a dict of a million entries stop it.
    began = time.monotonic()
    assert "cut after 65536 characters" in ada.command("dict.fromkeys(range(10**6), config)").stdout
    assert time.monotonic() - began < PATIENCE
    shell.type("\x03\x04")
    assert shell.wait() == 0


def test_the_database_is_only_read(server: FlowProcess, ada: Operator) -> None:
    assert ada.command("storage.pool()").stdout == "{'connected': 4, 'connections': 4, 'waiting': 0}\n"
    for sql in (
        "SELECT flow.notify('x', 'note', '{}')",
        "DELETE FROM flow.users",
        "SELECT 1) q; CREATE TABLE public.planted (); SELECT to_json(q)::text FROM (SELECT 1",
    ):
        assert ada.command(f"storage.query({sql!r})").status == 1, sql
    read = ada.command("storage.query('TABLE pg_class; -- all of it')")
    assert read.status == 1  # the comment would hide what bounds it, were it not in a line of its own
    rows = ada.command("len(await storage.query('TABLE pg_class -- all of it'))")
    assert rows.stdout == "100\n", rows
    assert server.sql("SELECT to_regclass('public.planted')") == [(None,)]


def test_no_forwarding_no_sftp(server: FlowProcess, ada: Operator, tmp_path: Path) -> None:
    admin = server.admin_url.rpartition(":")[2]
    remote = ada.command("1", "-oExitOnForwardFailure=yes", f"-R{free_port()}:127.0.0.1:{admin}")
    assert remote.status == 255
    assert "forwarding failed" in remote.stderr
    outcome = run([*ada.ssh("-s"), "sftp"], tmp_path, seconds=PATIENCE)
    assert outcome.status != 0
    local = free_port()
    forwarding = subprocess.Popen(
        ada.ssh("-N", f"-L{local}:127.0.0.1:{admin}"), stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        eventually(lambda: _connects(local), "ssh listens", PATIENCE)
        connection = socket.create_connection(("127.0.0.1", local), PATIENCE)
        with closing(connection), suppress(ConnectionResetError):
            connection.sendall(b"GET /health/live HTTP/1.0\r\n\r\n")
            assert connection.recv(100) == b""
    finally:
        forwarding.kill()
        forwarding.wait()
    assert "asked for a channel of type b'direct-tcpip', which there is not" in server.log
    assert "Traceback" not in server.log


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_five_shells(server: FlowProcess, ada: Operator) -> None:
    places = [(ada._directory / str(number)) for number in range(5)]
    shells = []
    for place in places:
        place.mkdir()
        shells.append(type(ada)(place, ada._port, ada._key).shell())
    sixth = ada.command("1")
    assert (sixth.status, sixth.stdout) == (1, "")
    assert "There are 5 shells already, which is the most." in sixth.stderr
    for shell in shells:
        shell.type("\x04")
        assert shell.wait() == 0
    assert ada.command("1").status == 0


def test_what_is_typed_is_logged_and_what_it_gives_is_not(server: FlowProcess, ada: Operator) -> None:
    ada.command("'cana' + 'ry'\n'\\x1b[31m{log_source}\\n'  # \u202e")
    ada.pipe("x = 'typed at a terminal'\n\x04", "-tt")
    long = "+".join("1" * 1000)
    ada.command(long)
    lines = [line for line in server.log.splitlines() if " typed" in line]
    said = [line.partition("typed")[2] for line in lines]
    assert ": 'cana' + 'ry'" in said
    assert any("'\\\\x1b[31m{log_source}\\\\n'  # \\u202e" in line for line in said), said
    assert ": x = 'typed at a terminal'" in said
    assert all("(ada@laptop)" in line and "SHA256:" in line and len(line) < 512 for line in lines)
    parts = [line.partition(": ")[2] for line in said if line.startswith(" (")]
    assert "".join(parts[-7:]) == long
    assert "canary" not in server.log


def test_the_host_key(server: FlowProcess, ada: Operator, tmp_path: Path) -> None:
    file = server.data_dir / "ssh_host_ed25519_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    shown = run(["ssh-keygen", "-lf", str(file)], tmp_path)
    assert shown.status == 0, shown
    assert f"its host key is {shown.stdout.split()[1]}\n" in server.log
    ada.command("1")
    server.stop()
    server.start()
    # ssh would refuse another one.
    assert ada.command("1").stdout == "1\n"


def test_shells_end_with_the_server(server: FlowProcess, ada: Operator) -> None:
    shell = ada.shell()
    shell.type("from twisted.internet.defer import Deferred\nDeferred()\n")
    shell.wait_for("Deferred()\x1b[K\r\n")
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < PATIENCE / 2
    assert shell.wait() == 255
    server.start()


def test_a_unix_socket(tmp_path: Path, ada: Operator, keys: Path, database_url: str) -> None:
    path = tmp_path / "socket"
    relay = tmp_path / "relay.py"
    relay.write_text(
        "import os, socket, sys, threading\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "def up():\n"
        "    while data := os.read(0, 65536): s.sendall(data)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while data := s.recv(65536): os.write(1, data)\n"
    )
    options = (f"--manhole=unix:{path}", f"--manhole-keys={keys}")
    with FlowProcess(tmp_path / "server", *options, database=database_url) as server:
        proxy = f"-oProxyCommand={sys.executable} {relay} {path}"
        operator = Operator(tmp_path, 22, ada._key)
        assert operator.command("1 + 1", proxy).stdout == "2\n"
        assert "logged in from a unix socket" in server.log


# --- starts that fail ---------------------------------------------------------------------------------


def refused(tmp_path: Path, *options: str) -> str:
    return complaint(start(tmp_path, *options), tmp_path)


def test_the_file_of_keys_is_looked_at_before_anything_starts(tmp_path: Path, keys: Path) -> None:
    mine = tmp_path / "keys"
    options = (f"--manhole=tcp:{free_port()}:interface=127.0.0.1", f"--manhole-keys={mine}")
    assert (
        refused(tmp_path, *options)
        == f"--manhole-keys: {str(mine)!r} cannot be read: No such file or directory"
    )
    mine.write_text(keys.read_text())
    mine.chmod(0o644)
    assert refused(tmp_path, *options) == (
        f"--manhole-keys: {str(mine)!r} can be read by everybody or changed by others (mode 0644); "
        "chmod 600 puts that right"
    )
    mine.chmod(0o600)
    mine.write_text(f'from="10.0.0.0/8" {keys.read_text()}')
    assert "line 1: begins with 'from=\"10.0.0.0/8\"'" in refused(tmp_path, *options)
    mine.write_text("")
    assert refused(tmp_path, *options) == f"--manhole-keys: {str(mine)!r} has no key, so nobody could log in"


def test_where_it_listens_is_looked_at(tmp_path: Path, keys: Path) -> None:
    assert "which other machines can reach" in refused(
        tmp_path, f"--manhole=tcp:{free_port()}", f"--manhole-keys={keys}"
    )
    assert "there are no passwords" in refused(tmp_path, f"--manhole=tcp:{free_port()}:interface=127.0.0.1")
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        said = refused(tmp_path, f"--manhole={endpoint}", f"--manhole-keys={keys}")
        assert said.startswith(f"--manhole: cannot listen on {endpoint}: Address already in use")


def test_a_host_key_that_is_none(tmp_path: Path, keys: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "ssh_host_ed25519_key").write_text("garbage")
    (data / "ssh_host_ed25519_key").chmod(0o600)
    options = (f"--manhole=tcp:{free_port()}:interface=127.0.0.1", f"--manhole-keys={keys}")
    assert refused(tmp_path, *options).startswith(
        "--data-dir: ssh_host_ed25519_key holds no private Ed25519 key; without the file a new one is made"
    )


def test_ssh_is_not_loaded_where_it_is_not_used(tmp_path: Path) -> None:
    program = "import sys, flowtx.tap; print([name for name in sys.modules if 'conch' in name])"
    assert run([sys.executable, "-c", program], tmp_path).stdout == "[]\n"
