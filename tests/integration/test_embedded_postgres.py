"""The embedded PostgreSQL with a real server: starts, crashes, users, paths and leftovers."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import IO

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from flowtx.errors import StartupError
from flowtx.storage import cluster, embedded, postmaster
from flowtx.storage.embedded import EmbeddedPostgres
from flowtx.storage.postmaster import is_server_of, postmaster_status, servers_of

ROOT = Path(__file__).resolve().parents[2]
AS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not AS_ROOT, reason="only root's server is another user's; run this as root")

#: A flowtx reduced to its database: it starts, tells its process and its server's, and stops when its
#: input ends. With "keep" it is one whose server does not end with it.
FLOWTX = r"""
import json, sys
from pathlib import Path
from twisted.internet import reactor, stdio
from twisted.internet.defer import ensureDeferred
from twisted.internet.protocol import Protocol
from flowtx.storage import cluster, embedded

if "keep" in sys.argv:
    ways = cluster.ways_to_run
    def without_end(*args):
        return [[w for w in way if w not in ("--pdeathsig", "INT")] for way in ways(*args)]
    cluster.ways_to_run = without_end

service = embedded.EmbeddedPostgres(Path(sys.argv[1]), reactor=reactor)

def tell(**what):
    print(json.dumps(what), flush=True)

class Input(Protocol):
    def connectionLost(self, reason):
        ensureDeferred(stop())

async def stop():
    await service.stopService()
    tell(stopped=True)
    reactor.stop()

async def main():
    try:
        await service.startService()
    except Exception as problem:
        tell(failed=str(problem))
        reactor.stop()
    else:
        stdio.StandardIO(Input())
        tell(url=service.url, server=service._programs._current.pid)

reactor.callWhenRunning(lambda: ensureDeferred(main()))
reactor.run()
"""


class Child:
    """A flowtx in a process of its own."""

    def __init__(self, data_dir: Path, *options: str, python: list[str] | None = None, **how: object) -> None:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [*(python or [sys.executable]), "-c", FLOWTX, str(data_dir), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
            env=environment,
            cwd="/",
            **how,  # type: ignore[call-overload]
        )

    def told(self) -> dict[str, object]:
        """Wait for the next line that it tells."""
        told: dict[str, object] = json.loads(opened(self.process.stdout).readline())
        return told

    def stop(self) -> None:
        """Have it stop in order."""
        opened(self.process.stdin).close()
        assert self.told() == {"stopped": True}
        assert self.process.wait(15) == 0
        opened(self.process.stdout).close()

    def kill(self) -> None:
        """Kill -9 it."""
        self.process.kill()
        self.process.wait()
        opened(self.process.stdin).close()
        opened(self.process.stdout).close()


def opened(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory with a short path below a directory that is closed to all but its owner."""
    above = Path(mkdtemp(prefix="ftx-", dir="/tmp"))
    place = above / "d"
    place.mkdir(mode=0o700)
    yield place
    assert servers_of(place / "postgresql") == []
    forget(above)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A data directory with a new cluster, to be copied."""
    place = Path(mkdtemp(prefix="ftx-", dir="/tmp"))
    child = Child(place)
    assert "url" in child.told()
    child.stop()
    yield place
    forget(place)


@pytest.fixture
def made_dir(data_dir: Path, template: Path) -> Path:
    """A data directory with a cluster that was not used yet."""
    run("cp", "-a", str(template / "postgresql"), str(data_dir))
    return data_dir


def forget(above: Path) -> None:
    for place in above.glob("**/postgresql"):
        sockets = cluster.socket_directory(place.parent)
        if sockets.parent == Path("/tmp"):
            shutil.rmtree(sockets, ignore_errors=True)
    shutil.rmtree(above)


def service_of(data_dir: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(data_dir, reactor=reactor)


def query(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Carry out statements, each in a transaction of its own; return the rows of the last one."""
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            rows: list[tuple[object, ...]] = []
            for statement in statements:
                cursor.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
                connection.commit()
            return rows
    finally:
        connection.close()


def postmasters_of(data_dir: Path) -> list[int]:
    """Those servers of the cluster that are not children of another one."""
    servers = servers_of(data_dir / "postgresql")
    parents = {pid: status_of(pid).get("PPid") for pid in servers}  # None of one that ended by now
    return [pid for pid, parent in parents.items() if parent is not None and int(parent) not in servers]


