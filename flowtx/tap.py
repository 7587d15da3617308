"""What ``twistd flow`` runs: its options, and the service made of them."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from flowtx.app import load_app
from flowtx.application import Flow
from flowtx.config import Settings, load, options
from flowtx.errors import ConfigError, FlowtxError

EXIT_FAILURE = 1


class Options(usage.Options):
    """The options of ``twistd flow``, out of `flowtx.config.Settings`.

    Attributes:
        settings: what they, the environment and the file amount to.
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


def _fail(why: object) -> NoReturn:
    """End before anything has started, in one line."""
    sys.exit(f"flowtx: {why}")


class Daemon(Service):
    """Runs a server under ``twistd``: a start that fails ends the process, in one line."""

    _log = Logger()

    def __init__(self, flow: Flow, *, reactor: Any) -> None:
        self._flow = flow
        self._reactor = reactor

    def startService(self) -> None:
        super().startService()
        self._flow.startService().addErrback(self._failed)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return self._flow.stopService()

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
    return Daemon(Flow(config.settings, reactor=reactor), reactor=reactor)
