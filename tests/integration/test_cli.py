"""The console command ``flowtx`` as a process, beside a real server and without one."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jwt
import pytest

from flowtx.storage.cluster import cluster_directory
from flowtx.storage.migrations import migrations
from flowtx.storage.postmaster import servers_of
from tests.integration.flow_process import FlowProcess, Outcome, environment, eventually, run, run_sql

FLOWTX = (sys.executable, str(Path(sys.executable).with_name("flowtx")))
NEWEST = len(migrations())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowProcess]:
    with FlowProcess(tmp_path_factory.mktemp("cli")) as server:
        yield server


class Command:
    """Runs ``flowtx`` in a directory.

    Attributes:
        directory: the directory.
        environ: further variables.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environ: dict[str, str] = {}

    def run(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Outcome:
        return run([*FLOWTX, *arguments], self.directory, {**self.environ, **(environ or {})})

    def succeed(self, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
        """Check that a command does its work without a word on stderr; what it prints."""
        outcome = self.run(*arguments, environ=environ)
        assert (outcome.status, outcome.stderr) == (0, ""), outcome
        return outcome.stdout

    def fail(self, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
        """Check that a command fails in one line; what the line says."""
        outcome = self.run(*arguments, environ=environ)
        assert (outcome.status, outcome.stdout) == (1, ""), outcome
        (line,) = outcome.stderr.splitlines()
        assert line.startswith("flowtx: ")
        return line.removeprefix("flowtx: ")

    def misuse(self, *arguments: str) -> str:
        """Check that a command is told to be used wrongly; what comes on stderr."""
        outcome = self.run(*arguments)
        assert (outcome.status, outcome.stdout) == (2, ""), outcome
        assert outcome.stderr.startswith("usage: flowtx")
        assert "Traceback" not in outcome.stderr
        return outcome.stderr


@pytest.fixture
def flowtx(tmp_path: Path) -> Command:
    """In an empty directory."""
    return Command(tmp_path)


@pytest.fixture
def beside(tmp_path: Path, server: FlowProcess) -> Command:
    """Beside a running server."""
    command = Command(tmp_path)
    command.environ["FLOWTX_DATA_DIR"] = str(server.data_dir)
    return command


# --- usage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["token", "check-config", "migrate", "users", "database-url", "version"]),
        (["token"], ["USER_ID", "--ttl", "--claim", "--config", "--data-dir"]),
        (["check-config"], ["--config"]),
        (["example-config"], []),
        (["migrate"], ["--database"]),
        (["users"], ["add", "list"]),
        (["users", "add"], ["USER_ID", "--name", "--email", "--data-dir", "--database"]),
        (["users", "list"], []),
        (["database-url"], ["--data-dir"]),
        (["bench"], ["URL", "--api", "--api-key-file", "--clients", "--seconds", "--rate", "--tokens"]),
        (["version"], []),
    ],
)
def test_help(flowtx: Command, arguments: list[str], names: list[str]) -> None:
    text = flowtx.succeed(*arguments, "--help")
    assert text.startswith(" ".join(["usage: flowtx", *arguments]))
    assert [name for name in names if name not in text] == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["token"],
        ["token", "alice", "bob"],
        ["token", "alice", "--ttl", "soon"],
        ["token", "alice", "--claim", "without-a-value"],
        ["token", "alice", "--claim", "=value"],
        ["users"],
        ["users", "remove"],
        ["users", "add"],
        ["migrate", "--no-such-option"],
        ["bench", "--clients", "many"],
        ["version", "stray"],
    ],
)
def test_wrong_usage(flowtx: Command, arguments: list[str]) -> None:
    flowtx.misuse(*arguments)
    assert list(flowtx.directory.iterdir()) == []


def test_version(flowtx: Command) -> None:
    assert flowtx.succeed("version") == f"flowtx {version('flowtx')}\n"
    assert flowtx.succeed("version", environ={"FLOWTX_NONSENSE": "1"}).startswith("flowtx ")


