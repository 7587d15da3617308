"""Which pages may call, and by which names: what a process cannot be asked for, without a browser."""

from __future__ import annotations

import pytest
from twisted.web.test.requesthelper import DummyRequest

from flowtx.config import load
from flowtx.errors import ConfigError
from flowtx.web.browsers import is_of_other_site, is_own_host, own_hosts


def is_refused(**headers: str) -> bool:
    request = DummyRequest([b""])
    for name, value in headers.items():
        request.requestHeaders.addRawHeader(name.replace("_", "-"), value)
    return is_of_other_site(request)  # type: ignore[arg-type]


def test_programs_are_let_in() -> None:
    assert not is_refused()
    assert not is_refused(host="flow.example:4001")


def test_the_own_page_is_let_in() -> None:
    for host, origin in (
        ("flow.example:4001", "http://flow.example:4001"),
        ("Flow.Example", "https://flow.example"),
        ("[::1]:4001", "http://[::1]:4001"),
    ):
        assert not is_refused(host=host, origin=origin, sec_fetch_site="same-origin")
        assert is_refused(host=host, origin=origin, sec_fetch_site="same-site")


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://",
        "http://flow.example",
        "http://flow.example:4002",
        "http://user@flow.example:4001",
        "http://[",
        "ws://flow.example:4001",
        "http://flow.example:4001/page",
        "http://flow.example:4001 x",
    ],
)
def test_other_pages_are_refused(origin: str) -> None:
    assert is_refused(host="flow.example:4001", origin=origin)
    assert is_refused(origin=origin)


@pytest.mark.parametrize(
    ("admin", "names"),
    [
        ("tcp:4001:interface=127.0.0.1", frozenset()),
        (r"tcp6:4001:interface=\:\:1", frozenset()),
        ("tcp:4001:interface=localhost", frozenset()),
        ("tcp:4001", None),
        ("tcp:4001:interface=0.0.0.0", None),
        ("tcp:4001:interface=10.0.0.7", None),
        ("unix:/run/flowtx", None),
    ],
)
def test_names_are_checked_where_only_this_machine_comes(admin: str, names: frozenset[str] | None) -> None:
    assert own_hosts(load({"admin": admin}, {})) == names


def test_names_can_be_given() -> None:
    settings = load({"admin-hosts": "Admin.Example, flow"}, {})
    names = own_hosts(settings)
    assert names == frozenset({"admin.example", "flow"})
    for host in (
        b"admin.example",
        b"ADMIN.example:443",
        b"flow:4001",
        b"localhost",
        b"10.1.2.3",
        b"[fe80::1]:80",
    ):
        assert is_own_host(host, names), host
    for host in (b"", b"other", b"admin.example.evil", b"evil-localhost", b"[", b"\xff", b"127.0.0.1.evil"):
        assert not is_own_host(host, names), host
    with pytest.raises(ConfigError):
        load({"admin-hosts": ","}, {})
