"""LISTEN: be woken when another process wrote, and look anyway every few seconds.

A NOTIFY says nothing but "look": it may be lost (the link is down, or a proxy holds it back), so its
payload is not read. Whoever listens reads the database after each LISTEN, after each NOTIFY and
after ``poll_interval`` seconds without one.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Awaitable, Callable
from enum import Enum

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx import faultpoints
from flowtx.errors import ConfigError, StartupError, StorageError
from flowtx.storage.link import LinkFactory, PostgresLink, connection_string, first_line
from flowtx.storage.slot import SETUP, Slot

START_WITHIN = 10.0
"""Seconds that the start waits for the first LISTEN and the first run of ``wake``."""
STOP_WITHIN = 2.0
"""Seconds that the stop leaves to a run of ``wake`` under way."""


class _Run(Enum):
    """Where the runs of ``wake`` stand; there is never more than one."""

    RESTING = "resting"
    RUNNING = "running"
    RUNNING_STALE = "running, and something came that it may not have seen"


class Listener(Service):
    """Calls ``wake`` whenever there may be something new, on a connection of its own."""

    _log = Logger()

    def __init__(
        self,
        url: str,
        channel: str,
        wake: Callable[[], Awaitable[None]],
        *,
        reactor: IReactorTime,
        poll_interval: float = 5.0,
        application_name: str = "flowtx",
        connected: Callable[[], None] = lambda: None,
        random: Callable[[], float] = random_module.random,
        link: LinkFactory = PostgresLink,
    ) -> None:
        """Make the service; nothing connects before ``startService``.

        Args:
            url: as for ``Database``.
            channel: what to LISTEN on.
            wake: reads what is new. It is never run twice at once: what comes during a run, however
                much, leads to one more. It must have deadlines of its own. An exception is logged,
                each kind once until a run has succeeded, and the next run comes as usual.
            connected: called after each LISTEN, before the run of ``wake`` that follows: the server may
                be another one than before, or have crashed meanwhile.
            poll_interval: seconds without a run after which there is one anyway, whether the
                connection is up or not.

        Raises:
            ConfigError: the URL cannot be read, or PostgreSQL cannot have such a channel.
        """
        if not 0 < len(channel.encode()) < 64 or "\0" in channel:
            raise ConfigError("a channel's name has 1 to 63 bytes and no NUL")
        dsn, self._label = connection_string(url, application_name)
        quoted = channel.replace('"', '""')
        self._slot = Slot(
            dsn,
            self._changed,
            reactor=reactor,
            random=random,
            setup=f'{SETUP};LISTEN "{quoted}"',
            notified=self._notified,
            link=link,
        )
        self._channel = channel
        self._wake = wake
        self._connected = connected
        self._reactor = reactor
        self._poll_interval = poll_interval
        self._listening = False
        self._lost_at: float | None = None
        self._run = _Run.RESTING
        self._running: Deferred[None] | None = None
        self._poll: IDelayedCall | None = None
        self._logged: set[type] = set()
        self._starting: Deferred[None] | None = None
        self._start_timer: IDelayedCall | None = None
        self._trouble = ""
        self._resting: Deferred[None] | None = None

    @property
    def listening(self) -> bool:
        """Whether a NOTIFY would arrive now; without it there is the poll."""
        return self._listening

    def startService(self) -> Deferred[None]:
        """Connect, LISTEN and read for the first time.

        Returns:
            A Deferred that fires with None once a run of ``wake`` that began after the LISTEN has
            succeeded, or fails with StartupError after 10 s without; the service is stopped again
            then, as it is when the Deferred is cancelled.
        """
        if self.running:
            return fail(StartupError("the listener runs already"))
        super().startService()
        self._lost_at, self._trouble = None, ""
        started = self._starting = Deferred(lambda _: self._close())
        self._start_timer = self._reactor.callLater(START_WITHIN, self._not_started)
        self._slot.start()
        self._rest()
        return started

    def _not_started(self) -> None:
        reason = self._trouble or self._slot.reason or "no answer"
        starting = self._starting
        self._close()
        if starting is not None:
            starting.errback(StartupError(f"cannot listen to the database at {self._label}: {reason}"))

    def stopService(self) -> Deferred[None]:
        """Close the connection and begin no further run.

        Returns:
            A Deferred that fires with None when a run under way has ended; after 2 s it is cancelled.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if not self.running:
            return
        starting, running = self._starting, self._running
        self._quieten()
        if starting is not None:
            starting.errback(StartupError("the listener was stopped before it had started"))
        if running is not None:
            resting = self._resting = Deferred()
            timer = self._reactor.callLater(STOP_WITHIN, self._give_up)
            await resting
            if timer.active():
                timer.cancel()

    def _close(self) -> None:
        self._quieten()
        self._give_up()

    def _quieten(self) -> None:
        self.running = 0
        self._end_start()
        self._listening = False
        if self._poll is not None and self._poll.active():
            self._poll.cancel()
        self._slot.stop()

    def _give_up(self) -> None:
        if self._running is not None:
            self._running.cancel()
        self._tell_resting()

    def _tell_resting(self) -> None:
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.callback(None)

    def _end_start(self) -> None:
        self._starting = None
        if self._start_timer is not None and self._start_timer.active():
            self._start_timer.cancel()
        self._start_timer = None

    def _changed(self, slot: Slot) -> None:
        if slot.up and not self._listening:  # not after each check, only after each LISTEN
            self._listening = True
            if self._lost_at is not None:
                seconds = round(self._reactor.seconds() - self._lost_at, 1)
                self._log.info("LISTEN {channel} is back after {s} s", channel=self._channel, s=seconds)
            self._lost_at = None
            self._connected()
            self._look()
        elif not slot.up:
            if self._listening:
                self._lost_at = self._reactor.seconds()
                self._log.warn("LISTEN {channel} is lost: {why}", channel=self._channel, why=slot.reason)
            self._listening = False

    def _notified(self) -> None:
        if faultpoints.active and faultpoints.active.strikes("listen.woken"):
            return
        self._look()

    def _look(self) -> None:
        if not self.running:
            return
        if self._run is not _Run.RESTING:
            self._run = _Run.RUNNING_STALE
            return
        if self._poll is not None and self._poll.active():
            self._poll.cancel()
        self._run = _Run.RUNNING
        self._running = Deferred.fromCoroutine(self._wake_once())
        self._running.addCallbacks(self._succeeded, self._failed, callbackArgs=(self._listening,))
        self._running.addBoth(self._finished)

    async def _wake_once(self) -> None:
        await self._wake()

    def _succeeded(self, _result: None, listened: bool) -> None:
        self._logged.clear()
        self._trouble = ""
        starting = self._starting
        if starting is not None and listened:
            self._end_start()
            starting.callback(None)

    def _failed(self, failure: Failure) -> None:
        self._trouble = first_line(failure.value)
        kind = type(failure.value)
        if not self.running or kind in self._logged:
            return
        self._logged.add(kind)
        if issubclass(kind, StorageError):  # the database is down, which is no fault of the program
            self._log.warn("What {channel} wakes failed: {why}", channel=self._channel, why=self._trouble)
        else:
            self._log.failure("What {channel} wakes failed", failure=failure, channel=self._channel)

    def _finished(self, _result: None) -> None:
        stale = self._run is _Run.RUNNING_STALE
        self._run = _Run.RESTING
        self._running = None
        self._tell_resting()
        if self.running:
            self._rest(0.0 if stale else self._poll_interval)

    def _rest(self, seconds: float | None = None) -> None:
        after = self._poll_interval if seconds is None else seconds
        self._poll = self._reactor.callLater(after, self._look)
