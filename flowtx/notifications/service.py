"""Notifications, as the backend and the application see them: push, read, list, subscribe."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from flowtx.errors import InvalidPayload
from flowtx.inbox import MAX_PAYLOAD, INotificationStore, Listed, Push, Pushed, ReadMarks
from flowtx.interfaces import IPubSub, Subscriber
from flowtx.metrics import Metrics
from flowtx.notifications.delivery import Delivery
from flowtx.notifications.pushing import Pushing
from flowtx.notifications.receipts import ReceiptBook
from flowtx.protocol.message import Broadcast
from flowtx.protocol.payload import read_json
from flowtx.sessions.session import user_topic

MAX_USERS: Final = 10_000
MAX_PAGE: Final = 100
MAX_PATTERNS: Final = 100
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_USER_ID: Final = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]+")
_PATTERN: Final = re.compile(r"[^*\x00-\x1f\x7f\ud800-\udfff]{0,127}(\*|[^*\x00-\x1f\x7f\ud800-\udfff])")
_MAX_SEQ: Final = 2**63 - 1


class NotificationService(Service):
    """The inboxes: what is pushed is kept, and is handed to the user's clients as it commits.

    Args:
        store: keeps the inboxes.
        pubsub: tells a user's other connections what one of them has read.
        clock: the time.
        metrics: counts.
        wall: seconds since the epoch.

    Attributes:
        delivery: hands notifications to the clients that are here.
    """

    def __init__(
        self,
        store: INotificationStore,
        pubsub: IPubSub,
        *,
        clock: IReactorTime,
        metrics: Metrics | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._pubsub = pubsub
        self._metrics = metrics or Metrics()
        self._wall = wall
        self._pushing = Pushing(store, clock)
        self._receipts = ReceiptBook(store, clock)
        self.delivery = Delivery(store, self._receipts, self._metrics, wall, clock=clock)

    def stopService(self) -> Deferred[None]:
        """Refuse further pushes, and wait for what is under way."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._pushing.stop()
        await self.delivery.stop()
        await self._receipts.stop()

    async def wake(self) -> None:
        """Look for what has committed; see `flowtx.notifications.delivery.Delivery.wake`."""
        await self.delivery.wake()

    async def push_notification(
        self,
        user_id: str,
        type_: str,
        payload: object,
        idempotency_key: str | None = None,
        *,
        expires_at: datetime | None = None,
        collapse_key: str | None = None,
    ) -> Pushed:
        """Append a notification to a user's inbox; it reaches the user's connections by itself.

        Args:
            user_id: the user.
            type_: e.g. ``deal.won``; 1 to 128 characters.
            payload: any JSON value, at most 65,536 bytes.
            idempotency_key: for 24 hours, a second push with the same key and content gives the
                first one's seq.
            expires_at: from then on it is neither listed nor counted nor sent.
            collapse_key: it takes the place of an unread notification with the same one.

        Returns:
            Its id and seq, once it is on disk.

        Raises:
            InvalidPayload: an argument is not of that form.
            Conflict: the key was used for another notification.
            StorageError: the database cannot be asked; see there what may be tried again.
        """
        pushed = await self.push_notifications(
            [user_id], type_, payload, idempotency_key, expires_at=expires_at, collapse_key=collapse_key
        )
        return pushed[0]

    async def push_notifications(
        self,
        user_ids: Sequence[str],
        type_: str,
        payload: object,
        idempotency_key: str | None = None,
        *,
        expires_at: datetime | None = None,
        collapse_key: str | None = None,
    ) -> Sequence[Pushed]:
        """Append a notification to the inboxes of up to 10,000 users, all or none of them.

        Args, Returns, Raises: see `push_notification`.
        """
        if not 1 <= len(user_ids) <= MAX_USERS:
            raise InvalidPayload(f"user_ids: got {len(user_ids)}; it takes 1 to {MAX_USERS}")
        _check_user_ids(user_ids)
        _check_text("type", type_, 128)
        _check_text("idempotency_key", idempotency_key, 255)
        _check_text("collapse_key", collapse_key, 128)
        push = Push(
            tuple(dict.fromkeys(user_ids)),
            type_,
            _encode(payload),
            idempotency_key,
            self._check_expiry(expires_at),
            collapse_key,
        )
        pushed = await self._pushing.push(push)
        self._metrics.notifications_pushed.inc(len(pushed))
        self.delivery.traces.pushed(pushed)
        return pushed

    def _check_expiry(self, expires_at: datetime | None) -> datetime | None:
        if expires_at is None:
            return None
        if expires_at.tzinfo is None:
            raise InvalidPayload("expires_at: got a time without a zone; it takes one with, such as …Z")
        if expires_at.timestamp() <= self._wall():
            raise InvalidPayload(f"expires_at: got {expires_at.isoformat()}, which lies in the past")
        try:
            return expires_at.astimezone(UTC)
        except OverflowError:
            raise InvalidPayload(
                f"expires_at: got {expires_at.isoformat()}; it takes a time before the year 10000, UTC"
            ) from None

    async def mark_notifications_read(
        self, user_id: str, marks: ReadMarks, sender: Subscriber | None = None
    ) -> int:
        """Mark notifications of a user as read and tell the user's connections.

        Args:
            user_id: the user.
            marks: which ones.
            sender: the one connection that need not be told.

        Returns:
            How many are still unread.

        Raises:
            StorageError: the database cannot be asked.
        """
        unread = await self._store.mark_read(user_id, marks)
        told: dict[str, Any] = {"unread": unread}
        if marks.ids is not None:
            told["ids"] = marks.ids
        elif marks.up_to_seq is not None:
            told["up_to_seq"] = marks.up_to_seq
        else:
            told["all"] = True
        self._pubsub.publish(Broadcast(user_topic(user_id), "notifications_read", told), sender)
        return unread

    async def list_notifications(
        self, user_id: str, before_seq: int | None = None, limit: int = MAX_PAGE, *, unread: bool = False
    ) -> Listed:
        """List a user's notifications, the newest first; the next page begins before the last one's seq.

        Args:
            user_id: the user.
            before_seq: only those before this one.
            limit: how many, 1 to 100.
            unread: only those that are unread.

        Raises:
            InvalidPayload: an argument is not of that form.
            StorageError: the database cannot be asked.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidPayload(f"limit: got {limit}; it takes 1 to {MAX_PAGE}")
        if before_seq is not None and not 0 <= before_seq <= _MAX_SEQ:
            raise InvalidPayload(f"before_seq: got {before_seq}; it takes 0 to 2^63-1")
        return await self._store.list_page(user_id, before_seq, limit, unread)

    async def subscribe_to_notifications(
        self, user_id: str, types: Sequence[str] = (), *, remove: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Change which types of notifications a user is sent live; all, as long as none is named.

        Args:
            user_id: the user.
            types: patterns to add: a type, or the beginning of types and a star, such as ``deal.*``.
            remove: patterns to take away.

        Returns:
            Those that there are then.

        Raises:
            InvalidPayload: an argument is not of that form, or there would be more than 100.
            StorageError: the database cannot be asked.
        """
        _check_user_ids([user_id])
        for pattern in (*types, *remove):
            if not _PATTERN.fullmatch(pattern):
                raise InvalidPayload(
                    f"types: got {pattern[:140]!r}; it takes a type of 1 to 128 characters, or the "
                    "beginning of types and a star"
                )
        patterns = await self._store.subscribe(user_id, types, remove)
        for reader in self.delivery.readers(user_id):
            reader.types = patterns
        return patterns

    def subscriptions(self, user_id: str) -> tuple[str, ...]:
        """The patterns of a user who has joined here; see `subscribe_to_notifications`."""
        return next((reader.types for reader in self.delivery.readers(user_id)), ())