def test_reader_that_leaves_early(beside: Command) -> None:
    # What `flowtx users list | head -0` comes to.
    with subprocess.Popen(
        [*FLOWTX, "users", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(beside.environ),
        cwd=beside.directory,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


# --- token --------------------------------------------------------------------------------------------


def claims(token: str) -> Any:
    return jwt.decode(token, options={"verify_signature": False})


def test_token_is_taken_by_the_server(server: FlowProcess, beside: Command) -> None:
    user = server.new_user()
    token = beside.succeed("token", user)
    assert token.count("\n") == 1
    assert server.handshake(token.strip()) == "HTTP/1.1 101 Switching Protocols"
    got = claims(token.strip())
    assert got["sub"] == user
    assert got["typ"] == "access"
    assert abs(got["iat"] - time.time()) < 60
    assert got["exp"] - got["iat"] == 3600
    assert claims(beside.succeed("token", user).strip())["jti"] != got["jti"]


def test_token_with_claims(beside: Command) -> None:
    arguments = ["--claim", 'groups=["sales"]', "--claim", "name=Alice Ä", "--claim", "level=7", "--ttl=60"]
    got = claims(beside.succeed("token", "alice", *arguments).strip())
    assert (got["groups"], got["name"], got["level"]) == (["sales"], "Alice Ä", 7)
    assert got["exp"] - got["iat"] == 60


def test_token_for_nobody_else(beside: Command) -> None:
    assert claims(beside.succeed("token", "alice", "--claim", "sub=bob").strip())["sub"] == "alice"


@pytest.mark.parametrize("ttl", ["0", "-1", "nan", "inf", "86401"])
def test_token_that_would_not_be_taken(beside: Command, ttl: str) -> None:
    said = beside.fail("token", "alice", f"--ttl={ttl}")
    assert said.startswith("--ttl: got ")
    assert "more than 0 and at most 86400" in said


def test_token_of_any_lifetime(beside: Command) -> None:
    environ = {"FLOWTX_JWT_MAX_LIFETIME": "0"}
    year = 365 * 86_400
    got = claims(beside.succeed("token", "alice", f"--ttl={year}", environ=environ).strip())
    assert got["exp"] - got["iat"] == year
    for ttl in ("1e300", "inf"):
        assert beside.fail("token", "alice", f"--ttl={ttl}", environ=environ).startswith("--ttl: got ")


@pytest.mark.parametrize("user_id", ["", "with space", "ä", "a" * 129, "alice\n", "a/b"])
def test_token_for_what_is_no_id(beside: Command, user_id: str) -> None:
    assert beside.fail("token", user_id).startswith("USER_ID: got ")


def test_token_without_a_data_dir(flowtx: Command) -> None:
    said = flowtx.fail("token", "alice")
    assert said.startswith(f"--data-dir: there is no directory '{flowtx.directory}/.flow'")
    assert "the server makes it when it first starts" in said
    assert list(flowtx.directory.iterdir()) == []


def test_token_by_a_secret_file_alone(server: FlowProcess, flowtx: Command) -> None:
    user = server.new_user()
    environ = {"FLOWTX_SECRET_FILE": str(server.data_dir / "secret")}
    token = flowtx.succeed("token", user, environ=environ)
    assert "101" in server.handshake(token.strip())
    missing = {"FLOWTX_SECRET_FILE": "missing"}
    assert flowtx.fail("token", user, environ=missing).startswith("--secret-file: there is no ")


def test_token_where_others_verify(beside: Command) -> None:
    key = beside.directory / "key.pem"
    said = beside.fail(
        "token", "alice", environ={"FLOWTX_JWT_ALGORITHMS": "RS256", "FLOWTX_JWT_KEY_FILE": str(key)}
    )
    assert said.startswith("--jwt-algorithms: RS256")


def test_token_with_issuer_and_audience(tmp_path: Path) -> None:
    (tmp_path / "own-secret").write_text(
        "q8Zt3vLx9Wb5Rk2Np7Yd4Hs6Jf1Mc0Gq8TzVu"
    )  # 38 bytes: too short for HS512
    (tmp_path / "own-secret").chmod(0o600)
    file = tmp_path / "flow.toml"
    file.write_text(
        f'data-dir = "{tmp_path}/data"\njwt-issuer = "https://id.example.com"\njwt-audience = "flow"\n'
        f'secret-file = "{tmp_path}/own-secret"\n'
    )
    with FlowProcess(tmp_path, f"--config={file}") as server:
        user = server.new_user()
        command = Command(tmp_path)
        token = command.succeed("token", "--config", str(file), user).strip()
        assert (claims(token)["iss"], claims(token)["aud"]) == ("https://id.example.com", "flow")
        assert jwt.get_unverified_header(token)["alg"] == "HS256"
        assert server.handshake(token) == "HTTP/1.1 101 Switching Protocols"
        other = command.succeed("token", "--config", str(file), "--claim", "aud=other", user).strip()
        assert server.handshake(other) == "HTTP/1.1 403 Forbidden"


# --- check-config -------------------------------------------------------------------------------------


def test_check_config(flowtx: Command) -> None:
    assert flowtx.succeed("check-config").startswith("good: ")
    assert list(flowtx.directory.iterdir()) == []
    environ = {"FLOWTX_DATABASE": "postgresql://flow:canary@127.0.0.1/flow?sslpassword=canary"}
    shown = flowtx.succeed("check-config", environ=environ)
    assert "127.0.0.1" in shown
    assert "canary" not in shown


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"FLOWTX_MAX_TOPICS": "many"}, "FLOWTX_MAX_TOPICS: got 'many'; it takes a whole number"),
        ({"FLOWTX_NONSENSE": "1"}, "FLOWTX_NONSENSE: there is no such setting"),
        ({"FLOWTX_LISTEN": "bogus:1"}, "--listen: got 'bogus:1'; it takes a Twisted endpoint"),
        ({"FLOWTX_JWT_ALGORITHMS": "RS256"}, "--jwt-algorithms: RS256 needs one of --jwt-key-file"),
        ({"FLOWTX_CONFIG": "missing.toml"}, "--config: cannot read 'missing.toml'"),
    ],
)
def test_check_config_says_what_is_wrong(flowtx: Command, environ: dict[str, str], says: str) -> None:
    assert flowtx.fail("check-config", environ=environ).startswith(says)


