"""The PyPI client ``phoenix-channels-python-client``: it drops every frame that lacks its own join_ref."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.clients.driver import Client
from tests.integration.flow_process import FlowProcess, run_sql

SCRIPT = Path(__file__).parents[1] / "clients" / "python_client.py"


class PythonClient(Client):
    """The client in a process of its own."""

    def __init__(self) -> None:
        super().__init__([sys.executable, str(SCRIPT)])

    def connect(self, server: FlowProcess, token: str) -> None:
        self.do("connect", url=f"{server.socket_url}/websocket?token={quote(token)}")

    def next_seq(self) -> int:
        seq: int = self.expect("message", event="notification")["payload"]["seq"]
        return seq

    def seqs(self) -> list[int]:
        return [event["payload"]["seq"] for event in self.all("message", event="notification")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowProcess]:
    with FlowProcess(tmp_path_factory.mktemp("python")) as server:
        yield server


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def joined(clients: ExitStack, server: FlowProcess, user: str) -> PythonClient:
    """A client that is on its user's topic."""
    client = clients.enter_context(PythonClient())
    client.connect(server, server.token(user))
    client.expect("connected")
    client.do("join", topic=f"user:{user}")
    client.expect("joined", topic=f"user:{user}")
    return client


def test_notifications(server: FlowProcess, clients: ExitStack) -> None:
    user = server.new_user()
    server.push(user)
    client = joined(clients, server, user)
    assert client.next_seq() == 1
    server.push(user, "deal.won", {"amount": 12_000})
    message = client.expect("message", event="notification")
    assert message["payload"]["payload"] == {"amount": 12_000}
    assert message["payload"]["type"] == "deal.won"
    assert message["join_ref"] == message["expected_join_ref"]
    server.sql("SELECT flow.notify(%s, 'by.sql', '{}')", user)
    assert client.next_seq() == 3
    assert client.seqs() == [1, 2, 3]


def test_replies(server: FlowProcess, clients: ExitStack) -> None:
    user = server.new_user()
    server.push(user)
    client = joined(clients, server, user)
    client.do("push", topic=f"user:{user}", event="mark_read", payload={"all": True}, ref="mine-1")
    reply = client.expect("message", event="phx_reply", ref="mine-1")
    assert reply["payload"] == {"status": "ok", "response": {"unread": 0}}
    client.do("push", topic=f"user:{user}", event="mark_read", payload={}, ref="mine-2")
    reply = client.expect("message", event="phx_reply", ref="mine-2")
    assert reply["payload"]["status"] == "error"
    assert reply["payload"]["response"]["reason"] == "invalid_payload"


def test_broadcast_to_the_other_client(server: FlowProcess, clients: ExitStack) -> None:
    user = server.new_user()
    server.push(user)
    first, second = joined(clients, server, user), joined(clients, server, user)
    first.do("push", topic=f"user:{user}", event="mark_read", payload={"up_to_seq": 1}, ref="mine")
    told = second.expect("message", event="notifications_read")
    assert told["payload"] == {"up_to_seq": 1, "unread": 0}
    assert told["join_ref"] == told["expected_join_ref"]


def test_heartbeat_is_acknowledged(server: FlowProcess, clients: ExitStack) -> None:
    client = joined(clients, server, server.new_user())
    for _ in range(2):
        client.expect("heartbeat")


def test_refused_join(server: FlowProcess, clients: ExitStack) -> None:
    user, other = server.new_user(), server.new_user()
    client = joined(clients, server, user)
    client.do("join", topic=f"user:{other}")
    assert client.expect("refused", topic=f"user:{other}")["error"] == "unauthorized"


def test_refused_connection_is_final(server: FlowProcess, clients: ExitStack) -> None:
    client = clients.enter_context(PythonClient())
    client.connect(server, "not.a.token")
    assert "403" in client.expect("failed")["error"]


def test_leave(server: FlowProcess, clients: ExitStack) -> None:
    user = server.new_user()
    client = joined(clients, server, user)
    client.do("leave", topic=f"user:{user}")
    client.expect("left", topic=f"user:{user}")
    server.push(user)
    client.do("join", topic=f"user:{user}")
    client.expect("joined", topic=f"user:{user}")
    assert client.next_seq() == 1
    assert client.all("lost") == []


def test_server_restart(tmp_path: Path, database_url: str, clients: ExitStack) -> None:
    with FlowProcess(tmp_path, database=database_url) as server:
        user = server.new_user()
        client = joined(clients, server, user)
        server.push(user)
        assert client.next_seq() == 1
        run_sql(database_url, "SELECT flow.mark_read(%s, NULL, 1)", user)
        server.stop()
        assert "1012" in client.expect("disconnected")["error"]
        run_sql(database_url, "SELECT flow.notify(%s, 'meanwhile', '{}')", user)
        server.start()
        client.expect("reconnected")
        assert client.next_seq() == 2
        assert client.seqs() == [1, 2]
