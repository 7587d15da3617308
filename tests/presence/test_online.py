"""Who is online: each way to come, to go and to come back, as clients see it and as it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from flowtx.interfaces import ISessionObserver
from flowtx.presence.presence import Presence
from flowtx.presence.store import IPresenceStore, Seen
from flowtx.presence.tracker import Tracker
from flowtx.testing.client import Client
from flowtx.testing.server import EPOCH, MemoryServer
from tests.presence.client import ModelClient

TOPIC = "users:online"
WINDOW = 30.0


class Watcher:
    """A client on ``users:online`` that keeps what phoenix.js would, and each diff."""

    def __init__(self, server: MemoryServer, user_id: str = "watcher") -> None:
        self.client = server.connect(user_id)
        self.model = ModelClient()
        self.diffs: list[Any] = []
        self.client.join(TOPIC)
        self.read()

    def read(self) -> None:
        for frame in self.client.received():
            if frame.event == "presence_state":
                self.model.joined()
                self.model.receive_state(frame.payload)
            elif frame.event == "presence_diff":
                self.model.receive_diff(frame.payload)
                self.diffs.append(frame.payload)

    def take(self) -> list[tuple[Any, Any]]:
        """Take the diffs since the last call: for joins and leaves the keys with devices and statuses."""
        self.read()
        diffs, self.diffs = self.diffs, []
        return [(short(diff["joins"]), short(diff["leaves"])) for diff in diffs]

    @property
    def sees(self) -> dict[str, list[tuple[str | None, str]]]:
        """Who is there, but the watcher."""
        self.read()
        return {key: metas for key, metas in short(self.model.state).items() if key != "watcher"}


def short(presences: Any) -> dict[str, list[tuple[str | None, str]]]:
    return {
        key: [(meta["device"], meta["status"]) for meta in found["metas"]] for key, found in presences.items()
    }


class OnlineTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer(reconnect_window=WINDOW)
        recorder: Any = self.server.online._recorder
        self.store: IPresenceStore = recorder._store
        self.clock = self.server.clock
        self.watcher = Watcher(self.server)
        self.pass_time(1)
        self.watcher.take()
        self.assertEqual(self.events(), ["watcher online"])

    def pass_time(self, seconds: float = 1.0) -> None:
        """Let time pass in small steps, as what is periodic is done once in each."""
        whole, rest = divmod(seconds, 20.0)
        for length in [20.0] * int(whole) + [rest] * (rest > 0):
            steps = max(1, round(length / 0.1))
            self.clock.pump([length / steps] * steps)
            for client in self.server._clients:
                if client.link.closed is None:
                    client.heartbeat()
        self.server.settle()

    def connect(self, user_id: str = "alice", device: str | None = "web", *, joins: bool = True) -> Client:
        client = self.server.connect(user_id)
        if joins:
            client.join(f"user:{user_id}", {} if device is None else {"device": device})
        return client

    def say(self, client: Client, status: str) -> None:
        client.assert_reply(client.push(f"user:{client.user_id}", "activity", {"status": status}))

    async def _events(self) -> list[str]:
        events = await self.store.events(0, 1_000)
        return [f"{event.user_id} {event.event}" for event in events]

    def events(self) -> list[str]:
        return self.successResultOf(Deferred.fromCoroutine(self._events()))

    async def _kept(self, user_id: str) -> Seen:
        seen: Seen = (await self.store.seen([user_id], ""))[user_id]
        return seen

    def kept(self, user_id: str) -> Seen:
        """What the store knows of a user."""
        return self.successResultOf(Deferred.fromCoroutine(self._kept(user_id)))

    def news(self) -> list[str]:
        """The events of all but the watcher."""
        return [event for event in self.events() if not event.startswith("watcher")]

    def statuses(self, *user_ids: str) -> Mapping[str, Seen]:
        async def ask() -> list[Mapping[str, Seen]]:
            return [await self.server.online.statuses(user_ids)]

        return self.successResultOf(Deferred.fromCoroutine(ask()))[0]

    def crash(self, user_id: str = "alice") -> None:
        session = self.server.sessions.get_session(user_id)
        assert session is not None
        session.crashed(Failure(RuntimeError("planned")))


class ComingTests(OnlineTestCase):
    def test_interface(self) -> None:
        verifyObject(ISessionObserver, self.server.online)

    def test_a_user_comes_with_the_join_of_their_own_topic(self) -> None:
        client = self.connect(joins=False)
        self.pass_time()
        self.assertEqual((self.watcher.take(), self.news()), ([], []))
        client.join("user:alice", {"device": "web"})
        self.pass_time()
        self.assertEqual(self.watcher.take(), [({"alice": [("web", "online")]}, {})])
        self.assertEqual(self.news(), ["alice online"])
        client.refute_push("presence_state")

    def test_a_user_comes_with_the_join_of_the_topic_of_all(self) -> None:
        client = self.connect(joins=False)
        client.join(TOPIC)
        self.assertEqual(short(client.assert_push("presence_state")), {"watcher": [(None, "online")]})
        self.pass_time()
        self.assertEqual(self.watcher.take(), [({"alice": [(None, "online")]}, {})])
        self.assertEqual(short(client.assert_push("presence_diff")["joins"]), {"alice": [(None, "online")]})

    def test_the_meta(self) -> None:
        self.connect()
        self.pass_time()
        [meta] = self.server.presence.get_by_key(TOPIC, "alice")
        self.assertIsInstance(meta.pop("phx_ref"), str)
        self.assertEqual(meta, {"online_at": int(EPOCH) + 1, "device": "web", "status": "online"})

    def test_both_topics_in_either_order_are_one_meta(self) -> None:
        client = self.connect()
        client.join(TOPIC)
        self.pass_time()
        self.assertEqual(self.watcher.take(), [({"alice": [("web", "online")]}, {})])
        client = self.connect("bob", joins=False)
        client.join(TOPIC)
        client.join("user:bob", {"device": "phone"})
        self.pass_time()
        self.assertEqual(self.watcher.take(), [({"bob": [("phone", "online")]}, {})])

    def test_a_device_that_is_told_later_is_an_update(self) -> None:
        client = self.connect(joins=False)
        client.join(TOPIC)
        self.pass_time()
        self.watcher.take()
        client.join("user:alice", {"device": "phone"})
        self.pass_time()
        self.assertEqual(
            self.watcher.take(), [({"alice": [("phone", "online")]}, {"alice": [(None, "online")]})]
        )
        self.assertEqual(self.news(), ["alice online"])

    def test_several_devices_are_several_metas(self) -> None:
        phone = self.connect(device="phone")
        self.connect(device="web")
        self.pass_time()
        self.assertEqual(self.watcher.sees, {"alice": [("phone", "online"), ("web", "online")]})
        phone.lose()
        self.pass_time()
        self.assertEqual(self.watcher.sees, {"alice": [("web", "online")]})
        self.assertEqual(self.news(), ["alice online"])

    def test_a_join_that_is_refused_shows_nobody(self) -> None:
        client = self.connect(joins=False)
        for payload in ({"device": 1}, {"last_seq": -1}):
            client.assert_reply(client.send_join("user:alice", payload), "error")
        client.assert_reply(client.send_join("user:bob"), "error")
        self.server.database.go_down()
        client.assert_reply(client.send_join("user:alice"), "error", {"reason": "unavailable"})
        self.server.database.come_back()
        self.pass_time()
        self.assertEqual((self.watcher.take(), self.news()), ([], []))

    def test_who_leaves_before_the_join_is_over_never_came(self) -> None:
        client = self.connect(joins=False)
        self.server.database.hang()
        client.send_join("user:alice")
        client.lose()
        self.server.database.come_back()
        self.pass_time(WINDOW + 10)
        self.assertEqual((self.watcher.take(), self.news()), ([], []))
        self.assertEqual(len(self.server.online), 1)

    def test_what_is_tracked_by_others_stays_theirs(self) -> None:
        self.server.presence.track("room:1", "alice", {}, owner=self)
        client = self.connect()
        client.lose()
        self.pass_time(WINDOW + 1)
        self.assertEqual(list(self.server.presence.list("room:1")), ["alice"])


class GoingTests(OnlineTestCase):
    def test_the_leave_comes_once_after_the_window(self) -> None:
        client = self.connect()
        self.pass_time()
        self.watcher.take()
        client.lose()
        self.pass_time(WINDOW - 0.1)
        self.assertEqual((self.watcher.take(), self.news()), ([], ["alice online"]))
        self.pass_time(0.5)
        self.assertEqual(self.watcher.take(), [({}, {"alice": [("web", "online")]})])
        self.pass_time(WINDOW * 3)
        self.assertEqual((self.watcher.take(), self.news()), ([], ["alice online", "alice offline"]))
        self.assertEqual(len(self.server.online), 1)

    def test_a_return_within_the_window_is_no_news(self) -> None:
        client = self.connect()
        self.pass_time()
        self.watcher.take()
        [meta] = self.server.presence.get_by_key(TOPIC, "alice")
        for _ in range(3):
            client.lose()
            self.pass_time(WINDOW - 1)
            client = self.connect()
            self.pass_time(WINDOW)
        self.assertEqual((self.watcher.take(), self.news()), ([], ["alice online"]))
        self.assertEqual(self.server.presence.get_by_key(TOPIC, "alice"), [meta])

    def test_a_return_with_another_device_is_an_update(self) -> None:
        self.connect().lose()
        self.pass_time()
        self.watcher.take()
        self.connect(device="phone")
        self.pass_time()
        self.assertEqual(
            self.watcher.take(), [({"alice": [("phone", "online")]}, {"alice": [("web", "online")]})]
        )
        self.assertEqual(self.news(), ["alice online"])

    def test_a_return_by_way_of_the_topic_of_all_keeps_the_device(self) -> None:
        self.connect().lose()
        self.pass_time()
        self.watcher.take()
        client = self.connect(joins=False)
        client.join(TOPIC)
        client.join("user:alice", {"device": "web"})
        self.pass_time(2 * WINDOW)
        self.assertEqual(self.watcher.take(), [])

    def test_a_second_device_does_not_take_over_while_the_first_is_here(self) -> None:
        phone, web = self.connect(device="phone"), self.connect(device="web")
        self.pass_time()
        self.watcher.take()
        phone.lose()
        web.lose()
        self.pass_time()
        self.assertEqual(self.watcher.take(), [({}, {"alice": [("phone", "online")]})])
        self.connect(device="web")
        self.connect(device="phone")
        self.pass_time()
        self.assertEqual(self.watcher.take(), [({"alice": [("phone", "online")]}, {})])

    def test_a_connection_that_joins_nothing_keeps_the_user_here(self) -> None:
        """The Session goes on with it, and so does the user's presence."""
        self.connect().lose()
        idle = self.connect(joins=False)
        self.pass_time(3 * WINDOW)
        self.assertEqual(self.watcher.sees, {"alice": [("web", "online")]})
        idle.lose()
        self.pass_time(WINDOW + 1)
        self.assertEqual((self.watcher.sees, self.news()), ({}, ["alice online", "alice offline"]))

    def test_to_leave_the_topics_changes_nothing(self) -> None:
        client = self.connect()
        client.join(TOPIC)
        self.pass_time()
        self.watcher.take()
        client.leave(TOPIC)
        client.leave("user:alice")
        self.pass_time(2 * WINDOW)
        client.join("user:alice", {"device": "web"})
        client.join("user:alice", {"device": "web"})
        self.pass_time()
        self.assertEqual((self.watcher.take(), self.news()), ([], ["alice online"]))

    def test_a_crash_of_the_session_is_no_news(self) -> None:
        phone, web = self.connect(device="phone"), self.connect(device="web")
        web.join(TOPIC)
        self.pass_time()
        self.watcher.take()
        for _ in range(2):
            self.crash()
            self.pass_time(5)
            web.assert_push("phx_error", topic="user:alice")
            web.join("user:alice", {"device": "web"})
            web.join(TOPIC)
        phone.join("user:alice", {"device": "phone"})
        self.pass_time(2 * WINDOW)
        self.assertEqual((self.watcher.take(), self.news()), ([], ["alice online"]))

    def test_a_crash_within_the_window_is_no_news(self) -> None:
        self.connect().lose()
        self.pass_time(WINDOW / 2)
        self.crash()
        self.connect()
        self.pass_time(2 * WINDOW)
        self.assertEqual(self.watcher.sees, {"alice": [("web", "online")]})
        self.assertEqual(self.news(), ["alice online"])

    def test_a_session_that_is_given_up_takes_its_user_along(self) -> None:
        self.connect()
        for _ in range(4):
            self.crash()
        self.pass_time()
        self.assertEqual((self.watcher.sees, self.news()), ({}, ["alice online", "alice offline"]))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_session_that_is_stopped_takes_its_user_along_at_once(self) -> None:
        self.connect(device="web")
        self.connect(device="phone")
        self.pass_time()
        stopping = Deferred.fromCoroutine(self.server.sessions.stop_session("alice"))
        self.pass_time()
        self.assertTrue(self.successResultOf(stopping))
        self.assertEqual((self.watcher.sees, self.news()), ({}, ["alice online", "alice offline"]))
        self.connect()
        self.pass_time()
        self.assertEqual(self.watcher.sees, {"alice": [("web", "online")]})

    def test_a_user_whose_tokens_are_revoked_has_the_window(self) -> None:
        client = self.connect()
        self.pass_time()
        revoking = Deferred.fromCoroutine(self.server.sessions.revoke(user_id="alice"))
        self.server.settle()
        self.assertEqual(self.successResultOf(revoking), 1)
        self.assertIsNotNone(client.closed)
        self.pass_time(WINDOW - 1)
        self.assertEqual((self.watcher.sees), {"alice": [("web", "online")]})
        self.pass_time(2)
        self.assertEqual((self.watcher.sees, self.news()), ({}, ["alice online", "alice offline"]))

    def test_the_idle_timeout(self) -> None:
        self.connect()
        self.pass_time(1_900)
        self.assertEqual(self.news(), ["alice online", "alice offline"])

    def test_when_the_server_stops_users_have_the_window(self) -> None:
        self.connect()
        self.connect("bob").lose()
        gone = self.connect("carol")
        gone.lose()
        self.pass_time()
        self.server.database.come_back()
        self.successResultOf(Deferred.fromCoroutine(self.server.sessions.stop_session("carol")))
        self.pass_time()
        self.server.stop()
        self.assertEqual(self.news(), ["alice online", "bob online", "carol online", "carol offline"])
        # The stop of a server in memory lets 30 seconds pass.
        self.assertEqual([self.kept(user).status for user in ("alice", "bob")], ["offline", "offline"])
        # Whoever is still connected is not shown that the others are sent away.
        self.assertEqual({key for _, leaves in self.watcher.take() for key in leaves}, {"carol"})
        self.assertEqual(self.status("alice", "bob"), {"alice": "online", "bob": "online"})

    def status(self, *user_ids: str) -> dict[str, str]:
        asked = Deferred.fromCoroutine(self.server.online.statuses(user_ids))
        return {user_id: seen.status for user_id, seen in self.successResultOf(asked).items()}


