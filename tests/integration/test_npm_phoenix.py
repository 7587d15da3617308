"""The stock JavaScript client, npm ``phoenix``, under node: unchanged, against a real server."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.clients.driver import Client
from tests.integration.flow_process import FlowProcess, eventually, run_sql

CLIENTS = Path(__file__).parents[1] / "clients"

Connect = Callable[..., "NpmClient"]


class NpmClient(Client):
    """npm ``phoenix`` in a process of its own."""

    def __init__(self) -> None:
        super().__init__(["node", str(CLIENTS / "phoenix_client.mjs")])

    def join(self, user_id: str, payload: object = None, *, resume: bool = False) -> Any:
        """Join the user's topic; the response."""
        self.do("join", topic=f"user:{user_id}", payload=payload or {}, resume=resume)
        answer = self.expect("join", topic=f"user:{user_id}")
        assert answer["status"] == "ok", answer
        return answer["response"]

    def push(self, user_id: str, event: str, payload: object) -> Any:
        """Push an event on the user's topic; the reply."""
        number = len(self.all("reply")) + 1
        self.do("push", topic=f"user:{user_id}", event=event, payload=payload, id=number)
        return self.expect("reply", id=number)

    def round_trip(self) -> None:
        """Wait until all that the server sent before this has come."""
        self.do("ping")
        self.expect("pong")

    def next_seq(self) -> int:
        seq: int = self.expect("notification")["notification"]["seq"]
        return seq

    def expect_seq(self, seq: int) -> None:
        """Wait for the notification with this seq."""
        eventually(lambda: seq in self.seqs(), f"notification {seq} comes", 15)

    def seqs(self) -> list[int]:
        """The seq of every notification that has come, in the order in which they came."""
        return [event["notification"]["seq"] for event in self.all("notification")]


