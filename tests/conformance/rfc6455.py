"""The cases of the Autobahn|Testsuite for RFC 6455, fetched from PyPI and made to run on this Python.

They are Python 2 code: `lib2to3`, which Python has up to 3.12, rewrites them, and what it cannot know about
text and bytes is mended here. A case holds all data as text of one character a byte (Latin-1); the client
in `tests.conformance.rfc6455_client` turns it into bytes and back.
"""

from __future__ import annotations

import binascii
import importlib
import re
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

VERSION: Final = "25.10.1"
SHA256: Final = "b083d6e15330fc16f3e5f0975cce2b15f21bfa0c6db09547316b1852c6dbd6df"
GROUPS: Final = ("1", "2", "3", "4", "5", "6", "7", "9", "10")
COUNT: Final = 301

_PACKAGE: Final = "autobahn_cases"
_FETCH_WITHIN: Final = 120
_LEFT_OUT: Final = re.compile(r"case(9_9|12|13)_")  # never run by the suite, and about compression
_REPLACEMENTS: Final = (
    ("import binascii", "from tests.conformance import rfc6455 as binascii"),
    (
        "from autobahn.websocket.utf8validator import Utf8Validator",
        "from tests.conformance.rfc6455 import Utf8Validator",
    ),
    ("(object, Case, )", "(Case,)"),
    ("len(self.payload) / self.p", "len(self.payload) // self.p"),
)


class CasesError(Exception):
    """The cases cannot be had."""


def load(directory: Path) -> Mapping[str, Any]:
    """Load the cases, by their ids, such as ``5.19``.

    Args:
        directory: where they are kept once they were fetched.

    Raises:
        CasesError: PyPI cannot be reached, or this Python has no ``lib2to3``.
    """
    package = directory / _PACKAGE
    if not (package / "__init__.py").exists():
        _convert(_fetch(directory), package)
    sys.path.insert(0, str(directory))
    try:
        classes = importlib.import_module(_PACKAGE).Cases
    finally:
        sys.path.remove(str(directory))
    return {one.__name__.removeprefix("Case").replace("_", "."): one for one in classes}


def _fetch(directory: Path) -> Path:
    wanted = directory / "requirements.txt"
    wanted.write_text(f"autobahntestsuite=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    command += [f"--dest={directory}", f"--requirement={wanted}"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_FETCH_WITHIN)
    except subprocess.TimeoutExpired:
        raise CasesError(f"PyPI did not give them within {_FETCH_WITHIN} s") from None
    if done.returncode:
        raise CasesError(f"pip: {done.stderr[-500:]}")
    return directory / f"autobahntestsuite-{VERSION}.tar.gz"


def _convert(archive: Path, package: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from lib2to3.refactor import RefactoringTool, get_fixers_from_package
    except ImportError:
        raise CasesError("they are converted by lib2to3, which this Python does not have") from None
    tool = RefactoringTool(get_fixers_from_package("lib2to3.fixes"))
    sources: dict[str, str] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if path.parent.name == "case" and path.suffix == ".py" and not _LEFT_OUT.match(path.name):
                data = tar.extractfile(member)
                assert data is not None
                sources[path.name] = data.read().decode("latin-1")
    package.mkdir(exist_ok=True)
    # The package itself comes last: without it the conversion is begun anew.
    for name in sorted(sources, key=lambda name: name == "__init__.py"):
        text = sources[name]
        if name == "__init__.py":
            text = re.sub(r"^.*(Case1[23]_|case12|case9_9).*$", "", text, flags=re.MULTILINE)
        text = str(tool.refactor_string(text.rstrip() + "\n", name))
        # Siblings, which Python 2 found without the dot.
        text = re.sub(r"^from (case\w*) import", r"from .\1 import", text, flags=re.MULTILINE)
        for old, new in _REPLACEMENTS:
            text = text.replace(old, new)
        (package / name).write_text(text, encoding="utf-8")


# What the cases import, for text of one character a byte


def b2a_hex(text: str | bytes) -> str:
    """As in `binascii`."""
    return binascii.b2a_hex(text if isinstance(text, bytes) else text.encode("latin-1")).decode()


class Utf8Validator:
    """As in Autobahn, as far as the cases go."""

    def reset(self) -> None:
        self._seen = b""

    def validate(self, text: str) -> tuple[bool, bool]:
        """Whether it is UTF-8 so far, and whether it ends on a whole character."""
        data = text.encode("latin-1")
        try:
            data.decode()
        except UnicodeDecodeError as error:
            cut = error.reason == "unexpected end of data"
            return cut, False
        return True, True
