"""Who is online: the users of this node, connection by connection, on the topic ``users:online``.

The rule: a user is present from the first join of ``user:<id>`` or ``users:online`` on one of their
connections until their Session ends.

- Each connection that has joined one of the two is one meta of its user, with its device and status. To
  leave the topics again changes nothing, nor does the crash of a channel, or of the Session: the user is
  as connected as before.
- A connection that ends takes its meta along, at once, as long as others of its user are there.
- The meta of the last one stays for as long as the Session does, which is the reconnection window. The
  first connection that comes back takes it over: clients are told nothing, or of an update where the
  device or the status is another one.
- With the Session the user leaves, whatever ended it: the window, the idle timeout, somebody who stopped
  it. That is the only way to leave, and the Session ends once.
- When the server stops, nobody leaves: its clients are sent away one batch after the other, and those who
  are still there are not shown that the others go. Its users have the window to come back, to this node
  after its restart or to another one; see `flowtx.presence.store`.
- A user is online where any of their metas is, otherwise away. A connection begins as online.

A user whose id is poison to JavaScript (``constructor``), or who comes when presence is full, is online
like all others but not shown on the topic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Raw
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from flowtx.errors import InvalidPayload, PresenceFull
from flowtx.interfaces import ISessionObserver
from flowtx.presence.presence import Presence
from flowtx.presence.recorder import PresenceRecorder
from flowtx.presence.store import Seen, Status

if TYPE_CHECKING:
    from flowtx.channels.socket import Socket
    from flowtx.protocol.close import Close
    from flowtx.sessions.session import Session

TOPIC: Final = "users:online"
SAY_EVERY: Final = 60.0


class _Place:
    """One meta of a user, which a connection may take over from another one."""

    __slots__ = ("device", "online_at", "shown", "status")

    def __init__(self, online_at: int) -> None:
        self.device: str | None = None
        self.online_at = online_at
        self.status: Status = "online"
        self.shown = False

    @property
    def meta(self) -> dict[str, Any]:
        return {"online_at": self.online_at, "device": self.device, "status": self.status}


class _User:
    """A user who is present.

    Attributes:
        places: of the connections that are open.
        kept: the place of the last connection, where none is open.
        left_at: when that one ended, seconds of the clock.
        status: what was told last.
    """

    __slots__ = ("kept", "left_at", "places", "status")

    def __init__(self) -> None:
        self.places: dict[Socket, _Place] = {}
        self.kept: _Place | None = None
        self.left_at = 0.0
        self.status: Status = "offline"


@implementer(ISessionObserver)
class OnlineUsers:
    """See the module.

    Args:
        presence: shows them to clients.
        recorder: keeps what becomes of them.
        clock: the time, monotonic.
        now: the wall clock.
    """

    _log = Logger()

    def __init__(
        self,
        presence: Presence,
        recorder: PresenceRecorder,
        *,
        clock: IReactorTime,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._presence = presence
        self._recorder = recorder
        self._clock = clock
        self._now = now
        self._users: dict[str, _User] = {}
        self._said_at: float | None = None

    def __len__(self) -> int:
        return len(self._users)

    # From the channels

    def state(self) -> Raw:
        """The payload of ``presence_state``; see `Presence.state`."""
        return self._presence.state(TOPIC)

    def joined(self, socket: Socket) -> None:
        """Note that a connection has joined a topic of its user's, and what its device is called.

        Nothing may be awaited between this and the end of a ``join`` that calls it. Does not raise.
        """
        if socket.closed:
            return
        user_id = socket.principal.user_id
        user = self._users.get(user_id)
        if user is None:
            user = self._users[user_id] = _User()
        place = user.places.get(socket)
        if place is None:
            place, user.kept = user.kept or _Place(int(self._now())), None
            user.places[socket] = place
            place.status = "online"
            socket.when_closing(self._closing)
        if socket.device is not None:
            # It is told with the join of user:<id>, which may come later than that of users:online.
            place.device = socket.device
        self._show(user_id, place)
        self._settle(user_id, user)

    def set_status(self, socket: Socket, status: Status) -> None:
        """Take what a client says of its user: ``online`` or ``away``; it holds for that connection."""
        user_id = socket.principal.user_id
        user = self._users.get(user_id)
        place = None if user is None else user.places.get(socket)
        if user is not None and place is not None:
            place.status = status
            self._show(user_id, place)
            self._settle(user_id, user)

    # From the connections and the Sessions

    def _closing(self, socket: Socket, _: Close | None) -> None:
        user_id = socket.principal.user_id
        user = self._users[user_id]
        place = user.places.pop(socket)
        if user.places:
            self._hide(user_id, place)
            self._settle(user_id, user)
        else:
            user.kept, user.left_at = place, self._clock.seconds()

    async def session_ready(self, session: Session) -> None:
        """Nothing is noted before a join."""

    async def session_closing(self, session: Session) -> None:
        """Have the user leave if they ever joined, unless the server ends; this neither waits nor fails."""
        if session.reason == "drain":
            return
        user = self._users.pop(session.user_id, None)
        if user is None:
            return
        if user.kept is not None:
            self._hide(session.user_id, user.kept)
        self._recorder.note(session.user_id, "offline", user.left_at)

    def _settle(self, user_id: str, user: _User) -> None:
        """Record what the metas of a user come to, where that is news."""
        statuses = {place.status for place in user.places.values()}
        status: Status = "online" if "online" in statuses else "away"
        if status != user.status:
            user.status = status
            self._recorder.note(user_id, status)

    def _show(self, user_id: str, place: _Place) -> None:
        try:
            if place.shown:
                self._presence.update(TOPIC, user_id, place.meta, owner=place)
            else:
                self._presence.track(TOPIC, user_id, place.meta, owner=place)
                place.shown = True
        except (PresenceFull, InvalidPayload) as problem:
            now = self._clock.seconds()
            if self._said_at is None or now - self._said_at >= SAY_EVERY:
                self._said_at = now
                self._log.warn("A user is not shown as online: {problem}", problem=str(problem)[:200])

    def _hide(self, user_id: str, place: _Place) -> None:
        if place.shown:
            self._presence.untrack(TOPIC, user_id, owner=place)

    # For everybody else

    async def statuses(self, user_ids: Sequence[str]) -> Mapping[str, Seen]:
        """Tell who of many users is online, away or offline, and when they were last seen.

        Those who are not here are asked for in one query; there is none where all are here.

        Returns:
            What is known, by user id; a user who was never online is absent.

        Raises:
            StorageError: the database cannot be asked.
        """
        known = self._known(user_ids)
        others = [user_id for user_id in dict.fromkeys(user_ids) if user_id not in known]
        stored = await self._recorder.seen(others)
        # Who came while the store was asked is here, though it says that nobody but us knows of them.
        return {**stored, **known, **self._known(others)}

    def _known(self, user_ids: Sequence[str]) -> dict[str, Seen]:
        """What is known without the store, by user id."""
        known: dict[str, Seen] = {}
        for user_id in user_ids:
            user = self._users.get(user_id)
            gone_at = self._recorder.gone_at(user_id)
            if user is not None:
                since = self._clock.seconds() if user.kept is None else user.left_at
                known[user_id] = Seen(user.status, self._wall(since))
            elif gone_at is not None:
                known[user_id] = Seen("offline", self._wall(gone_at))
        return known

    def _wall(self, seconds: float) -> float:
        return self._now() - self._clock.seconds() + seconds
