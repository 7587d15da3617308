"""The manhole, logs, metrics and the process: 146 to 154."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from tests.badinput.ground import Ground
from tests.badinput.table import row
from tests.integration.flow_process import TWISTD, FlowProcess, eventually
from tests.integration.rawclient import request

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJq6vHcQ4yP0b2Y3cGx1bmNoIGlzIGEga2V5IG9mIG5vYm9keQ== nobody\n"


@row(146, "a manhole without keys, or for everybody to reach; and none by itself")
def _(ground: Ground) -> None:
    keys = ground.private("keys-146", KEY)
    ground.refuses("--manhole=tcp:4002:interface=127.0.0.1", says="--manhole-keys")
    ground.refuses("--manhole=tcp:4002", f"--manhole-keys={keys}", says="--manhole-anywhere")
    listening = Path(f"/proc/{ground.server.pid}/net/tcp").read_text()
    assert f":{4002:04X} 00000000:0000 0A" not in listening


@row(147, "keys that others can change, or none")
def _(ground: Ground) -> None:
    manhole = "--manhole=tcp:4002:interface=127.0.0.1"
    open_ = ground.private("keys-147", KEY)
    open_.chmod(0o666)
    ground.refuses(manhole, f"--manhole-keys={open_}", says="changed by others")
    ground.refuses(manhole, f"--manhole-keys={ground.private('keys-none', '')}", says="manhole-keys")
    ground.refuses(manhole, f"--manhole-keys={ground.private('keys-odd', 'ssh-rsa nonsense')}", says="line 1")


@row(148, "marks of a log, of a terminal and of formats in what clients say")
def _(ground: Ground) -> None:
    for text in ("{address!r:>99999999}", "%s%n{0.__class__}", "x" * 12_000, "\u00e9" * 2_000):
        answer = ground.knock(ground.handshake("a.b.c", ("User-Agent", text), ("X-Request-Id", text)))
        assert answer.status in (400, 403, 431)
    assert ground.knock(ground.handshake("a.b.c", ("User-Agent", "\x1b[31m"))).status == 400
    with ground.joined() as wire:
        wire.ask("room:1", "echo", {"text": "\u001b[2J\n{x}"})
    assert "\x1b" not in ground.server.log


@row(149, "very many users, topics and paths make no more metrics")
def _(ground: Ground) -> None:
    def series() -> int:
        lines = ground.api("GET", "/metrics", key=None).body.decode().splitlines()
        return sum(not line.startswith("#") for line in lines)

    for number in range(300):
        ground.api("GET", f"/api/sessions/user-{number}")
        ground.api("GET", f"/nowhere/{number}")
    assert series() <= 300


@row(150, "metrics and health on the clients' port")
def _(ground: Ground) -> None:
    for path in ("/metrics", "/health/live", "/health/ready", "/api/sessions", "/"):
        assert ground.knock(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).status == 404


@row(151, "a password in what everybody can list")
def _(ground: Ground) -> None:
    parts = urlsplit(ground.database_url)
    secret = "canary-151-s3cret"
    url = parts._replace(netloc=f"flow:{secret}@{parts.netloc.rpartition('@')[2]}").geturl()
    directory = ground.directory / "listed"
    with FlowProcess(directory, "--users-query=claims", environ={"FLOWTX_DATABASE": url}) as server:
        listed = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert secret.encode() not in listed
        assert secret not in server.log
    ground.refuses(says="--database", environ={"FLOWTX_DATABASE": f"my{url}"})
    assert all(secret not in path.read_text("utf-8", "replace") for path in directory.glob("std*"))


@row(152, "too few open files")
def _(ground: Ground) -> None:
    few = ("bash", "-c", 'ulimit -n 256; exec "$@"', "few", *TWISTD)
    with ground.another("few", twistd=few) as server:
        assert "--max-sessions: 50000 Sessions need at least 50064 open files" in server.log
        assert "this process may have 256" in server.log


@row(153, "started by root, which PostgreSQL will not run as")
def _(ground: Ground) -> None:
    with FlowProcess(ground.directory / "by-root", "--users-query=claims") as server:
        owners = {os.stat(f"/proc/{pid}").st_uid for pid in server.postgres_processes}
        assert owners
        assert 0 not in owners


@row(154, "signals: HUP, PIPE and USR1 end nothing; a second TERM ends it at once")
def _(ground: Ground) -> None:
    with ground.another("signals") as server:
        port = int(server.socket_url.removesuffix("/socket").rpartition(":")[2])
        wire = ground.enter(token=server.token("alice"), port=port)
        for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1):
            server.send_signal(number)
        assert wire.beats()
        silent = socket.create_connection(("127.0.0.1", port))
        silent.sendall(request(f"/socket/websocket?vsn=2.0.0&token={server.token('bob')}"))
        silent.recv(4_096)
        with closing(silent):
            server.send_signal(signal.SIGTERM)
            server.send_signal(signal.SIGTERM)
            eventually(lambda: server.has_ended, "it has ended", 20)
        wire.leave()
    ground.tried += 10
