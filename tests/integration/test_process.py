"""``twistd flow`` as a process: how it is found, how it starts and stops, and how it fails."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import sysconfig
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest

from flowtx.storage.cluster import cluster_directory
from flowtx.storage.postmaster import servers_of
from tests.integration.flow_process import (
    TWISTD,
    FlowProcess,
    Outcome,
    environment,
    eventually,
    free_port,
    run,
    run_sql,
)
from tests.integration.test_database import PASSWORD, Server

ROOT = Path(__file__).resolve().parents[2]
GARBAGE = ["*.egg-info", ".*", "__pycache__", "build", "dist", "node_modules", "dropin.cache", "_trial_temp*"]

# --- a life in order ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -15), (signal.SIGINT, -2)])
def test_signal_ends_it_and_its_database(tmp_path: Path, number: signal.Signals, status: int) -> None:
    with FlowProcess(tmp_path) as server:
        assert server.postgres_processes
        assert server.stop(number) == status
        assert server.postgres_processes == []
        assert "Embedded PostgreSQL stopped" in server.log
        server.start()


def test_second_start_keeps_the_data_and_the_secret(tmp_path: Path) -> None:
    with FlowProcess(tmp_path) as server:
        user = server.new_user()
        token = server.token(user)
        assert server.push(user) == 1
        api_key = server.api_key
        server.stop()
        server.start()
        assert server.api_key == api_key
        assert server.handshake(token) == "HTTP/1.1 101 Switching Protocols"
        assert server.push(user) == 2
        assert server.sql("SELECT seq FROM flow.notifications WHERE user_id = %s ORDER BY 1", user) == [
            (1,),
            (2,),
        ]


def test_start_after_kill(tmp_path: Path) -> None:
    with FlowProcess(tmp_path) as server:
        user = server.new_user()
        for expected in (1, 2, 3):
            assert server.push(user) == expected
            server.kill()
            server.start()


def test_start_at_once_after_kill(tmp_path: Path) -> None:
    with FlowProcess(tmp_path) as server:
        user = server.new_user()
        assert server.push(user) == 1
        os.kill(server.pid, signal.SIGKILL)
        with FlowProcess(tmp_path) as successor:  # while the PostgreSQL of the first may still end
            assert successor.push(user) == 2


def test_stop_amid_the_first_start(tmp_path: Path) -> None:
    server = FlowProcess(tmp_path)
    server.spawn()
    try:
        fresh = server.data_dir / "postgresql.new"
        eventually(fresh.exists, "the cluster is being made", 10, 0.001)
        assert server.stop() == -15
        assert not fresh.exists() or servers_of(fresh) == []
    finally:
        server.kill()
    with server:
        assert server.push(server.new_user()) == 1


def test_files_are_private(tmp_path: Path) -> None:
    with FlowProcess(tmp_path) as server:
        modes = {
            name: (server.data_dir / name).stat().st_mode & 0o777
            for name in (".", "secret", "api-key", "lock", "postgresql", "postgresql.log")
        }
    assert modes == {
        ".": 0o700,
        "secret": 0o600,
        "api-key": 0o600,
        "lock": 0o600,
        "postgresql": 0o700,
        "postgresql.log": 0o600,
    }


def test_log_has_no_secrets(tmp_path: Path) -> None:
    with FlowProcess(tmp_path) as server:
        user = server.new_user()
        tokens = [server.token(user), server.token("nobody"), server.token(user, ttl=-60)]
        for token in tokens:
            server.handshake(token)
        server.push(user, "canary.type", {"canary": "payload"})
        secrets = [*tokens, server.api_key, (server.data_dir / "secret").read_text().strip()]
    assert f"Starting session for user: {user}" in server.log
    assert [secret for secret in secrets if secret in server.log] == []
    assert "canary" not in server.log


@pytest.mark.parametrize("reactor", ["asyncio", "poll", "epoll"])
def test_reactors(tmp_path: Path, reactor: str) -> None:
    with FlowProcess(tmp_path, reactor=reactor) as server:
        user = server.new_user()
        assert server.push(user) == 1
        assert server.handshake(server.token(user)) == "HTTP/1.1 101 Switching Protocols"


def test_data_dir_relative_to_where_it_starts(tmp_path: Path) -> None:
    with FlowProcess(tmp_path, "--data-dir=data") as server:  # the second one wins
        assert server.push(server.new_user()) == 1


def test_settings_from_environment_and_file(tmp_path: Path) -> None:
    file = tmp_path / "flow.toml"
    file.write_text('heartbeat-timeout = 7\nmax-topics = 7\nmax-frame-size = 7777\nusers-query = "claims"\n')
    environ = {"FLOWTX_CONFIG": str(file), "FLOWTX_MAX_TOPICS": "8", "FLOWTX_USERS_QUERY": "claims"}
    with FlowProcess(tmp_path, environ=environ) as server:
        assert "101" in server.handshake(server.token("whoever"))
    command = [*FLOWTX, "check-config"]
    shown = run(command, tmp_path, environ).stdout
    assert "heartbeat_timeout=7.0" in shown
    assert "max_topics=8" in shown


def test_daemon(tmp_path: Path) -> None:
    server = FlowProcess(tmp_path)
    port = server.admin_url.rpartition(":")[2]
    command = [*TWISTD, "flow", f"--data-dir={server.data_dir}", "--listen=tcp:0:interface=127.0.0.1"]
    command.append(f"--admin=tcp:{port}:interface=127.0.0.1")
    pid_file, log = tmp_path / "twistd.pid", tmp_path / "twistd.log"
    try:
        # Not captured: the daemon keeps what its parent had open.
        assert os.spawnve(os.P_WAIT, command[0], _in(tmp_path, command), environment()) == 0
        eventually(lambda: _answers(server), "the daemon is ready", 30)
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        eventually(lambda: not pid_file.exists(), "the daemon ends", 20)
        eventually(lambda: not server.postgres_processes, "its PostgreSQL ends", 20)
        assert "Server Shut Down" in log.read_text()
        # A daemon has no terminal to complain to.
        with closing(socket.create_server(("127.0.0.1", int(port)))):
            os.spawnve(os.P_WAIT, command[0], _in(tmp_path, command), environment())
            eventually(lambda: "flowtx cannot start: --admin" in log.read_text(), "the reason is logged", 20)
            eventually(lambda: not pid_file.exists(), "the daemon ends", 20)
    finally:
        with suppress(OSError, ValueError):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)


def _in(directory: Path, command: Sequence[str]) -> list[str]:
    places = [f"--pidfile={directory}/twistd.pid", f"--logfile={directory}/twistd.log"]
    return [*command[:2], *places, *command[2:]]


def _answers(server: FlowProcess) -> bool:
    try:
        return server.request("GET", "/health/ready")[0] == 200
    except OSError:
        return False


# --- starts that fail ---------------------------------------------------------------------------------

FLOWTX = (sys.executable, str(Path(sys.executable).with_name("flowtx")))


def start(directory: Path, *options: str, environ: Mapping[str, str] | None = None) -> Outcome:
    """Start a server that is expected to end by itself."""
    ports = [f"--{name}=tcp:{free_port()}:interface=127.0.0.1" for name in ("listen", "admin")]
    given = [f"--data-dir={directory / 'data'}"] if "--data-dir" not in " ".join(options) else []
    given += [port for port in ports if not any(o.startswith(port.split("=")[0]) for o in options)]
    return run([*TWISTD, "--nodaemon", "--pidfile=", "flow", *given, *options], directory, environ)


def complaint(outcome: Outcome, directory: Path) -> str:
    """Check that a start failed as it should; what it said."""
    assert outcome.status == 1, outcome
    assert "Traceback" not in outcome.stdout + outcome.stderr, outcome
    cluster = cluster_directory(directory / "data")
    assert not cluster.exists() or servers_of(cluster) == []
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("flowtx: ")
    return lines[0].removeprefix("flowtx: ")


@pytest.mark.parametrize(
    ("options", "begin", "names"),
    [
        (["--no-such-option"], "option --no-such-option", "not recognized"),
        (["--listen"], "option --listen", "requires argument"),
        (["stray"], "Wrong number of arguments", "twistd flow --help"),
        (["--max-topics=many"], "--max-topics: got 'many'", "a whole number"),
        (["--max-topics=0"], "--max-topics: got '0'", "at least 1"),
        (["--heartbeat-timeout=nan"], "--heartbeat-timeout: got 'nan'", "a number"),
        (["--jwt-algorithms=RS256"], "--jwt-algorithms: RS256", "--jwt-key-file"),
        (["--jwt-algorithms=HS256,RS256"], "--jwt-algorithms: got HS256, RS256", "cannot be mixed"),
        (["--jwt-key-file=key.pem"], "--jwt-key-file:", "RS256"),
        (["--listen=bogus:4000"], "--listen: got 'bogus:4000'", "endpoint such as tcp:4000"),
        (["--listen=tcp:70000"], "--listen: got 'tcp:70000'", "0 to 65535"),
        (["--admin=tcp:http"], "--admin: got 'tcp:http'", "endpoint such as tcp:4000"),
        (["--database=mysql://canary@x/y"], "--database: got a value that is not shown", "postgresql://"),
        (["--users-query=SELECT 1"], "--users-query: got 'SELECT 1'", "%s"),
        (["--config=missing.toml"], "--config: cannot read 'missing.toml'", "No such file"),
    ],
)
def test_wrong_option(tmp_path: Path, options: list[str], begin: str, names: str) -> None:
    said = complaint(start(tmp_path, *options), tmp_path)
    assert said.startswith(begin)
    assert names in said
    assert "canary" not in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max-topix = 3", "flow.toml: max-topix: there is no such setting; did you mean max-topics?"),
        ('max-topics = "3 "', "flow.toml: max-topics: got '3 '; it takes a whole number"),
        ("max-topics = ", "'flow.toml' is not a TOML file"),
    ],
)
def test_wrong_file(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "flow.toml").write_text(text)
    assert says in complaint(start(tmp_path, "--config=flow.toml"), tmp_path)


def test_wrong_variable(tmp_path: Path) -> None:
    said = complaint(start(tmp_path, environ={"FLOWTX_MAX_TOPIX": "3"}), tmp_path)
    assert said == "FLOWTX_MAX_TOPIX: there is no such setting; did you mean max-topics?"


@pytest.mark.parametrize("name", ["listen", "admin"])
def test_taken_port(tmp_path: Path, name: str) -> None:
    port = free_port()
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        said = complaint(start(tmp_path, f"--{name}=tcp:{port}:interface=127.0.0.1"), tmp_path)
    assert said.startswith(
        f"--{name}: cannot listen on tcp:{port}:interface=127.0.0.1: Address already in use"
    )


def test_data_dir_in_use(tmp_path: Path) -> None:
    with FlowProcess(tmp_path) as server:
        outcome = start(tmp_path)
        assert (outcome.status, outcome.stdout.count("Traceback")) == (1, 0)
        assert outcome.stderr == (
            f"flowtx: --data-dir: {str(server.data_dir)!r} is in use by another flowtx (pid {server.pid})\n"
        )
        assert server.request("GET", "/health/ready")[0] == 200


def a_file(directory: Path) -> Path:
    place = directory / "data"
    place.write_text("")
    return place


def below_a_file(directory: Path) -> Path:
    return a_file(directory) / "data"


def not_writable(directory: Path) -> Path:
    if os.geteuid() == 0:
        return Path("/proc/flowtx")  # where root cannot write either
    directory.chmod(0o500)
    return directory / "data"


def open_to_all(directory: Path) -> Path:
    place = directory / "data"
    place.mkdir()
    place.chmod(0o777)
    return place


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (a_file, "is not a directory"),
        (below_a_file, "lies below a file"),
        (not_writable, "cannot use"),
        (open_to_all, "chmod 700 puts that right"),
    ],
)
def test_data_dir_that_cannot_be_used(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    place = make(tmp_path)
    outcome = start(tmp_path, f"--data-dir={place}")
    tmp_path.chmod(0o700)
    said = complaint(outcome, tmp_path)
    assert said.startswith("--data-dir: ")
    assert str(place) in said
    assert says in said


def test_secret_file_in_no_directory(tmp_path: Path) -> None:
    said = complaint(start(tmp_path, "--secret-file=missing/secret"), tmp_path)
    assert said.startswith(f"--secret-file: there is no '{tmp_path}/missing/secret'")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("short", "got a secret of 5 bytes; it takes at least 32"),
        ("changeme" * 8, "well known or easily guessed"),
    ],
)
def test_secret_that_protects_nothing(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "own-secret"
    file.write_text(text)
    file.chmod(0o600)
    said = complaint(start(tmp_path, f"--secret-file={file}"), tmp_path)
    assert said.startswith("--secret-file: ")
    assert says in said
    assert text not in said


def test_secret_that_others_can_read(tmp_path: Path) -> None:
    file = tmp_path / "own-secret"
    secret = "q8Zt3vLx9Wb5Rk2Np7Yd4Hs6Jf1Mc0Gq8TzVu"
    file.write_text(secret)
    file.chmod(0o644)
    with FlowProcess(tmp_path, f"--secret-file={file}") as server:
        assert "can be read by others (mode 0644); chmod 600 puts that right" in server.log
        assert secret not in server.log


@pytest.fixture
def passwords() -> Iterator[Server]:
    """A PostgreSQL that asks for a password."""
    server = Server()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def test_database_that_cannot_be_reached(tmp_path: Path, passwords: Server) -> None:
    wrong = passwords.url.replace(PASSWORD, "canary-wrong")
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", free_port()))
        silent.listen()
        urls = {
            "refused": f"postgresql://flow:canary-wrong@127.0.0.1:{free_port()}/flow",
            "silent": f"postgresql://flow:canary-wrong@127.0.0.1:{silent.getsockname()[1]}/flow",
            "password": wrong,
            "missing": passwords.url.replace("/postgres", "/missing"),
        }
        for name in urls:
            (tmp_path / name).mkdir()
        with ThreadPoolExecutor() as pool:  # each takes its 10 s
            started = {
                name: pool.submit(start, tmp_path / name, f"--database={url}") for name, url in urls.items()
            }
            said = {name: complaint(outcome.result(), tmp_path / name) for name, outcome in started.items()}
            seconds = {name: outcome.result().seconds for name, outcome in started.items()}
    for name, text in said.items():
        port = urls[name].rpartition(":")[2].partition("/")[0]
        assert text.startswith(f"no connection to database 127.0.0.1:{port}/"), text
        log = started[name].result().stdout
        assert "canary" not in text + log
        assert PASSWORD not in text + log
    assert "refused" in said["refused"]
    assert "password authentication failed" in said["password"]
    assert '"missing" does not exist' in said["missing"]
    # Ten seconds are given to the database; the rest is how long Python takes to start on a busy machine.
    assert max(seconds.values()) < 40, seconds


def test_database_with_a_newer_schema(tmp_path: Path, database_url: str) -> None:
    with FlowProcess(tmp_path, database=database_url):
        pass
    run_sql(database_url, "INSERT INTO flow.schema_versions (version) VALUES (9999)")
    said = complaint(start(tmp_path, f"--database={database_url}"), tmp_path)
    assert said.startswith("the schema flow has version 9999, this flowtx knows versions up to ")


def test_database_user_who_may_not_create(tmp_path: Path, passwords: Server) -> None:
    run_sql(passwords.url, "CREATE ROLE reader LOGIN PASSWORD 'canary-reader'")
    url = passwords.url.replace(f"flow:{PASSWORD}", "reader:canary-reader")
    said = complaint(start(tmp_path, f"--database={url}"), tmp_path)
    assert "permission denied" in said


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELEKT %s", "syntax error"),
        ("SELECT id, name, email FROM missing WHERE id = ANY(%s)", '"missing" does not exist'),
        ("SELECT id FROM flow.users WHERE id = ANY(%s)", "id, name, email"),
    ],
)
def test_users_query_that_does_not_work(tmp_path: Path, query: str, says: str) -> None:
    server = FlowProcess(tmp_path, f"--users-query={query}")
    server.spawn()
    try:
        eventually(lambda: server.has_ended or _answers(server), "it refuses to start", 20)
        assert server.has_ended
    finally:
        server.kill()
    (line,) = (tmp_path / "stderr").read_text().splitlines()
    assert line.startswith("flowtx: --users-query: ")
    assert says in line


def test_failed_start_can_be_put_right(tmp_path: Path) -> None:
    server = FlowProcess(tmp_path)
    port = int(server.admin_url.rpartition(":")[2])
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        complaint(start(tmp_path, f"--admin=tcp:{port}:interface=127.0.0.1"), tmp_path)
    with server:
        assert server.push(server.new_user()) == 1


def test_help_and_version(tmp_path: Path) -> None:
    helped = run([*TWISTD, "flow", "--help"], tmp_path)
    assert helped.status == 0
    assert "--max-topics=" in helped.stdout
    shown = run([*TWISTD, "flow", "--version"], tmp_path)
    assert (shown.status, shown.stdout.split()[0]) == (0, "flowtx")


# --- installed ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, at a path with spaces."""
    place = tmp_path_factory.mktemp("a path with spaces") / "flowtx sources"
    place.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    for name in ("flowtx", "twisted"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns(*GARBAGE))
    return place


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    built = run([*PIP, "wheel", "--no-deps", "--wheel-dir=dist", "."], checkout, seconds=120)
    assert built.status == 0, built
    (wheel,) = (checkout / "dist").iterdir()
    return wheel


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def make_environment(place: Path, *what: str) -> Path:
    """Make a virtual environment with flowtx in it, and all else from the one that runs the tests."""
    made = run([sys.executable, "-m", "venv", "--without-pip", str(place)], place.parent)
    assert made.status == 0, made
    python = place / "bin" / "python"
    installed = run([*PIP, f"--python={python}", "install", "--no-deps", *what], place.parent, seconds=120)
    assert installed.status == 0, installed
    # After pip, which would take the flowtx there for one that is installed here.
    (site_packages,) = place.glob("lib/python*/site-packages")
    (site_packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_wheel_has_all_that_is_needed(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(ROOT))
        for folder in ("flowtx", "twisted")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "dropin.cache"
    }
    assert sources <= names
    assert {name for name in names if ".dist-info/" not in name} <= sources
    assert "twisted/plugins/flowtx_dropin.py" in names
    assert "flowtx/storage/schema/0001_first.sql" in names
    assert "flowtx/web/static/index.html" in names
    assert "flowtx/py.typed" in names