@pytest.fixture(scope="session", autouse=True)
def npm_packages() -> None:
    """The client's packages, installed as its lock file says."""
    if not (shutil.which("node") and shutil.which("npm")):
        message = "THERE IS NO node OR npm HERE: nothing of the JavaScript client is tested"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    if not (CLIENTS / "node_modules" / "phoenix").exists():
        options = ["--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(["npm", "ci", *options], cwd=CLIENTS, check=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowProcess]:
    with FlowProcess(tmp_path_factory.mktemp("npm")) as server:
        yield server


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def connect(clients: ExitStack) -> Connect:
    """Makes clients that are connected; they end with the test."""

    def connect(server: FlowProcess, user_id: str, **options: object) -> NpmClient:
        client = clients.enter_context(NpmClient())
        params = {"token": server.token(user_id)}
        client.do("connect", url=server.socket_url, params=params, options=options)
        client.expect("open")
        return client

    return connect


def test_token_in_the_query(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    client = connect(server, user)
    response = client.join(user)
    assert response["user"] == {"id": user, "name": user.title(), "email": None}
    assert (response["unread"], response["last_seq"], response["resumed"]) == (0, 0, False)
    assert response["session_id"]


def test_token_in_the_subprotocol(server: FlowProcess, clients: ExitStack) -> None:
    user = server.new_user()
    client = clients.enter_context(NpmClient())
    client.do("connect", url=server.socket_url, authToken=server.token(user))
    # The token goes no further than it must: the server chooses the other one of the two that are offered.
    assert client.expect("open")["protocol"] == "phoenix"
    assert client.join(user)["user"]["id"] == user


@pytest.mark.parametrize(
    ("make_token", "reason"),
    [
        (lambda server, _: "not.a.token", "invalid_token"),
        (lambda server, user: server.token(user, ttl=-60), "expired_token"),
        (lambda server, _: server.token("nobody"), "unknown_user"),
    ],
)
def test_refused_connection(
    server: FlowProcess,
    clients: ExitStack,
    make_token: Callable[[FlowProcess, str], str],
    reason: str,
) -> None:
    client = clients.enter_context(NpmClient())
    token = make_token(server, server.new_user())
    client.do("connect", url=server.socket_url, params={"token": token})
    for _ in range(2):  # the client tries again, without end
        refused = client.expect("refused")
        assert (refused["status"], json.loads(refused["body"])) == (403, {"reason": reason})
        assert client.expect("close")["code"] == 1006


def test_notification_by_http(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    client = connect(server, user)
    client.join(user)
    payload = {"title": "Acme signed", "amount": 12_000, "tags": ["ä", None, 1.5]}
    assert server.push(user, "deal.won", payload) == 1
    notification = client.expect("notification")["notification"]
    assert notification["payload"] == payload
    assert (notification["seq"], notification["type"], notification["read_at"]) == (1, "deal.won", None)
    assert set(notification) == {"id", "seq", "type", "payload", "inserted_at", "read_at"}
    message = client.expect("message", event="notification")
    (join,) = [json.loads(event["frame"]) for event in client.all("sent") if "phx_join" in event["frame"]]
    assert (message["joinRef"], message["ref"]) == (join[0], None)


def test_notification_by_sql_comes_with_the_commit(server: FlowProcess, connect: Connect) -> None:
    user, other = server.new_user(), server.new_user()
    client, witness = connect(server, user), connect(server, other)
    client.join(user)
    witness.join(other)
    with closing(psycopg2.connect(server.database_url)) as transaction:
        cursor = transaction.cursor()
        cursor.execute("SELECT flow.notify(%s, 'deal.won', %s)", [user, '{"from": "sql"}'])
        assert cursor.fetchall() == [(1,)]
        # Another's notification, committed later, goes all the way: this one was passed over.
        server.push(other)
        witness.next_seq()
        client.round_trip()
        assert client.seqs() == []
        transaction.commit()
        assert client.expect("notification")["notification"]["payload"] == {"from": "sql"}


def test_notification_by_sql_that_is_rolled_back(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    client = connect(server, user)
    client.join(user)
    with closing(psycopg2.connect(server.database_url)) as transaction:
        transaction.cursor().execute("SELECT flow.notify(%s, 'lost', '{}')", [user])
        transaction.rollback()
    assert server.push(user, "kept") == 1
    client.expect("notification")
    client.round_trip()
    assert [event["notification"]["type"] for event in client.all("notification")] == ["kept"]


def test_unread_ones_come_after_the_join(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    for _ in range(4):
        server.push(user)
    server.sql("SELECT flow.mark_read(%s, NULL, 1)", user)
    client = connect(server, user)
    response = client.join(user)
    assert (response["unread"], response["last_seq"]) == (3, 4)
    assert [client.next_seq() for _ in range(3)] == [2, 3, 4]
    server.push(user)
    client.next_seq()
    assert client.seqs() == [2, 3, 4, 5]
    told = [event for event in client.events if event["what"] in ("join", "notification")]
    assert [event["what"] for event in told] == ["join"] + 4 * ["notification"]


def test_last_seq_resumes_after_it(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    for _ in range(4):
        server.push(user)
    server.sql("SELECT flow.mark_read(%s, NULL, 4)", user)  # read or not, it is asked for
    client = connect(server, user)
    response = client.join(user, {"last_seq": 2})
    assert (response["unread"], response["last_seq"]) == (0, 4)
    assert [client.next_seq() for _ in range(2)] == [3, 4]
    client.round_trip()
    assert client.seqs() == [3, 4]


def test_mark_read_is_told_to_the_other_client(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    for _ in range(3):
        server.push(user)
    first, second = connect(server, user), connect(server, user)
    assert first.join(user)["unread"] == 3
    assert second.join(user)["unread"] == 3
    reply = first.push(user, "mark_read", {"up_to_seq": 2})
    assert (reply["status"], reply["response"]) == ("ok", {"unread": 1})
    told = second.expect("message", event="notifications_read")
    assert told["payload"] == {"up_to_seq": 2, "unread": 1}
    first.round_trip()
    assert first.all("message", event="notifications_read") == []


def test_bad_payload_gets_an_error_reply(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    client = connect(server, user)
    client.join(user)
    reply = client.push(user, "mark_read", {"up_to_seq": "two"})
    assert (reply["status"], reply["response"]["reason"]) == ("error", "invalid_payload")
    assert "up_to_seq" in reply["response"]["detail"]
    assert client.push(user, "mark_read", {"all": True})["status"] == "ok"


def test_join_of_another_users_topic(server: FlowProcess, connect: Connect) -> None:
    user, other = server.new_user(), server.new_user()
    client = connect(server, user)
    client.do("join", topic=f"user:{other}")
    answer = client.expect("join", topic=f"user:{other}")
    assert (answer["status"], answer["response"]) == ("error", {"reason": "unauthorized"})
    client.join(user)
    server.push(other)
    server.push(user)
    client.next_seq()
    client.round_trip()
    assert {event["topic"] for event in client.all("notification")} == {f"user:{user}"}


def test_leave(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    client, stays = connect(server, user), connect(server, user)
    client.join(user)
    stays.join(user)
    client.do("leave", topic=f"user:{user}")
    client.expect("left")
    server.push(user)
    stays.next_seq()
    client.round_trip()
    assert client.seqs() == []


def test_heartbeat(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    client = connect(server, user, heartbeatIntervalMs=50)
    for _ in range(3):
        reply = client.expect("message", topic="phoenix", event="phx_reply")
        assert reply["payload"] == {"status": "ok", "response": {}}
    assert client.all("close") == []


def test_cut_connection_is_resumed(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    client = connect(server, user)
    client.join(user, resume=True)
    server.push(user)
    assert client.next_seq() == 1
    client.do("drop")
    server.push(user)
    assert client.expect("close")["code"] == 1006
    client.expect("open")
    assert client.expect("join")["status"] == "ok"
    assert client.next_seq() == 2
    server.push(user)
    assert client.next_seq() == 3
    assert client.seqs() == [1, 2, 3]


def test_exactly_once_while_clients_come_and_go(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    enough = threading.Event()
    pushed: list[int] = []

    def push() -> None:
        with closing(psycopg2.connect(server.database_url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            while not enough.wait(0.002) and len(pushed) < 900:  # a join gives 1,000 at the most
                cursor.execute("SELECT flow.notify(%s, 'tick', '{}')", [user])
                pushed.extend(row[0] for row in cursor.fetchall())

    pusher = threading.Thread(target=push)
    pusher.start()
    try:
        clients = []
        for _ in range(4):
            client = connect(server, user)
            client.join(user, {"last_seq": 0}, resume=True)
            clients.append(client)
            for other in clients[::2]:
                other.do("drop")
                other.expect("close", code=1006)
                other.expect("join", status="ok")
    finally:
        enough.set()
        pusher.join()
    last = server.push(user)
    assert pushed == list(range(1, last))
    for client in clients:
        client.expect_seq(last)
        client.round_trip()
        assert client.seqs() == list(range(1, last + 1))


def test_server_restart(tmp_path: Path, database_url: str, connect: Connect) -> None:
    server = FlowProcess(tmp_path, database=database_url)
    with server:
        user = server.new_user()
        client = connect(server, user)
        client.join(user, resume=True)
        server.push(user)
        assert client.next_seq() == 1
        server.stop()
        assert client.expect("close")["code"] == 1012
        for _ in range(3):
            run_sql(database_url, "SELECT flow.notify(%s, 'meanwhile', '{}')", user)
        server.start()
        client.expect("open")
        assert client.expect("join")["status"] == "ok"
        assert [client.next_seq() for _ in range(3)] == [2, 3, 4]
        server.push(user)
        assert client.next_seq() == 5
        client.round_trip()
        assert client.seqs() == [1, 2, 3, 4, 5]


def test_server_crash(tmp_path: Path, database_url: str, connect: Connect) -> None:
    server = FlowProcess(tmp_path, database=database_url)
    with server:
        user = server.new_user()
        client = connect(server, user)
        client.join(user, resume=True)
        server.push(user)
        assert client.next_seq() == 1
        server.kill()
        assert client.expect("close")["code"] == 1006
        run_sql(database_url, "SELECT flow.notify(%s, 'meanwhile', '{}')", user)
        server.start()
        client.expect("open")
        client.expect("join", status="ok")
        assert client.next_seq() == 2
        client.round_trip()
        assert client.seqs() == [1, 2]


def test_connection_without_a_channel_is_told_of_the_restart(tmp_path: Path, connect: Connect) -> None:
    server = FlowProcess(tmp_path)
    with server:
        client = connect(server, server.new_user())
        server.stop()
        assert client.expect("close")["code"] == 1012
        server.start()
        client.expect("open")


def test_silent_connection_is_closed_and_comes_back(tmp_path: Path, connect: Connect) -> None:
    with FlowProcess(tmp_path, "--heartbeat-timeout=0.5") as server:
        user = server.new_user()
        client = connect(server, user)  # with a heartbeat every 30 s
        client.join(user, resume=True)
        assert client.expect("close")["code"] == 1002
        client.expect("open")
        client.expect("join", status="ok")


def test_frame_too_large_is_closed_and_comes_back(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    client = connect(server, user)
    client.join(user)
    client.do("send", text=" " * 65_537)
    assert client.expect("close")["code"] == 1009
    client.expect("open")
    client.expect("join", status="ok")


def test_garbage_is_closed_with_1008(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    client = connect(server, user)
    client.join(user)
    for _ in range(9):
        client.do("send", text="garbage")
    client.round_trip()  # nine are let pass
    assert client.all("close") == []
    client.do("send", text="garbage")
    assert client.expect("close")["code"] == 1008
