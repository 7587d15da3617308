"""What is published: built as a release is, and installed into environments that have nothing else."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from flowtx.config import load
from tests.integration.blocking_client import connected
from tests.integration.flow_process import FlowProcess, Outcome, run
from tests.integration.test_process import GARBAGE, ROOT

OURS = f"{sys.version_info.major}.{sys.version_info.minor}"
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
NAMES_VERSION = "import sys, venv; print('%d.%d' % sys.version_info[:2])"


class Release(NamedTuple):
    """The two files of a release."""

    wheel: Path
    sdist: Path


def interpreters() -> dict[str, str]:
    """Find a CPython of each supported version, this one for its own."""
    found = {OURS: sys.executable}
    for version in SUPPORTED:
        places = [Path(place) for place in os.get_exec_path()]
        places += sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin"), reverse=True)
        for place in [place / f"python{version}" for place in places]:
            if version not in found and place.is_file():
                outcome = run([str(place), "-c", NAMES_VERSION], Path.home())
                if outcome.stdout.strip() == version:
                    found[version] = str(place)
    return found


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Made by ``python -m build``: the sdist, and the wheel out of the sdist."""
    source = tmp_path_factory.mktemp("release") / "a checkout"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*GARBAGE))
    built = run([sys.executable, "-m", "build", "--outdir=dist", "."], source, seconds=300)
    assert built.status == 0, built
    (wheel,), (sdist,) = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    return Release(wheel, sdist)


def make_environment(place: Path, python: str = sys.executable, *what: str) -> Path:
    """Make an environment with nothing in it but what pip puts there; its directory of programs."""
    place.parent.mkdir(parents=True, exist_ok=True)
    made = run([python, "-m", "venv", "--without-pip", str(place)], place.parent)
    assert made.status == 0, made
    pip(place / "bin", "install", "--no-compile", *what)
    return place / "bin"


def pip(programs: Path, *arguments: str) -> Outcome:
    outcome = run([*PIP, f"--python={programs / 'python'}", *arguments], programs, seconds=400)
    assert outcome.status == 0, outcome
    return outcome


def do(programs: Path, *command: str) -> str:
    """Run a program of an environment; what it prints."""
    outcome = run([str(programs / command[0]), *command[1:]], programs.parent, {"PATH": os.defpath})
    assert (outcome.status, outcome.stderr) == (0, ""), outcome
    return outcome.stdout


