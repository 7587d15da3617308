"""The file of API keys: what it takes, what it refuses, and how it changes."""

from __future__ import annotations

import stat
from hashlib import sha256
from pathlib import Path

import pytest

from flowtx.errors import StartupError
from flowtx.web.keys import EVERYTHING, MAX_FILE, MAX_KEYS, NOTHING, OWN_NAME, ApiKeys, add_key, read_keys

OWN = "Wb0vZ2llLXdvb2dpZS1idWdsZS1ib3ktMTk0MQ-own"
KEY = "Qm9vZ2llLXdvb2dpZS1idWdsZS1ib3ktMTk0MQ-key"
DIGEST = f"sha256:{sha256(KEY.encode()).hexdigest()}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.touch(0o600)
    return path


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def test_the_own_key_does_everything() -> None:
    keys = ApiKeys(lambda: OWN)
    assert keys.check(bearer(OWN)) == EVERYTHING
    caller = keys.caller(bearer(OWN))
    assert caller is not None
    assert caller.name == OWN_NAME
    assert OWN not in repr(caller)


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Basic " + OWN.encode(),
        OWN.encode(),
        bearer(OWN + "x"),
        bearer(OWN[1:]),
        bearer(sha256(OWN.encode()).hexdigest()),
        b"Bearer \xff\x00",
        bearer(f"{OWN} {OWN}"),
    ],
)
def test_anything_else_does_nothing(header: bytes | None) -> None:
    assert ApiKeys(lambda: OWN).check(header) == NOTHING


def test_the_scheme_may_have_any_case() -> None:
    assert ApiKeys(lambda: OWN).check(b"bEARER  " + OWN.encode()) == EVERYTHING


@pytest.mark.parametrize("shown", [KEY, DIGEST, DIGEST.upper().replace("SHA256", "sha256")])
def test_a_key_and_its_digest_are_the_same(file: Path, shown: str) -> None:
    file.write_text(f"\n# a comment\nbilling\tnotify,read  {shown}\n")
    keys = ApiKeys(lambda: OWN, str(file))
    assert keys.check(bearer(KEY)) == {"notify", "read"}
    assert keys.check(bearer(OWN)) == EVERYTHING
    assert keys.check(bearer(DIGEST)) == NOTHING


def test_admin_brings_the_others_along(file: Path) -> None:
    file.write_text(f"operator admin {DIGEST}")
    assert ApiKeys(lambda: OWN, str(file)).check(bearer(KEY)) == EVERYTHING


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"billing {KEY}", "line 1: it takes NAME SCOPES KEY"),
        (f"{KEY}", "line 1: it takes NAME SCOPES KEY"),
        (f"\nbilling notify {KEY} more", "line 2: it takes NAME SCOPES KEY"),
        (f"a/b notify {KEY}", "line 1: it takes NAME SCOPES KEY"),
        (f"billing all {KEY}", "the key billing has scopes that there are not"),
        (f"billing notify,notify {KEY}", "the key billing has scopes that there are not"),
        (f"billing notify, {KEY}", "the key billing has scopes that there are not"),
        ("billing notify short", "got a secret of 5 bytes"),
        ("billing notify " + "changeme" * 5, "well known or easily guessed"),
        ("billing notify " + "a" * 64, "well known or easily guessed"),
        ("billing notify sha256:abc", "it takes sha256: and 64 hexadecimal digits"),
        (f"billing notify {DIGEST}0", "it takes sha256: and 64 hexadecimal digits"),
        (f"billing notify sha256:{sha256().hexdigest()}", "SHA-256 of an empty text"),
        (f"api-key notify {KEY}", "the name api-key is taken"),
        (f"one notify {KEY}\none read {OWN}", "line 2: the name one is taken"),
        ("one notify ké\n", "is not ASCII text"),
        ("#" * (MAX_FILE + 1), f"larger than {MAX_FILE} bytes"),
        ("".join(f"k{number} read {DIGEST}\n" for number in range(MAX_KEYS + 1)), "it takes 1000"),
    ],
)
def test_what_is_wrong_is_named_without_the_key(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(StartupError) as caught:
        read_keys(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    for secret in (KEY, OWN, DIGEST[7:], "ké"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_file_that_others_can_use_is_refused(file: Path, mode: int) -> None:
    file.write_text(f"billing notify {DIGEST}")
    file.chmod(mode)
    with pytest.raises(StartupError, match=f"mode {mode:04o}.; chmod 600"):
        read_keys(file)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path, "Is a directory|not a file"),
        (tmp_path / "none", "No such file"),
        (Path("a\0b"), "not a path"),
    ):
        with pytest.raises(StartupError, match=said):
            read_keys(path)


def test_keys_change_by_a_reload(file: Path) -> None:
    own = [OWN]
    file.write_text(f"billing notify {DIGEST}\n")
    keys = ApiKeys(lambda: own[0], str(file))
    assert keys.reload() is False
    file.write_text("")
    assert keys.check(bearer(KEY)) == {"notify"}
    assert keys.reload() is True
    assert keys.check(bearer(KEY)) == NOTHING
    own[0] = KEY
    assert keys.reload() is True
    assert (keys.check(bearer(KEY)), keys.check(bearer(OWN))) == (EVERYTHING, NOTHING)


def test_a_reload_that_fails_changes_nothing(file: Path) -> None:
    file.write_text(f"billing notify {DIGEST}\n")
    keys = ApiKeys(lambda: OWN, str(file))
    for text, mode in (("nonsense", 0o600), (f"billing read {DIGEST}", 0o644)):
        file.write_text(text)
        file.chmod(mode)
        with pytest.raises(StartupError):
            keys.reload()
        assert keys.check(bearer(KEY)) == {"notify"}
    file.unlink()
    with pytest.raises(StartupError):
        keys.reload()
    assert keys.check(bearer(KEY)) == {"notify"}


def test_added_keys_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    made = {name: add_key(file, name, frozenset({"read"})) for name in ("one", "two")}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = ApiKeys(lambda: OWN, str(file))
    for name, key in made.items():
        caller = keys.caller(bearer(key))
        assert caller is not None
        assert (caller.name, caller.scopes) == (name, frozenset({"read"}))
        assert key not in file.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_adding_keeps_what_is_there(file: Path) -> None:
    file.write_text(f"# mine\nbilling notify {DIGEST}")  # no end of the line
    add_key(file, "second", frozenset({"admin", "read"}))
    lines = file.read_text().splitlines()
    assert lines[:2] == ["# mine", f"billing notify {DIGEST}"]
    assert lines[2].startswith("second read,admin sha256:")
    before = file.read_text()
    for name in ("billing", "second", "a b", "", "api-key", "x" * 65, "a\nb"):
        with pytest.raises(StartupError):
            add_key(file, name, frozenset({"read"}))
    assert file.read_text() == before
