"""The ports: what the layers ask of each other, and the values that pass through them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from flowtx.protocol.close import Close
    from flowtx.protocol.message import Broadcast, Frame
    from flowtx.pubsub.pubsub import Publication


class Principal(msgspec.Struct, frozen=True):
    """Whom a verified token names.

    Attributes:
        user_id: the claim ``sub``.
        expires_at: the claim ``exp``, seconds since the epoch.
        token_id: the claim ``jti``, or None.
        groups: the claim ``groups``.
        name: the claim ``name``, or None.
        email: the claim ``email``, or None.
        issued_at: the claim ``iat``, seconds since the epoch, or None.
        key_id: names the key that the token was verified with, in this process; None where nobody cares.
    """

    user_id: str
    expires_at: float
    token_id: str | None = None
    groups: tuple[str, ...] = ()
    name: str | None = None
    email: str | None = None
    issued_at: float | None = None
    key_id: str | None = None


class User(msgspec.Struct, frozen=True):
    """A user of the product, as its user directory knows them."""

    id: str
    name: str
    email: str | None


class FinishedSession(msgspec.Struct, frozen=True):
    """What is kept of a Session that has ended.

    Attributes:
        session_id: names it.
        user_id: whose it was.
        node: the node that it was on.
        connected_at: when it began, seconds since the epoch.
        ended_at: when it ended, seconds since the epoch.
        duration_seconds: how long it lasted, by a clock that nobody sets.
        reason: why it ended, one word.
        connections: how many connections it had.
        restarts: how many times it was restarted after a crash.
        messages_received: how many messages its clients sent.
    """

    session_id: str
    user_id: str
    node: str
    connected_at: float
    ended_at: float
    duration_seconds: float
    reason: str
    connections: int
    restarts: int
    messages_received: int


class IUserDirectory(Interface):
    """Knows the users of the product."""

    def load(principals: Sequence[Principal]) -> Awaitable[Mapping[str, User]]:
        """Look up the users whom ``principals`` name.

        Fires with the users found, by id; an id that is absent is unknown. Fails with
        `flowtx.errors.StorageError` where the directory cannot be asked.
        """


class IRevocations(Interface):
    """Keeps which tokens are revoked. Its methods fail with `flowtx.errors.StorageError`."""

    def revoke(token_id: str | None = None, user_id: str | None = None) -> Awaitable[None]:
        """Revoke one token by its ``jti``, or all that a user has now; fires once that is on disk.

        Exactly one of the two is given. To do it again is no error; for a user, the later time counts.
        Fails with `flowtx.errors.InvalidPayload` where it can be no token's ``jti`` or user's id.
        """

    def revoked(principals: Sequence[Principal]) -> Awaitable[frozenset[Principal]]:
        """Fires with those of ``principals`` whose tokens are revoked.

        A user's revocation hits the tokens whose ``iat`` is in the second of the revocation or
        before it, and those without ``iat``: as ``iat`` counts whole seconds, a token made in the
        rest of that second cannot be told from an older one, and is revoked too.
        """


class IHistoryStore(Interface):
    """Keeps what there is to say of Sessions that have ended.

    Its methods fail with `flowtx.errors.StorageError`.
    """

    def add(sessions: Sequence[FinishedSession]) -> Awaitable[None]:
        """Keep them, all or none; one whose session_id is kept already stays as it is.

        Fires once they are on disk. Fails with `flowtx.errors.InvalidPayload` where a value of one
        of them cannot be kept, however often it is tried.
        """

    def latest(user_id: str, limit: int) -> Awaitable[Sequence[FinishedSession]]:
        """Fires with the last ``limit`` of a user's, the one that began last first."""


class ISessionObserver(Interface):
    """Is told of the life of Sessions."""

    def session_ready(session: Any) -> Awaitable[None]:
        """Called when a Session's user is known, before any client is let in; again after a restart."""

    def session_closing(session: Any) -> Awaitable[None]:
        """Called when a Session ends, after its last channel has ended."""


