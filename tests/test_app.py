"""The application that a server runs: how it is found, and what is said of one that cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest

from flowtx.app import RESERVED, Services, load_app, router_of
from flowtx.channels.channel import Channel
from flowtx.channels.router import Router
from flowtx.cli import main
from flowtx.config import load
from flowtx.errors import ConfigError
from flowtx.tap import Options

SERVICES = cast("Services", object())
_numbers = count(1)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path


def module(directory: Path, text: str) -> str:
    """Write a module of a name that no other has."""
    name = f"application{next(_numbers)}"
    (directory / f"{name}.py").write_text(text)
    return name


def problem(call: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        call(*arguments)
    text = str(raised.value)
    assert "\n" not in text
    return text


ROUTER = "from flowtx import Channel, Router\nrouter = Router().channel('room:*', Channel)\n"


def test_a_router_in_the_current_directory(directory: Path) -> None:
    app = load_app(f"{module(directory, ROUTER)}:router")
    router = router_of(app, SERVICES)
    assert [str(pattern) for pattern in router.patterns] == ["room:*"]
    assert sys.path.count(str(directory)) == 1
    load_app(f"{module(directory, ROUTER)}:router")
    assert sys.path.count(str(directory)) == 1


def test_a_function_is_given_the_services(directory: Path) -> None:
    text = ROUTER + "given = []\ndef make(services):\n    given.append(services)\n    return router\n"
    name = module(directory, text)
    app = load_app(f"{name}:make")
    assert sys.modules[name].given == []
    assert isinstance(router_of(app, SERVICES), Router)
    assert sys.modules[name].given == [SERVICES]


def test_a_module_in_a_package_and_a_name_in_a_class(directory: Path) -> None:
    package = directory / f"package{next(_numbers)}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "channels.py").write_text(ROUTER + "class Crm:\n    routes = router\n")
    assert isinstance(load_app(f"{package.name}.channels:Crm.routes"), Router)


@pytest.mark.parametrize(
    "text",
    ["crm", "crm:", ":router", "crm/channels:router", "crm.py:router:x", "1crm:router", "crm..x:y", "a b:c"],
)
def test_another_form(text: str) -> None:
    assert f"--app: got {text!r}; it takes MODULE:NAME" in problem(load, {"app": text}, {})


def test_no_such_module(directory: Path) -> None:
    text = problem(load_app, "nosuch:router")
    assert text.startswith("--app: got 'nosuch:router', but there is no module 'nosuch', in ")
    assert str(directory) in text
    text = problem(load_app, f"{module(directory, ROUTER)}.sub:router")
    assert "cannot be imported" in text or "there is no module" in text


def test_a_module_that_needs_one_that_is_not_there(directory: Path) -> None:
    name = module(directory, "\n\nimport nosuch\n")
    text = problem(load_app, f"{name}:router")
    assert text == (
        f"--app: '{name}' cannot be imported: ModuleNotFoundError: No module named 'nosuch' "
        f"({directory / name}.py, line 3)"
    )


@pytest.mark.parametrize(
    ("source", "expected", "line"),
    [
        ("x = 1\nraise RuntimeError('two\\n  lines')\n", "RuntimeError: two lines", 2),
        ("def f():\n    return 1 / 0\nf()\n", "ZeroDivisionError: division by zero", 2),
        ("x = (1,\n", "SyntaxError: '(' was never closed", 1),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3", 2),
    ],
)
def test_an_exception_while_it_is_imported(directory: Path, source: str, expected: str, line: int) -> None:
    name = module(directory, source)
    text = problem(load_app, f"{name}:router")
    assert text == f"--app: '{name}' cannot be imported: {expected} ({directory / name}.py, line {line})"


def test_no_such_name(directory: Path) -> None:
    name = module(directory, ROUTER)
    assert problem(load_app, f"{name}:routes") == f"--app: got '{name}:routes', but '{name}' has no 'routes'"
    assert "has no 'router.x'" in problem(load_app, f"{name}:router.x")


@pytest.mark.parametrize(
    ("name", "kind"), [("Channel", "the class Channel"), ("Router", "the class Router"), ("n", "of type int")]
)
def test_another_type(directory: Path, name: str, kind: str) -> None:
    whole = f"{module(directory, ROUTER + 'n = 5')}:{name}"
    expected = (
        f"--app: {whole!r} is {kind}; it takes a Router, or a function of the services that returns one"
    )
    assert problem(load_app, whole) == expected


@pytest.mark.parametrize(
    "pattern",
    ["user:*", "user:42", "us*", "users:online", "group:*", "group:sales", "phoenix", "users_socket:1"],
)
def test_topics_of_flowtx(directory: Path, pattern: str) -> None:
    text = ROUTER.replace("room:*", pattern) + "def make(services): return router\n"
    name = module(directory, text)
    text = problem(load_app, f"{name}:router")
    assert text.startswith(f"--app: the pattern {pattern!r} takes topics of ")
    assert problem(router_of, load_app(f"{name}:make"), SERVICES) == text


def test_topics_that_only_look_like_flowtxs() -> None:
    router = Router()
    for pattern in ("users:offline", "usergroup:*", "groups", "phoenix:*", "room:*"):
        router.channel(pattern, Channel)
    assert router_of(router, SERVICES) is router
    assert len(RESERVED) == 5


async def make_later(services: Services) -> Router:
    return Router()


def test_a_function_that_fails_or_gives_something_else() -> None:
    def make(services: Services) -> Router:
        raise LookupError("no settings")

    text = problem(router_of, make, SERVICES)
    assert ".make failed: LookupError: no settings (" in text
    assert f"{__file__}, line" in text
    nothing: Any = lambda services: None  # noqa: E731
    assert problem(router_of, nothing, SERVICES).endswith(" gave a NoneType; it takes a Router")
    later: Any = make_later
    assert problem(router_of, later, SERVICES) == "--app: make_later gave a coroutine; it takes a Router"


def test_check_config_says_it(directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("FLOWTX_APP", "nosuch:router")
    assert main(["check-config"]) == 1
    assert capsys.readouterr().err.startswith("flowtx: --app: got 'nosuch:router'")
    monkeypatch.setenv("FLOWTX_APP", f"{module(directory, ROUTER)}:router")
    assert main(["check-config"]) == 0


def test_twistd_says_it_before_anything_starts(directory: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions(["--app", "nosuch:router"])
    assert str(ended.value).startswith("flowtx: --app: got 'nosuch:router'")
    Options().parseOptions(["--app", f"{module(directory, ROUTER)}:router"])
