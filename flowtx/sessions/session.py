"""A Session: what the server keeps of one signed-in user, over all their connections."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from uuid import uuid4

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from flowtx.channels.socket import Socket
from flowtx.errors import Refused
from flowtx.interfaces import ISessionObserver, IUserDirectory, Principal, User
from flowtx.oneshot import OneShot
from flowtx.protocol.close import DRAIN, SESSION_STOPPED, Close


class State(Enum):
    STARTING = "starting"
    """Its user is being looked up."""
    READY = "ready"
    DRAINING = "draining"
    """It ends: no connection is let in, its own are being closed."""
    STOPPED = "stopped"


class Session(Service):
    """One per user; made and kept by `flowtx.sessions.service.SessionService`.

    Attributes:
        user_id: the user's id; also the service's name.
        session_id: names this Session, among all that the user has had.
        user: the user, once ready.
        state: where in its life it is.
        sockets: the user's connections that are open.
        started_at: seconds of the clock.
    """

    _log = Logger()

    def __init__(
        self,
        principal: Principal,
        *,
        directory: IUserDirectory,
        observers: Sequence[ISessionObserver],
        clock: IReactorTime,
    ) -> None:
        self.user_id = principal.user_id
        self.setName(principal.user_id)
        self.session_id = uuid4().hex
        self.user: User | None = None
        self.state = State.STARTING
        self.sockets: set[Socket] = set()
        self._claims = 0
        self._unclaimed: Deferred[None] | None = None
        self.started_at = clock.seconds()
        self._principal = principal
        self._directory = directory
        self._observers = observers
        self._ready = OneShot()
        self._stopped = OneShot()

    def startService(self) -> None:
        """Begin to look the user up; `when_ready` tells how that ended."""
        super().startService()
        self._log.info("Starting session for user: {user_id}", user_id=self.user_id)
        Deferred.fromCoroutine(self._initialize()).addBoth(self._ready.fire)

    async def _initialize(self) -> None:
        users = await self._directory.load([self._principal])
        user = users.get(self.user_id)
        if user is None:
            raise Refused("unknown_user")
        self.user = user
        for observer in self._observers:
            await observer.session_ready(self)
        if self.state is State.STARTING:
            self.state = State.READY
        self._log.info(
            "Session initialized for user: {name} ({email})",
            name=user.name,
            email=user.email,
            user_id=self.user_id,
            session_id=self.session_id,
        )

    def when_ready(self) -> Deferred[None]:
        """Wait for the user to be looked up.

        Returns:
            A Deferred that fires with None, or fails with `Refused` for an unknown user and with
            `StorageError` where the directory cannot be asked. Each call gives a new one.
        """
        return self._ready.when_fired()

    def claim(self) -> None:
        """Keep the Session alive for one connection, from its handshake on."""
        self._claims += 1

    def release(self) -> None:
        """Undo one `claim`; the last one ends the Session."""
        self._claims -= 1
        if self._claims == 0:
            if self._unclaimed is not None:
                self._unclaimed.callback(None)
            else:
                self.end("no connections")

    def end(self, reason: str, close: Close = SESSION_STOPPED) -> Deferred[None]:
        """End the Session: close its connections, wait for them to go, tear down.

        Args:
            reason: for the log, e.g. ``no connections``.
            close: what the connections are told.

        Returns:
            A Deferred that fires with None when the teardown has finished; it does not fail. Each
            call gives a new one, of the same end.
        """
        if self.state in (State.STARTING, State.READY):
            self.state = State.DRAINING
            Deferred.fromCoroutine(self._tear_down(reason, close)).addBoth(self._stopped.fire)
        return self.when_stopped()

    def when_stopped(self) -> Deferred[None]:
        """Wait for the teardown to have finished; see `end`."""
        return self._stopped.when_fired()

    def stopService(self) -> Deferred[None]:
        """End because the server does; see `end`."""
        return self.end("server stopping", DRAIN)

    async def _tear_down(self, reason: str, close: Close) -> None:
        if self._claims:
            self._unclaimed = Deferred()
            for socket in tuple(self.sockets):
                socket.close(close)
            await self._unclaimed
        try:
            await self.when_ready()
        except Exception as failure:
            # Those who waited for this Session were told the same by `when_ready`.
            self._log.info(
                "Session not started for user {user_id}: {reason}", user_id=self.user_id, reason=str(failure)
            )
        else:
            self._log.info(
                "Session terminating for user {user_id}: {reason}",
                user_id=self.user_id,
                reason=reason,
                session_id=self.session_id,
            )
            await self._tell_closing()
        self.running = False
        self.state = State.STOPPED

    async def _tell_closing(self) -> None:
        for observer in reversed(self._observers):
            try:
                await observer.session_closing(self)
            except Exception:
                self._log.failure("Session of {user_id} did not end cleanly", user_id=self.user_id)