def _check_user_ids(user_ids: Sequence[str]) -> None:
    for user_id in user_ids:
        if not _USER_ID.fullmatch(user_id):
            raise InvalidPayload(
                f"user_id: got {user_id[:140]!r}; it takes 1 to 128 of A-Z a-z 0-9 _ . : @ -"
            )


def _check_text(name: str, text: str | None, most: int) -> None:
    if text is not None and not (len(text) <= most and _TEXT.fullmatch(text)):
        raise InvalidPayload(
            f"{name}: got {text[:140]!r}; it takes 1 to {most} characters, none of them a control character"
        )


def _encode(payload: object) -> bytes:
    if isinstance(payload, msgspec.Raw):
        text = bytes(payload)
    else:
        try:
            text = msgspec.json.encode(payload)
            finite = _is_finite(payload)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidPayload(f"payload: cannot be written as JSON: {error}") from None
        if not finite:
            raise InvalidPayload("payload: has NaN or Infinity, which JSON has not")
    if len(text) > MAX_PAYLOAD:
        raise InvalidPayload(f"payload: got {len(text)} bytes; it takes at most {MAX_PAYLOAD}")
    if _NUL.search(text):
        raise InvalidPayload("payload: has a NUL character, which PostgreSQL cannot store")
    try:
        read_json(text, max_nodes=None)
    except InvalidPayload as problem:
        raise InvalidPayload(f"payload: {problem.detail}") from None
    return text


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_finite, value))
    return True
