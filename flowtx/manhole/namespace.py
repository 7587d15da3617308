"""The names that there are at the prompt: the services of the server, in the words of the plan.

They are what Elixir's console has for a Phoenix application: what is asked of ``FlowApi.SessionManager`` and
``:sys.get_state`` there is asked of ``sessions`` here.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from flowtx.inbox import ReadMarks
from flowtx.interfaces import Principal
from flowtx.manhole.shown import Text
from flowtx.protocol.message import Broadcast
from flowtx.sessions.inspection import describe
from flowtx.sessions.machine import ENDING
from flowtx.sessions.session import Session, socket_topic

if TYPE_CHECKING:
    from flowtx.app import Services
    from flowtx.inbox import Pushed
    from flowtx.presence.online import OnlineUsers
    from flowtx.sessions.service import Claim

MAX_PAGE: Final = 100
HELD_FOR: Final = 60.0
"""Seconds for which a Session that was started here waits for its user to connect."""
LOOK_EVERY: Final = 0.5
MAX_HELD: Final = 100


class Named:
    """Something with a name at the prompt; its public methods are what it can do."""

    def __repr__(self) -> str:
        name = type(self).__name__.lower()
        return f"<{name}: {_first_line(self)} help({name}) lists what it does.>"


class Sessions(Named):
    """The Sessions of this node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._held: dict[Claim, IDelayedCall] = {}

    def get_session(self, user_id: str) -> Session | None:
        """The Session of a user, or None; stop_session and get_state take it too."""
        return self._services.sessions.get_session(user_id)

    def session_exists(self, user_id: str) -> bool:
        """Whether a user has a Session."""
        return self._services.sessions.session_exists(user_id)

    def which_children(self) -> list[tuple[str, Session, str, list[type[Session]]]]:
        """All Sessions: user id, Session, type, modules."""
        return self._services.sessions.which_children()

    def count(self) -> int:
        """How many Sessions there are."""
        return len(self._services.sessions.namedServices)

    def get_state(self, session: Session | str) -> dict[str, Any]:
        """All that a Session knows, of a user's id or a Session; as :sys.get_state does."""
        found = self._find(session)
        notifications, clock = self._services.notifications, self._services.clock
        user_id = found.user_id
        info = describe(found, clock.seconds(), time.time(), notifications.subscriptions(user_id))
        readers = notifications.delivery.readers(user_id)
        return {
            **msgspec.to_builtins(info),
            "user": None if found.user is None else msgspec.to_builtins(found.user),
            "age_seconds": round(found.age, 3),
            "connections_so_far": found.connections,
            "messages_received": found.messages_received,
            "restarts": found.restarts,
            "inbox_cursors": [reader.cursor for reader in readers],
        }

    async def start_session(self, user_id: str) -> Session:
        """Start the Session of a user who is not connected; it waits 60 s for them."""
        if len(self._held) >= MAX_HELD:
            raise RuntimeError(f"{MAX_HELD} Sessions that were started here wait for their users already")
        now = time.time()
        principal = Principal(user_id, expires_at=now + HELD_FOR, issued_at=now)
        claim = await self._services.sessions.claim(principal)
        self._hold(claim, self._services.clock.seconds() + HELD_FOR)
        return claim.session

    async def stop_session(self, session: Session | str) -> bool:
        """End a Session; its connections are closed with 1000. Whether there was one."""
        user_id = _id(session)
        stopping = Deferred.fromCoroutine(self._services.sessions.stop_session(user_id))
        for claim in [claim for claim in self._held if claim.session.user_id == user_id]:
            self._release(claim)
        return await stopping

    def disconnect(self, user_id: str) -> int:
        """Close a user's connections with 1001; their clients come back."""
        return self._services.pubsub.publish(Broadcast(socket_topic(user_id), "disconnect", {}))

    def close_connection(self, user_id: str, connection_id: str) -> bool:
        """Close one connection, by the id that get_state shows, with 1000."""
        return self._services.sessions.close_connection(user_id, connection_id)

    async def revoke(self, user_id: str) -> int:
        """Revoke all tokens that a user has now, and close their connections; how many."""
        return await self._services.sessions.revoke(user_id=user_id)

    def release_all(self) -> None:
        """Wait no longer for the users of Sessions that were started here."""
        for claim in list(self._held):
            self._release(claim)

    def _hold(self, claim: Claim, until: float) -> None:
        clock = self._services.clock
        # A Session that has begun to end waits for all claims to be released.
        if claim.session.state in ENDING or clock.seconds() >= until:
            self._held.pop(claim, None)
            claim.release()
        else:
            self._held[claim] = clock.callLater(LOOK_EVERY, self._hold, claim, until)

    def _release(self, claim: Claim) -> None:
        timer = self._held.pop(claim)
        if timer.active():
            timer.cancel()
        claim.release()

    def _find(self, session: Session | str) -> Session:
        if isinstance(session, Session):
            return session
        found = self.get_session(session)
        if found is None:
            raise LookupError(f"there is no Session of {session!r:.140} here")
        return found