class StatusTests(OnlineTestCase):
    def test_who_comes_while_the_store_is_asked_is_online(self) -> None:
        """As after a restart, when all come back while a backend asks for them."""
        recorder: Any = self.server.online._recorder
        ask = self.store.seen

        async def come_and_ask(user_ids: Sequence[str], asking: str) -> Mapping[str, Seen]:
            self.connect()
            self.pass_time()
            return await ask(user_ids, asking)

        self.patch(recorder._store, "seen", come_and_ask)
        asked = Deferred.fromCoroutine(self.server.online.statuses(["alice"]))
        self.assertEqual(self.successResultOf(asked)["alice"].status, "online")

    def test_away_is_one_update_of_that_connection(self) -> None:
        phone, web = self.connect(device="phone"), self.connect(device="web")
        self.pass_time()
        self.watcher.take()
        refs = [meta["phx_ref"] for meta in self.server.presence.get_by_key(TOPIC, "alice")]
        self.say(phone, "away")
        self.pass_time()
        self.watcher.read()
        [diff] = self.watcher.diffs
        [meta] = diff["joins"]["alice"]["metas"]
        self.assertEqual((meta["phx_ref_prev"], meta["device"], meta["status"]), (refs[0], "phone", "away"))
        self.assertEqual([meta["phx_ref"] for meta in diff["leaves"]["alice"]["metas"]], refs[:1])
        self.assertEqual(self.watcher.sees, {"alice": [("web", "online"), ("phone", "away")]})
        self.say(phone, "away")
        self.pass_time()
        self.watcher.take()
        self.say(phone, "away")
        web.assert_reply(web.push("user:alice", "activity"))
        self.pass_time()
        self.assertEqual(self.watcher.take(), [])

    def test_a_user_is_away_where_all_connections_are(self) -> None:
        phone, web = self.connect(device="phone"), self.connect(device="web")

        def status() -> str:
            self.pass_time()
            kept = self.kept("alice").status
            self.assertEqual(kept, self.statuses("alice")["alice"].status)
            return kept

        self.assertEqual(status(), "online")
        self.say(phone, "away")
        self.assertEqual(status(), "online")
        self.say(web, "away")
        self.assertEqual(status(), "away")
        self.say(phone, "online")
        self.assertEqual(status(), "online")
        phone.lose()
        self.assertEqual(status(), "away")
        web.lose()
        self.assertEqual(status(), "away")
        self.assertEqual(self.news(), ["alice online"])
        self.connect()
        self.assertEqual(status(), "online")

    def test_a_bad_status_is_refused(self) -> None:
        client = self.connect()
        for status in ("offline", "busy", 1):
            ref = client.push("user:alice", "activity", {"status": status})
            client.assert_reply(ref, "error", {"reason": "invalid_payload"})
        self.pass_time()
        self.assertEqual(self.watcher.sees, {"alice": [("web", "online")]})

    def test_statuses_of_many(self) -> None:
        self.connect()
        self.say(self.connect("bob"), "away")
        self.connect("carol").lose()
        gone = self.connect("dora")
        self.pass_time(10)
        gone.lose()
        left_at = self.server.wall()
        self.pass_time(WINDOW + 5)
        now = self.server.wall()
        found = self.statuses("alice", "bob", "carol", "dora", "nobody", "alice")
        self.assertEqual(
            {user_id: seen.status for user_id, seen in found.items()},
            {"alice": "online", "bob": "away", "carol": "offline", "dora": "offline"},
        )
        self.assertEqual((found["alice"].last_seen, found["bob"].last_seen), (now, now))
        self.assertAlmostEqual(found["dora"].last_seen, left_at, delta=0.1)

    def test_who_may_come_back_was_last_seen_when_they_left(self) -> None:
        client = self.connect()
        self.pass_time(10)
        client.lose()
        left_at = self.server.wall()
        self.pass_time(WINDOW - 5)
        self.assertEqual(self.statuses("alice"), {"alice": Seen("online", left_at)})

    def test_an_end_that_is_not_written_yet_is_known(self) -> None:
        client = self.connect()
        self.pass_time(1)
        client.lose()
        left_at = self.server.wall()
        self.server.database.go_down()
        self.pass_time(WINDOW + 5)
        [(user_id, seen)] = self.statuses("alice").items()
        self.assertEqual((user_id, seen.status), ("alice", "offline"))
        self.assertAlmostEqual(seen.last_seen, left_at, delta=0.1)
        self.server.database.come_back()
        self.pass_time()
        self.assertEqual(self.news(), ["alice online", "alice offline"])

    def test_who_is_here_is_known_without_the_database(self) -> None:
        self.connect()
        self.server.database.go_down()
        self.assertEqual(self.statuses("alice", "watcher")["alice"].status, "online")


