"""A short search for input that is a fault, and all that longer ones have found: see `tests.fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.search import can_be_guided, kept, search, search_guided
from tests.fuzz.targets import TARGETS, Target

SECONDS = 10


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_good_input(name: str) -> None:
    for data in (*TARGETS[name].seeds, b""):
        TARGETS[name].run(data)


@pytest.mark.parametrize(("name", "file"), kept(), ids=lambda part: getattr(part, "name", part))
def test_what_was_found(name: str, file: Path) -> None:
    TARGETS[name].run(file.read_bytes())


def test_at_random(capsys: pytest.CaptureFixture[str]) -> None:
    tried, found = search(SECONDS)
    with capsys.disabled():
        print(f"\nfuzzed at random: {tried} inputs, {len(TARGETS)} targets")  # noqa: T201
    assert found is None, found
    assert tried > len(TARGETS)


@pytest.mark.skipif(not can_be_guided(), reason="atheris is for Linux on x86-64")
def test_led_by_coverage(capsys: pytest.CaptureFixture[str]) -> None:
    tried, found = search_guided(SECONDS)
    with capsys.disabled():
        print(f"\nfuzzed by coverage: {tried} inputs, {len(TARGETS)} targets")  # noqa: T201
    assert found is None, found
    assert tried > len(TARGETS)


def fails_on_a_digit(data: bytes) -> None:
    assert not any(byte in b"7" for byte in data), "a seven"


def test_a_fault_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "planted", Target(fails_on_a_digit, (b"0123456",)))
    _, found = search(30, ["planted"])
    assert found is not None
    assert (found.target, found.data) == ("planted", b"7")
    assert "a seven" in found.why
