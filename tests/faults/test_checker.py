"""The checker on histories made by hand: each defect turns it red, and by its own name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.checker import Fault, check
from tests.faults.history import History, Join, Outcome, Place, Push, Reader, Row, Seen, Way


def row(seq: int, marker: str, user: str = "ann") -> Row:
    return Row(user, seq, f"id-{user}-{seq}", marker)


def joined(after: int, *seqs: int) -> Join:
    """A join of ann's upon which these seqs came, as they are stored in `good`."""
    join = Join(after)
    for seq in seqs:
        join.take(Seen(seq, f"id-ann-{seq}", f"m{seq}"))
    return join


def good() -> History:
    """What a run without faults leaves: three pushes, one of them rolled back, and an unknown one."""
    places = {"ann": Place(1, "id-ann-1"), "bob": Place(1, "id-bob-1")}
    return History(
        pushes=[
            Push("m1", ("ann", "bob"), Way.HTTP, 1.0, 2.0, Outcome.OK, places),
            Push("m2", ("ann",), Way.SQL, 3.0, 4.0, Outcome.OK, {"ann": Place(2, None)}),
            Push("no", ("ann",), Way.SQL, 5.0, 6.0, Outcome.FAILED),
            Push("m3", ("ann",), Way.SQL, 5.0),
            Push("gone", ("ann",), Way.SQL, 5.0),
            Push("lost", ("ann", "bob"), Way.HTTP, 5.0),
        ],
        readers=[
            Reader("r1", "ann", [joined(0, 1, 2), joined(2, 3)]),
            Reader("r2", "ann", [joined(0, 1, 2), joined(0, 1, 2, 3)]),
            Reader("r3", "bob", [Join(0, [Seen(1, "id-bob-1", "m1")])]),
        ],
        rows=[row(1, "m1"), row(2, "m2"), row(3, "m3"), row(1, "m1", "bob")],
        orders=frozenset({"m2", "m3"}),
    )


def test_a_good_run() -> None:
    verdict = check(good())
    assert verdict.offences == ()
    assert (verdict.pushed, verdict.repeated) == (4, 2)
    assert verdict.counts == "lost 0 · doubled 0 · out of order 0 · phantom 0"


def an_acknowledged_push_is_not_stored(history: History) -> None:
    history.rows.remove(row(1, "m1", "bob"))
    history.readers.pop()


def a_committed_transaction_left_no_notification(history: History) -> None:
    history.rows.remove(row(3, "m3"))
    history.readers = []


def a_committed_transaction_left_no_business_row(history: History) -> None:
    history.orders = frozenset({"m3"})


def an_unknown_push_is_stored_for_one_of_its_users(history: History) -> None:
    history.rows.append(row(2, "lost", "bob"))
    history.readers[2].joins[0].take(Seen(2, "id-bob-2", "lost"))


def a_push_is_not_where_its_writer_was_told(history: History) -> None:
    history.pushes[1].places = {"ann": Place(3, None)}


def a_push_has_another_id_than_its_writer_was_told(history: History) -> None:
    history.pushes[0].places = {"bob": Place(1, "id-bob-9")}


def the_seqs_have_a_hole(history: History) -> None:
    history.rows[2] = row(4, "m3")
    history.readers = []


def a_reader_never_sees_the_last_one(history: History) -> None:
    history.readers[0].joins.pop()


def a_reader_skips_one_for_the_moment(history: History) -> None:
    history.readers[1].joins[0] = joined(0, 2)


def a_push_is_stored_twice(history: History) -> None:
    history.rows.append(row(2, "m1", "bob"))
    history.readers[2].joins[0].take(Seen(2, "id-bob-2", "m1"))


def a_seq_is_stored_twice(history: History) -> None:
    history.rows += [row(4, "lost"), row(1, "lost", "bob")]
    history.readers = []


def a_notification_comes_twice_on_a_connection(history: History) -> None:
    history.readers[0].joins[0] = joined(0, 1, 2, 2)


def a_notification_comes_again_to_a_reader_that_has_it(history: History) -> None:
    history.readers[0].joins[1] = joined(2, 2, 3)


def notifications_come_the_wrong_way_round(history: History) -> None:
    history.readers[0].joins[0] = joined(0, 2, 1)


def a_later_push_has_the_lower_seq(history: History) -> None:
    history.rows[0], history.rows[1] = row(1, "m2"), row(2, "m1")
    history.pushes[0].places = history.pushes[1].places = {}
    history.readers = []


def a_rolled_back_push_is_stored(history: History) -> None:
    history.rows.append(row(4, "no"))
    history.readers = []


def a_rolled_back_business_row_is_stored(history: History) -> None:
    history.orders |= {"no"}


def a_lost_transaction_left_a_notification(history: History) -> None:
    history.rows.append(row(4, "gone"))
    history.readers = []


def a_seq_is_none(history: History) -> None:
    history.rows[3] = row(0, "m1", "bob")
    history.pushes[0].places = {}
    history.readers.pop()


def something_is_stored_that_nobody_pushed(history: History) -> None:
    history.rows.append(row(2, "what", "bob"))
    history.readers.pop()


def a_reader_sees_what_is_not_stored(history: History) -> None:
    history.readers[2].joins[0].take(Seen(2, "id-bob-2", "m9"))


def a_reader_sees_another_content(history: History) -> None:
    history.readers[2].joins[0].seen[0] = Seen(1, "id-bob-1", "m2")


DEFECTS = {
    an_acknowledged_push_is_not_stored: Fault.LOST,
    a_committed_transaction_left_no_notification: Fault.LOST,
    a_committed_transaction_left_no_business_row: Fault.LOST,
    an_unknown_push_is_stored_for_one_of_its_users: Fault.LOST,
    a_push_is_not_where_its_writer_was_told: Fault.LOST,
    a_push_has_another_id_than_its_writer_was_told: Fault.LOST,
    the_seqs_have_a_hole: Fault.LOST,
    a_reader_never_sees_the_last_one: Fault.LOST,
    a_reader_skips_one_for_the_moment: Fault.LOST,
    a_push_is_stored_twice: Fault.DOUBLED,
    a_seq_is_stored_twice: Fault.DOUBLED,
    a_notification_comes_twice_on_a_connection: Fault.DOUBLED,
    a_notification_comes_again_to_a_reader_that_has_it: Fault.DOUBLED,
    notifications_come_the_wrong_way_round: Fault.OUT_OF_ORDER,
    a_later_push_has_the_lower_seq: Fault.OUT_OF_ORDER,
    a_rolled_back_push_is_stored: Fault.PHANTOM,
    a_rolled_back_business_row_is_stored: Fault.PHANTOM,
    a_lost_transaction_left_a_notification: Fault.PHANTOM,
    a_seq_is_none: Fault.PHANTOM,
    something_is_stored_that_nobody_pushed: Fault.PHANTOM,
    a_reader_sees_what_is_not_stored: Fault.PHANTOM,
    a_reader_sees_another_content: Fault.PHANTOM,
}


@pytest.mark.parametrize(("spoil", "fault"), DEFECTS.items(), ids=lambda it: getattr(it, "__name__", ""))
def test_each_defect_is_found_and_nothing_else(spoil: Callable[[History], None], fault: Fault) -> None:
    history = good()
    spoil(history)
    offences = check(history).offences
    assert {offence.fault for offence in offences} == {fault}, offences


def test_pushes_that_overlap_may_have_any_order() -> None:
    history = good()
    a_later_push_has_the_lower_seq(history)
    history.pushes[0] = replace(history.pushes[0], completed_at=3.5)
    assert check(history).offences == ()
