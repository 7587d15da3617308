"""Presence: who is here on a topic, with which devices, as clients of Phoenix know it.

A channel tracks its client, and gives it the state with its join::

    def join(self, payload):
        self.push("presence_state", self.presence.state(self.topic))
        self.presence.track(self.topic, user_id, {"device": "web"}, owner=self)

    def terminate(self, reason):
        self.presence.untrack_all(self)

The joins and leaves of a tenth of a second reach the topic as one ``presence_diff``. The state that
clients join with is that of the last diff, so a client finds itself in the first diff that it gets.

Nothing must be awaited between ``state`` and the end of ``join``: the client then hears of all that
follows, and only after the state. phoenix.js takes diffs that come before it too, but keeps them
where the connection is lost in between, and then shows who has long gone. What is tracked is tracked
last: a join that fails has no ``terminate`` that would take it back.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from heapq import nsmallest
from itertools import count
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw
from twisted.application.service import Service

from flowtx.errors import AlreadyTracked, InvalidPayload, NotTracked, PresenceFull
from flowtx.presence.state import PREVIOUS_REF, REF, Presences
from flowtx.presence.tracker import PresenceChanges, PresenceObserver, Tracker
from flowtx.protocol.payload import read_json

MAX_KEY: Final = 128
MAX_META: Final = 4_096
MAX_TOPIC_METAS: Final = 100_000
MAX_METAS: Final = 200_000

POISON: Final = frozenset(
    {
        "__defineGetter__",
        "__defineSetter__",
        "__lookupGetter__",
        "__lookupSetter__",
        "__proto__",
        "constructor",
        "hasOwnProperty",
        "isPrototypeOf",
        "propertyIsEnumerable",
        "prototype",
        "toLocaleString",
        "toString",
        "valueOf",
    }
)
"""Keys that every object of JavaScript has by itself: clients before phoenix 1.8.9 fail on them."""

JsonObject: TypeAlias = Mapping[str, Any]


class Presence(Service):
    """See the module.

    An *owner* is what a meta stands and falls with: a channel or a Socket, anything that can be the
    key of a dict. It has at most one meta for a key on a topic.

    Args:
        tracker: keeps what is tracked, and tells clients.
        changes: takes the changes that are made here in the place of the tracker.
        max_topic_metas: how many metas of this node one topic may have.
        max_metas: how many all topics may have together.
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        changes: PresenceChanges | None = None,
        max_topic_metas: int = MAX_TOPIC_METAS,
        max_metas: int = MAX_METAS,
    ) -> None:
        self._tracker = tracker
        self._changes = tracker if changes is None else changes
        self._max_topic_metas = max_topic_metas
        self._max_metas = max_metas
        self._refs: dict[Hashable, dict[tuple[str, str], str]] = {}
        self._counts: Counter[str] = Counter()
        self._total = 0
        # A client that comes back after a restart compares refs: those of another life must differ.
        self._life = secrets.token_urlsafe(6)
        self._numbers = count(1)

    def startService(self) -> None:
        super().startService()
        self._tracker.start()

    def stopService(self) -> None:
        """Tell clients what they have not been told yet."""
        super().stopService()
        self._tracker.stop()

    # Changes

    def track(self, topic: str, key: str, meta: JsonObject, owner: Hashable) -> str:
        """Have ``key`` be present on ``topic`` until ``owner`` takes that back.

        Args:
            topic: where; those who joined it are told.
            key: who: 1 to 128 characters. Several owners may track the same one: the devices of a user.
            meta: what else is to be known: a JSON object of at most 4 KiB. A ``phx_ref`` or
                ``phx_ref_prev`` in it is left out.
            owner: see the class.

        Returns:
            The ``phx_ref`` of the meta.

        Raises:
            InvalidPayload: ``key`` or ``meta`` has not that form.
            AlreadyTracked: ``owner`` tracks it already.
            PresenceFull: there are too many.
        """
        _check_key(key)
        body = _encode(meta)
        if (topic, key) in self._refs.get(owner, ()):
            raise AlreadyTracked(f"{key!r} is tracked on {topic!r} by this owner already: use update")
        if self._counts[topic] >= self._max_topic_metas:
            raise PresenceFull(f"{topic!r} has {self._max_topic_metas} metas, which is the most")
        if self._total >= self._max_metas:
            raise PresenceFull(f"this node has {self._max_metas} metas, which is the most")
        ref = self._new_ref()
        self._refs.setdefault(owner, {})[topic, key] = ref
        self._counts[topic] += 1
        self._total += 1
        self._changes.track(topic, key, ref, body)
        return ref

    def update(
        self, topic: str, key: str, meta: JsonObject | Callable[[dict[str, Any]], JsonObject], owner: Hashable
    ) -> str:
        """Put a new meta in the place of the one that ``owner`` has for ``key``.

        Clients get one diff in which the new one joins and the old one leaves; ``phx_ref_prev`` of the
        new one names the old one, if they were shown it. A meta that stays the same is no change.

        Args:
            topic: where.
            key: who.
            meta: the new meta, or a function that makes it of the old one.
            owner: who tracked it.

        Returns:
            The ``phx_ref`` that the meta has now.

        Raises:
            InvalidPayload: see `track`.
            NotTracked: ``owner`` has not tracked ``key`` on ``topic``.
        """
        ref = self._refs.get(owner, {}).get((topic, key))
        old = None if ref is None else self._tracker.find(topic, key, ref)
        if ref is None or old is None:
            raise NotTracked(f"{key!r} is not tracked on {topic!r} by this owner: use track")
        body = _encode(meta(msgspec.json.decode(old.body)) if callable(meta) else meta)
        if body == old.body:
            return ref
        new_ref = self._refs[owner][topic, key] = self._new_ref()
        self._changes.update(topic, key, ref, new_ref, body)
        return new_ref

    def untrack(self, topic: str, key: str, owner: Hashable) -> None:
        """Take back what ``owner`` tracked; without effect where there is nothing to take back."""
        refs = self._refs.get(owner, {})
        ref = refs.pop((topic, key), None)
        if ref is None:
            return
        if not refs:
            del self._refs[owner]
        self._forget(topic, key, ref)

    def untrack_all(self, owner: Hashable) -> None:
        """Take back all that ``owner`` tracked, on all topics."""
        for (topic, key), ref in self._refs.pop(owner, {}).items():
            self._forget(topic, key, ref)

    # What is known

    def list(self, topic: str) -> dict[str, Any]:
        """Tell who is present on a topic, as of now.

        Returns:
            ``{key: {"metas": [meta, …]}}``, the metas of a key in the order in which they came.
        """
        presences: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self._tracker.list(topic)))
        return presences

    def get_by_key(self, topic: str, key: str) -> Sequence[dict[str, Any]]:
        """Tell the metas of one key, in the order in which they came; none where it is not present."""
        return [msgspec.json.decode(meta) for meta in self._tracker.get_by_key(topic, key)]

    def page(self, topic: str, after: str, limit: int) -> tuple[Presences, str | None]:
        """Tell who is present on a topic, a page at a time, in the order of the keys.

        Args:
            topic: where.
            after: the last key of the page before; empty for the first page.
            limit: how many keys a page has at most.

        Returns:
            The page in the form of `list`, its metas encoded, and what to give as ``after`` for the
            next page; None where this is the last one.
        """
        keys = nsmallest(limit + 1, (key for key in self._tracker.keys(topic) if key > after))
        page = {key: {"metas": [*self._tracker.get_by_key(topic, key)]} for key in keys[:limit]}
        return page, keys[limit - 1] if len(keys) > limit else None

    def state(self, topic: str) -> Raw:
        """The payload of ``presence_state`` for a client that joins now; see the module.

        It costs nothing to ask for it often: all who join in the same period get the same one.
        """
        return self._tracker.shown(topic)

    def observe(self, observer: PresenceObserver) -> None:
        """Have ``observer`` told of the keys that come and go, from now on."""
        self._tracker.observe(observer)

    def _forget(self, topic: str, key: str, ref: str) -> None:
        self._counts[topic] -= 1
        if not self._counts[topic]:
            del self._counts[topic]
        self._total -= 1
        self._changes.untrack(topic, key, ref)

    def _new_ref(self) -> str:
        return f"{self._life}{next(self._numbers):x}"


def _check_key(key: str) -> None:
    if not isinstance(key, str):
        raise InvalidPayload(f"a presence key is text, not {type(key).__name__}")
    if not 1 <= len(key) <= MAX_KEY:
        raise InvalidPayload(f"a presence key is 1 to {MAX_KEY} characters long, not {len(key)}")
    if key in POISON:
        raise InvalidPayload(f"{key} cannot be a presence key: every object of JavaScript has it by itself")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidPayload("a presence key is text without lone surrogates") from None


def _encode(meta: JsonObject) -> bytes:
    if not isinstance(meta, Mapping):
        raise InvalidPayload(f"a presence meta is a JSON object, not {type(meta).__name__}")
    own = {name: value for name, value in meta.items() if name not in (REF, PREVIOUS_REF)}
    try:
        body = msgspec.json.encode(own)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidPayload(f"a presence meta cannot be written as JSON: {error}") from None
    if len(body) > MAX_META:
        raise InvalidPayload(f"a presence meta takes at most {MAX_META} bytes of JSON, not {len(body)}")
    try:
        read_json(body)
    except InvalidPayload as problem:
        raise InvalidPayload(f"a presence meta: {problem.detail}") from None
    return body
