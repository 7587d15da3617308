"""The channel ``user:<id>``: a user's own notifications, on each of their connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from flowtx.channels.channel import Channel, Reply, UnhandledEvent, error, ok
from flowtx.channels.socket import Socket
from flowtx.errors import InvalidPayload, Refused, Unavailable
from flowtx.inbox import Notification, ReadMarks, Undeliverable
from flowtx.notifications.reader import Reader
from flowtx.notifications.service import MAX_PAGE, MAX_PATTERNS, NotificationService
from flowtx.protocol.places import read_as
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import Session, user_topic

Seq = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Uuid = Annotated[str, Meta(pattern="^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\\Z")]


class Attendance(Protocol):
    """Keeps who is online; see `flowtx.presence.online.OnlineUsers`."""

    def joined(self, socket: Socket) -> None: ...

    def set_status(self, socket: Socket, status: Literal["online", "away"]) -> None: ...


class ActivityPayload(msgspec.Struct):
    """What a client may say of its user, whose idle timeout it resets by any message."""

    status: Literal["online", "away"] | None = None


class JoinPayload(msgspec.Struct):
    """What a client may give with its join."""

    last_seq: Seq | None = None
    device: Annotated[str, Meta(max_length=128)] | None = None


class MarkReadPayload(msgspec.Struct):
    """Which notifications a client has read: exactly one of the three."""

    ids: Annotated[list[Uuid], Meta(max_length=1_000)] | None = None
    up_to_seq: Seq | None = None
    all: Literal[True] | None = None


class ListPayload(msgspec.Struct):
    """Which page of the notifications a client asks for."""

    before_seq: Seq | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = MAX_PAGE
    unread: bool = False


class TypesPayload(msgspec.Struct):
    """Patterns of types that a user wants, or does not want any more."""

    types: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=MAX_PATTERNS)]


class AckPayload(msgspec.Struct):
    """Up to where a client has everything."""

    seq: Seq


class UserChannel(Channel):
    """See the module and the table of events in the README."""

    def __init__(
        self,
        sessions: SessionService,
        notifications: NotificationService,
        jitter_ms: Callable[[], int] = lambda: 1_000,
        online: Attendance | None = None,
    ) -> None:
        """Make the channel of one connection.

        Args:
            sessions: has the user's Session.
            notifications: has the user's inbox.
            jitter_ms: milliseconds over which clients that lose their connection together should
                spread their return.
            online: is told who has joined, and what they say of themselves; None where nobody keeps that.
        """
        self._jitter_ms = jitter_ms
        self._sessions = sessions
        self._notifications = notifications
        self._online = online
        self._reader: Reader | None = None

    async def join(self, payload: Any) -> Reply:
        user_id = self.socket.principal.user_id
        session = self._sessions.get_session(user_id)
        if self.topic != user_topic(user_id) or session is None:
            return error({"reason": "unauthorized"})
        asked = read_as({} if payload is None else payload, JoinPayload)
        self.socket.device = asked.device
        await self._when_ready(session)
        delivery = self._notifications.delivery
        reader = self._reader = delivery.open(user_id, self)
        self.socket.on_pong = self._ponged
        try:
            backlog = await delivery.begin(reader, asked.last_seq)
        except BaseException:
            self._leave(reader)
            raise
        # From here to the return nothing is awaited: what is broadcast next comes by itself.
        if self._online is not None:
            self._online.joined(self.socket)
        missed = session.take_missed(self.socket)
        for broadcast in missed or ():
            self.push(broadcast.event, broadcast.payload)
        response: dict[str, Any] = {
            "session_id": session.session_id,
            "user": session.user,
            "resumed": missed is not None,
            "unread": backlog.unread,
            "last_seq": backlog.last_seq,
            "reconnect_jitter_max_ms": self._jitter_ms(),
        }
        if backlog.truncated:
            response["truncated"] = True
        self.socket.note(
            "inbox_opened",
            last_seq=asked.last_seq,
            sent=len(backlog.page.entries),
            up_to=backlog.last_seq,
            unread=backlog.unread,
            resumed=missed is not None,
            truncated=backlog.truncated,
        )
        return ok(response)

    @staticmethod
    async def _when_ready(session: Session) -> None:
        """Wait for a Session that is being restarted."""
        try:
            await session.when_ready()
        except Refused as refused:
            raise Unavailable(f"the Session was refused: {refused.reason}") from None

    def handle_in(self, event: str, payload: Any) -> Reply | Awaitable[Reply]:
        match event:
            # The two that clients send all the time need not wait for anything.
            case "activity":
                return self._note_activity(read_as(payload, ActivityPayload))
            case "ack":
                return self._ack(read_as(payload, AckPayload))
            case "mark_read":
                return self._mark_read(read_as(payload, MarkReadPayload))
            case "list_notifications":
                return self._list(read_as(payload, ListPayload))
            case "subscribe":
                types = read_as(payload, TypesPayload).types
                return self._subscribe(add=types)
            case "unsubscribe":
                types = read_as(payload, TypesPayload).types
                return self._subscribe(remove=types)
        raise UnhandledEvent(event)

    @property
    def reader(self) -> Reader | None:
        """The client's place in the inbox, from its join on."""
        return self._reader

    def terminate(self, reason: str) -> None:  # noqa: ARG002
        if self._reader is not None:
            self._leave(self._reader)

    def _ponged(self, payload: bytes) -> None:
        if self._reader is not None:
            self._notifications.delivery.ponged(self._reader, payload)

    def _leave(self, reader: Reader) -> None:
        self._notifications.delivery.close(reader)
        self.socket.on_pong = None

    async def _mark_read(self, asked: MarkReadPayload) -> Reply:
        if sum(given is not None for given in (asked.ids, asked.up_to_seq, asked.all)) != 1:
            raise InvalidPayload('mark_read takes exactly one of "ids", "up_to_seq" and "all"')
        marks = ReadMarks(
            ids=None if asked.ids is None else tuple(asked.ids),
            up_to_seq=asked.up_to_seq,
            all=asked.all is True,
        )
        unread = await self._notifications.mark_notifications_read(
            self.socket.principal.user_id, marks, self.subscriber
        )
        return ok({"unread": unread})

    async def _list(self, asked: ListPayload) -> Reply:
        listed = await self._notifications.list_notifications(
            self.socket.principal.user_id, asked.before_seq, asked.limit, unread=asked.unread
        )
        response: dict[str, Any] = {"notifications": listed.notifications, "unread": listed.unread}
        if listed.truncated:
            response["truncated"] = True
        return ok(response)

    async def _subscribe(self, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Reply:
        types = await self._notifications.subscribe_to_notifications(
            self.socket.principal.user_id, add, remove=remove
        )
        return ok({"types": types})

    def _ack(self, asked: AckPayload) -> Reply:
        if self._reader is not None:
            self._notifications.delivery.received(self._reader, asked.seq)
        return ok()

    def _note_activity(self, activity: ActivityPayload) -> Reply:
        if self._online is not None and activity.status is not None:
            self._online.set_status(self.socket, activity.status)
        return ok()

    # What the reader calls

    def deliver(self, entries: Sequence[Notification | Undeliverable]) -> None:
        """Send notifications to the client."""
        for entry in entries:
            if isinstance(entry, Undeliverable):
                self.socket.note("undeliverable", seq=entry.seq)
                self.push("undeliverable", entry)
            else:
                self.push("notification", entry)