class IPubSub(Interface):
    """Carries broadcasts to the subscribers of a topic, on all nodes.

    Those on this node have a broadcast when the call returns, those on others soon after, or never
    where a link between nodes is down. Each gets it once, and the broadcasts of one node in their order.

    What the calls have in common: ``event`` is 1 to 128 characters and none of the protocol's own
    (``phx_…``, ``presence_…``), a topic 1 to 1,024 characters. ``payload`` is a JSON object, as a dict or
    another value that msgspec encodes, or bytes. ``key`` is as in `flowtx.protocol.message.Frame`. They
    return the number of subscribers on this node to whom it was delivered, and raise
    `flowtx.errors.InvalidPayload` for a name of another form, `UnencodablePayload` for such a payload;
    nobody gets anything then.
    """

    node = Attribute("The name of this node among those that hear each other.")

    def subscribe(topic: str, subscriber: Subscriber) -> None:
        """Have ``subscriber`` get the broadcasts of ``topic``; at most once, however often called."""

    def unsubscribe(topic: str, subscriber: Subscriber) -> None:
        """Undo `subscribe`; without effect where there is nothing to undo."""

    def broadcast(topic: str, event: str, payload: object, *, key: str | None = None) -> int:
        """Send an event to all subscribers of a topic."""

    def broadcast_from(
        sender: Subscriber, topic: str, event: str, payload: object, *, key: str | None = None
    ) -> int:
        """Send an event to all subscribers of a topic but ``sender``."""

    def direct_broadcast(
        node: str, topic: str, event: str, payload: object, *, key: str | None = None
    ) -> int:
        """Send an event to the subscribers of a topic on one node; to nobody where there is no such node."""

    def broadcast_many(topics: Iterable[str], event: str, payload: object, *, key: str | None = None) -> int:
        """Send an event to all subscribers of many topics, each of which counts once."""

    def broadcast_matching(pattern: str, event: str, payload: object, *, key: str | None = None) -> int:
        """Send an event to all subscribers of the topics that match a pattern such as ``user:*``."""

    def publish(broadcast: Broadcast, sender: Subscriber | None = None, node: str | None = None) -> int:
        """Send a broadcast, whatever its event, to all subscribers of its topic but ``sender``.

        It goes to all nodes, or only to the one that is named. Subscribers on this node get the very
        object.
        """


class IPubSubAdapter(Interface):
    """Carries what one node publishes to the others."""

    def open(node: str, receive: Callable[[Publication], object]) -> None:
        """Join the other nodes under a name of one's own; called once, before anything else.

        From then on ``receive`` is called with what the other nodes send: once each, in the order of
        each sender, and never with what this node has sent. It does not raise.
        """

    def send(publication: Publication, node: str | None = None) -> None:
        """Send to all other nodes, or to the one that is named; later, and without waiting for it.

        Without effect where it cannot be sent, or there is no such node. Does not raise.
        """


class IGroupStore(Interface):
    """Keeps who is a member of which group. Its methods fail with `flowtx.errors.StorageError`.

    They fail with `flowtx.errors.InvalidPayload` where a value cannot be kept.
    """

    def add(group: str, user_id: str) -> Awaitable[bool]:
        """Add a member; fires once that is on disk, with whether it is news."""

    def remove(group: str, user_id: str) -> Awaitable[bool]:
        """Take a member away; fires once that is on disk, with whether it is news."""

    def members(group: str, after: str, limit: int) -> Awaitable[Sequence[str]]:
        """Fires with the ids of the first ``limit`` members that follow ``after``, sorted."""

    def present(pairs: Sequence[tuple[str, str]]) -> Awaitable[frozenset[tuple[str, str]]]:
        """Fires with those of the pairs of a group and a user that are members."""


class ITransport(Interface):
    """Carries a Socket: one connection to one client."""

    address = Attribute("The client's address, for people to read.")
    user_agent = Attribute("What the client calls itself, or an empty text.")
    waiting_bytes = Attribute("How many bytes wait to be sent.")
    reading = Attribute("Whether what the client sends is read now.")

    def send(frame: Frame) -> None:
        """Send, or queue within bounds; without effect once closed."""

    def ping(payload: bytes) -> None:
        """Send a Ping after what was sent before; the client's Pong goes to the Socket."""

    def close(close: Close) -> None:
        """Close with a code and a reason; what still waits to be sent is given up."""

    def pause_reading() -> None:
        """Take nothing more from the client for now."""

    def resume_reading() -> None:
        """Undo `pause_reading`."""


class Subscriber(Protocol):
    """What a broadcast is delivered to. What it raises is logged, and keeps nobody else from theirs."""

    def deliver(self, broadcast: Broadcast) -> None: ...
