"""The flight recorder: what it keeps, what it leaves out, and that it never grows past its bounds."""

from __future__ import annotations

import gc
import tracemalloc
from datetime import datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flowtx.recorder import MAX_ENDS, MAX_EVENTS, FlightRecorder

USERS = st.sampled_from(["alice", "bob", "carol", "dave", "eve"])
VALUES: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=400),
    st.binary(max_size=10),
    st.lists(st.integers(), max_size=3),
)
NAMES = st.sampled_from(["address", "topic", "user_agent", "at", "event", "token", "reason", "code", "by"])


class RecorderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 1_700_000_000.25
        self.recorder = FlightRecorder(lambda: self.now)

    def test_events_come_back_in_order(self) -> None:
        self.recorder.note("alice", "connected", address="10.0.0.1", request_id="r-1")
        self.now += 1
        self.recorder.note("alice", "joined", topic="user:alice", device=None)
        self.recorder.note("bob", "connected")
        self.assertEqual(
            self.recorder.events("alice"),
            [
                {
                    "at": "2023-11-14T22:13:20.250Z",
                    "event": "connected",
                    "address": "10.0.0.1",
                    "request_id": "r-1",
                },
                {"at": "2023-11-14T22:13:21.250Z", "event": "joined", "topic": "user:alice", "device": None},
            ],
        )
        self.assertEqual(len(self.recorder), 2)

    def test_nothing_is_known_of_others(self) -> None:
        self.assertEqual((self.recorder.events("alice"), self.recorder.ends("alice")), ([], []))
        self.assertEqual(len(self.recorder), 0)

    def test_end_is_an_event_too(self) -> None:
        self.recorder.ended(
            "alice", reason="heartbeat_timeout", code=1002, by="silence", duration=60.5, cause="no_pong"
        )
        end = {
            "at": "2023-11-14T22:13:20.250Z",
            "connected_at": "2023-11-14T22:12:19.750Z",
            "reason": "heartbeat_timeout",
            "code": 1002,
            "by": "silence",
            "duration": 60.5,
            "cause": "no_pong",
        }
        self.assertEqual(self.recorder.ends("alice"), [end])
        self.assertEqual(self.recorder.events("alice"), [{**end, "event": "closed"}])

    def test_a_user_has_the_last_200_events_and_the_last_10_ends(self) -> None:
        for number in range(500):
            self.recorder.note("alice", "joined", number=number)
        for number in range(50):
            self.recorder.ended("alice", reason="closed", code=1000, by="client", duration=number)
        events = self.recorder.events("alice")
        self.assertEqual(len(events), MAX_EVENTS)
        self.assertEqual([event["number"] for event in events[:150]], list(range(350, 500)))
        self.assertEqual([end["duration"] for end in self.recorder.ends("alice")], list(range(40, 50)))
        self.assertEqual(len(self.recorder.ends("alice")), MAX_ENDS)

    def test_what_sounds_like_a_secret_is_dropped(self) -> None:
        names = ("token", "access_token", "JWT_Secret", "password", "Authorization", "payload", "api_key")
        for name in names:
            self.recorder.note("alice", "noted", **{name: "hunter2", "reason": "kept"})
        self.assertEqual({len(event) for event in self.recorder.events("alice")}, {3})
        self.assertNotIn("hunter2", str(self.recorder.events("alice")))

    def test_details_are_cut(self) -> None:
        self.recorder.note("alice", "connected", user_agent="x" * 1_000_000)
        self.assertEqual(self.recorder.events("alice")[0]["user_agent"], "x" * 200)
        self.recorder.note("bob", "connected", **{f"detail_{number}": number for number in range(1_000)})
        self.assertLess(len(self.recorder.events("bob")[0]), 20)

    def test_whoever_had_the_oldest_event_goes_first(self) -> None:
        recorder = FlightRecorder(lambda: self.now, max_users=3)
        for user_id in ("alice", "bob", "carol", "alice", "dave"):
            recorder.note(user_id, "connected")
        known = [user_id for user_id in ("alice", "bob", "carol", "dave") if recorder.events(user_id)]
        self.assertEqual(known, ["alice", "carol", "dave"])
        self.assertEqual(len(recorder), 3)

    def test_a_user_who_does_not_fit_alone_is_forgotten(self) -> None:
        recorder = FlightRecorder(lambda: self.now, max_bytes=2_000)
        for _ in range(100):
            recorder.note("alice", "connected", user_agent="x" * 200)
        self.assertLessEqual(recorder.cost, 2_000)
        recorder.ended("bob", reason="y" * 200, code=1000, by="client", duration=1.0)
        self.assertLessEqual(recorder.cost, 2_000)

    def test_forgotten_users_cost_nothing(self) -> None:
        for user_id in ("alice", "bob"):
            self.recorder.ended(user_id, reason="closed", code=None, by="network", duration=1.0)
            self.recorder.note(user_id, "connected")
        for user_id in ("alice", "bob", "nobody"):
            self.recorder.forget(user_id)
        self.assertEqual((self.recorder.cost, len(self.recorder)), (0, 0))

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(USERS, st.booleans(), st.text(max_size=300), st.dictionaries(NAMES, VALUES))))
    def test_never_raises_and_never_grows(self, calls: list[tuple[str, bool, str, dict[str, Any]]]) -> None:
        recorder = FlightRecorder(lambda: self.now, max_users=4, max_bytes=8_000)
        for user_id, ends, event, detail in calls:
            own = ("event", "reason", "code", "by")
            free = {name: value for name, value in detail.items() if name not in own}
            if ends:
                recorder.ended(user_id, reason=event, code=1000, by="client", duration=1.0, **free)
            else:
                recorder.note(user_id, event, **free)
            self.assertLessEqual(recorder.cost, 8_000)
            self.assertLessEqual(len(recorder), 4)
            for known in recorder.events(user_id):
                datetime.fromisoformat(known["at"])
                self.assertNotIn("token", known)

    def test_its_cost_is_what_it_takes(self) -> None:
        # A user for each event, and many events for one: two kinds of overhead.
        for users, events in ((3_000, 2), (30, 250)):
            recorder = FlightRecorder(lambda: self.now)
            recorder.note("warm", "up", address="10.0.0.1")
            gc.collect()
            tracemalloc.start()
            for user in range(users):
                for _ in range(events):
                    recorder.note(
                        f"user-{user}", "connected", address="10.0.0.1", user_agent="Firefox/130.0" * 4
                    )
                recorder.ended(f"user-{user}", reason="closed", code=1001, by="client", duration=10.0)
            taken, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertLess(taken, 1.15 * recorder.cost)
            self.assertGreater(taken, 0.5 * recorder.cost)
