"""Fault points are for simulations alone: no server ever has anything go wrong at them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from flowtx import faultpoints
from tests.simulation.nemesis import PLACES

PACKAGE = Path(faultpoints.__file__).parent


def test_nobody_decides() -> None:
    assert faultpoints.active is None


def test_nothing_in_flowtx_sets_who_decides() -> None:
    setting = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [getattr(target, "attr", getattr(target, "id", None)) for target in targets]
            if "active" in names and (path.name == "faultpoints.py" or "faultpoints" in ast.unparse(node)):
                setting.append(f"{path.name}: {ast.unparse(node)}")
    assert setting == ["faultpoints.py: active: Faults | None = None"]


def test_all_places_are_known_to_the_simulation() -> None:
    found = [
        place
        for path in PACKAGE.rglob("*.py")
        if path.name != "faultpoints.py"
        for place in re.findall(r"faultpoints\.active\.(?:stall|strikes)\(\"([a-z.]+)\"\)", path.read_text())
    ]
    assert sorted(found) == sorted(PLACES)
