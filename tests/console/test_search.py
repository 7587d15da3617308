from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.console.search import PAUSE, SLICE, Found, Query, Search, Sort, row
from flowtx.interfaces import User
from flowtx.sessions.session import Session
from tests.sessions.node import Node, principal


class Sessions:
    """A registry of Sessions that nothing happens to."""

    def __init__(self, node: Node) -> None:
        self.namedServices: dict[str, Session] = {}
        self._around = node.sessions._around

    def add(self, user_id: str, name: str = "", email: str | None = None) -> Session:
        session = Session(principal(user_id), self._around)
        session.user = User(user_id, name, email)
        self.namedServices[user_id] = session
        return session


class SearchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node()
        self.clock: Clock = self.node.clock
        self.sessions = Sessions(self.node)
        numbers = count()
        # A look at one slice takes a tenth of a second.
        self.search = Search(
            self.sessions,  # type: ignore[arg-type]
            clock=self.clock,
            timer=lambda: next(numbers) * 0.1,
        )

    def find(self, search: str = "", sort: Sort = "newest", limit: int = 50) -> Found:
        waiting = Deferred.fromCoroutine(self.search.find(Query(search, sort, limit)))
        for _ in range(1 + len(self.search) // SLICE):
            self.clock.advance(0)
        return self.successResultOf(waiting)

    def ids(self, search: str = "", sort: Sort = "newest", limit: int = 50) -> Sequence[str]:
        return [session.user_id for session in self.find(search, sort, limit).sessions]

    def test_by_age_without_a_look_at_all(self) -> None:
        for number in range(3 * SLICE):
            self.sessions.add(f"user-{number:04}")
        waiting = Deferred.fromCoroutine(self.search.find(Query(limit=2)))
        found = self.successResultOf(waiting)
        self.assertEqual([one.user_id for one in found.sessions], ["user-1499", "user-1498"])
        self.assertEqual(found.matched, 1500)
        self.assertEqual(self.ids(sort="oldest", limit=2), ["user-0000", "user-0001"])

    def test_id_name_and_address_in_any_case(self) -> None:
        self.sessions.add("u-1", "Ada Lovelace", "ada@example.com")
        self.sessions.add("u-2", "Straße", None)
        self.sessions.add("ADA-3")
        starting = self.sessions.add("u-4")
        starting.user = None
        self.assertEqual(self.ids("ada"), ["ADA-3", "u-1"])
        self.assertEqual(self.ids("LOVE"), ["u-1"])
        self.assertEqual(self.ids("@example"), ["u-1"])
        self.assertEqual(self.ids("STRASSE"), ["u-2"])
        self.assertEqual(self.ids("u-4"), ["u-4"])
        # Nothing that is put together of two of them.
        self.assertEqual(self.ids("1ada"), [])

    def test_a_long_look_is_taken_a_part_at_a_time(self) -> None:
        for number in range(2 * SLICE + 1):
            self.sessions.add(f"user-{number:04}")
        waiting = Deferred.fromCoroutine(self.search.find(Query("user", "user_id", 1)))
        self.assertNoResult(waiting)
        # Who comes or goes meanwhile breaks nothing.
        del self.sessions.namedServices["user-1000"]
        self.sessions.add("user-new")
        self.clock.advance(0)
        found = self.successResultOf(waiting)
        self.assertEqual([session.user_id for session in found.sessions], ["user-0000"])
        self.assertAlmostEqual(found.spent, 0.3)
        self.assertEqual(self.ids("user", "oldest", 1), ["user-0000"])

    def test_all_watchers_together_look_a_twentieth_of_the_time(self) -> None:
        found = Found([], 0, 0.2)
        self.search.watchers = 1
        self.assertAlmostEqual(self.search.pause_after(found), PAUSE * 0.2)
        self.search.watchers = 3
        self.assertAlmostEqual(self.search.pause_after(found), 3 * PAUSE * 0.2)
        self.assertEqual(self.search.pause_after(Found([], 0, 0.001)), 1.0)

    def test_by_devices_queue_and_activity(self) -> None:
        node = Node(3)
        search = Search(node.sessions, clock=node.clock)
        few, many, late = (node.connect(f"user-{number}") for number in (0, 1, 2))
        node.connect("user-1")
        few.transport.waiting_bytes = 7
        node.clock.advance(5)
        late.send("room:1", "hello")
        for sort, first in (("devices", "user-1"), ("queue", "user-0"), ("active", "user-2")):
            found = self.successResultOf(Deferred.fromCoroutine(search.find(Query(sort=sort))))  # type: ignore[arg-type]
            self.assertEqual(found.sessions[0].user_id, first, sort)
            self.assertEqual(found.matched, 3)
        shown = row(node.session("user-1"), 100.4)
        self.assertEqual((shown.connections, shown.connected_at, shown.name), (2, 100, "User-1"))
        many.socket.device = "phone"
        self.assertEqual(row(node.session("user-1"), 0).devices, ("phone",))


class PageTests(SynchronousTestCase):
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.text("ab", min_size=1, max_size=4), unique=True, max_size=12),
        st.text("ab", max_size=2),
        st.sampled_from(["newest", "oldest", "user_id"]),
        st.integers(1, 5),
    )
    def test_a_page_is_the_beginning_of_all_that_match(
        self, users: list[str], search: str, sort: Sort, limit: int
    ) -> None:
        node = Node()
        sessions = Sessions(node)
        for user in users:
            sessions.add(user)
        finder = Search(sessions, clock=node.clock)  # type: ignore[arg-type]
        found = self.successResultOf(Deferred.fromCoroutine(finder.find(Query(search, sort, limit))))
        matching = [user for user in users if search in user]
        ordered = {"newest": matching[::-1], "oldest": matching, "user_id": sorted(matching)}[sort]
        self.assertEqual([session.user_id for session in found.sessions], ordered[:limit])
        self.assertEqual(found.matched, len(matching))
