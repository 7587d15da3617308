"""The program ``load.c``, built, started and commanded."""

from __future__ import annotations

import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

HERE: Final = Path(__file__).resolve().parent
BUILD: Final = HERE.parents[1] / "build"
AT_ONCE: Final = 50
"""Connections that are under way at once; the backlog of a listening socket in Twisted is as long."""

ANSWER_WITHIN: Final = 600.0


class LoadError(Exception):
    """A client was given what it should not, or in time nothing at all."""


class Done(NamedTuple):
    """What a command of the generator came to.

    Attributes:
        units: of work that were done.
        seconds: how long it took.
        share: of a core that the generator used meanwhile.
        answer: all that it said.
    """

    units: int
    seconds: float
    share: float
    answer: dict[str, Any]


def build(name: str) -> Path:
    """Compile a program of this directory, unless it is there and newer than its source; where it is."""
    source, program = HERE / f"{name}.c", BUILD / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        made = program.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", str(made), str(source)], check=True)
        made.replace(program)
    return program


class Generator:
    """The program, from ``with`` to its end.

    Args:
        users: a file with lines of a user's id and token.
        skipped: so many of them, from the first on.
        cores: where it may run; None for anywhere.
    """

    def __init__(self, users: Path, cores: set[int] | None = None, *, skipped: int = 0) -> None:
        self._users = f"{skipped} {users}"
        self._cores = cores
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen([str(build("load"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._cores is not None:
            os.sched_setaffinity(self._process.pid, self._cores)
        self.command(f"users {self._users}")
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        assert process is not None, "it was not started"
        process.kill()  # its sockets end with it
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None, "both ends are pipes"
            pipe.close()

    def command(self, text: str) -> Done:
        """Give one command (the head of ``load.c`` has them all) and wait for its answer.

        Raises:
            LoadError: it failed.
        """
        self.begin(text)
        return self.finish()

    def begin(self, text: str) -> None:
        """Give a command whose answer `finish` waits for."""
        assert self._process is not None, "it does not run"
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.write(text.encode() + b"\n")
        self._process.stdin.flush()

    def finish(self) -> Done:
        """Wait for the answer to what was begun.

        Raises:
            LoadError: it failed, or does not answer.
        """
        assert self._process is not None, "it does not run"
        assert self._process.stdout is not None, "it is a pipe"
        if not select.select([self._process.stdout], [], [], ANSWER_WITHIN)[0]:
            raise LoadError(f"the generator did not answer within {ANSWER_WITHIN:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise LoadError(f"the generator ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise LoadError(answer["error"])
        share = answer["cpu"] / answer["seconds"] if answer["seconds"] else 0.0
        return Done(answer["count"], answer["seconds"], share, answer)
