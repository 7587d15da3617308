"""What waits to be sent to one connection."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from flowtx.metrics import Metrics
from flowtx.transports.outbox import LARGE, SLOWEST, Bounds, Outbox


class Connection:
    """A connection whose transport is full after so many writes.

    Attributes:
        written: what the transport got.
        room: how many writes fill the transport.
        overflows: how often the outbox was given up.
        reading: whether the client is read from.
    """

    def __init__(self, limit: int, max_age: float = 10.0) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.written: list[bytes] = []
        self.room = 1000
        self.overflows = 0
        self.reading = True
        self.outbox = Outbox(self, self, Bounds(limit, max_age, self.clock, self.metrics))

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.room -= 1
        if self.room == 0:
            self.outbox.pauseProducing()

    def cork(self) -> None: ...

    def uncork(self) -> None: ...

    def resume(self, room: int = 1000) -> None:
        """The transport has nothing left, and room for so many."""
        self.room = room
        self.outbox.resumeProducing()

    def overflowed(self, waited: int) -> None:
        assert waited > 0
        self.overflows += 1

    def piled_up(self, *, high: bool) -> None:
        assert self.reading == high, "told twice"
        self.reading = not high


class TestCase(SynchronousTestCase):
    limit = 10

    def setUp(self) -> None:
        self.connection = Connection(self.limit)
        self.outbox = self.connection.outbox

    def send(self, *frames: bytes) -> None:
        for data in frames:
            self.outbox.send(data)

    def drop(self, **frames: bytes) -> None:
        for key, data in frames.items():
            self.outbox.send(data, key)

    def assert_state(self, written: list[bytes], waiting: int, overflows: int = 0) -> None:
        self.assertEqual(self.connection.written, written)
        self.assertEqual((self.outbox.waiting_bytes, self.connection.overflows), (waiting, overflows))
        self.assertEqual(self.connection.metrics.outbox_waiting, waiting)


class NormalTests(TestCase):
    def test_it_is_a_producer(self) -> None:
        verifyObject(IPushProducer, self.outbox)

    def test_with_room_all_goes_straight_on(self) -> None:
        self.send(b"1", b"a much longer one", b"")
        self.drop(k=b"droppable")
        self.assert_state([b"1", b"a much longer one", b"", b"droppable"], 0)
        self.assertEqual(self.connection.clock.getDelayedCalls(), [])

    def test_without_room_it_waits_in_order(self) -> None:
        self.outbox.pauseProducing()
        self.send(b"1", b"22", b"333")
        self.assert_state([], 6)
        self.connection.resume()
        self.send(b"4")
        self.assert_state([b"1", b"22", b"333", b"4"], 0)

    def test_the_transport_may_be_full_again_at_once(self) -> None:
        self.outbox.pauseProducing()
        self.send(b"1", b"2", b"3", b"4", b"5")
        self.connection.resume(2)
        self.assert_state([b"1", b"2"], 3)
        self.send(b"6")
        self.connection.resume(1)
        self.assert_state([b"1", b"2", b"3"], 3)
        self.connection.resume()
        self.assert_state([b"1", b"2", b"3", b"4", b"5", b"6"], 0)

    def test_a_write_may_fill_the_transport(self) -> None:
        self.connection.room = 1
        self.send(b"1", b"2")
        self.assert_state([b"1"], 1)

    def test_changed_bounds_hold_for_the_outboxes_that_there_are(self) -> None:
        self.outbox.pauseProducing()
        self.send(b"12345678")
        self.connection.outbox._bounds.limit = 12
        self.send(b"1234")
        self.assertEqual((self.connection.overflows, self.outbox.waiting_bytes), (0, 12))
        self.connection.outbox._bounds.limit = 10
        self.send(b"")
        self.assertEqual((self.connection.overflows, self.outbox.waiting_bytes), (1, 0))

    def test_an_empty_outbox_takes_up_its_work_again(self) -> None:
        self.outbox.pauseProducing()
        self.connection.resume()
        self.send(b"1")
        self.assert_state([b"1"], 0)

    def test_once_stopped_it_gives_up(self) -> None:
        self.outbox.pauseProducing()
        self.send(b"1")
        self.drop(k=b"2")
        self.outbox.send_pong(b"3")
        self.outbox.stopProducing()
        self.outbox.stopProducing()
        self.connection.resume()
        self.send(b"4")
        self.drop(k=b"5")
        self.outbox.send_pong(b"6")
        self.assert_state([], 0)
        self.assertEqual(self.connection.clock.getDelayedCalls(), [])


class LimitTests(TestCase):
    def test_the_limit_may_be_reached_but_not_passed(self) -> None:
        self.outbox.pauseProducing()
        self.send(b"x" * 10)
        self.assert_state([], 10)
        self.send(b"x")
        self.assert_state([], 0, overflows=1)
        self.assertEqual(self.connection.clock.getDelayedCalls(), [])

    def test_after_an_overflow_nothing_is_sent_and_nobody_told_again(self) -> None:
        self.outbox.pauseProducing()
        self.send(*[b"xxx"] * 100)
        self.outbox.send_pong(b"pong")
        self.connection.resume()
        self.send(b"later")
        self.outbox.send_pong(b"pong")
        self.assert_state([], 0, overflows=1)

    def test_one_frame_larger_than_the_limit_may_wait_besides(self) -> None:
        self.outbox.pauseProducing()
        self.send(b"before", b"x" * 1000, b"next")
        self.assert_state([], 1010)
        self.connection.resume(2)
        self.assert_state([b"before", b"x" * 1000], 4)
        # Now that it has gone, another one may.
        self.send(b"y" * 1000, b"behind")
        self.assertEqual(self.connection.overflows, 0)
        self.send(b"!")
        self.assertEqual(self.connection.overflows, 1)

    def test_what_has_gone_makes_room_for_no_more(self) -> None:
        self.outbox.pauseProducing()
        self.send(b"x" * 1000, b"next")
        self.connection.resume(1)
        self.send(b"123456")
        self.assertEqual(self.connection.overflows, 0)
        self.send(b"7")
        self.assertEqual(self.connection.overflows, 1)

    def test_two_of_them_may_not(self) -> None:
        self.outbox.pauseProducing()
        self.send(b"x" * 1000)
        self.assertEqual(self.connection.overflows, 0)
        self.send(b"x" * 11)
        self.assert_state([], 0, overflows=1)


class AgeTests(TestCase):
    def advance(self, seconds: float) -> None:
        self.connection.clock.advance(seconds)

    def test_a_frame_that_waits_for_ten_seconds_ends_it(self) -> None:
        self.advance(100)
        self.outbox.pauseProducing()
        self.advance(50)
        self.send(b"1")
        self.advance(9.9)
        self.send(b"2")
        self.assertEqual(self.connection.overflows, 0)
        self.advance(0.2)
        self.assert_state([], 0, overflows=1)
        self.assertEqual(self.connection.clock.getDelayedCalls(), [])

    def test_only_the_first_counts(self) -> None:
        self.outbox.pauseProducing()
        for _ in range(10):
            self.send(b"1", b"2")
            self.advance(8)
            self.connection.resume(2)
        self.assertEqual(self.connection.overflows, 0)
        self.send(b"last")
        self.advance(9)
        self.assertEqual(self.connection.overflows, 0)
        self.advance(1.1)
        self.assertEqual(self.connection.overflows, 1)

    def test_one_timer_however_many_wait(self) -> None:
        for _ in range(5):
            self.outbox.pauseProducing()
            self.send(b"1", b"2")
            self.connection.resume()
        self.assertEqual(len(self.connection.clock.getDelayedCalls()), 1)
        self.advance(10)
        self.assertEqual((self.connection.overflows, self.connection.clock.getDelayedCalls()), (0, []))

    def test_behind_a_large_frame_age_counts_from_when_a_slow_client_has_it(self) -> None:
        size = LARGE + SLOWEST
        for waits in (False, True):
            connection = Connection(10 * size)
            if waits:
                connection.outbox.pauseProducing()
            else:
                connection.room = 1
            connection.outbox.send(bytes(size))
            connection.clock.advance(1)
            connection.outbox.send(b"behind")
            if waits:
                connection.resume(1)
                self.assertEqual(len(connection.written), 1)
            connection.clock.advance(size / SLOWEST + 8.9)
            self.assertEqual((connection.overflows, waits), (0, waits))
            connection.clock.advance(0.2)
            self.assertEqual((connection.overflows, waits), (1, waits))

    def test_large_frames_that_have_gone_do_not_count(self) -> None:
        connection = Connection(100)
        for _ in range(10):
            connection.room = 1
            connection.outbox.send(bytes(10 * LARGE))
            connection.resume()
        connection.outbox.pauseProducing()
        connection.outbox.send(b"1")
        connection.clock.advance(10)
        self.assertEqual(connection.overflows, 1)


class PongTests(TestCase):
    def test_they_go_straight_on(self) -> None:
        self.outbox.send_pong(b"1")
        self.outbox.send_pong(b"2")
        self.assert_state([b"1", b"2"], 0)

    def test_of_those_that_wait_only_the_last_is_sent_before_all_else(self) -> None:
        self.outbox.pauseProducing()
        self.drop(k=b"drop")
        self.send(b"data")
        for number in range(1000):
            self.outbox.send_pong(b"%d" % number)
        self.assert_state([], 8)
        self.connection.resume()
        self.assert_state([b"999", b"data", b"drop"], 0)
        self.connection.resume()
        self.assert_state([b"999", b"data", b"drop"], 0)


class DroppableTests(TestCase):
    def assert_dropped(self, count: int) -> None:
        self.assertEqual(self.connection.metrics.frames_dropped, count)

    def test_a_newer_one_takes_the_place_of_an_older_one_with_its_key(self) -> None:
        self.outbox.pauseProducing()
        self.drop(a=b"a1", b=b"b")
        self.drop(a=b"a22")
        self.assert_state([], 4)
        self.assert_dropped(1)
        self.connection.resume()
        self.assert_state([b"a22", b"b"], 0)

    def test_normal_ones_go_first(self) -> None:
        self.outbox.pauseProducing()
        self.drop(a=b"a")
        self.send(b"1", b"2")
        self.connection.resume(1)
        self.connection.resume(1)
        self.assert_state([b"1", b"2"], 1)
        self.connection.resume(1)
        self.assert_state([b"1", b"2", b"a"], 0)

    def test_where_room_is_short_the_oldest_go(self) -> None:
        self.outbox.pauseProducing()
        self.drop(a=b"aaaa", b=b"bbbb")
        self.drop(c=b"cc")
        self.assert_dropped(0)
        self.drop(d=b"dddd")
        self.assert_dropped(1)
        self.send(b"12")
        self.assert_dropped(2)
        self.connection.resume()
        self.assert_state([b"12", b"cc", b"dddd"], 0)

    def test_normal_ones_need_not_fear_them(self) -> None:
        self.outbox.pauseProducing()
        self.drop(a=b"x" * 10)
        self.send(b"y" * 10)
        self.assert_state([], 10)
        self.drop(a=b"x", b=b"x" * 1000)
        self.assert_state([], 10)
        self.assert_dropped(3)
        self.assertEqual(len(self.connection.clock.getDelayedCalls()), 1)

    def test_those_that_have_gone_make_room_for_no_more(self) -> None:
        self.outbox.pauseProducing()
        self.drop(a=b"x" * 10)
        self.connection.resume(1)
        self.send(b"y" * 10)
        self.assertEqual(self.connection.overflows, 0)
        self.send(b"y")
        self.assertEqual(self.connection.overflows, 1)

    def test_alone_they_never_end_it(self) -> None:
        self.outbox.pauseProducing()
        for number in range(100):
            self.outbox.send(b"xxx", f"{number}")
            self.connection.clock.advance(20)
        self.assert_state([], 9)
        self.assertTrue(self.connection.reading)


class ReadingTests(TestCase):
    limit = 80

    def test_it_stops_past_a_quarter_of_the_limit_and_goes_on_at_an_eighth(self) -> None:
        self.outbox.pauseProducing()
        self.send(b"x" * 10, b"x" * 10)
        self.assertTrue(self.connection.reading)
        self.send(b"x")
        self.assertFalse(self.connection.reading)
        self.send(b"x" * 9)
        self.connection.resume(1)
        self.assertFalse(self.connection.reading)
        self.connection.resume(1)
        self.assertTrue(self.connection.reading)
        self.send(b"x" * 20)
        self.assertFalse(self.connection.reading)
        self.connection.resume()
        self.assertTrue(self.connection.reading)

    def test_one_large_frame_does_not_stop_it(self) -> None:
        self.outbox.pauseProducing()
        self.send(b"x" * 1000)
        self.assertTrue(self.connection.reading)

    def test_droppable_ones_do_not_either(self) -> None:
        self.outbox.pauseProducing()
        self.drop(a=b"x" * 40, b=b"x" * 40)
        self.assertTrue(self.connection.reading)


#: What may happen to an outbox: a frame, a droppable one, a Pong, time, room for more.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 45)),
        st.tuples(st.just("drop"), st.integers(0, 45), st.sampled_from("abc")),
        st.tuples(st.just("pong"), st.just(0)),
        st.tuples(st.just("pause"), st.just(0)),
        st.tuples(st.just("advance"), st.integers(1, 4)),
        st.tuples(st.just("resume"), st.integers(1, 5)),
    ),
    min_size=20,
    max_size=60,
)


class AnyOrderTests(SynchronousTestCase):
    LIMIT = 40

    @given(STEPS)
    def test_whatever_happens(self, steps: list[tuple[object, ...]]) -> None:
        """Order, bounds, and nothing lost but what may be."""
        connection = Connection(self.LIMIT)
        outbox = connection.outbox
        sent: dict[str, list[bytes]] = {"n": [], "d": [], "p": []}
        newest: dict[str, bytes] = {}

        def frame(kind: str, size: int) -> bytes:
            data = f"{kind}{len(sent[kind])}.".encode().ljust(size, b"x")
            sent[kind].append(data)
            return data

        actions: dict[str, Callable[..., object]] = {
            "send": lambda size: outbox.send(frame("n", size)),
            "pong": lambda _: outbox.send_pong(frame("p", 0)),
            "pause": lambda _: outbox.pauseProducing(),
            "advance": connection.clock.advance,
            "resume": connection.resume,
        }
        for name, *arguments in steps:
            if name == "drop":
                size, key = arguments
                newest[str(key)] = frame("d", int(str(size)))
                outbox.send(newest[str(key)], str(key))
            else:
                actions[str(name)](*arguments)
            largest = max((len(data) for data in sent["n"]), default=0)
            self.assertLessEqual(outbox.waiting_bytes, self.LIMIT + largest)
            self.assertEqual(connection.metrics.outbox_waiting, outbox.waiting_bytes)
            self.assertLessEqual(len(connection.clock.getDelayedCalls()), 1)
        if not connection.overflows:
            connection.resume()
        written = connection.written
        normal, dropped, pongs = (
            [data for data in written if data[:1] == kind] for kind in (b"n", b"d", b"p")
        )
        if connection.overflows:
            self.assertEqual((connection.overflows, normal), (1, sent["n"][: len(normal)]))
        else:
            self.assertEqual(normal, sent["n"])
            self.assertTrue(connection.reading)
            self.assertEqual(len(sent["d"]) - len(dropped), connection.metrics.frames_dropped)
            self.assertEqual(pongs[-1:], sent["p"][-1:])
        self.assertEqual(len(set(written)), len(written))
        self.assertEqual(pongs, [data for data in sent["p"] if data in pongs])
        self.assertTrue(set(dropped) <= set(sent["d"]))
        self.assertEqual(outbox.waiting_bytes, 0)
