"""What waits to be sent to one connection."""

from __future__ import annotations

from twisted.internet.interfaces import IPushProducer
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from flowtx.transports.outbox import Outbox


class OutboxTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.written: list[bytes] = []
        self.overflows = 0
        self.outbox = Outbox(self.write, 10, self.overflow)
        #: How many writes fill the transport.
        self.room = 1000

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.room -= 1
        if self.room == 0:
            self.outbox.pauseProducing()

    def overflow(self) -> None:
        self.overflows += 1

    def test_it_is_a_producer(self) -> None:
        verifyObject(IPushProducer, self.outbox)

    def test_with_room_all_goes_straight_on(self) -> None:
        for data in (b"1", b"a much longer one", b""):
            self.outbox.send(data)
        self.assertEqual(self.written, [b"1", b"a much longer one", b""])
        self.assertEqual((self.outbox.waiting_bytes, self.overflows), (0, 0))

    def test_without_room_it_waits_in_order(self) -> None:
        self.outbox.pauseProducing()
        for data in (b"1", b"22", b"333"):
            self.outbox.send(data)
        self.assertEqual((self.written, self.outbox.waiting_bytes), ([], 6))
        self.outbox.resumeProducing()
        self.outbox.send(b"4")
        self.assertEqual((self.written, self.outbox.waiting_bytes), ([b"1", b"22", b"333", b"4"], 0))

    def test_the_transport_may_be_full_again_at_once(self) -> None:
        self.outbox.pauseProducing()
        for data in (b"1", b"2", b"3", b"4", b"5"):
            self.outbox.send(data)
        self.room = 2
        self.outbox.resumeProducing()
        self.assertEqual((self.written, self.outbox.waiting_bytes), ([b"1", b"2"], 3))
        self.outbox.send(b"6")
        self.room = 1
        self.outbox.resumeProducing()
        self.assertEqual(self.written, [b"1", b"2", b"3"])
        self.room = 1000
        self.outbox.resumeProducing()
        self.assertEqual(self.written, [b"1", b"2", b"3", b"4", b"5", b"6"])
        self.assertEqual(self.outbox.waiting_bytes, 0)

    def test_a_write_may_fill_the_transport(self) -> None:
        self.room = 1
        self.outbox.send(b"1")
        self.outbox.send(b"2")
        self.assertEqual((self.written, self.outbox.waiting_bytes), ([b"1"], 1))

    def test_the_limit_may_be_reached_but_not_passed(self) -> None:
        self.outbox.pauseProducing()
        self.outbox.send(b"x" * 10)
        self.assertEqual((self.outbox.waiting_bytes, self.overflows), (10, 0))
        self.outbox.send(b"x")
        self.assertEqual((self.outbox.waiting_bytes, self.overflows), (0, 1))

    def test_after_an_overflow_nothing_is_sent_and_nobody_told_again(self) -> None:
        self.outbox.pauseProducing()
        for _ in range(100):
            self.outbox.send(b"xxx")
        self.outbox.send_pong(b"pong")
        self.outbox.resumeProducing()
        self.outbox.send(b"later")
        self.outbox.send_pong(b"pong")
        self.assertEqual((self.written, self.outbox.waiting_bytes, self.overflows), ([], 0, 1))

    def test_an_empty_outbox_takes_up_its_work_again(self) -> None:
        self.outbox.pauseProducing()
        self.outbox.resumeProducing()
        self.outbox.send(b"1")
        self.assertEqual(self.written, [b"1"])

    def test_once_stopped_it_gives_up(self) -> None:
        self.outbox.pauseProducing()
        self.outbox.send(b"1")
        self.outbox.stopProducing()
        self.outbox.resumeProducing()
        self.outbox.send(b"2")
        self.assertEqual((self.written, self.outbox.waiting_bytes, self.overflows), ([], 0, 0))

    def test_pongs_go_straight_on(self) -> None:
        self.outbox.send_pong(b"1")
        self.outbox.send_pong(b"2")
        self.assertEqual(self.written, [b"1", b"2"])

    def test_of_pongs_that_wait_only_the_last_is_sent(self) -> None:
        self.outbox.pauseProducing()
        self.outbox.send(b"data")
        for number in range(1000):
            self.outbox.send_pong(b"%d" % number)
        self.assertEqual((self.outbox.waiting_bytes, self.overflows), (4, 0))
        self.outbox.resumeProducing()
        self.assertEqual(self.written, [b"999", b"data"])
        self.outbox.resumeProducing()
        self.assertEqual(self.written, [b"999", b"data"])
