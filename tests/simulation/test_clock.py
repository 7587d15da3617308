"""The time of the simulation."""

from __future__ import annotations

from random import Random

from tests.simulation.clock import NodeClock, Time


def order(seed: int) -> list[int]:
    """The order in which ten calls are made that are due at one time."""
    clock = NodeClock(Time(Random(seed)))
    made: list[int] = []
    for number in range(10):
        clock.callLater(1.0, made.append, number)
    clock.advance(1.0)
    assert sorted(made) == list(range(10))
    return made


def test_chance_chooses_among_what_is_due_at_one_time() -> None:
    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(20)}) == 20


def test_what_is_due_is_done_in_the_order_of_time() -> None:
    clock = NodeClock(Time(Random(1)))
    made: list[float] = []
    for due in (3.0, 1.0, 2.0, 5.0):
        clock.callLater(due, lambda: made.append(clock.seconds()))
    put_off = clock.callLater(0.5, lambda: made.append(clock.seconds()))
    put_off.delay(2.0)
    clock.callLater(4.0, made.append, -1.0).cancel()
    sooner = clock.callLater(9.0, lambda: made.append(clock.seconds()))
    sooner.reset(0.25)
    clock.advance(4.5)
    assert made == [0.25, 1.0, 2.0, 2.5, 3.0]
    assert len(clock.getDelayedCalls()) == 1


def test_a_frozen_clock_does_later_what_was_due_in_its_order() -> None:
    time = Time(Random(1))
    frozen, other = NodeClock(time), NodeClock(time)
    made: list[tuple[str, float]] = []
    frozen.callLater(2.0, lambda: made.append(("second", time.now)))
    frozen.callLater(1.0, lambda: made.append(("first", time.now)))
    other.callLater(1.5, lambda: made.append(("other", time.now)))
    frozen.freeze()
    other.advance(5.0)
    assert made == [("other", 1.5)]
    frozen.thaw()
    other.advance(0.0)
    assert made[1:] == [("first", 5.0), ("second", 5.0)]


def test_a_dead_clock_does_nothing() -> None:
    time = Time(Random(1))
    dead, other = NodeClock(time), NodeClock(time)
    made: list[str] = []
    dead.callLater(1.0, made.append, "dead")
    dead.die()
    dead.callLater(1.0, made.append, "dead")
    other.advance(5.0)
    assert made == []


def test_calls_may_be_late_but_not_those_that_are_due_at_once() -> None:
    clock = NodeClock(Time(Random(1)), lambda: 0.5)
    made: list[float] = []
    clock.callLater(0, lambda: made.append(clock.seconds()))
    clock.callLater(1.0, lambda: made.append(clock.seconds()))
    clock.advance(3.0)
    assert made == [0.0, 1.5]
