"""What waits for one channel."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.mailbox import MAX_WAITING, Info, Item, Mailbox
from flowtx.protocol.message import Broadcast, Message


def message(ref: int) -> Message:
    return Message(b"1", b"%d" % ref, "room:1", "e", b"{}")


def broadcast(key: str | None = None) -> Broadcast:
    return Broadcast("room:1", "e", {}, key)


def taken(mailbox: Mailbox) -> list[Item]:
    items = []
    while (item := mailbox.take()) is not None:
        items.append(item)
    return items


class MailboxTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.mailbox = Mailbox()

    def put(self, *items: Item) -> None:
        for item in items:
            self.mailbox.put(item)

    def counts(self) -> tuple[int, int]:
        return self.mailbox.messages, self.mailbox.broadcasts

    def test_first_in_first_out(self) -> None:
        items: list[Item] = [
            message(1),
            Info("a"),
            broadcast(),
            message(2),
            broadcast("k"),
            Info(broadcast()),
        ]
        self.put(*items)
        self.assertEqual(self.counts(), (2, 2))
        self.assertEqual(taken(self.mailbox), items)
        self.assertEqual(self.counts(), (0, 0))
        self.assertIsNone(self.mailbox.take())

    def test_clear_gives_the_messages(self) -> None:
        self.put(message(1), Info("a"), broadcast(), message(2))
        self.assertEqual(self.mailbox.clear(), [message(1), message(2)])
        self.assertEqual((self.counts(), self.mailbox.take()), ((0, 0), None))

    def test_messages_do_not_count(self) -> None:
        self.put(*map(message, range(2 * MAX_WAITING)), *(Info(n) for n in range(MAX_WAITING)))
        self.assertFalse(self.mailbox.overflowed)
        self.assertEqual(len(taken(self.mailbox)), 3 * MAX_WAITING)

    def test_one_too_many(self) -> None:
        for last in (Info("last"), broadcast()):
            mailbox = self.mailbox = Mailbox()
            self.put(*(Info(n) for n in range(MAX_WAITING)))
            self.assertFalse(mailbox.overflowed)
            self.put(last)
            self.assertTrue(mailbox.overflowed)
            self.assertEqual(len(taken(mailbox)), MAX_WAITING)

    def test_what_may_be_dropped_makes_room(self) -> None:
        heard = Info(broadcast("k"))
        self.put(broadcast("k"), broadcast(), heard, *(Info(n) for n in range(MAX_WAITING - 3)), Info("last"))
        self.assertFalse(self.mailbox.overflowed)
        self.assertEqual(self.mailbox.broadcasts, 1)
        items = taken(self.mailbox)
        self.assertEqual((len(items), items[-1]), (MAX_WAITING - 1, Info("last")))
        self.assertNotIn(heard, items)

    def test_what_may_be_dropped_is_where_there_is_no_room(self) -> None:
        self.put(*(Info(n) for n in range(MAX_WAITING)), broadcast("k"), Info(broadcast("k")))
        self.assertFalse(self.mailbox.overflowed)
        self.assertEqual((len(taken(self.mailbox)), self.mailbox.broadcasts), (MAX_WAITING, 0))
