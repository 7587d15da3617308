"""The guides as a whole: they can be built, and no example of theirs is left unchecked."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.examples import DOCS, examples
from tests.integration.flow_process import Outcome, run

PAGES = sorted(DOCS.glob("*.md"))
README = DOCS.parent / "README.md"
#: Those that nothing runs: other languages, and what only shows a form.
SHOWN = {"", "elixir", "mermaid", "text", "{toctree}"}

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def build(source: Path, target: Path) -> Outcome:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(source), str(target)]
    return run(command, DOCS.parent)


def test_they_are_built_without_a_warning(tmp_path: Path) -> None:
    outcome = build(DOCS, tmp_path / "html")
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, "", "")
    for page in PAGES:
        html = (tmp_path / "html" / f"{page.stem}.html").read_text(encoding="utf-8")
        # Nothing comes from elsewhere.
        assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', html) == []


@pytest.mark.parametrize(
    ("page", "broken"),
    [
        ("channels.md", "[Presence](presences.md)"),
        ("presence.md", "[Notifications](notifications.md#no-such-heading)"),
    ],
)
def test_a_broken_link_is_an_error(tmp_path: Path, page: str, broken: str) -> None:
    source = tmp_path / "docs"
    shutil.copytree(DOCS, source)
    with (source / page).open("a", encoding="utf-8") as file:
        file.write(f"\n{broken}\n")
    outcome = build(source, tmp_path / "html")
    assert outcome.status != 0
    assert page in outcome.stderr


def test_each_example_has_a_name_and_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    untested = [
        f"{page.name}: {name}" for page in PAGES for name in examples(page) if f'"{name}"' not in tests
    ]
    assert untested == []


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    """The language and the text of each fenced block."""
    yield from _FENCE.findall(document.read_text(encoding="utf-8"))


def test_no_example_is_in_a_language_that_nothing_checks() -> None:
    checked = {"sh", "python", "sql", "js"}
    assert {language for page in PAGES for language, _ in blocks(page)} <= checked | SHOWN


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node here")
@pytest.mark.parametrize("document", [*PAGES, README], ids=lambda path: path.name)
def test_javascript_can_be_read(document: Path, tmp_path: Path) -> None:
    for number, text in enumerate(text for language, text in blocks(document) if language == "js"):
        path = tmp_path / f"{number}.mjs"
        path.write_text(text, encoding="utf-8")
        outcome = run(["node", "--check", str(path)], tmp_path)
        assert outcome.status == 0, f"{text}\n{outcome.stderr}"
