"""Looks for input that is a fault: at random by hypothesis, or led by what code it reaches, by atheris."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from random import SystemRandom
from typing import Final, NamedTuple

from hypothesis import HealthCheck, given, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS: Final = Path(__file__).with_name("corpus")
"""What was found: a directory for each target, whose files are tests for ever."""

BATCH: Final = 40
TOKENS: Final = (
    *b'" \\ \\u0000 \\ud800 \\u00e9 [ ] { } [[ , : . = # \n \r\n \t \0 NaN 1e999 -0 null'.split(b" "),
    *(b" ", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *(b"9" * 40, b"9" * 5_000, b"[" * 40, b"[" * 2_000, b"A" * 300),
)
"""What readers stumble over."""

_random = SystemRandom()


class Found(NamedTuple):
    """An input that is a fault.

    Attributes:
        target: of what.
        data: the input.
        why: what happened.
    """

    target: str
    data: bytes
    why: str

    def keep(self) -> Path:
        """Make it a test."""
        file = CORPUS / self.target / sha256(self.data).hexdigest()[:16]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.data)
        return file


def kept() -> list[tuple[str, Path]]:
    """All that was found before: targets and files."""
    return [(file.parent.name, file) for file in sorted(CORPUS.glob("*/*"))]


@st.composite
def changed(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Good input with a few changes."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((0, 0, 1, 1, 2, 8, 64))))
        piece = draw(st.sampled_from(TOKENS) | st.binary(max_size=4) | st.just(data[start:end] * 2))
        data = data[:start] + piece + data[end:]
    return data


def search(seconds: float, targets: Sequence[str] = tuple(TARGETS)) -> tuple[int, Found | None]:
    """Search at random, by turns.

    Args:
        seconds: for how long; a batch more at the most.
        targets: what is fuzzed.

    Returns:
        How many inputs were tried, and the first that is a fault, made small; or None.
    """
    deadline = time.monotonic() + seconds
    tried = 0
    for name in cycle(targets):
        if time.monotonic() >= deadline:
            break
        more, found = _batch(name)
        tried += more
        if found is not None:
            return tried, found
    return tried, None


def _batch(name: str) -> tuple[int, Found | None]:
    run, seeds = TARGETS[name]
    tried: list[bytes] = []

    @seed(_random.getrandbits(64))
    @hypothesis_settings(
        max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(changed(seeds) | st.binary(max_size=200))
    def once(data: bytes) -> None:
        tried.append(data)
        run(data)

    try:
        once()
    except Exception as problem:
        # The last that hypothesis tries is the smallest that it found.
        return len(tried), Found(name, tried[-1], f"{type(problem).__name__}: {problem}")
    return len(tried), None


# --- led by coverage ----------------------------------------------------------------------------------


def can_be_guided() -> bool:
    """Whether atheris is here; it comes for Linux on x86-64 alone."""
    return find_spec("atheris") is not None


def search_guided(seconds: float, targets: Sequence[str] = tuple(TARGETS)) -> tuple[int, Found | None]:
    """Search by `tests.fuzz.guided`, in a process of its own; see `search`.

    Raises:
        AssertionError: the process failed without an input.
    """
    with tempfile.TemporaryDirectory(prefix="ftx-fuzz-") as place:
        corpus = Path(place, "corpus")
        corpus.mkdir()
        for number, name in enumerate(targets):
            inputs = [*TARGETS[name].seeds, *(file.read_bytes() for known, file in kept() if known == name)]
            for index, data in enumerate(inputs):
                (corpus / f"{number}-{index}").write_bytes(bytes([number]) + data)
        command = [sys.executable, "-m", "tests.fuzz.guided", ",".join(targets), str(corpus)]
        limits = [
            f"-max_total_time={max(1, round(seconds))}",
            "-timeout=20",
            "-rss_limit_mb=2048",
            "-max_len=6000",
        ]
        options = [*limits, f"-artifact_prefix={place}/", "-print_final_stats=1", "-verbosity=1"]
        done = subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds + 120,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        said = done.stdout + done.stderr
        tried = next(
            (int(line.split()[-1]) for line in said.splitlines() if "number_of_executed_units" in line), 0
        )
        artifacts = [file for file in Path(place).iterdir() if file.is_file()]
        if done.returncode and artifacts:
            data = artifacts[0].read_bytes()
            name = targets[data[0] % len(targets)] if data else targets[0]
            start = said.find("=== Uncaught Python exception")
            return tried, Found(name, data[1:], said[max(0, start) :][:3_000])
        assert not done.returncode, said[-3_000:]
    return tried, None
