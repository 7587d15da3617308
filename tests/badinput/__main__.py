"""``python -m tests.badinput``: tries all bad input and prints the table."""

from __future__ import annotations

import sys

import pytest

sys.exit(pytest.main(["tests/badinput", "-v", "-s", "-p", "no:cacheprovider", *sys.argv[1:]]))