# --- migrate, users, database-url ---------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False], ids=["before the action", "after it"])
def test_users_takes_its_options_on_either_side(flowtx: Command, server: FlowProcess, before: bool) -> None:
    place = [f"--data-dir={server.data_dir}"]
    listed = flowtx.succeed("users", *(place if before else []), "list", *([] if before else place))
    assert listed == flowtx.succeed("users", "list", f"--database={server.database_url}")


def test_migrate_makes_the_embedded_database(flowtx: Command) -> None:
    assert flowtx.succeed("migrate") == f"schema flow: version {NEWEST}\n"
    data_dir = flowtx.directory / ".flow"
    assert servers_of(cluster_directory(data_dir)) == []
    assert flowtx.succeed("users", "add", "alice", "--name", "Alice") == ""
    assert flowtx.succeed("users", "list") == "alice\tAlice\t\n"
    data_dir.rename(flowtx.directory / "data")
    with FlowProcess(flowtx.directory) as server:
        assert server.sql("SELECT id FROM flow.users") == [("alice",)]


def test_migrate_beside_a_running_server(server: FlowProcess, beside: Command) -> None:
    before = server.postgres_processes
    assert beside.succeed("migrate") == f"schema flow: version {NEWEST}\n"
    assert set(before) & set(server.postgres_processes)
    assert server.request("GET", "/health/ready")[0] == 200


def test_migrate_a_database_of_ones_own(flowtx: Command, database_url: str) -> None:
    for _ in range(2):
        assert flowtx.succeed("migrate", "--database", database_url) == f"schema flow: version {NEWEST}\n"
    versions = run_sql(database_url, "SELECT version FROM flow.schema_versions ORDER BY version")
    assert versions == [(number,) for number in range(1, NEWEST + 1)]
    assert list(flowtx.directory.iterdir()) == []
    run_sql(database_url, "INSERT INTO flow.schema_versions (version) VALUES (9999)")
    assert flowtx.fail("migrate", "--database", database_url).startswith("the schema flow has version 9999")


def test_users(server: FlowProcess, beside: Command) -> None:
    beside.succeed("users", "add", "zoe", "--name", "Zoë Z", "--email", "zoe@example.com")
    beside.succeed("users", "add", "yan")
    assert server.handshake(server.token("zoe")) == "HTTP/1.1 101 Switching Protocols"
    lines = beside.succeed("users", "list").splitlines()
    assert lines == sorted(lines)
    assert "zoe\tZoë Z\tzoe@example.com" in lines
    assert "yan\tyan\t" in lines
    beside.succeed("users", "add", "zoe", "--name", "Zoe")
    assert "zoe\tZoe\t" in beside.succeed("users", "list").splitlines()
    assert beside.fail("users", "add", "not an id").startswith("USER_ID: got 'not an id'")


def test_database_url(server: FlowProcess, beside: Command) -> None:
    url = beside.succeed("database-url").strip()
    assert run_sql(url, "SELECT current_database(), count(*) > -1 FROM flow.inboxes") == [("flow", True)]
    psql = shutil.which("psql")
    if psql is not None:
        asked = run([psql, url, "--no-psqlrc", "-Atc", "SELECT 6 * 7"], beside.directory, {"PGPORT": "1"})
        assert (asked.status, asked.stdout) == (0, "42\n")
    assert url == server.database_url


def test_database_url_that_was_given(flowtx: Command) -> None:
    url = "postgresql://flow:secret@127.0.0.1:5433/flow"
    assert flowtx.succeed("database-url", "--database", url) == f"{url}\n"