def status_of(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def psql() -> str:
    return str(cluster.postgres_programs() / "psql")


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def begun(*argv: str, user: int | None = None) -> subprocess.Popen[bytes]:
    silent = subprocess.DEVNULL
    return subprocess.Popen(argv, stdout=silent, stderr=silent, user=user if AS_ROOT else None)


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def report(figures: str) -> None:
    sys.stdout.write(f"{figures}\n")


def server_of(data_dir: Path) -> int:
    found = postmaster_status(data_dir / "postgresql")
    assert found is not None
    return found[0]


async def until(happened: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something is true, at most so long."""
    give_up = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < give_up, f"{happened} was not true in {seconds} s"
        await deferLater(reactor, 0.02)


# -- the ordinary life


@pytest_twisted.ensureDeferred
async def test_a_second_start_finds_what_the_first_one_stored(data_dir: Path) -> None:
    service = service_of(data_dir)
    began = time.monotonic()
    await service.startService()
    first = time.monotonic() - began
    pid = server_of(data_dir)
    assert query(service.url, "SELECT current_user, current_database(), 'ß' < 'z'") == [
        ("flow", "flow", False)
    ]
    assert query(service.url, "SHOW fsync", "SHOW listen_addresses") == [("",)]
    assert query(service.url, "SHOW fsync") == [("on",)]
    query(service.url, "CREATE TABLE t (x int)", "INSERT INTO t SELECT generate_series(1, 1000)")
    assert os.getsid(pid) == pid  # so a Ctrl-C for flowtx is none for the server
    idle = psycopg2.connect(service.url)  # an open connection does not hold the stop up
    began = time.monotonic()
    await service.stopService()
    stopped = time.monotonic() - began
    idle.close()
    assert not status_of(pid)
    assert servers_of(data_dir / "postgresql") == []

    began = time.monotonic()
    await service.startService()
    second = time.monotonic() - began
    assert query(service.url, "SELECT count(*) FROM t") == [(1000,)]
    await service.stopService()
    await service.stopService()  # once more does no harm
    report(f"first start {first:.2f} s, second {second:.2f} s, stop {stopped:.2f} s")
    assert first < 10
    assert second < 5
    assert (data_dir / "postgresql.log").stat().st_mode & 0o777 == 0o600
    assert os.stat(data_dir).st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "name",
    ["a space, a comma", 'it\'s "quoted"', "flöw-数据", "x" * 60 + "/" + "y" * 60],
    ids=["comma", "quotes", "non-ASCII", "long"],
)
@pytest_twisted.ensureDeferred
async def test_any_path_will_do(data_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")  # nobody's settings for other servers get in the way
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGHOST", "/nowhere")
    place = data_dir / name
    place.mkdir(parents=True)
    place.chmod(0o700)
    service = service_of(place)
    await service.startService()
    try:
        assert query(service.url, "SELECT 1") == [(1,)]
        assert run(psql(), "-XAt", "-c", "SELECT 2", service.url) == "2\n"
        sockets = cluster.socket_directory(place)
        assert sockets.stat().st_mode & 0o777 == 0o700
        assert sockets.stat().st_uid == (place / "postgresql").stat().st_uid
    finally:
        await service.stopService()
    assert servers_of(place / "postgresql") == []


@pytest.mark.parametrize("by", ["stop", "cancel"])
@pytest_twisted.ensureDeferred
async def test_a_start_can_be_given_up_at_any_time_and_repeated(data_dir: Path, by: str) -> None:
    service = service_of(data_dir)
    for delay in (0.0, 0.05, 0.4, 0.7):
        starting = service.startService()
        await deferLater(reactor, delay)
        if by == "cancel":
            starting.cancel()
        else:
            await service.stopService()
            child = service._programs._current
            assert child is None or child.exited.fired
        try:
            await starting
        except CancelledError:
            pass
        finally:
            await service.stopService()
        assert servers_of(data_dir / "postgresql") == []
    await service.startService()
    assert query(service.url, "SELECT 1") == [(1,)]
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_running_service_is_not_started_twice(made_dir: Path) -> None:
    service = service_of(made_dir)
    await service.startService()
    with pytest.raises(StartupError, match="is running already"):
        await service.startService()
    assert query(service.url, "SELECT 1") == [(1,)]
    await service.stopService()


# -- whom it runs as


@only_root
@pytest_twisted.ensureDeferred
async def test_root_s_server_is_another_user_s_and_opens_nothing(data_dir: Path) -> None:
    above = [data_dir, data_dir.parent, Path("/root"), cluster.postgres_programs()]
    modes = [place.stat().st_mode for place in above]
    assert data_dir.parent.stat().st_mode & 0o777 == 0o700
    service = service_of(data_dir)
    await service.startService()
    try:
        status = status_of(server_of(data_dir))
        assert "0" not in status["Uid"].split()
        assert "0" not in status["Gid"].split()
        assert status["Groups"] == ""
        assert status["NoNewPrivs"] == "1"
        if int(status["CapEff"], 16):
            # Only where the virtualenv is closed to other users.
            assert int(status["CapPrm"], 16) == 1 << 2
        assert [place.stat().st_mode for place in above] == modes
        assert (data_dir / "postgresql").stat().st_mode & 0o777 == 0o700
    finally:
        await service.stopService()


@only_root
@pytest_twisted.ensureDeferred
async def test_root_s_server_runs_out_of_a_closed_virtualenv(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = data_dir.parent / "venv"
    closed.mkdir(mode=0o700)
    package = cluster.postgres_programs().parents[1]
    for name in (package.name, f"{package.name}.libs"):  # which the programs find by way of the former
        shutil.copytree(package.with_name(name), closed / name, copy_function=link_or_copy)
    monkeypatch.setattr(cluster, "postgres_programs", lambda: closed / package.name / "pginstall" / "bin")
    service = service_of(data_dir)
    await service.startService()
    try:
        status = status_of(server_of(data_dir))
        assert [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")] == [1 << 2] * 3
        assert query(service.url, "SELECT 1") == [(1,)]
        assert closed.stat().st_mode & 0o777 == 0o700
    finally:
        await service.stopService()


@only_root
@pytest_twisted.ensureDeferred
async def test_where_root_cannot_give_up_its_rights_it_is_told_the_ways_out(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(StartupError) as caught:
        await service_of(data_dir).startService()
    assert "setpriv (of util-linux) is not here" in str(caught.value)
    assert "run flowtx as an ordinary user, or name a PostgreSQL server with --database URL" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


@only_root
@pytest_twisted.ensureDeferred
async def test_root_does_not_work_in_somebody_else_s_directory(data_dir: Path) -> None:
    os.chown(data_dir, 12345, 12345)
    with pytest.raises(StartupError, match="belongs to 12345 and flowtx runs as root: run flowtx as that"):
        await service_of(data_dir).startService()


@only_root
@pytest_twisted.ensureDeferred
async def test_a_cluster_of_a_user_number_of_another_machine_is_taken_over(made_dir: Path) -> None:
    service = service_of(made_dir)
    run("chown", "-R", "54321:54321", str(made_dir / "postgresql"))
    await service.startService()
    assert query(service.url, "SELECT 1") == [(1,)]
    await service.stopService()
    assert (made_dir / "postgresql" / "PG_VERSION").stat().st_uid not in {0, 54321}


def python_of(user: str) -> list[str]:
    """A Python that the user can run flowtx with: this one, the system's, or this one with more rights."""
    become = ["setpriv", f"--reuid={user}", "--clear-groups", f"--regid={pwd.getpwnam(user).pw_gid}"]
    read_all = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    for python in (
        [*become, "--", sys.executable],
        [*become, "--", "/usr/bin/python3"],
        [*become, *read_all, "--", sys.executable],
    ):
        probe = [*python, "-c", "import psycopg2, twisted.internet.reactor, flowtx.storage.embedded"]
        if subprocess.run(probe, env=environment, cwd="/", capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip("NO PYTHON HERE RUNS AS AN ORDINARY USER: whether the server does is not known")


@pytest.mark.skipif(not AS_ROOT, reason="the other tests are run by an ordinary user already")
def test_an_ordinary_user_s_server_is_its_own(data_dir: Path) -> None:
    python = python_of("nobody")
    nobody = pwd.getpwnam("nobody")
    data_dir.parent.chmod(0o711)
    os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)
    for start in range(3):
        child = Child(data_dir, python=python)
        told = child.told()
        assert "url" in told, told
        server = int(str(told["server"]))
        assert postmasters_of(data_dir) == [server]
        assert status_of(server)["Uid"].split() == [str(nobody.pw_uid)] * 4
        rows = query(
            str(told["url"]), "CREATE TABLE IF NOT EXISTS t (x int)", "INSERT INTO t VALUES (1)", "TABLE t"
        )
        assert len(rows) == start + 1
        if start == 1:
            child.kill()  # the next start follows at once
        else:
            child.stop()
    assert (data_dir / "postgresql.log").stat().st_uid == nobody.pw_uid


@pytest.mark.skipif(not AS_ROOT, reason="only root can make a cluster of somebody else's")
def test_an_ordinary_user_is_told_whose_cluster_it_is(made_dir: Path) -> None:
    python = python_of("nobody")
    made_dir.parent.chmod(0o711)
    os.chown(made_dir, 65534, 65534)
    child = Child(made_dir, python=python)
    assert re.search(
        "belongs to [a-z]+ and flowtx runs as nobody: run flowtx as the user", str(child.told()["failed"])
    )
    child.kill()


# -- crashes


@pytest_twisted.ensureDeferred
async def test_after_a_kill_of_flowtx_there_is_one_server_with_every_row(data_dir: Path) -> None:
    for start in range(6):
        child = Child(data_dir)
        told = child.told()
        assert "url" in told, told
        assert postmasters_of(data_dir) == [told["server"]]
        rows = query(
            str(told["url"]),
            "CREATE TABLE IF NOT EXISTS t (x int)",
            f"INSERT INTO t VALUES ({start})",
            "TABLE t",
        )
        assert [row[0] for row in rows] == list(range(start + 1))
        child.kill()
    await until(lambda: not servers_of(data_dir / "postgresql"))  # it ends with flowtx, not with the next one


@pytest_twisted.ensureDeferred
async def test_a_server_that_outlived_its_flowtx_is_ended_before_the_next_one(made_dir: Path) -> None:
    child = Child(made_dir, "keep")
    told = child.told()
    orphan = int(str(told["server"]))
    query(str(told["url"]), "CREATE TABLE t (x int)", "INSERT INTO t VALUES (1)")
    child.kill()
    assert is_server_of(orphan, made_dir / "postgresql")
    service = service_of(made_dir)
    await service.startService()
    assert not is_server_of(orphan, made_dir / "postgresql")
    assert postmasters_of(made_dir) == [server_of(made_dir)]
    assert query(service.url, "TABLE t") == [(1,)]
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_killed_is_back_within_five_seconds(made_dir: Path) -> None:
    service = service_of(made_dir)
    await service.startService()
    query(service.url, "CREATE TABLE t (x int)", "INSERT INTO t VALUES (1)")
    # One that computes does not see its postmaster die, and keeps the next one from starting.
    busy = begun(psql(), "-Xqc", "SELECT count(*) FROM generate_series(1, 1e12::bigint)", service.url)
    working = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%1e12%' AND pid <> "
    await until(lambda: query(service.url, working + "pg_backend_pid()"))
    for _ in range(2):
        old = server_of(made_dir)
        began = time.monotonic()
        os.kill(old, signal.SIGKILL)
        await until(lambda old=old: is_succeeded(made_dir, old), 5.0)  # type: ignore[misc]
        report(f"back after {time.monotonic() - began:.2f} s")
        assert query(service.url, "TABLE t") == [(1,)]
        assert postmasters_of(made_dir) == [server_of(made_dir)]
    busy.wait(10)
    assert "pre-existing shared memory block" in (made_dir / "postgresql.log").read_text()
    await service.stopService()


def is_succeeded(data_dir: Path, old: int) -> bool:
    found = postmaster_status(data_dir / "postgresql")
    return found is not None and found[0] != old and found[1] == "ready"


@pytest_twisted.ensureDeferred
async def test_a_killed_backend_takes_the_server_down_for_a_moment_only(made_dir: Path) -> None:
    service = service_of(made_dir)
    await service.startService()
    connection = psycopg2.connect(service.url)
    postmaster = server_of(made_dir)
    os.kill(connection.info.backend_pid, signal.SIGKILL)

    def answers() -> bool:
        try:
            return query(service.url, "SELECT 1") == [(1,)]
        except psycopg2.OperationalError:
            return False

    await until(lambda: status_of(postmaster) and answers())
    assert server_of(made_dir) == postmaster
    connection.close()
    await service.stopService()


# -- leftovers


@pytest_twisted.ensureDeferred
async def test_a_lock_file_that_names_another_program_is_no_obstacle(made_dir: Path) -> None:
    service = service_of(made_dir)
    await service.startService()
    place = made_dir / "postgresql"
    lines = (place / "postmaster.pid").read_text().splitlines()
    await service.stopService()
    owner = place.stat()
    # Of the server's own user: PostgreSQL by itself would take it for a living server.
    stranger = begun("sleep", "60", user=owner.st_uid)
    try:
        for content in ("\n".join([str(stranger.pid), *lines[1:]]) + "\n", ""):
            for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                (place / name).write_text(content)
                os.chown(place / name, owner.st_uid, owner.st_gid)
            await service.startService()
            assert query(service.url, "SELECT 1") == [(1,)]
            assert stranger.poll() is None
            await service.stopService()
    finally:
        stranger.kill()
        stranger.wait()


@pytest_twisted.ensureDeferred
async def test_a_cluster_of_another_version_is_refused(made_dir: Path) -> None:
    service = service_of(made_dir)
    version = made_dir / "postgresql" / "PG_VERSION"
    version.write_text("15\n")
    with pytest.raises(StartupError, match=r"was made by PostgreSQL 15, and .* takes \d+ only: install"):
        await service.startService()
    assert not service.running
    assert version.read_text() == "15\n"
    version.unlink()
    with pytest.raises(StartupError, match="is no PostgreSQL cluster"):
        await service.startService()


@pytest_twisted.ensureDeferred
async def test_a_first_start_that_was_interrupted_is_begun_anew(data_dir: Path) -> None:
    rest = data_dir / "postgresql.new" / "base"
    rest.mkdir(parents=True)
    (rest / "torn").write_text("half a cluster")
    service = service_of(data_dir)
    await service.startService()
    assert query(service.url, "SELECT 1") == [(1,)]
    await service.stopService()
    assert not rest.parent.exists()


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_start_is_quoted(made_dir: Path) -> None:
    service = service_of(made_dir)
    with (made_dir / "postgresql" / "postgresql.conf").open("a") as settings:
        settings.write("\nnonsense = 1\n")
    with pytest.raises(StartupError) as caught:
        await service.startService()
    assert "did not start: configuration file" in str(caught.value)
    assert "see postgresql.log there" in str(caught.value)
    assert 'unrecognized configuration parameter "nonsense"' in (made_dir / "postgresql.log").read_text()
    assert "\n" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_silent_for_too_long_is_given_up(
    made_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_SILENCE_PATIENCE", 0.3)
    monkeypatch.setattr(postmaster, "postmaster_status", lambda place: None)
    service = service_of(made_dir)
    with pytest.raises(StartupError, match="is not ready and was silent for 0 s; its last word: "):
        await service.startService()
    assert servers_of(made_dir / "postgresql") == []


@pytest_twisted.ensureDeferred
async def test_a_directory_that_cannot_be_written_to_is_told(data_dir: Path) -> None:
    (data_dir / "postgresql.log").mkdir()
    with pytest.raises(StartupError, match=r"cannot be started: .*postgresql\.log"):
        await service_of(data_dir).startService()


@pytest_twisted.ensureDeferred
async def test_the_log_is_bounded_and_holds_no_rows(made_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOG_SIZE", 20_000)
    service = service_of(made_dir)
    await service.startService()
    query(service.url, "CREATE TABLE t (x text UNIQUE)", "INSERT INTO t VALUES ('a secret')")
    for _ in range(300):
        with pytest.raises(psycopg2.errors.UniqueViolation):
            query(service.url, "INSERT INTO t VALUES ('a secret')")
        await deferLater(reactor, 0)
    await service.stopService()
    logs = [made_dir / name for name in os.listdir(made_dir) if name.startswith("postgresql.log")]
    assert len(logs) == 2
    assert sum(log.stat().st_size for log in logs) < 50_000
    text = "".join(log.read_text() for log in logs)
    assert "duplicate key value" in text
    assert "secret" not in text