def test_nothing_hides_twisted() -> None:
    # The one would hide Twisted itself from whoever runs in the checkout, the other its plugins.
    assert not (ROOT / "twisted" / "__init__.py").exists()
    assert not (ROOT / "twisted" / "plugins" / "__init__.py").exists()


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_installed(tmp_path: Path, checkout: Path, wheel: Path, kind: str) -> None:
    what = [str(wheel)] if kind == "wheel" else ["--editable", str(checkout)]
    python = make_environment(tmp_path / "its own environment", *what)
    where = run([str(python), "-c", "import flowtx.tap; print(flowtx.tap.__file__)"], tmp_path)
    home = tmp_path / "its own environment" if kind == "wheel" else checkout
    assert where.stdout.startswith(str(home)), where
    elsewhere = tmp_path / "some other place"
    with FlowProcess(elsewhere, twistd=[str(python), TWISTD[1]]) as server:
        user = server.new_user()
        assert server.push(user) == 1
        assert server.handshake(server.token(user)) == "HTTP/1.1 101 Switching Protocols"
        with urllib.request.urlopen(f"{server.admin_url}/", timeout=10) as page:
            assert page.headers["Content-Type"].startswith("text/html")
        shown = run([str(python.with_name("flowtx")), "version"], tmp_path)
        assert (shown.status, shown.stdout.split()[0]) == (0, "flowtx")
        token = run(
            [str(python.with_name("flowtx")), "token", f"--data-dir={server.data_dir}", user], tmp_path
        )
        assert "101" in server.handshake(token.stdout.strip())


def test_start_is_quick(tmp_path: Path) -> None:
    with FlowProcess(tmp_path) as server:
        first = server.started_in
        server.stop()
        server.start()
        second = server.started_in
    # Measured on a quiet machine: 1.1 s and 0.45 s; one under load may take several times that.
    assert first < 15, first
    assert second < 8, second


def test_two_servers_that_start_at_once_make_the_schema_once(tmp_path: Path, database_url: str) -> None:
    servers = [FlowProcess(tmp_path / name, database=database_url) for name in ("one", "two")]
    with ThreadPoolExecutor() as pool:
        list(pool.map(FlowProcess.start, servers))
    try:
        users = [server.new_user() for server in servers]
        assert [server.push(user) for server, user in zip(servers, users, strict=True)] == [1, 1]
        with closing(psycopg2.connect(database_url)) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT count(*), count(DISTINCT version) FROM flow.schema_versions")
            (counts,) = cursor.fetchall()
            assert counts[0] == counts[1] > 0
    finally:
        for server in servers:
            server.stop()
