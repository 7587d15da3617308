"""What waits for one channel: its client's messages, infos, and broadcasts that it handles itself."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple, TypeAlias

from flowtx.protocol.message import Broadcast, Message

MAX_WAITING: Final = 1_000
"""Infos and broadcasts that may wait for one channel; its client's messages the Socket bounds."""


class Info(NamedTuple):
    """Something for ``handle_info``, of whatever type."""

    message: Any


Item: TypeAlias = Message | Info | Broadcast


class Mailbox:
    """First in, first out; see the module.

    A client's messages are bounded by reading no more of them. Nobody can be told to wait with the
    rest: past the bound, broadcasts that may be dropped are, and where that does not help, the
    mailbox has overflowed.

    Attributes:
        messages: how many messages of the client wait.
        broadcasts: how many broadcasts on the channel's own topic wait.
        overflowed: whether something that must not be dropped found no room.
    """

    __slots__ = ("_items", "broadcasts", "messages", "overflowed")

    def __init__(self) -> None:
        # Most never need it: what finds nothing before it goes straight to the channel.
        self._items: deque[Item] | None = None
        self.messages = 0
        self.broadcasts = 0
        self.overflowed = False

    def __len__(self) -> int:
        """How much waits, of all kinds."""
        return 0 if self._items is None else len(self._items)

    def put(self, item: Item) -> None:
        if isinstance(item, Message):
            self.messages += 1
        elif len(self) - self.messages >= MAX_WAITING and not self._make_room(item):
            return
        elif isinstance(item, Broadcast):
            self.broadcasts += 1
        if self._items is None:
            self._items = deque()
        self._items.append(item)

    def take(self) -> Item | None:
        """Take the oldest; None where nothing waits."""
        if not self._items:
            return None
        item = self._items.popleft()
        if not self._items:
            self._items = None
        if isinstance(item, Message):
            self.messages -= 1
        elif isinstance(item, Broadcast):
            self.broadcasts -= 1
        return item

    def clear(self) -> list[Message]:
        """Empty it; the client's messages that waited, in order."""
        messages = [item for item in self._items or () if isinstance(item, Message)]
        self._items = None
        self.messages = self.broadcasts = 0
        return messages

    def _make_room(self, item: Item) -> bool:
        """Drop what may be dropped; whether ``item`` has found room."""
        kept = [other for other in self._items or () if not _droppable(other)]
        if len(kept) < len(self):
            self._items = deque(kept)
            self.broadcasts = sum(isinstance(other, Broadcast) for other in kept)
            return True
        self.overflowed = self.overflowed or not _droppable(item)
        return False


def _droppable(item: Item) -> bool:
    if isinstance(item, Info):
        item = item.message
    return isinstance(item, Broadcast) and item.key is not None
