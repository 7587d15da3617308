"""The guide to notifications: the consumer that sends e-mails for what reached nobody."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import pytest

from tests.docs.examples import Example, Reader
from tests.integration.flow_process import eventually, run_sql


class Mailers:
    """Consumers, as the role of the example."""

    def __init__(self, reader: Reader, example: Example) -> None:
        self._owner = reader
        self._reader = reader.logged_in_as("mailer")
        self._example = example
        self._output = reader.directory / "e-mails"
        self._output.touch()

    @contextmanager
    def running(self, number: int) -> Iterator[None]:
        """Run some of them at once; Ctrl-C ends them."""
        with ExitStack() as stack:
            for _ in range(number):
                stack.callback(_end, self._reader.start(self._example, self._output))
            yield

    def caught_up(self) -> None:
        """Wait until the cursor is where the view ends."""
        statement = """
            SELECT c.number = (SELECT max(number) FROM flow.undelivered) FROM email_cursor c
        """
        eventually(
            lambda: run_sql(self._owner.database_url, statement) == [(True,)],
            "the mailers catch up",
            20,
            0.05,
        )

    def sent(self) -> list[str]:
        """The ids of the notifications that e-mails were sent for."""
        lines = self._output.read_text(encoding="utf-8").splitlines()
        return [line.split()[1] for line in lines if line.startswith("e-mail ")]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    process.wait(20)


@pytest.fixture
def mailers(reader: Reader, guide: Mapping[str, Example]) -> Mailers:
    reader.succeed(guide["mailer-grants"])
    return Mailers(reader, guide["mailer"])


def push(reader: Reader, count: int) -> list[str]:
    """Push to nobody who is here, and let the time pass; the ids."""
    statement = "SELECT id::text FROM flow.notify_many(ARRAY['42', '43'], 'deal.won', '{}')"
    rows = [row for _ in range(count) for row in run_sql(reader.database_url, statement)]
    ((found,),) = run_sql(reader.database_url, "SELECT flow.find_undelivered(0, 1000)")
    assert found == len(rows)
    return sorted(row[0] for row in rows)


def test_each_notification_gets_one_email(reader: Reader, mailers: Mailers) -> None:
    pushed = push(reader, 3)
    with mailers.running(1):
        mailers.caught_up()
        # It waits now, or soon; what comes meanwhile wakes it.
        pushed += push(reader, 1)
        mailers.caught_up()
    with mailers.running(2):
        for _ in range(5):
            pushed += push(reader, 4)
        mailers.caught_up()
    assert sorted(mailers.sent()) == sorted(pushed)


def test_nobody_who_came_back_gets_one(reader: Reader, mailers: Mailers) -> None:
    pushed = push(reader, 1)
    statement = "UPDATE flow.notifications SET delivered_at = now() WHERE id = %s"
    run_sql(reader.database_url, statement, pushed[0])
    with mailers.running(1):
        mailers.caught_up()
    assert mailers.sent() == pushed[1:]


def test_what_was_undelivered_before_is_left_alone(reader: Reader, guide: Mapping[str, Example]) -> None:
    push(reader, 2)
    reader.succeed(guide["mailer-grants"])
    assert run_sql(reader.database_url, "SELECT number FROM email_cursor") == run_sql(
        reader.database_url, "SELECT max(number) FROM flow.undelivered"
    )
