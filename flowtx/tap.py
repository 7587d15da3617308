"""What ``twistd flow`` runs: its options, and the service made of them."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, Logger
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from flowtx.app import load_app
from flowtx.application import Flow
from flowtx.config import Settings, load, options
from flowtx.errors import ConfigError, FlowtxError
from flowtx.exposure import warn_of_arguments
from flowtx.logs import observer_for, set_level
from flowtx.pauses import spare_the_loaded
from flowtx.reload import Reload
from flowtx.signals import end_at_next_signal, ignore_user_signals
from flowtx.systemd import Notifier
from flowtx.watchdog import Watchdog

EXIT_FAILURE = 1


class Options(usage.Options):
    """The options of ``twistd flow``, out of `flowtx.config.Settings`.

    Attributes:
        settings: what they, the environment and the file amount to.
        given: they alone, as `flowtx.config.load` takes them.
    """

    synopsis = "[options]"
    longdesc = (
        "The session server. Every option is also an environment variable (--max-topics: "
        "FLOWTX_MAX_TOPICS) and a key of the file that --config names; an option beats the "
        "environment, which beats the file."
    )
    _values = tuple(option for option in options() if not option.flag and not option.repeatable)
    _flags = tuple(option for option in options() if option.flag)
    optParameters = [  # noqa: RUF012 - Twisted's form
        ["config", None, None, "TOML file with settings"],
        *([option.name, None, None, option.text] for option in _values),
    ]
    optFlags = [[option.name, None, option.text] for option in _flags]  # noqa: RUF012
    settings: Settings
    given: dict[str, object]

    def __init__(self) -> None:
        super().__init__()
        self._listen: list[str] = []

    def parseOptions(self, options: Sequence[str] | None = None) -> None:  # noqa: N802
        # twistd would print all of the help around what is wrong.
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _fail(f"{error}; twistd flow --help lists all options")

    def opt_version(self) -> None:
        """Display the version of flowtx and exit."""
        print(f"flowtx {version('flowtx')}")  # noqa: T201
        sys.exit(0)

    def opt_listen(self, endpoint: str) -> None:
        """Twisted endpoint for clients; repeatable [default: tcp:4000:interface=127.0.0.1]"""
        self._listen.append(endpoint)

    def postOptions(self) -> None:
        names = ["config", *(option.name for option in self._values)]
        given: dict[str, object] = {name: self[name] for name in names if self[name] is not None}
        given |= {option.name: True for option in self._flags if self[option.name]}
        if self._listen:
            given["listen"] = self._listen
        try:
            self.settings = load(given)
            # A daemon that fails later has no terminal to say it on.
            if self.settings.app is not None:
                load_app(self.settings.app)
        except ConfigError as error:
            _fail(error)
        warn_of_arguments(given)
        # It is read again later, when twistd may have changed the directory.
        file = given.get("config") or os.environ.get("FLOWTX_CONFIG")
        self.given = given if file is None else {**given, "config": os.path.abspath(str(file))}


def _fail(why: object) -> NoReturn:
    """End before anything has started, in one line."""
    sys.exit(f"flowtx: {why}")


class Daemon(Service):
    """Runs a server under ``twistd``: a start that fails ends the process, in one line."""

    _log = Logger()

    def __init__(
        self, flow: Flow, read: Callable[[], Settings], *, reactor: Any, observer: Any = None
    ) -> None:
        self._flow = flow
        self._observer = observer
        self._reactor = reactor
        seconds = flow.settings.watchdog
        self._watchdog = Watchdog(seconds, reactor=reactor) if seconds else None
        self._systemd = Notifier(clock=reactor)
        self._reload = Reload(
            flow, read, reactor=reactor, reloading=self._systemd.reloading, reloaded=self._systemd.ready
        )

    def setServiceParent(self, parent: Any) -> None:  # noqa: N802
        super().setServiceParent(parent)
        # twistd asks the application for an observer before it begins to log.
        if self._observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)

    def startService(self) -> None:
        super().startService()
        ignore_user_signals()
        if self._watchdog is not None:
            self._watchdog.startService()
        self._systemd.startService()
        self._reload.startService()
        self._flow.startService().addCallbacks(self._started, self._failed)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        end_at_next_signal()
        self._systemd.stopping()
        self._reload.stopping()
        return self._flow.stopService().addBoth(self._stopped)

    def _started(self, _: None) -> None:
        spare_the_loaded()
        self._systemd.ready()
        self._reload.ready()

    def _stopped(self, result: None) -> None:
        self._reload.stopService()
        self._systemd.stopService()
        if self._watchdog is not None:
            self._watchdog.stopService()
        return result

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        why = failure.getErrorMessage()
        if failure.check(FlowtxError):
            # A daemon has nothing but its log to say it in.
            self._log.critical("flowtx cannot start: {why}", why=why)
        else:
            self._log.failure("flowtx cannot start", failure)
        # The real one: twistd sends what is written to sys.stderr to the log.
        print(f"flowtx: {why}", file=sys.__stderr__, flush=True)
        # twistd has no exit status for a start that fails once the reactor runs.
        atexit.register(_exit_failed)
        if self._reactor.running:
            self._reactor.stop()
        else:
            self._reactor.callWhenRunning(self._reactor.stop)


def _exit_failed() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_FAILURE)


def makeService(config: Options) -> Daemon:
    """Make the service that ``twistd flow`` runs."""
    from twisted.internet import reactor  # noqa: PLC0415 - twistd chooses it before it calls this

    # Twisted's own clock follows the wall clock: a step of it would fire every timeout at once.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    flow = Flow(config.settings, reactor=reactor)
    call_soon = reactor.callFromThread  # type: ignore[attr-defined]
    set_level(config.settings.log_level)
    observer = observer_for(config.settings.log_format, config.parent, call_soon)
    return Daemon(flow, lambda: load(config.given), reactor=reactor, observer=observer)