def test_database_url_of_no_data_dir(flowtx: Command) -> None:
    assert flowtx.fail("database-url").startswith("--data-dir: there is no directory")


def test_database_that_refuses(flowtx: Command, database_url: str) -> None:
    said = flowtx.fail("migrate", "--database", database_url.replace("flow@", "nobody@"))
    assert 'role "nobody" does not exist' in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(flowtx: Command, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*FLOWTX, "migrate"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=flowtx.directory,
        text=True,
    ) as process:
        fresh = flowtx.directory / ".flow" / "postgresql.new"
        eventually(fresh.exists, "the cluster is being made", 20, 0.001)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (1, "", "flowtx: interrupted\n")
    assert flowtx.succeed("migrate") == f"schema flow: version {NEWEST}\n"


# --- bench --------------------------------------------------------------------------------------------


def bench(server: FlowProcess, *arguments: str) -> list[str]:
    """Arguments that make the load a short one."""
    url = server.socket_url.removesuffix("/socket")
    return ["bench", url, f"--api={server.admin_url}", "--seconds=0.2", *arguments]


LOADS = ["connect", "heartbeat", "activity", "broadcast"]


def test_bench_tells_what_clients_see(beside: Command, server: FlowProcess) -> None:
    insert = "INSERT INTO flow.users (id, name) SELECT 'bench-' || n, 'A User' FROM generate_series(1, 7) n"
    run_sql(server.database_url, insert)
    lines = beside.succeed(*bench(server, "--clients=7")).splitlines()
    assert [line.split()[0] for line in lines] == LOADS
    assert lines[0].split()[1] == "7"
    for line in lines:
        assert re.fullmatch(
            r"\w+ +[1-9][\d,]* +[\d,]+/s  p50 [\d.]+ ms  p99 [\d.]+ ms  max [\d.]+ ms( .*)?", line
        )
    assert "until all 7 have it" in lines[-1]


def test_bench_with_tokens_and_a_key_of_ones_own(
    beside: Command, server: FlowProcess, tmp_path: Path
) -> None:
    beside.succeed("users", "add", "alice")
    tokens, key = tmp_path / "tokens", tmp_path / "key"
    tokens.write_text(f"alice {beside.succeed('token', 'alice')}")
    key.write_text((server.data_dir / "api-key").read_text())
    elsewhere = Command(tmp_path)  # there is no secret here
    arguments = bench(server, f"--tokens={tokens}", f"--api-key-file={key}")
    lines = elsewhere.succeed(*arguments).splitlines()
    assert [line.split()[0] for line in lines] == LOADS
    assert lines[0].split()[1] == "1"


def test_bench_of_a_user_whom_the_server_does_not_know(beside: Command, server: FlowProcess) -> None:
    tokens = beside.directory / "tokens"
    tokens.write_text(f"stranger {beside.succeed('token', 'stranger')}")
    line = beside.fail(*bench(server, f"--tokens={tokens}"))
    assert line.startswith('stranger is turned away: 403 {"reason":"unknown_user"}; --tokens takes')


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--clients=0", "got 0 clients; it takes 1 to 10,000"),
        ("--clients=10001", "got 10001 clients; it takes 1 to 10,000"),
        ("--seconds=0", "--seconds: got 0; it takes more than 0 and at most 3,600"),
        ("--rate=nan", "--rate: got nan; it takes more than 0 and at most 1,000"),
        (
            "--api=ws://127.0.0.1:4001",
            "got the URL 'ws://127.0.0.1:4001'; it takes http://HOST:PORT or https://",
        ),
        ("--api=http://127.0.0.1:no", "got the URL 'http://127.0.0.1:no'; it takes"),
        ("--tokens=absent", "--tokens: [Errno 2]"),
        ("--api-key-file=absent", "--api-key-file: [Errno 2]"),
    ],
)
def test_bench_of_what_cannot_be(beside: Command, server: FlowProcess, argument: str, says: str) -> None:
    assert beside.fail(*bench(server, argument)).startswith(says)


def test_bench_of_a_server_that_is_not_there(beside: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}"
        assert beside.fail("bench", url).startswith(f"{url}: Connection was refused")


def test_bench_comes_again_when_the_server_has_too_much_to_do(flowtx: Command) -> None:
    options = ("--handshake-rate=2", "--users-query=claims")
    with FlowProcess(flowtx.directory, *options) as server:
        flowtx.environ["FLOWTX_DATA_DIR"] = str(server.data_dir)
        first = flowtx.succeed(*bench(server, "--clients=5")).splitlines()[0]
    assert first.split()[:2] == ["connect", "5"]
    assert re.search(r"turned away \d+ times, and came again$", first)
