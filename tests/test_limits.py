"""How often something may happen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flowtx.limits import MAX_RATE, Rate, Strikes, TokenBucket


class RateTests(SynchronousTestCase):
    def test_rates_are_read(self) -> None:
        rate = Rate.parse("50/100")
        self.assertEqual((rate.interval, rate.span), (0.02, 2.0))
        self.assertEqual(Rate.parse(" 0.5 / 1 ").interval, 2.0)
        self.assertEqual(Rate.parse(f"{MAX_RATE}/{MAX_RATE}").span, 1.0)

    def test_other_forms_are_not(self) -> None:
        for text in (
            *("", "50", "/", "50/", "/100", "a/b", "50/100/1", "50,100"),
            *("0/1", "-1/1", "1/0", "1/0.9", "nan/1", "1/nan", "inf/1", "1/inf", f"{MAX_RATE + 1}/1"),
        ):
            self.assertRaises(ValueError, Rate.parse, text)


class TokenBucketTests(SynchronousTestCase):
    def test_a_burst_and_then_the_rate(self) -> None:
        # Times at which nothing adds up exactly.
        for start in (0.0, 1e-9, 12_345.678, 1e7 / 3):
            bucket = TokenBucket(Rate(50, 100))
            self.assertEqual([bucket.take(start) for _ in range(100)], [0.0] * 100)
            wait = bucket.take(start)
            self.assertTrue(0 < wait <= 0.02)
            self.assertEqual(bucket.take(start), wait, "what is refused costs nothing")
            now = start
            for _ in range(1000):
                now += 0.02
                self.assertEqual(bucket.take(now), 0.0)
                self.assertGreater(bucket.take(now), 0.0)

    def test_after_what_it_says_there_is_one(self) -> None:
        bucket = TokenBucket(Rate(3, 7))
        now = 1000.0
        for _ in range(200):
            wait = bucket.take(now)
            now += wait
            if wait:
                self.assertEqual(bucket.take(now + 1e-9), 0.0)

    def test_a_changed_rate_holds_for_the_buckets_that_there_are(self) -> None:
        rate = Rate(10, 5)
        bucket = TokenBucket(rate)
        self.assertEqual([bucket.take(0.0) > 0 for _ in range(6)], [False] * 5 + [True])
        rate.change(1, 2)
        self.assertEqual([bucket.take(0.3) > 0 for _ in range(2)], [False, True])
        self.assertEqual([bucket.take(10.0) > 0 for _ in range(3)], [False] * 2 + [True])
        self.assertEqual(bucket.take(11.0), 0.0)
        rate.change(100, 50)
        self.assertEqual([bucket.take(20.0) > 0 for _ in range(51)], [False] * 50 + [True])

    def test_it_holds_no_more_than_a_burst(self) -> None:
        bucket = TokenBucket(Rate(10, 5))
        self.assertTrue(bucket.is_full(0.0))
        bucket.take(0.0)
        self.assertFalse(bucket.is_full(0.05))
        self.assertTrue(bucket.is_full(0.1))
        self.assertEqual([bucket.take(1e6) > 0 for _ in range(6)], [False] * 5 + [True])

    @given(
        st.integers(1, 100),
        st.integers(1, 50),
        st.lists(st.floats(0, 1), max_size=200),
        st.floats(0, 1e6),
    )
    def test_never_more_than_a_burst_and_what_came_back(
        self, rate: int, burst: int, pauses: list[float], start: float
    ) -> None:
        bucket = TokenBucket(Rate(rate, burst))
        now, taken = start, 0
        for pause in pauses:
            now += pause
            if not bucket.take(now):
                taken += 1
        self.assertLessEqual(taken, burst + rate * (now - start) + 0.1)
        self.assertGreaterEqual(taken, min(len(pauses), burst))


class StrikesTests(SynchronousTestCase):
    def test_the_third_in_ten_seconds(self) -> None:
        strikes = Strikes(3, 10.0)
        self.assertEqual([strikes.add(now) for now in (0.0, 4.0, 10.0)], [None, None, 10.0])
        self.assertEqual(strikes.add(10.5), 6.5)

    def test_slower_ones(self) -> None:
        strikes = Strikes(3, 10.0)
        self.assertEqual([strikes.add(5.1 * number) for number in range(50)], [None] * 50)
