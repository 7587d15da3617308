"""A node: one life of a whole server, put together as `flowtx.application` does it.

All of it is the real thing but for the network, the database and the clock. There is no admin endpoint:
a backend calls `Node.push`, which passes the same gate that its requests pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, MutableSet, Sequence
from random import Random
from typing import Any, Final, TypeVar, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.web.http import Request
from zope.interface import implementer

from flowtx.auth import TokenVerifier
from flowtx.groups.service import Groups
from flowtx.inbox import Pushed
from flowtx.interfaces import ISessionObserver
from flowtx.keys import StaticKey, secret_key
from flowtx.metrics import Metrics
from flowtx.notifications.service import NotificationService
from flowtx.notifications.upkeep import InboxUpkeep
from flowtx.presence.online import OnlineUsers
from flowtx.presence.presence import Presence
from flowtx.presence.recorder import PresenceRecorder
from flowtx.presence.tracker import Tracker
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.recorder import FlightRecorder
from flowtx.service import OrderedMultiService
from flowtx.sessions.directory import BatchedRevocations, BatchedUserDirectory
from flowtx.sessions.drainer import Drainer
from flowtx.sessions.history import History
from flowtx.sessions.notes import SessionNotes
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Limits, Session
from flowtx.settings import Settings
from flowtx.storage.groups import MemoryGroupStore
from flowtx.storage.listener import Listener
from flowtx.storage.notifications import CHANNEL
from flowtx.topics.routes import own_router
from flowtx.transports.admission import Admission
from flowtx.transports.factory import FlowFactory
from flowtx.transports.websocket import FlowProtocol
from flowtx.web.gate import Gate
from tests.simulation.clock import NodeClock, Time
from tests.simulation.database import Database, ListeningLink
from tests.simulation.network import Network

SECRET: Final = b"the secret of a simulation, which nobody has to keep"
ALGORITHM: Final = "HS256"
KEYS: Final = StaticKey(secret_key(SECRET, (ALGORITHM,)))

T = TypeVar("T")


class _Ordered(MutableSet[T]):
    """A set that is gone through in the order in which its members came."""

    def __init__(self) -> None:
        self._members: dict[T, None] = {}

    def __contains__(self, member: object) -> bool:
        return member in self._members

    def __iter__(self) -> Iterator[T]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: T) -> None:
        self._members[member] = None

    def discard(self, member: T) -> None:
        self._members.pop(member, None)


class Door(Service):
    """Listens on the network while it runs."""

    def __init__(self, network: Network, factory: Any, clock: NodeClock) -> None:
        self._listening = network, factory, clock

    def startService(self) -> None:
        super().startService()
        network, factory, clock = self._listening
        network.listen(factory, clock)

    def stopService(self) -> None:
        super().stopService()
        network, _, clock = self._listening
        network.close(clock)


@implementer(ISessionObserver)
class Witness:
    """Sees each user have one Session at a time; takes a Session for live until its end has begun.

    Attributes:
        faults: what it saw.
        sessions: those that it saw, as far as they still exist.
        ended: the ids of those that have ended.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self.ended: list[str] = []
        self._live: dict[str, str] = {}

    async def session_ready(self, session: Session) -> None:
        live = self._live.setdefault(session.user_id, session.session_id)
        if live != session.session_id:
            self.faults.append(f"{session.user_id} has the Sessions {live} and {session.session_id} at once")
        self.sessions.add(session)

    async def session_closing(self, session: Session) -> None:
        if self._live.get(session.user_id) == session.session_id:
            del self._live[session.user_id]
        self.ended.append(session.session_id)


class _Call:
    """A request of a backend, as the gate sees it."""

    method = b"POST"

    def __init__(self) -> None:
        self.over: Deferred[None] = Deferred()

    def notifyFinish(self) -> Deferred[None]:
        return self.over

    def getHeader(self, name: bytes) -> None:
        return None


