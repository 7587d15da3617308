"""The Sessions of this node: the registry of who is here, and their supervisor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from typing import Final, cast

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from flowtx.channels.socket import Socket
from flowtx.errors import Refused
from flowtx.interfaces import (
    IPubSub,
    IRevocations,
    ISessionObserver,
    IUserDirectory,
    Principal,
)
from flowtx.metrics import Metrics
from flowtx.protocol.close import CONNECTION_CLOSED, TOKEN_REVOKED
from flowtx.sessions.machine import ENDING, State
from flowtx.sessions.session import Limits, Session, Surroundings, user_topic

GIVEN_UP_FOR: Final = 60.0
"""Seconds for which a user whose Session was given up is refused."""
MAX_TRIES: Final = 3
"""Sessions of one user that may end under a handshake before it is refused."""
MAX_GIVEN_UP: Final = 100
"""Sessions given up within `GIVEN_UP_FOR` from which on the node calls itself unhealthy."""


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
        self.session.attach(socket)

    def release(self) -> None:
        """Tell that the connection has ended, its channels too; a second call has no effect."""
        if not self._released:
            self._released = True
            self.session.release(self._socket)


class _Arrival:
    """A token that is about to be let in; see `SessionService.check_revoked`."""

    __slots__ = ("principal", "revoked")

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.revoked = False


class SessionService(MultiService):
    """The parent of all Sessions; ``namedServices`` is the registry, by user id.

    Args:
        directory: knows the users.
        observers: are told of each Session, in this order; of its end in reverse.
        pubsub: carries broadcasts to users, and ``disconnect``.
        clock: the time, monotonic.
        limits: bound each Session.
        max_sessions: how many Sessions this node takes.
        refuse_devices: whether a user's connection past ``limits.max_devices`` is refused; otherwise
            it is let in and the user's oldest one is closed.
        revocations: knows the tokens that are revoked; None where nobody does.
        metrics: counts.
    """

    namedServices: dict[str, IService]

    def __init__(
        self,
        directory: IUserDirectory,
        observers: Sequence[ISessionObserver] = (),
        *,
        pubsub: IPubSub,
        clock: IReactorTime,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        max_sessions: int = 50_000,
        refuse_devices: bool = False,
        revocations: IRevocations | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__()
        # A live view: Twisted's list would make each removal cost as much as there are Sessions.
        self.services = self.namedServices.values()  # type: ignore[assignment]
        self._metrics = metrics or Metrics()
        self._around = Surroundings(
            directory=directory,
            observers=tuple(observers),
            pubsub=pubsub,
            clock=clock,
            limits=limits,
            restarted=self._metrics.session_restarts.inc,
            given_up=self._give_up,
            ended=Session.disownServiceParent,
        )
        self._max_sessions = max_sessions
        self._refuse_devices = refuse_devices
        self._revocations = revocations
        self._arrivals: set[_Arrival] = set()
        self._given_up: dict[str, float] = {}
        self._give_ups: deque[float] = deque(maxlen=MAX_GIVEN_UP)

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

    def limit_to(self, *, max_sessions: int, max_devices: int, refuse_devices: bool) -> None:
        """Change these limits from now on; whoever is here stays."""
        self._max_sessions = max_sessions
        self._refuse_devices = refuse_devices
        self._around.limits = self._around.limits._replace(max_devices=max_devices)

    # For connections

    @property
    def full(self) -> bool:
        """Whether there are as many Sessions as this node takes."""
        return len(self.namedServices) >= self._max_sessions

    @property
    def healthy(self) -> bool:
        """Whether fewer than a hundred Sessions were given up in the last minute."""
        since = self._around.clock.seconds() - GIVEN_UP_FOR
        return len(self._give_ups) < MAX_GIVEN_UP or self._give_ups[0] < since

    async def claim(self, principal: Principal) -> Claim:
        """Find the Session of a user, or start it, and keep it alive for one connection.

        A Session that is ending is waited for; then a new one is started.

        Raises:
            Refused: the user is unknown or has too many connections, the token is revoked, or the
                server takes no more.
            StorageError: the database cannot be asked.
        """
        arrival = _Arrival(principal)
        self._arrivals.add(arrival)
        try:
            await self._check(principal)
            claim = Claim(await self._ready_session(principal))
        finally:
            self._arrivals.discard(arrival)
        if arrival.revoked:
            claim.release()
            raise Refused("revoked_token")
        return claim

    async def check_revoked(self, principal: Principal) -> None:
        """Refuse a token that is revoked, or is being revoked right now.

        Raises:
            Refused: it is.
            StorageError: the database cannot be asked.
        """
        arrival = _Arrival(principal)
        self._arrivals.add(arrival)
        try:
            await self._check(principal)
        finally:
            self._arrivals.discard(arrival)
        if arrival.revoked:
            raise Refused("revoked_token")

    async def _check(self, principal: Principal) -> None:
        if self._revocations is not None and principal in await self._revocations.revoked([principal]):
            raise Refused("revoked_token")

    async def _ready_session(self, principal: Principal) -> Session:
        """Claim a Session that is ready."""
        for _ in range(MAX_TRIES):
            session, ready = await self._claimed(principal)
            try:
                await ready
            except BaseException:
                session.release(None)
                raise
            if session.state is State.READY:
                return session
            # It has ended, or has crashed in the same moment.
            session.release(None)
        raise _unavailable()

    async def _claimed(self, principal: Principal) -> tuple[Session, Deferred[None]]:
        """Claim a user's Session, or a new one; with what tells when it is ready."""
        user_id = principal.user_id
        while (session := self.get_session(user_id)) is not None and session.state in ENDING:
            self._check_open(user_id)
            await session.when_stopped()
        if session is not None:
            if self._refuse_devices and session.devices >= self._around.limits.max_devices:
                raise Refused("too_many_devices")
            session.claim()
            return session, session.when_ready()
        self._check_open(user_id)
        if self.full:
            raise _unavailable()
        session = Session(principal, self._around)
        session.claim()
        # Asked before it starts: its start may be over when the next line is.
        ready = session.when_ready()
        session.setServiceParent(self)
        return session, ready

    def _check_open(self, user_id: str) -> None:
        """Refuse where no Session may be started for a user."""
        if not self.running:
            raise _unavailable()
        remaining = self._given_up.get(user_id, 0.0) - self._around.clock.seconds()
        if remaining > 0:
            raise _unavailable(ceil(remaining))

    def _give_up(self, user_id: str) -> None:
        now = self._around.clock.seconds()
        self._metrics.sessions_given_up.inc()
        self._give_ups.append(now)
        # In the order of time: those whose time is up go when a new one comes.
        given_up = self._given_up
        given_up.pop(user_id, None)
        given_up[user_id] = now + GIVEN_UP_FOR
        while given_up[first := next(iter(given_up))] <= now:
            del given_up[first]

    # For everybody else

    def get_session(self, user_id: str) -> Session | None:
        """Find the Session of a user; one that is starting, away or ending counts."""
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
        await session.end()
        return True

    def close_connection(self, user_id: str, connection_id: str) -> bool:
        """Close one connection of a user with 1000; whether there is such a one."""
        session = self.get_session(user_id)
        if session is None:
            return False
        return session.close_connections(CONNECTION_CLOSED, lambda socket: socket.id == connection_id) > 0

    def which_children(self) -> list[tuple[str, Session, str, list[type[Session]]]]:
        """List the Sessions as OTP's ``which_children`` does: id, child, type, modules."""
        return [
            (user_id, cast("Session", child), "worker", [Session])
            for user_id, child in self.namedServices.items()
        ]

    def broadcast_to_users(
        self, user_ids: Iterable[str], event: str, payload: object, *, key: str | None = None
    ) -> int:
        """Send an event to users, on the topic ``user:<id>`` of each.

        Args:
            user_ids: to whom; each gets it once.
            event, payload, key: see `flowtx.interfaces.IPubSub`.

        Returns:
            How many connections, and users who may still come back, it was for on this node.

        Raises:
            InvalidPayload, UnencodablePayload: see `flowtx.interfaces.IPubSub`.
        """
        return self._around.pubsub.broadcast_many(map(user_topic, user_ids), event, payload, key=key)

    def broadcast_to_all(self, event: str, payload: object, *, key: str | None = None) -> int:
        """Send an event to all users who are here, on the topics ``user:<id>``; see `broadcast_to_users`."""
        return self._around.pubsub.broadcast_matching(user_topic("*"), event, payload, key=key)

    def close_revoked(self, is_revoked: Callable[[Principal], bool]) -> int:
        """Close the connections whose token is good no more, and refuse those under way; how many closed."""
        self._refuse_arrivals(is_revoked)
        return sum(
            cast("Session", child).close_connections(
                TOKEN_REVOKED, lambda socket: is_revoked(socket.principal)
            )
            for child in tuple(self)
        )

    def _refuse_arrivals(self, is_revoked: Callable[[Principal], bool]) -> None:
        for arrival in self._arrivals:
            arrival.revoked |= is_revoked(arrival.principal)

    async def revoke(self, *, token_id: str | None = None, user_id: str | None = None) -> int:
        """Revoke one token, or all that a user has now, and close the connections that came with them.

        Args:
            token_id: the token's ``jti``.
            user_id: the user; tokens made later are good.

        Returns:
            How many connections were closed.

        Raises:
            RuntimeError: nobody here keeps revocations.
            StorageError: the database cannot be asked.
        """
        if self._revocations is None:
            raise RuntimeError("there is no store of revocations")
        await self._revocations.revoke(token_id=token_id, user_id=user_id)
        if user_id is None:
            return self.close_revoked(lambda principal: principal.token_id == token_id)
        self._refuse_arrivals(lambda principal: principal.user_id == user_id)
        session = self.get_session(user_id)
        return 0 if session is None else session.close_connections(TOKEN_REVOKED)


def _unavailable(seconds: int = 1) -> Refused:
    return Refused("unavailable", 503, {"Retry-After": str(seconds)})
