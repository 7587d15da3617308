from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flowtx.transports.admission import Admission


class AdmissionTests(SynchronousTestCase):
    def test_a_seconds_worth_at_once_then_the_rate(self) -> None:
        admission = Admission(rate=10, concurrency=100)
        self.assertEqual([admission.admit(0.0) for _ in range(12)], [0] * 10 + [1, 1])
        self.assertEqual([admission.admit(0.25) for _ in range(3)], [0, 0, 1])
        self.assertEqual(sum(admission.admit(60.0) == 0 for _ in range(100)), 10)

    def test_so_many_at_a_time(self) -> None:
        admission = Admission(rate=1000, concurrency=2)
        for under_way, wait in ((0, 0), (1, 0), (2, 1), (3, 1), (1, 0)):
            admission.under_way = under_way
            self.assertEqual(admission.admit(0.0), wait)

    def test_a_change_holds_from_then_on(self) -> None:
        admission = Admission(rate=10, concurrency=100)
        self.assertEqual(admission.admit(0.0), 0)
        admission.change(2, 100)
        self.assertEqual(sum(admission.admit(0.0) == 0 for _ in range(20)), 2)
        self.assertEqual(sum(admission.admit(60.0) == 0 for _ in range(20)), 2)
        admission.change(2, 1)
        admission.under_way = 1
        self.assertEqual(admission.admit(120.0), 1)

    def test_a_slow_rate_says_how_long_to_wait(self) -> None:
        admission = Admission(rate=0.1, concurrency=10)
        self.assertEqual([admission.admit(0.0), admission.admit(0.0), admission.admit(4.0)], [0, 10, 6])
        self.assertEqual(admission.admit(10.0), 0)

    def test_the_jitter_grows_with_the_connections(self) -> None:
        admission = Admission(rate=500, concurrency=10)
        self.assertEqual(
            [admission.jitter_ms(connections) for connections in (0, 500, 5_000, 10**9)],
            [1_000, 1_000, 10_000, 60_000],
        )

    @given(
        st.floats(0.1, 1000),
        st.lists(st.floats(0, 2), max_size=200),
    )
    def test_never_more_than_the_rate_allows(self, rate: float, gaps: list[float]) -> None:
        admission = Admission(rate, concurrency=10**9)
        now = admitted = 0.0
        for gap in gaps:
            now += gap
            admitted += admission.admit(now) == 0
        self.assertLessEqual(admitted, max(1.0, rate) + now * rate + 1e-6)
