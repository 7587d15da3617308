"""Who is present on one topic, and how that differs from what its clients have been told.

A *meta* says how a key is present: one device of a user, say. Each has a ref of its own that is
never used again; an update takes a meta away and puts another one in its place. Clients are told in
periods, and `TopicState.flush` ends one.

The refs decide what the changes of a period come to. A meta that came and went within it is not
mentioned, and one that was updated several times leaves once and joins once. A client that applies
such a diff as phoenix.js does, all joins and then all leaves, gets from the state at the last flush
to the state at this one. So the state that a client begins with is that of the last flush too, and
the diff that follows is the same one for everybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Raw

REF: Final = "phx_ref"
PREVIOUS_REF: Final = "phx_ref_prev"

Presences: TypeAlias = dict[str, dict[str, list[Raw]]]
"""The form on the wire, ``{key: {"metas": [meta, …]}}``; a key's metas in the order in which they came."""

_encoder = msgspec.json.Encoder()


class Meta(msgspec.Struct, frozen=True, gc=False):
    """One meta of a key.

    Attributes:
        key: whose it is.
        ref: names it.
        replaces: the ref of the meta that clients have been shown and that this one takes the place
            of, or None.
        body: the application's own part: a JSON object.
        encoded: the form on the wire: the body and the refs.
    """

    key: str
    ref: str
    replaces: str | None
    body: bytes
    encoded: Raw

    @classmethod
    def make(cls, key: str, ref: str, body: bytes, replaces: str | None = None) -> Meta:
        """Make one; ``body`` has neither of the two refs among its names."""
        refs = {REF: ref} if replaces is None else {REF: ref, PREVIOUS_REF: replaces}
        head = _encoder.encode(refs)
        encoded = head if body == b"{}" else head[:-1] + b"," + body[1:]
        return cls(key, ref, replaces, body, Raw(encoded))


class Diff(NamedTuple):
    """What has changed from one flush to the next.

    Attributes:
        joins: the metas that are new.
        leaves: those that are no more.
        arrived: keys that had no meta before.
        departed: keys that have none any more.
    """

    joins: Presences
    leaves: Presences
    arrived: tuple[str, ...]
    departed: tuple[str, ...]

    @property
    def payload(self) -> dict[str, Any]:
        """The payload of ``presence_diff``."""
        return {"joins": self.joins, "leaves": self.leaves}


class TopicState:
    """The presence of one topic; a change costs the same however many are present."""

    __slots__ = ("_joined", "_keys", "_left", "_shown")

    def __init__(self) -> None:
        self._keys: dict[str, dict[str, Meta]] = {}
        # By ref: what came since the last flush, and what clients were shown and has gone since.
        self._joined: dict[str, Meta] = {}
        self._left: dict[str, Meta] = {}
        self._shown: Raw | None = None

    @property
    def empty(self) -> bool:
        """Whether nobody is present and there is nothing to tell of."""
        return not (self._keys or self._left)

    def track(self, key: str, ref: str, body: bytes) -> None:
        """Add a meta.

        Args:
            key: whose it is.
            ref: names it, and no other one, ever.
            body: a JSON object, encoded.
        """
        self._add(Meta.make(key, ref, body))

    def update(self, key: str, ref: str, new_ref: str, body: bytes) -> bool:
        """Put a new meta in the place of the one that ``ref`` names.

        Returns:
            False where there is no such meta, and nothing has changed.
        """
        old = self._remove(key, ref)
        if old is None:
            return False
        # To clients it replaces what they were shown last, if they were.
        self._add(Meta.make(key, new_ref, body, ref if ref in self._left else old.replaces))
        return True

    def untrack(self, key: str, ref: str) -> bool:
        """Take a meta away.

        Returns:
            False where there is no such meta, and nothing has changed.
        """
        return self._remove(key, ref) is not None

    def get(self, key: str) -> Iterable[Meta]:
        """The metas of one key, in the order in which they came."""
        return self._keys.get(key, {}).values()

    def find(self, key: str, ref: str) -> Meta | None:
        """The meta that ``ref`` names, or None."""
        return self._keys.get(key, {}).get(ref)

    def keys(self) -> Iterable[str]:
        """The keys that have a meta."""
        return self._keys.keys()

    def list(self) -> Presences:
        """All metas, with the changes that clients have not been told yet."""
        return _by_key(meta for metas in self._keys.values() for meta in metas.values())

    def shown(self) -> Raw:
        """The payload of ``presence_state``: what clients have been told, as of the last flush.

        It is encoded once between two flushes that tell of changes.
        """
        if self._shown is None:
            known = [meta for metas in self._keys.values() for meta in metas.values()]
            joined = self._joined
            # What has left meanwhile goes first: those that stay keep the order they are listed in.
            shown = [*self._left.values(), *(meta for meta in known if meta.ref not in joined)]
            self._shown = Raw(_encoder.encode(_by_key(shown)))
        return self._shown

    def flush(self) -> Diff | None:
        """End a period.

        Returns:
            What has changed in it, or None where all is as it was.
        """
        if not (self._joined or self._left):
            return None
        joins, leaves = _by_key(self._joined.values()), _by_key(self._left.values())
        diff = Diff(
            joins,
            leaves,
            arrived=tuple(
                key
                for key, new in joins.items()
                if key not in leaves and len(new["metas"]) == len(self._keys[key])
            ),
            departed=tuple(key for key in leaves if key not in self._keys),
        )
        self._joined, self._left, self._shown = {}, {}, None
        return diff

    def _add(self, meta: Meta) -> None:
        self._keys.setdefault(meta.key, {})[meta.ref] = self._joined[meta.ref] = meta

    def _remove(self, key: str, ref: str) -> Meta | None:
        metas = self._keys.get(key, {})
        meta = metas.pop(ref, None)
        if meta is None:
            return None
        if not metas:
            del self._keys[key]
        if self._joined.pop(ref, None) is None:
            self._left[ref] = meta
        return meta


def _by_key(metas: Iterable[Meta]) -> Presences:
    found: Presences = {}
    for meta in metas:
        found.setdefault(meta.key, {"metas": []})["metas"].append(meta.encoded)
    return found