class Notifications(Named):
    """The users' inboxes."""

    def __init__(self, services: Services) -> None:
        self._service = services.notifications

    async def push_notification(
        self, user: Session | str, type_: str, payload: object, idempotency_key: str | None = None
    ) -> Pushed:
        """Append to the inbox of a user, or of a Session's user; it reaches them by itself."""
        return await self._service.push_notification(_id(user), type_, payload, idempotency_key)

    async def mark_notifications_read(
        self, user: Session | str, ids: Sequence[str] | None = None, *, up_to_seq: int | None = None
    ) -> int:
        """Mark some as read, all where neither ids nor up_to_seq are given; how many are unread."""
        marks = ReadMarks(
            None if ids is None else tuple(ids), up_to_seq, all=ids is None and up_to_seq is None
        )
        if ids is not None and up_to_seq is not None:
            raise TypeError("give either ids or up_to_seq")
        return await self._service.mark_notifications_read(_id(user), marks)

    async def list_notifications(
        self, user: Session | str, limit: int = 10, *, before_seq: int | None = None, unread: bool = False
    ) -> dict[str, Any]:
        """The newest of a user's notifications, and how many are unread."""
        listed = await self._service.list_notifications(_id(user), before_seq, limit, unread=unread)
        return _plain(listed)

    async def subscribe_to_notifications(
        self, user: Session | str, types: Sequence[str] = (), *, remove: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Change which types a user is sent live, such as ["deal.*"]; those that there are then."""
        return await self._service.subscribe_to_notifications(_id(user), types, remove=remove)


class Presence(Named):
    """Who is on which topic, and who is online."""

    def __init__(self, services: Services, online: OnlineUsers) -> None:
        self._presence = services.presence
        self._online = online

    def list(self, topic: str = "users:online", *, after: str = "", limit: int = MAX_PAGE) -> dict[str, Any]:
        """The metas of those on a topic, the first 100 keys after one."""
        page, _ = self._presence.page(topic, after, min(limit, MAX_PAGE))
        return _plain(page)

    def get_by_key(self, topic: str, key: str) -> Sequence[dict[str, Any]]:
        """The metas of one key."""
        return self._presence.get_by_key(topic, key)

    def count(self) -> int:
        """How many users of this node are online or away."""
        return len(self._online)

    async def status(self, *user_ids: str) -> Mapping[str, Any]:
        """Who of some users is online, away or offline, and when they were last seen."""
        return await self._online.statuses(user_ids)


class PubSub(Named):
    """Broadcasts to topics and to users."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def broadcast(self, topic: str, event: str, payload: object) -> int:
        """Send an event to all who joined a topic; to how many here."""
        return self._services.pubsub.broadcast(topic, event, payload)

    def broadcast_to_users(self, user_ids: Sequence[str], event: str, payload: object) -> int:
        """Send an event to users, each on their own topic; to how many here."""
        return self._services.sessions.broadcast_to_users(user_ids, event, payload)

    def broadcast_to_all(self, event: str, payload: object) -> int:
        """Send an event to all users who are here; to how many."""
        return self._services.sessions.broadcast_to_all(event, payload)


class Groups(Named):
    """Who is a member of which group."""

    def __init__(self, services: Services) -> None:
        self._groups = services.groups

    async def members(self, group: str, *, after: str = "", limit: int = MAX_PAGE) -> Sequence[str]:
        """The members that a group has by the table, the first 100 ids after one."""
        return await self._groups.members(group, after=after, limit=min(limit, MAX_PAGE))

    async def is_member(self, group: str, user_id: str) -> bool:
        """Whether a user is in a group by the table."""
        return await self._groups.is_member(group, user_id)

    async def add_member(self, group: str, user_id: str) -> bool:
        """Add a user to a group; whether that is news."""
        return await self._groups.add_member(group, user_id)

    async def remove_member(self, group: str, user_id: str) -> bool:
        """Take a user out of a group, and off its topic; whether that is news."""
        return await self._groups.remove_member(group, user_id)


class Config(dict[str, object]):
    """The settings, without what is secret."""


def help_on(names: Mapping[str, object], lines: Mapping[str, str]) -> Callable[..., Text]:
    """Make ``help`` for a namespace.

    Args:
        names: the namespace.
        lines: what to say of those that do not say it themselves.
    """

    def help(thing: object = None) -> Text:  # noqa: A001 - the prompt's own
        """What there is, or what something does: help(sessions)."""
        if thing is None:
            width = max(map(len, names))
            known = [
                f"{name:<{width}}  {lines.get(name) or _first_line(value)}" for name, value in names.items()
            ]
            return Text("\n".join([*known, "", "A coroutine or a Deferred is awaited. Ctrl-D leaves."]))
        return Text("\n".join([_first_line(thing), "", *_methods(thing)]).rstrip())

    return help


def _methods(thing: object) -> list[str]:
    found = inspect.getmembers(thing, inspect.isroutine) if not inspect.isroutine(thing) else []
    return [
        f"{name}{_signature(method)}\n    {_first_line(method)}"
        for name, method in found
        if not name.startswith("_") and inspect.getdoc(method)
    ]


def _signature(method: Callable[..., object]) -> str:
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return "(…)"
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(plain))


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or type(thing).__name__).partition("\n")[0]


def _plain(value: object) -> dict[str, Any]:
    """Take what is encoded already as the values that it is."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return plain


def _id(user: Session | str) -> str:
    return user.user_id if isinstance(user, Session) else user
