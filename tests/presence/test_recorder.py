"""What is noted is written in order and once, whatever the database does; or all is told again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import Unavailable, UnknownOutcome
from flowtx.presence.recorder import (
    BEAT_EVERY,
    LEAST_GRACE,
    MAX_BATCH,
    STOP_WITHIN,
    SWEEP_EVERY,
    WRITE_EVERY,
    PresenceRecorder,
)
from flowtx.presence.store import Instance, PresenceChange, Seen
from flowtx.storage.memory_presence import MemoryPresenceStore

WALL = 1_700_000_000.0
WINDOW = 5.0


class TrickyStore(MemoryPresenceStore):
    """Keeps what it is told at once, when it is let, or not at all."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(lambda: WALL + clock.seconds())
        self.batches: list[Sequence[PresenceChange]] = []
        self.lefts: list[float] = []
        self.sweeps: list[float] = []
        self.error: Exception | None = None
        self.loses_answer = False
        self.gate: Deferred[None] | None = None

    async def record(self, instance: Instance, attempt: int, changes: Sequence[PresenceChange]) -> bool:
        if self.gate is not None:
            await self.gate
        if self.error is not None:
            raise self.error
        self.batches.append(changes)
        known = await super().record(instance, attempt, changes)
        if self.loses_answer:
            self.loses_answer = False
            raise UnknownOutcome("the connection was lost")
        return known

    async def beat(self, instance: Instance, window: float, silence: float = 10.0) -> bool:
        if self.error is not None:
            raise self.error
        return await super().beat(instance, window, silence)

    async def leave(self, instance: Instance, window: float, *, for_good: bool = True) -> None:
        if self.error is not None:
            raise self.error
        self.lefts.append(window)
        await super().leave(instance, window, for_good=for_good)

    async def sweep(self, max_age: float) -> int:
        self.sweeps.append(max_age)
        return await super().sweep(max_age)


class RecorderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(500.0)
        self.store = TrickyStore(self.clock)
        self.recorder = self.make()

    def make(self, **options: Any) -> PresenceRecorder:
        recorder = PresenceRecorder(
            self.store, node="node-a", clock=self.clock, window=WINDOW, **{"retention_days": 2.0, **options}
        )
        self.successResultOf(recorder.startService())
        return recorder

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([WRITE_EVERY] * max(1, round(seconds / WRITE_EVERY)))

    def events(self) -> list[str]:
        found = self.successResultOf(Deferred.fromCoroutine(self.store.events(0, 1_000_000)))
        return [f"{event.user_id} {event.event}" for event in found]

    def seen(self, user_id: str) -> Seen:
        return self.successResultOf(Deferred.fromCoroutine(self.store.seen([user_id], "")))[user_id]

    def test_what_is_noted_is_written_together(self) -> None:
        for number in range(10):
            self.recorder.note(f"user-{number}", "online")
        self.assertEqual((self.store.batches, self.recorder.waiting), ([], 10))
        self.pass_time(WRITE_EVERY)
        self.assertEqual(([len(batch) for batch in self.store.batches], self.recorder.waiting), ([10], 0))
        self.pass_time(10)
        self.assertEqual(len(self.store.batches), 1)

    def test_batches_are_bounded(self) -> None:
        for number in range(2 * MAX_BATCH + 1):
            self.recorder.note(f"user-{number}", "online")
        self.pass_time(WRITE_EVERY)
        self.assertEqual([len(batch) for batch in self.store.batches], [MAX_BATCH, MAX_BATCH, 1])

    def test_the_changes_of_a_user_are_written_one_after_the_other(self) -> None:
        for status in ("online", "offline", "online"):
            self.recorder.note("alice", status)
            self.recorder.note("bob", "online")
        self.pass_time(WRITE_EVERY)
        self.assertEqual(self.events(), ["alice online", "bob online", "alice offline", "alice online"])

    def test_the_times_are_those_of_what_happened(self) -> None:
        self.store.error = Unavailable("down")
        self.recorder.note("alice", "online")
        self.pass_time(100)
        self.recorder.note("alice", "offline", self.clock.seconds() - 30)
        self.pass_time(100)
        self.store.error = None
        self.pass_time(10)
        came, went = self.successResultOf(Deferred.fromCoroutine(self.store.events(0, 10)))
        self.assertAlmostEqual(came.at, WALL + 500)
        self.assertAlmostEqual(went.at, WALL + 600)
        self.assertAlmostEqual(self.seen("alice").last_seen, WALL + 570)

    def test_an_answer_that_is_lost_does_no_harm(self) -> None:
        for status in ("online", "offline"):
            self.store.loses_answer = True
            self.recorder.note("alice", status)
            self.pass_time(1)
        self.assertEqual(len(self.store.batches), 4)
        self.assertEqual(self.events(), ["alice online", "alice offline"])

    def test_an_outage_is_logged_once_and_loses_nothing(self) -> None:
        with capturedLogs() as logs:
            self.store.error = Unavailable("down")
            for number in range(20):
                self.recorder.note("alice", "offline" if number % 2 else "online")
                self.pass_time(1)
        said = [str(formatEvent(event)) for event in logs]
        self.assertEqual(
            sorted(line for line in said if "failed" in line),
            [
                "To record presence failed, and is tried again: down",
                "To say that this node lives failed, and is tried again: down",
            ],
        )
        self.store.error = None
        self.pass_time(BEAT_EVERY)
        self.assertEqual(self.events(), ["alice online", "alice offline"] * 10)

    def test_who_is_still_here_after_a_long_silence_is_told_of_again(self) -> None:
        self.recorder.note("alice", "online")
        self.recorder.note("bob", "away")
        self.recorder.note("carol", "online")
        self.pass_time(WRITE_EVERY)
        self.store.error = Unavailable("down")
        self.recorder.note("carol", "offline")
        self.pass_time(100)
        self.store.error = None
        # Another node was quicker to take this one for dead, and put its users offline.
        other = Instance("other", "node-b")
        for _ in range(2):
            self.successResultOf(Deferred.fromCoroutine(self.store.beat(other, 0)))
        self.pass_time(2 * BEAT_EVERY)
        self.assertEqual(self.events()[6:], ["alice online", "bob online"])
        self.assertEqual(
            [self.seen(user).status for user in ("alice", "bob", "carol")], ["online", "away", "offline"]
        )
        self.pass_time(2 * LEAST_GRACE)
        self.assertEqual(len(self.events()), 8)

    def test_a_node_that_stood_still_tells_of_its_users_again(self) -> None:
        """It may have been taken for dead, even where it has nothing else to tell."""
        self.recorder.note("alice", "online")
        self.pass_time(2 * BEAT_EVERY)
        self.assertEqual((len(self.store.batches), self.store.lefts), (1, []))
        self.clock.advance(11.0)
        # What happens meanwhile is an event like any other.
        self.recorder.note("bob", "online")
        self.recorder.note("bob", "offline")
        self.pass_time(BEAT_EVERY)
        self.assertEqual((len(self.store.batches), self.store.lefts), (4, [LEAST_GRACE]))
        self.pass_time(2 * LEAST_GRACE)
        self.assertEqual(len(self.store.batches), 4)
        self.assertEqual(self.events(), ["alice online", "bob online", "bob offline"])

    def test_a_queue_that_is_full_has_the_store_told_of_all_who_are_here(self) -> None:
        recorder = self.make(max_queued=3)
        with capturedLogs() as logs:
            self.store.error = Unavailable("down")
            for user_id in ("alice", "bob", "carol", "dora"):
                recorder.note(user_id, "online")
            recorder.note("alice", "offline")
            recorder.note("erin", "online")
            recorder.note("erin", "offline")
            recorder.note("bob", "away")
            self.assertEqual(recorder.waiting, 3)
            self.pass_time(1)
        self.assertEqual(
            [str(formatEvent(event)) for event in logs if "not queued" in str(formatEvent(event))],
            ["Presence: 3 changes wait, more are not queued"],
        )
        self.store.error = None
        self.pass_time(BEAT_EVERY)
        self.assertEqual(self.events(), ["alice online", "bob online", "carol online", "dora online"])
        self.assertEqual(self.store.lefts, [LEAST_GRACE])
        self.pass_time(LEAST_GRACE + BEAT_EVERY)
        self.assertEqual(self.events()[4:], ["alice offline"])
        self.assertEqual([self.seen(user).status for user in ("bob", "carol")], ["away", "online"])
        recorder.note("erin", "online")
        self.pass_time(1)
        self.assertEqual(self.events()[5:], ["erin online"])

    def test_who_has_gone_and_is_not_written_yet(self) -> None:
        self.assertIsNone(self.recorder.gone_at("alice"))
        self.recorder.note("alice", "online")
        self.assertIsNone(self.recorder.gone_at("alice"))
        self.recorder.note("alice", "offline", 123.0)
        self.assertEqual(self.recorder.gone_at("alice"), 123.0)
        self.pass_time(1)
        self.assertIsNone(self.recorder.gone_at("alice"))

    def test_asking_for_nobody_asks_nobody(self) -> None:
        self.store.error = Unavailable("down")
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.recorder.seen([]))), {})

    def test_old_events_are_deleted(self) -> None:
        self.recorder.note("alice", "online")
        self.pass_time(SWEEP_EVERY + 1)
        self.assertEqual(self.store.sweeps, [2 * 86_400.0])
        self.clock.advance(2 * 86_400.0)
        self.pass_time(SWEEP_EVERY + 1)
        self.assertEqual(self.events(), [])

    def test_events_may_be_kept_for_ever(self) -> None:
        self.successResultOf(self.recorder.stopService())
        self.make(retention_days=0.0)
        self.pass_time(2 * SWEEP_EVERY)
        self.assertEqual(self.store.sweeps, [])

    # Its end

    def test_the_stop_writes_what_is_queued_and_gives_users_the_window(self) -> None:
        for number in range(MAX_BATCH + 1):
            self.recorder.note(f"user-{number}", "online")
        self.successResultOf(self.recorder.stopService())
        self.assertEqual(len(self.events()), MAX_BATCH + 1)
        self.assertEqual(self.store.lefts[-1], WINDOW)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(self.recorder.stopService())

    def test_the_stop_waits_for_the_database_within_bounds(self) -> None:
        self.recorder.note("alice", "online")
        self.store.gate = Deferred()
        self.pass_time(WRITE_EVERY)
        stopping = self.recorder.stopService()
        self.assertNoResult(stopping)
        gate, self.store.gate = self.store.gate, Deferred()
        self.recorder.note("bob", "online")
        gate.callback(None)
        self.assertNoResult(stopping)
        with capturedLogs() as logs:
            self.clock.advance(STOP_WITHIN)
            self.successResultOf(stopping)
        self.assertIn("Presence: 1 changes could not be written", str(formatEvent(logs[-1])))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_stop_without_a_database(self) -> None:
        self.recorder.note("alice", "online")
        self.store.error = Unavailable("down")
        self.successResultOf(self.recorder.stopService())
        self.assertEqual((self.events(), self.clock.getDelayedCalls()), ([], []))

    def test_the_next_run_has_another_name_and_finds_the_dead_one(self) -> None:
        self.recorder.note("alice", "online")
        self.recorder.note("bob", "online")
        self.pass_time(1)
        # kill -9: no word any more.
        for call in list(self.clock.getDelayedCalls()):
            call.cancel()
        again = self.make()
        self.assertNotEqual(again.instance.id, self.recorder.instance.id)
        again.note("alice", "online")
        self.pass_time(10.0 - 1)
        self.assertEqual(self.seen("bob").status, "online")
        self.pass_time(1 + BEAT_EVERY + WINDOW + BEAT_EVERY)
        self.assertEqual(self.events(), ["alice online", "bob online", "bob offline"])
        self.pass_time(100)
        self.assertEqual(len(self.events()), 3)