class Node:
    """See the module.

    Attributes:
        number: which life it is.
        clock: its own.
        state: ``starting``, ``up``, ``stopping`` or ``gone``.
        protocols: all connections that it has made, as far as they still exist.
    """

    def __init__(
        self,
        number: int,
        settings: Settings,
        *,
        time: Time,
        chance: Random,
        late: Callable[[], float],
        network: Network,
        database: Database,
        wall: Callable[[], float],
    ) -> None:
        self.number = number
        self.state = "starting"
        self.clock = NodeClock(time, late)
        self.settings = settings
        self.metrics = Metrics()
        self.gate = Gate()
        self.protocols: weakref.WeakSet[FlowProtocol] = weakref.WeakSet()
        self.witness = Witness()
        self.pubsub = MemoryPubSub()
        self.parts = OrderedMultiService()
        self._network = network
        self._database = database
        self._assemble(chance, wall)

    def _assemble(self, chance: Random, wall: Callable[[], float]) -> None:
        clock, settings, metrics, pubsub = self.clock, self.settings, self.metrics, self.pubsub
        database = self._database

        def serve(store: T) -> T:
            return database.serve(store, clock)

        def link(_: Any, lost: Callable[[str], None], notified: Callable[[], None]) -> ListeningLink:
            return ListeningLink(database, clock, lost, notified)

        recorder = FlightRecorder(wall)
        inboxes = serve(database.inboxes)
        self.notifications = NotificationService(inboxes, pubsub, clock=clock, metrics=metrics, wall=wall)
        upkeep = InboxUpkeep(
            inboxes,
            clock=clock,
            metrics=metrics,
            undelivered_after=settings.undelivered_after,
            retention_days=settings.retention_days,
            retention_count=settings.retention_count,
        )
        self.listener = Listener(
            "postgresql:///simulation",
            CHANNEL,
            self.notifications.wake,
            reactor=clock,
            connected=self.notifications.delivery.lost_track,
            random=chance.random,
            link=link,
        )
        self.history = History(
            serve(database.history),
            node="simulation",
            clock=clock,
            metrics=metrics,
            now=wall,
            random=chance.random,
        )
        self.tracker = Tracker(pubsub, clock=clock)
        self.presence = Presence(self.tracker)
        self.presence_recorder = PresenceRecorder(
            serve(database.presence), node="simulation", clock=clock, window=settings.reconnect_window
        )
        self.online = OnlineUsers(self.presence, self.presence_recorder, clock=clock, now=wall)
        self.sessions = SessionService(
            BatchedUserDirectory(serve(database.users), clock=clock),
            [self.history, self.online, SessionNotes(recorder), self.witness],
            pubsub=pubsub,
            clock=clock,
            limits=Limits(settings.reconnect_window, settings.idle_timeout, settings.max_devices),
            max_sessions=settings.max_sessions,
            refuse_devices=settings.device_policy == "refuse",
            revocations=BatchedRevocations(serve(database.revocations), clock=clock),
            metrics=metrics,
        )
        admission = Admission(settings.handshake_rate, settings.handshake_concurrency)
        self.factory = FlowFactory(
            settings,
            verifier=TokenVerifier(settings, KEYS, now=wall),
            sessions=self.sessions,
            router=own_router(
                self.sessions,
                self.notifications,
                self.online,
                Groups(MemoryGroupStore(), clock=clock),
                lambda: admission.jitter_ms(len(self.sessions.namedServices)),
            ),
            pubsub=pubsub,
            origins=None,
            admission=admission,
            metrics=metrics,
            reactor=clock,
            recorder=recorder,
        )
        # The order of a set of objects is that of their addresses.
        self.factory.connections = cast("set[FlowProtocol]", _Ordered[FlowProtocol]())
        door = Door(self._network, self, clock)
        drainer = Drainer(
            self.sessions,
            entrances=[self.factory],
            doors=[door],
            back_doors=[],
            requests=self.gate,
            clock=clock,
        )
        for part in (
            self.notifications,
            upkeep,
            self.listener,
            self.history,
            self.presence,
            self.presence_recorder,
            self.sessions,
            door,
            drainer,
        ):
            part.setServiceParent(self.parts)

    def buildProtocol(self, address: Any) -> FlowProtocol:
        """Make a connection, and remember that it was made."""
        protocol: FlowProtocol = self.factory.buildProtocol(address)
        self.protocols.add(protocol)
        return protocol

    # Its life

    def start(self) -> Deferred[None]:
        """Start all of it; fails as flowtx does where it cannot."""
        return self.parts.startService().addCallback(self._up)

    def _up(self, _: None) -> None:
        self.state = "up"

    def stop(self) -> Deferred[None]:
        """Stop all of it, as upon SIGTERM."""
        self.state = "stopping"
        return self.parts.stopService().addCallback(self._gone)

    def _gone(self, _: None) -> None:
        self.state = "gone"

    def kill(self, *, with_host: bool) -> None:
        """End it as by SIGKILL, or with the machine that it is on."""
        self.state = "gone"
        self.clock.die()
        self._network.crash(self.clock, silently=with_host)
        self._database.forget_node(self.clock)

    # For backends

    def push(self, users: Sequence[str], marker: str, key: str) -> Deferred[Sequence[Pushed]] | None:
        """Push a notification as the HTTP API does; None where the request is refused."""
        call = _Call()
        if self.state != "up" or not self.gate.admits(cast("Request", call)):
            return None
        pushing = Deferred.fromCoroutine(
            self.notifications.push_notifications(users, "simulated", {"marker": marker}, key)
        )

        def over(result: Any) -> Any:
            call.over.callback(None)
            return result

        return pushing.addBoth(over)
