"""All that an operator is shown of one user, in parts that change at different times."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime

from flowtx.channels.socket import Socket
from flowtx.errors import StorageError
from flowtx.inbox import Notification
from flowtx.notifications.service import NotificationService
from flowtx.notifications.user_channel import UserChannel
from flowtx.presence.online import OnlineUsers
from flowtx.sessions.inspection import describe
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Session, user_topic

INBOX_ROWS: Final = 10
MAX_PREVIEW: Final = 400
"""Characters of a payload that are shown."""
READ_EVERY: Final = 5.0
"""Seconds after which the database is asked again, though nothing is known to have changed."""


class Recorder(Protocol):
    """Knows what last happened to a user; see `flowtx.recorder.FlightRecorder`."""

    def events(self, user_id: str) -> Sequence[Mapping[str, Any]]: ...

    def ends(self, user_id: str) -> Sequence[Mapping[str, Any]]: ...


class Sources(NamedTuple):
    """Who knows something of a user.

    Attributes:
        sessions: the Sessions of this node.
        notifications: the inboxes.
        online: who is online.
        recorder: the flight recorder.
        clock: the time that Sessions go by.
        wall: seconds since the epoch.
    """

    sessions: SessionService
    notifications: NotificationService
    online: OnlineUsers
    recorder: Recorder
    clock: IReactorTime
    wall: Callable[[], float] = time.time

    @property
    def ahead(self) -> float:
        """By how much the wall clock is ahead of the Sessions', in seconds."""
        return self.wall() - self.clock.seconds()


class Portrait:
    """One user, for one operator who looks at them.

    Args:
        user_id: the user.
        sources: who knows something.
    """

    def __init__(self, user_id: str, sources: Sources) -> None:
        self._user_id = user_id
        self._sources = sources
        # Compared once: times would flicker by what is lost in rounding, and look as if they had changed.
        self._ahead = sources.ahead
        self._shown: dict[str, Any] = {}
        self._cursors: object = None
        self._read_at: float | None = None

    async def changes(self) -> dict[str, Any]:
        """Tell the parts that are not as they were at the last call.

        Returns:
            ``session``: None or what the HTTP API tells of a Session, with the name of the user, and with
            each connection's place in the inbox. ``recorder``: ``events`` and ``ends``. ``inbox``:
            ``unread``, ``entries``, ``presence``; or ``unavailable`` where the database cannot be asked.
        """
        session = self._sources.sessions.get_session(self._user_id)
        parts: dict[str, Any] = {
            "session": None if session is None else self._session(session),
            "recorder": {
                "events": self._sources.recorder.events(self._user_id),
                "ends": self._sources.recorder.ends(self._user_id),
            },
        }
        if self._is_to_be_read(session):
            parts["inbox"] = await self._inbox()
        changed = {name: part for name, part in parts.items() if self._shown.get(name, self) != part}
        self._shown.update(changed)
        return changed

    def _session(self, session: Session) -> dict[str, Any]:
        sources = self._sources
        types = sources.notifications.subscriptions(self._user_id)
        info = describe(session, 0.0, self._ahead, types)
        shown = msgspec.structs.asdict(info)
        shown["name"] = None if session.user is None else session.user.name
        shown["email"] = None if session.user is None else session.user.email
        shown["restarts"] = session.restarts
        shown["messages_received"] = session.messages_received
        shown["connections"] = [
            {**msgspec.structs.asdict(connection), **self._place(socket)}
            for connection, socket in zip(info.connections, session.sockets, strict=True)
        ]
        return shown

    def _place(self, socket: Socket) -> dict[str, Any]:
        """Where a connection is in the inbox, and whether anything is in its way."""
        channel = socket.channel(user_topic(self._user_id))
        reader = channel.reader if isinstance(channel, UserChannel) else None
        return {
            "cursor": None if reader is None else reader.cursor,
            "in_flight": 0 if reader is None else reader.in_flight,
            "reading": socket.transport.reading,
            "messages_received": socket.messages_received,
        }

    def _is_to_be_read(self, session: Session | None) -> bool:
        """Whether the database is to be asked: it is time, or somebody was given something."""
        now = self._sources.clock.seconds()
        sockets = () if session is None else tuple(session.sockets)
        cursors = [(socket.id, self._place(socket)["cursor"]) for socket in sockets]
        if self._read_at is not None and now - self._read_at < READ_EVERY and cursors == self._cursors:
            return False
        self._cursors, self._read_at = cursors, now
        return True

    async def _inbox(self) -> dict[str, Any]:
        sources, user_id = self._sources, self._user_id
        try:
            listed = await sources.notifications.list_notifications(user_id, limit=INBOX_ROWS)
            seen = (await sources.online.statuses([user_id])).get(user_id)
        except StorageError:
            return {"unavailable": True}
        return {
            "unread": listed.unread,
            "entries": [_entry(entry) for entry in listed.notifications],
            "presence": "offline" if seen is None else seen.status,
            "last_seen": None if seen is None or seen.status != "offline" else round(seen.last_seen),
        }


def _entry(entry: Notification) -> dict[str, Any]:
    payload = bytes(entry.payload).decode()
    return {
        "seq": entry.seq,
        "type": entry.type,
        "inserted_at": entry.inserted_at,
        "read_at": entry.read_at,
        "payload": payload if len(payload) <= MAX_PREVIEW else f"{payload[:MAX_PREVIEW]}…",
    }