class LimitTests(OnlineTestCase):
    def fill(self) -> None:
        """Leave no room for another meta."""
        presence: Any = self.server.presence
        presence._max_topic_metas = presence._counts[TOPIC]

    def test_who_comes_when_it_is_full_is_let_in_but_not_shown(self) -> None:
        self.fill()
        with capturedLogs() as logs:
            client = self.connect()
            client.join(TOPIC)
            self.say(client, "away")
            self.connect("bob")
        said = [formatEvent(event) for event in logs]
        self.assertEqual(
            [line for line in said if "not shown" in str(line)],
            ["A user is not shown as online: 'users:online' has 1 metas, which is the most"],
        )
        self.pass_time()
        self.assertEqual((self.watcher.take(), self.news()), ([], ["alice online", "bob online"]))
        self.assertEqual(self.statuses("alice")["alice"].status, "away")
        cast("Any", self.server.presence)._max_topic_metas += 1
        self.say(client, "online")
        self.pass_time()
        self.assertEqual(self.watcher.take(), [({"alice": [("web", "online")]}, {})])
        client.lose()
        self.pass_time(WINDOW + 1)
        self.assertEqual(self.watcher.sees, {})

    def test_a_name_that_is_poison_is_let_in_but_not_shown(self) -> None:
        client = self.connect("constructor")
        client.join(TOPIC)
        self.pass_time()
        self.assertEqual((self.watcher.take(), self.news()), ([], ["constructor online"]))
        client.lose()
        self.pass_time(WINDOW + 1)
        self.assertEqual(self.news(), ["constructor online", "constructor offline"])

    def test_nothing_is_left_of_many(self) -> None:
        clients = [self.connect(f"user-{number % 20}", f"device-{number}") for number in range(60)]
        self.pass_time()
        self.assertEqual(len(self.watcher.sees), 20)
        for client in clients:
            client.lose()
        self.pass_time(WINDOW + 1)
        self.assertEqual(len(self.server.online), 1)
        presence: Any = self.server.presence
        self.assertEqual((presence._total, len(presence._refs)), (1, 1))
        self.assertEqual(sorted(self.news()[20:]), sorted(f"user-{number} offline" for number in range(20)))

    def test_all_who_join_in_a_period_get_the_same_bytes(self) -> None:
        for number in range(20):
            self.connect(f"user-{number}")
        self.pass_time()
        states = [self.server.online.state() for _ in range(2)]
        self.assertIs(states[0], states[1])


class PresenceOfApplicationsTests(SynchronousTestCase):
    """`Presence.page`, for the HTTP API."""

    def test_pages(self) -> None:
        server = MemoryServer()
        presence = Presence(Tracker(server.pubsub, clock=server.clock))
        for number in (3, 1, 2, 10):
            presence.track("room:1", f"user-{number}", {"n": number}, owner=number)
        keys: list[Sequence[str]] = []
        after: str | None = ""
        while after is not None:
            page, after = presence.page("room:1", after, 2)
            keys.append(list(page))
        self.assertEqual(keys, [["user-1", "user-10"], ["user-2", "user-3"]])
        self.assertEqual(presence.page("room:1", "user-3", 2), ({}, None))
        self.assertEqual(presence.page("room:2", "", 2), ({}, None))
