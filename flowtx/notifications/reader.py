"""One client's place in its user's inbox: what it was given, and what it has proved to have.

A reader has room while fewer than `WINDOW` notifications, and less than `WINDOW_BYTES`, are on their
way: given, and not proved to be received. A client proves it with ``ack``, or without any code of its
own: after what it is given comes a WebSocket Ping whose payload is the last seq, and the Pong carries
it back (RFC 6455, section 5.5.3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from flowtx.inbox import Notification, Page, Undeliverable, Want
from flowtx.notifications.patterns import matches

WINDOW: Final = 64
WINDOW_BYTES: Final = 262_144


class Client(Protocol):
    """Whom a reader reads for."""

    def deliver(self, entries: Sequence[Notification | Undeliverable]) -> None:
        """Send notifications to the client, in order."""

    def ping(self, payload: bytes) -> None:
        """Send a WebSocket Ping after them."""


class Reader:
    """One client's place in its user's inbox; made by `flowtx.notifications.delivery.Delivery.open`.

    Attributes:
        user_id: whose inbox.
        cursor: the highest seq that the client was given, or that is not for it; None before `begin`.
        unread_up_to: up to which seq only unread ones are for it; None for all.
        types: the patterns of types that the user wants live.
        behind: whether there may be more than the cursor says.
        closed: whether the client has gone.
    """

    __slots__ = (
        "_bytes",
        "_client",
        "_given",
        "_in_flight",
        "_pinged",
        "behind",
        "closed",
        "cursor",
        "live_after",
        "types",
        "unread_up_to",
        "user_id",
    )

    def __init__(self, user_id: str, client: Client) -> None:
        self.user_id = user_id
        self.cursor: int | None = None
        self.live_after = 0
        self.unread_up_to: int | None = None
        self.types: tuple[str, ...] = ()
        self.behind = False
        self.closed = False
        self._client = client
        # Most of the time there is nothing.
        self._in_flight: deque[tuple[int, int]] | None = None
        self._bytes = 0
        self._given = 0
        self._pinged = 0

    @property
    def has_room(self) -> bool:
        """Whether the client may be given more now."""
        return self.in_flight < WINDOW and self._bytes < WINDOW_BYTES

    @property
    def in_flight(self) -> int:
        """How many notifications are on their way."""
        return 0 if self._in_flight is None else len(self._in_flight)

    @property
    def want(self) -> Want:
        """What is to be read for it next."""
        return Want(self.user_id, self.cursor or 0, self.unread_up_to)

    def begin(self, cursor: int, last_seq: int, unread_up_to: int | None) -> None:
        """Take its place: after ``cursor``; what follows ``last_seq`` is live."""
        self.cursor = cursor
        self.live_after = last_seq
        self.unread_up_to = unread_up_to

    def take(self, page: Page) -> int:
        """Give the client what it has room for, out of what follows its cursor.

        Returns:
            The number of notifications given.
        """
        if self.cursor is None:
            return 0
        given: list[Notification | Undeliverable] = []
        for entry in page.entries:
            if entry.seq <= self.cursor:
                continue
            if self._is_wanted(entry, page.types):
                if not self.has_room:
                    self.behind = True
                    break
                if isinstance(entry, Notification):
                    size = len(bytes(entry.payload))
                    if self._in_flight is None:
                        self._in_flight = deque()
                    self._in_flight.append((entry.seq, size))
                    self._bytes += size
                given.append(entry)
            self.cursor = entry.seq
        else:
            if page.more:
                self.behind = True
            elif self.unread_up_to is not None:
                # From here on all is for it; some of that may have come meanwhile.
                self.cursor = max(self.cursor, self.unread_up_to)
                self.unread_up_to = None
                self.behind = True
            else:
                self.cursor = max(self.cursor, self.live_after)
        if given:
            self._given = given[-1].seq
            self._client.deliver(given)
            self._ping()
        return len(given)

    def _is_wanted(self, entry: Notification | Undeliverable, types: Sequence[str]) -> bool:
        if isinstance(entry, Undeliverable) or entry.seq <= self.live_after or not types:
            return True
        return matches(types, entry.type)

    def _ping(self) -> None:
        # One at a time: what is given meanwhile is asked for with the next.
        if self._pinged == 0 and self._in_flight:
            self._pinged = self._given
            self._client.ping(b"%d" % self._given)

    def received(self, seq: int) -> list[int]:
        """Note that the client has all up to a seq.

        Returns:
            The seqs of those of which that is news.
        """
        news = []
        while self._in_flight and self._in_flight[0][0] <= seq:
            known, size = self._in_flight.popleft()
            self._bytes -= size
            news.append(known)
        if not self._in_flight:
            self._in_flight = None
        return news

    def ponged(self, seq: int) -> list[int]:
        """Note the answer to a Ping; see `received`."""
        if self._pinged == 0 or seq != self._pinged:
            return []
        news = self.received(seq)
        self._pinged = 0
        self._ping()
        return news