@pytest.fixture(scope="module")
def installed(release: Release, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel in an environment of each interpreter, with its dependencies; by version."""
    place = tmp_path_factory.mktemp("installed")

    def install(version: str, python: str) -> Path:
        return make_environment(place / f"flowtx on {version}", python, str(release.wheel))

    found = interpreters()
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(install, found.keys(), found.values()))
    return dict(zip(found, made, strict=True))


def sources() -> Iterator[str]:
    """The files of the project, by their paths."""
    # Trial's mktemp leaves directories named after the modules of the tests.
    ignored = shutil.ignore_patterns(*GARBAGE, "*.pyc", "*.pid", "*.log", "tests.*")
    for place, folders, files in os.walk(ROOT):
        skipped = ignored(place, [*folders, *files])
        folders[:] = [name for name in folders if name not in skipped]
        yield from (str((Path(place) / name).relative_to(ROOT)) for name in files if name not in skipped)


# --- what is in it ------------------------------------------------------------------------------------


def test_sdist_has_all_that_building_and_testing_need(release: Release, tmp_path: Path) -> None:
    with tarfile.open(release.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    assert [name for name in sources() if name not in names] == []
    assert [name for name in names if "node_modules" in name or name.endswith(("dropin.cache", ".pyc"))] == []
    (directory,) = tmp_path.iterdir()
    # All tests can be collected there, and some be run.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    collected = run([*command, "--collect-only", "tests"], directory, seconds=120)
    assert collected.status == 0, collected.stdout[-3000:]
    tested = run([*command, "tests/test_limits.py", "tests/protocol"], directory, seconds=120)
    assert tested.status == 0, tested.stdout[-3000:]


def test_classifiers(installed: dict[str, Path]) -> None:
    code = (
        "from importlib.metadata import metadata; print(*metadata('flowtx').get_all('Classifier'), sep=';')"
    )
    said = do(installed[OURS], "python", "-c", code).strip().split(";")
    assert {f"Programming Language :: Python :: {version}" for version in SUPPORTED} <= set(said)
    assert "Framework :: Twisted" in said


# --- installed ----------------------------------------------------------------------------------------


def test_each_interpreter_that_is_here(installed: dict[str, Path]) -> None:
    for version, programs in installed.items():
        assert do(programs, "python", "-c", NAMES_VERSION).strip() == version
        assert re.fullmatch(r"flowtx [0-9.]+\n", do(programs, "flowtx", "version"))
        assert "--max-topics" in do(programs, "twistd", "flow", "--help")
        assert do(programs, "flowtx", "example-config") == (ROOT / "flow.toml.example").read_text()
        assert do(programs, "flowtx", "check-config", "--data-dir", "none").startswith("good: ")
        pip(programs, "check")


def test_wheel_runs(installed: dict[str, Path], tmp_path: Path) -> None:
    for version, programs in installed.items():
        runs(programs, tmp_path / f"a place for {version}")


def runs(programs: Path, place: Path) -> None:
    """Start the server of an environment twice, on its embedded database; be sent something in between."""
    twistd = [str(programs / "python"), str(programs / "twistd")]
    with FlowProcess(place, twistd=twistd) as server:
        user = server.new_user()
        assert server.push(user) == 1
        with connected(server.socket_url, server.token(user)) as client:
            joined = client.join(f"user:{user}")
            assert (joined["status"], joined["response"]["unread"]) == ("ok", 1)
        assert server.stop() in (0, -15)
        server.start()


def test_sdist_can_be_installed(release: Release, installed: dict[str, Path], tmp_path: Path) -> None:
    programs = make_environment(tmp_path / "of the sdist", sys.executable, "--no-deps", str(release.sdist))
    others(programs, installed[OURS])
    assert do(programs, "flowtx", "version").startswith("flowtx ")
    where = do(programs, "python", "-c", "import flowtx.tap; print(flowtx.tap.__file__)")
    assert where.startswith(str(programs.parent))
    assert "--max-topics" in do(programs, "twistd", "flow", "--help")
    runs(programs, tmp_path / "a place")


def others(programs: Path, source: Path) -> None:
    """Let an environment use what another one has, its programs too."""
    (site_packages,) = programs.parent.glob("lib/python*/site-packages")
    (there,) = source.parent.glob("lib/python*/site-packages")
    (site_packages / "others.pth").write_text(f"{there}\n")
    if not (programs / "twistd").exists():
        script = (source / "twistd").read_text().partition("\n")[2]
        (programs / "twistd").write_text(f'#!/bin/sh\n"exec" "{programs / "python"}" "$0" "$@"\n{script}')
        (programs / "twistd").chmod(0o755)


def test_uninstalled(release: Release, installed: dict[str, Path]) -> None:
    programs = installed[OURS]
    pip(programs, "uninstall", "--yes", "flowtx")
    try:
        listed = do(programs, "twistd", "--help")
        assert re.search(r"^ +web ", listed, re.MULTILINE)
        assert not re.search(r"^ +flow ", listed, re.MULTILINE)
        assert not list(programs.parent.glob("lib/python*/site-packages/flowtx*"))
        assert "tls" in do(programs, "python", "-c", "from twisted.internet import ssl; print('tls')")
    finally:
        pip(programs, "install", "--no-deps", str(release.wheel))


# --- the container ------------------------------------------------------------------------------------


def instructions() -> Iterator[tuple[str, str]]:
    """Read the Dockerfile; no daemon is needed."""
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", "")
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            instruction, _, rest = line.partition(" ")
            yield instruction, rest.strip()


def words(text: str) -> list[str]:
    """Read a command in the form of a list."""
    return re.findall(r'"([^"]*)"', text)


def test_dockerfile(release: Release, installed: dict[str, Path], tmp_path: Path) -> None:
    found = list(instructions())
    last_stage = found[max(number for number, (name, _) in enumerate(found) if name == "FROM") :]
    assert all(re.match(r"python:3\.1[1-4]-slim\b", rest) for name, rest in found if name == "FROM")
    kept = dict(last_stage)
    assert kept["USER"] == "flowtx"
    assert kept["STOPSIGNAL"] == "SIGTERM"
    assert kept["EXPOSE"] == "4000 4001"
    variables = dict(rest.split("=", 1) for name, rest in last_stage if name == "ENV")
    settings = load({}, variables)  # each of them is a setting
    assert (settings.data_dir, settings.listen, settings.admin) == (kept["VOLUME"], ("tcp:4000",), "tcp:4001")

    # The commands that install it do; then the command that runs it, and the one that asks after its health.
    place = tmp_path / "opt"
    with tarfile.open(release.sdist) as archive:
        archive.extractall(tmp_path / "src", filter="data")
    (source,) = (tmp_path / "src").iterdir()
    installs = [rest for name, rest in found if name == "RUN" and "/opt/flowtx" in rest]
    assert installs == ["python -m venv /opt/flowtx", "/opt/flowtx/bin/pip install --no-cache-dir /src"]
    programs = make_environment(place, sys.executable, "--no-deps", str(source))
    others(programs, installed[OURS])
    command = words(kept["CMD"])
    assert command[0] == "twistd"
    health = words(kept["HEALTHCHECK"].partition("CMD")[2])
    server = FlowProcess(tmp_path / "run", twistd=[str(programs / "python"), str(programs / command[0])])
    port = server.admin_url.rpartition(":")[2]
    assert command[1:] == ["--nodaemon", "--pidfile=", "flow"] == server._command[2:5]
    check = [str(programs / health[0]), *(word.replace("4001", port) for word in health[1:])]
    assert run(check, tmp_path).status != 0
    with server:
        assert run(check, tmp_path).status == 0
    assert run(check, tmp_path).status != 0
