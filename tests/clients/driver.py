"""Drives a client in a process of its own: a command a line in, an event a line out, both JSON."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

PATIENCE = 15.0
"""Seconds that an event may take to come."""

Event = dict[str, Any]


class Client:
    """One client.

    Args:
        command: what to run.

    Attributes:
        events: all that it has told so far, in order.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.events: list[Event] = []
        self._taken: set[int] = set()
        self._told = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            with self._told:
                self.events.append(event)
                self._told.notify_all()
        with self._told:
            self._ended = True
            self._told.notify_all()

    def do(self, command: str, **options: object) -> None:
        """Give a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **options}) + "\n")
        self._process.stdin.flush()

    def expect(self, what: str, **fields: object) -> Event:
        """Wait for an event and take it: the next of its kind, with these fields, not taken before."""
        wanted = {"what": what, **fields}
        deadline = time.monotonic() + PATIENCE
        with self._told:
            while True:
                for number, event in enumerate(self.events):
                    if number not in self._taken and wanted.items() <= _hashable(event, wanted):
                        self._taken.add(number)
                        return event
                remaining = deadline - time.monotonic()
                if self._ended or remaining <= 0:
                    why = "it has ended" if self._ended else f"{PATIENCE:.0f} s are up"
                    raise AssertionError(f"{wanted} did not come, {why}; the client told {self.events}")
                self._told.wait(remaining)

    def forget(self) -> None:
        """Take all that it has told so far."""
        with self._told:
            self._taken.update(range(len(self.events)))

    def untaken(self, what: str) -> list[Event]:
        """Tell the events of a kind that were not taken."""
        with self._told:
            return [
                event
                for number, event in enumerate(self.events)
                if number not in self._taken and event["what"] == what
            ]

    def all(self, what: str, **fields: object) -> list[Event]:
        """Tell all events of a kind so far, taken or not."""
        wanted = {"what": what, **fields}
        with self._told:
            return [event for event in self.events if wanted.items() <= _hashable(event, wanted)]

    def close(self) -> None:
        """End its process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(5)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        self._process.stdout.close()


def _hashable(event: Event, wanted: Event) -> Any:
    return {name: event[name] for name in wanted if name in event}.items()
