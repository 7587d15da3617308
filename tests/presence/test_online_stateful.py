"""Whatever users, Sessions and the database do: clients end at the truth, and the events match it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flowtx.presence.store import IPresenceStore, PresenceEvent
from flowtx.presence.tracker import PERIOD
from flowtx.testing.client import Client
from flowtx.testing.server import MemoryServer
from tests.presence.client import ModelClient

TOPIC = "users:online"
WINDOW = 5.0
USERS = ("alice", "bob", "carol")
DEVICES = (None, "web", "phone")

users = st.sampled_from(USERS)
numbers = st.integers(0, 5)


class Connection:
    """What the test knows of a connection: whether it counts, and as what."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.counts = False
        self.device: str | None = None
        self.status = "online"


class Watcher:
    """A client of phoenix.js that loses its connection and comes back with what it knew."""

    def __init__(self, server: MemoryServer) -> None:
        self.server = server
        self.model = ModelClient()
        self.client: Client | None = None

    def come(self) -> None:
        if self.client is None:
            self.client = self.server.connect("watcher")
            self.client.join(TOPIC)
            self.model.joined()

    def go(self) -> None:
        if self.client is not None:
            self.read()
            self.client.lose()
            self.client = None

    def read(self) -> None:
        for frame in self.client.received() if self.client is not None else ():
            if frame.event == "presence_state":
                self.model.receive_state(frame.payload)
            elif frame.event == "presence_diff":
                self.model.receive_diff(frame.payload)


class Online(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.server = MemoryServer(reconnect_window=WINDOW, max_devices=4)
        self.clock = self.server.clock
        self.connections: dict[str, list[Connection]] = {user: [] for user in USERS}
        self.counted: dict[str, str] = {}  # the Session in which a user was first counted
        self.expected: dict[str, list[str]] = defaultdict(list)
        self.watchers = [Watcher(self.server) for _ in range(2)]
        self.watchers[0].come()

    def chosen(self, user: str, number: int) -> Connection | None:
        found = self.connections[user]
        return found[number % len(found)] if found else None

    # What happens

    @rule(user=users)
    def connect(self, user: str) -> None:
        if not self.is_down:
            self.connections[user].append(Connection(self.server.connect(user)))

    @rule(user=users, number=numbers, device=st.sampled_from(DEVICES))
    def join_own(self, user: str, number: int, device: str | None) -> None:
        if (connection := self.chosen(user, number)) is not None and not self.is_down:
            connection.client.join(f"user:{user}", {} if device is None else {"device": device})
            self.count(user, connection)

    @rule(user=users, number=numbers)
    def join_all(self, user: str, number: int) -> None:
        if (connection := self.chosen(user, number)) is not None:
            connection.client.join(TOPIC)
            self.count(user, connection)

    @rule(user=users, number=numbers)
    def leave_all(self, user: str, number: int) -> None:
        connection = self.chosen(user, number)
        if connection is not None and connection.client.link.socket.channel(TOPIC) is not None:
            connection.client.leave(TOPIC)

    @rule(user=users, number=numbers, status=st.sampled_from(("online", "away")))
    def say(self, user: str, number: int, status: str) -> None:
        connection = self.chosen(user, number)
        if connection is not None and connection.client.link.socket.channel(f"user:{user}") is not None:
            ref = connection.client.push(f"user:{user}", "activity", {"status": status})
            connection.client.assert_reply(ref)
            connection.status = status

    @rule(user=users, number=numbers)
    def lose(self, user: str, number: int) -> None:
        if (connection := self.chosen(user, number)) is not None:
            self.connections[user].remove(connection)
            connection.client.lose()

    @rule(user=users)
    def crash(self, user: str) -> None:
        session = self.server.sessions.get_session(user)
        if session is not None and session.restarts == 0:
            session.crashed(Failure(RuntimeError("planned")))

    @rule(user=users)
    def stop(self, user: str) -> None:
        Deferred.fromCoroutine(self.server.sessions.stop_session(user))

    @rule(seconds=st.sampled_from((0.01, PERIOD, 1.0, WINDOW - 0.5, WINDOW, 2 * WINDOW)))
    def pass_time(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / 0.25))):
            self.clock.advance(min(seconds, 0.25))
            self.note()
        for user in USERS:
            for connection in self.connections[user]:
                connection.client.heartbeat()
        for watcher in self.watchers:
            if watcher.client is not None:
                watcher.client.heartbeat()

    @rule(down=st.booleans())
    def turn_database(self, down: bool) -> None:
        if down:
            self.server.database.go_down()
        else:
            self.server.database.come_back()

    @rule(number=st.integers(0, 1), come=st.booleans())
    def turn_watcher(self, number: int, come: bool) -> None:
        if not come:
            self.watchers[number].go()
        elif not self.is_down:
            self.watchers[number].come()

    # What must be so

    @property
    def is_down(self) -> bool:
        return self.server.database.is_down

    def count(self, user: str, connection: Connection) -> None:
        connection.counts = True
        session = self.server.sessions.get_session(user)
        assert session is not None
        if self.counted.setdefault(user, session.session_id) != session.session_id:
            raise AssertionError("a Session was followed by another one and nobody noticed")
        self.note()

    @invariant()
    def note(self) -> None:
        """Note who has come, by the first connection that counts, and who went with their Session."""
        for user in USERS:
            here = self.connections[user]
            here[:] = [connection for connection in here if connection.client.link.closed is None]
            session = self.server.sessions.get_session(user)
            if user in self.counted and (session is None or session.session_id != self.counted[user]):
                del self.counted[user]
            past = self.expected[user]
            if (user in self.counted) != (len(past) % 2 == 1):
                past.append("offline" if len(past) % 2 else "online")

    @invariant()
    def the_list_is_the_truth(self) -> None:
        self.server.settle()
        self.note()
        listed = self.server.presence.list(TOPIC)
        for user in USERS:
            found = [(meta["device"], meta["status"]) for meta in listed.get(user, {"metas": []})["metas"]]
            counting = [connection for connection in self.connections[user] if connection.counts]
            if user not in self.counted:
                assert found == [], (user, found)
            elif not counting:
                assert len(found) == 1, (user, found)
            else:
                said = sorted(connection.status for connection in counting)
                assert sorted(status for _, status in found) == said, (user, found)

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        self.server.database.come_back()
        self.pass_time(PERIOD)
        for watcher in self.watchers:
            watcher.come()
        self.pass_time(1.0)
        listed = self.server.presence.list(TOPIC)
        for watcher in self.watchers:
            watcher.read()
            assert watcher.model.state == listed, (watcher.model.state, listed)
        written: dict[str, list[str]] = defaultdict(list)
        for event in self.events():
            written[event.user_id].append(event.event)
        for user in USERS:
            assert written[user] == self.expected[user], (user, written[user], self.expected[user])
        self.server.stop()

    def events(self) -> list[PresenceEvent]:
        recorder: Any = self.server.online._recorder
        store = cast("IPresenceStore", recorder._store)
        found: list[PresenceEvent] = []
        Deferred.fromCoroutine(store.events(0, 10_000)).addCallback(found.extend)  # type: ignore[arg-type]
        return found


class OnlineTests(SynchronousTestCase):
    """The machine, under trial's eyes: nothing that is logged as an error goes unseen."""

    def test_online(self) -> None:
        case: Any = Online.TestCase
        case.settings = settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
        case("runTest").runTest()
