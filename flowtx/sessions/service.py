"""The Sessions of this node: the registry of who is here, and their supervisor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from twisted.application.service import IService, MultiService
from twisted.internet.interfaces import IReactorTime

from flowtx.channels.socket import Socket
from flowtx.errors import Refused
from flowtx.interfaces import ISessionObserver, IUserDirectory, Principal
from flowtx.protocol.close import DRAIN
from flowtx.sessions.session import Session, State


class Claim:
    """What a connection holds of its user's Session, from its handshake to its end.

    Attributes:
        session: the Session.
    """

    __slots__ = ("_released", "_socket", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self._socket: Socket | None = None
        self._released = False

    def attach(self, socket: Socket) -> None:
        """Tell that the connection is open; it is closed at once where the Session has begun to end."""
        self._socket = socket
        self.session.sockets.add(socket)
        if self.session.state is not State.READY:
            socket.close(DRAIN)

    def release(self) -> None:
        """Tell that the connection has ended, its channels too; a second call has no effect."""
        if self._released:
            return
        self._released = True
        if self._socket is not None:
            self.session.sockets.discard(self._socket)
        self.session.release()


class SessionService(MultiService):
    """The parent of all Sessions; ``namedServices`` is the registry, by user id.

    Args:
        directory: knows the users.
        observers: are told of each Session, in this order; of its end in reverse.
        clock: for times.
    """

    namedServices: dict[str, IService]

    def __init__(
        self, directory: IUserDirectory, observers: Sequence[ISessionObserver], *, clock: IReactorTime
    ) -> None:
        super().__init__()
        # A live view: Twisted's list would make each removal cost as much as there are Sessions.
        self.services = self.namedServices.values()  # type: ignore[assignment]
        self._directory = directory
        self._observers = tuple(observers)
        self._clock = clock

    def addService(self, service: IService) -> None:
        name = service.name
        if name is None or name in self.namedServices:
            raise RuntimeError(f"a Session must have a name of its own, not {name!r}")
        self.namedServices[name] = service
        if self.running:
            service.privilegedStartService()
            service.startService()

    def removeService(self, service: IService) -> None:
        del self.namedServices[cast("str", service.name)]

    async def claim(self, principal: Principal) -> Claim:
        """Find the Session of a user, or start it, and keep it alive for one connection.

        A Session that is ending is waited for; then a new one is started.

        Raises:
            Refused: the user is unknown, or the server is stopping.
            StorageError: the user directory cannot be asked.
        """
        while True:
            session = self.get_session(principal.user_id) or self._start(principal)
            if session.state is State.DRAINING:
                await session.when_stopped()
                continue
            session.claim()
            try:
                await session.when_ready()
            except BaseException:
                session.release()
                raise
            if session.state is State.READY:
                return Claim(session)
            session.release()

    def _start(self, principal: Principal) -> Session:
        if not self.running:
            raise Refused("unavailable", 503, {"Retry-After": "1"})
        session = Session(principal, directory=self._directory, observers=self._observers, clock=self._clock)
        session.setServiceParent(self)
        session.when_stopped().addCallback(lambda _: session.disownServiceParent())
        return session

    def get_session(self, user_id: str) -> Session | None:
        """Find the Session of a user; one that is starting or ending counts."""
        return cast("Session | None", self.namedServices.get(user_id))

    def session_exists(self, user_id: str) -> bool:
        """Whether a user has a Session."""
        return user_id in self.namedServices

    async def stop_session(self, user_id: str) -> bool:
        """End the Session of a user; their connections are closed with 1000.

        Returns:
            Once its teardown has finished, True; False at once where there is none.
        """
        session = self.get_session(user_id)
        if session is None:
            return False
        await session.end("session stopped")
        return True

    def which_children(self) -> list[tuple[str, Session, str, list[type[Session]]]]:
        """List the Sessions as OTP's ``which_children`` does: id, child, type, modules."""
        return [
            (user_id, cast("Session", child), "worker", [Session])
            for user_id, child in self.namedServices.items()
        ]
