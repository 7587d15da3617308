"""What every IPubSub keeps to, alone and between nodes; each adapter runs the same checks.

What is between nodes may take its time and be lost: a check that waits for it says so by ``settle``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
from zope.interface.verify import verifyObject

from flowtx.errors import InvalidPayload
from flowtx.interfaces import IPubSub
from flowtx.protocol.message import NULL_REF, Broadcast, UnencodablePayload
from flowtx.protocol.serializer import V1Serializer, V2Serializer
from flowtx.pubsub.pubsub import PubSub


class Nodes(Protocol):
    """Some nodes that hear each other."""

    async def open(self, *names: str) -> Sequence[PubSub]:
        """Make nodes of those names, which hear each other from then on."""

    async def settle(self) -> None:
        """Wait until all that was sent between nodes has arrived."""


Check = Callable[[Nodes], Awaitable[None]]


class Ear:
    """Keeps what it hears, and does something each time."""

    def __init__(self, *places: tuple[IPubSub, str], then: Callable[[], object] = lambda: None) -> None:
        self.heard: list[Broadcast] = []
        self.then = then
        for pubsub, topic in places:
            pubsub.subscribe(topic, self)

    def deliver(self, broadcast: Broadcast) -> None:
        self.heard.append(broadcast)
        self.then()

    @property
    def events(self) -> list[str]:
        return [broadcast.event for broadcast in self.heard]

    @property
    def frames(self) -> list[bytes]:
        """What clients of both versions would get."""
        serializers = (V1Serializer(), V2Serializer())
        return [one.broadcast(NULL_REF, heard).payload for heard in self.heard for one in serializers]


def failing() -> None:
    raise RuntimeError("planted")


# On one node


async def it_provides_the_interface(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    assert verifyObject(IPubSub, here)
    assert here.node == "here"


async def a_broadcast_goes_to_the_subscribers_of_its_topic(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    first, second, other = Ear((here, "room:1")), Ear((here, "room:1")), Ear((here, "room:2"))
    assert here.broadcast("room:1", "new", {"n": 1}) == 2
    [heard] = first.heard
    assert (heard.topic, heard.event, heard.payload, heard.key) == ("room:1", "new", {"n": 1}, None)
    assert second.heard == [heard]
    assert second.heard[0] is heard
    await nodes.settle()
    assert [len(ear.heard) for ear in (first, second, other)] == [1, 1, 0]


async def publish_takes_any_event_and_gives_the_very_object(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    ear = Ear((here, "room:1"))
    broadcast = Broadcast("room:1", "presence_diff", {}, "key")
    assert here.publish(broadcast) == 1
    assert ear.heard[0] is broadcast


async def a_topic_is_no_pattern(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    ear = Ear(*((here, topic) for topic in ("room:*", "room:", "*")))
    assert here.broadcast("room:1", "new", {}) == 0
    assert ear.heard == []


async def nobody_listens(nodes: Nodes) -> None:
    here, _ = await nodes.open("here", "there")
    assert here.broadcast("room:1", "new", {}) == 0
    assert here.broadcast_many(["room:1", "room:2"], "new", {}) == 0
    assert here.broadcast_matching("room:*", "new", {}) == 0
    await nodes.settle()


async def the_sender_is_left_out_and_not_counted(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    sender, other = Ear((here, "room:1")), Ear((here, "room:1"))
    assert here.broadcast_from(sender, "room:1", "new", {}) == 1
    await nodes.settle()
    assert (len(sender.heard), len(other.heard)) == (0, 1)


async def a_sender_need_not_listen(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    other = Ear((here, "room:1"))
    assert here.broadcast_from(Ear(), "room:1", "new", {}) == 1
    assert len(other.heard) == 1


async def subscribing_twice_is_as_once(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    ear = Ear((here, "room:1"), (here, "room:1"))
    assert here.broadcast("room:1", "new", {}) == 1
    here.unsubscribe("room:1", ear)
    assert here.broadcast("room:1", "new", {}) == 0
    here.subscribe("room:1", ear)
    assert here.broadcast("room:1", "again", {}) == 1
    assert ear.events == ["new", "again"]


async def unsubscribing_is_for_one_topic_and_one_subscriber(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    ear, other = Ear((here, "room:1"), (here, "room:2")), Ear((here, "room:1"))
    here.unsubscribe("room:1", ear)
    here.unsubscribe("room:1", ear)
    here.unsubscribe("room:3", ear)
    assert here.broadcast("room:1", "one", {}) == 1
    assert here.broadcast("room:2", "two", {}) == 1
    assert (ear.events, other.events) == (["two"], ["one"])


async def broadcasts_are_heard_in_order(nodes: Nodes) -> None:
    here, there = await nodes.open("here", "there")
    ears = [Ear((pubsub, "room:1")) for pubsub in (here, there)]
    numbers = [str(number) for number in range(50)]
    for number in numbers:
        here.broadcast("room:1", number, {})
    await nodes.settle()
    assert [ear.events for ear in ears] == [numbers, numbers]


async def who_goes_during_a_broadcast_gets_no_more_and_who_comes_gets_the_next(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    joining = Ear()

    def change() -> None:
        for ear in (first, gone):
            here.unsubscribe("room:1", ear)
        here.subscribe("room:1", joining)

    first = Ear((here, "room:1"), then=change)
    gone, staying = Ear((here, "room:1")), Ear((here, "room:1"))
    assert here.broadcast("room:1", "one", {}) == 2
    assert [len(ear.heard) for ear in (first, gone, staying, joining)] == [1, 0, 1, 0]
    assert here.broadcast("room:1", "two", {}) == 2
    assert [len(ear.heard) for ear in (first, gone, staying, joining)] == [1, 0, 2, 1]


async def the_last_may_go_and_others_come_during_a_broadcast(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    joining = Ear()

    def change() -> None:
        for ear in (first, gone):
            here.unsubscribe("room:1", ear)
        here.subscribe("room:1", joining)

    first = Ear((here, "room:1"), then=change)
    gone = Ear((here, "room:1"))
    assert here.broadcast("room:1", "one", {}) == 1
    assert (gone.events, joining.events) == ([], [])
    assert here.broadcast("room:1", "two", {}) == 1
    assert joining.events == ["two"]


async def a_subscriber_may_broadcast(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    other = Ear((here, "room:2"))
    Ear((here, "room:1"), then=lambda: here.broadcast("room:2", "echo", {}))
    assert here.broadcast("room:1", "new", {}) == 1
    assert other.events == ["echo"]


async def many_topics_count_once_each(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    ears = [Ear((here, f"room:{number}")) for number in range(3)]
    both = Ear((here, "room:0"), (here, "room:1"))
    assert here.broadcast_many(["room:1", "room:0", "room:1", "room:9"], "new", {"n": 1}) == 4
    await nodes.settle()
    assert [len(ear.heard) for ear in (*ears, both)] == [1, 1, 0, 2]
    assert [heard.topic for heard in both.heard] == ["room:1", "room:0"]
    assert {msgspec.json.encode(heard.payload) for heard in both.heard} == {b'{"n":1}'}
    assert b'["room:1"' not in both.frames[1]
    assert both.frames[1] == b'[null,null,"room:1","new",{"n":1}]'


async def a_pattern_matches_as_a_routers_does(nodes: Nodes) -> None:
    [here] = await nodes.open("here")
    topics = ("user:a", "user:b", "user:", "users:online", "room:1")
    ears = [Ear((here, topic)) for topic in topics]
    assert here.broadcast_matching("user:*", "new", {}, key="k") == 3
    assert [ear.events for ear in ears] == [["new"], ["new"], ["new"], [], []]
    assert {heard.key for ear in ears for heard in ear.heard} == {"k"}
    assert here.broadcast_matching("room:1", "new", {}) == 1


async def what_cannot_be_sent_fails_its_sender_and_nobody_else(nodes: Nodes) -> None:
    here, there = await nodes.open("here", "there")
    ears = [Ear((pubsub, "room:1")) for pubsub in (here, there)]
    loop: list[Any] = []
    loop.append(loop)
    payload: Any
    for payload in ([], "text", None, 1, {"a": object()}, {"a": loop}, {"a": {1, object()}}):
        sends: list[Callable[[], object]] = [
            lambda: here.broadcast("room:1", "new", payload),  # noqa: B023 - called at once
            lambda: here.broadcast_from(ears[0], "room:1", "new", payload),  # noqa: B023
            lambda: here.direct_broadcast("there", "room:1", "new", payload),  # noqa: B023
            lambda: here.broadcast_many(["room:1"], "new", payload),  # noqa: B023
            lambda: here.broadcast_matching("room:*", "new", payload),  # noqa: B023
            lambda: here.publish(Broadcast("room:1", "new", payload)),  # noqa: B023
        ]
        for send in sends:
            _assert_raises(UnencodablePayload, "", send)
    await nodes.settle()
    assert [ear.heard for ear in ears] == [[], []]


async def names_are_checked_and_the_error_says_what_is_wrong(nodes: Nodes) -> None:
    here, there = await nodes.open("here", "there")
    ears = [Ear((pubsub, "room:1")) for pubsub in (here, there)]
    for event in ("", "x" * 129, "a\nb", "a\x00", "\ud800", None, 7, "phx_reply", "phx_x", "presence_diff"):
        for send in (
            lambda: here.broadcast("room:1", event, {}),  # type: ignore[arg-type]  # noqa: B023
            lambda: here.broadcast_many(["room:1"], event, {}),  # type: ignore[arg-type]  # noqa: B023
            lambda: here.broadcast_matching("room:*", event, {}),  # type: ignore[arg-type]  # noqa: B023
        ):
            _assert_raises(InvalidPayload, "event: ", send)
    for topic in ("", "x" * 1025, "a\rb", "\udfff", None, b"room:1"):
        for send in (
            lambda: here.broadcast(topic, "e", {}),  # type: ignore[arg-type]  # noqa: B023
            lambda: here.direct_broadcast("there", topic, "e", {}),  # type: ignore[arg-type]  # noqa: B023
            lambda: here.broadcast_many(["room:1", topic], "e", {}),  # type: ignore[list-item]  # noqa: B023
        ):
            _assert_raises(InvalidPayload, "topic: ", send)
    for pattern in ("", "*", "a*b", "**", None):
        _assert_raises(InvalidPayload, "pattern: ", lambda: here.broadcast_matching(pattern, "e", {}))  # type: ignore[arg-type]  # noqa: B023
    await nodes.settle()
    assert [ear.heard for ear in ears] == [[], []]
    assert here.broadcast("room:1", "x" * 128, {}) == 1
    assert here.broadcast("x" * 1024, "phoenix", {}) == 0


# Between nodes


async def a_broadcast_reaches_the_other_nodes_once_and_is_counted_here_only(nodes: Nodes) -> None:
    here, there, third = await nodes.open("here", "there", "third")
    ears = [Ear((pubsub, "room:1")) for pubsub in (here, there, third, third)]
    other = Ear((there, "room:2"))
    assert here.broadcast("room:1", "new", {}) == 1
    await nodes.settle()
    assert [ear.events for ear in ears] == [["new"]] * 4
    assert third.broadcast("room:1", "back", {}) == 2
    await nodes.settle()
    await nodes.settle()
    assert [ear.events for ear in ears] == [["new", "back"]] * 4
    assert other.heard == []


async def it_arrives_as_it_was_sent(nodes: Nodes) -> None:
    here, there = await nodes.open("here", "there")
    ears = [Ear((pubsub, "room:ż")) for pubsub in (here, there)]
    for payload in ({}, {"a": [1, None, {"ż": "\x00 😀 \u2028"}]}, msgspec.Raw(b'{"raw":1}')):
        here.broadcast("room:ż", "événement", payload, key="k")
    await nodes.settle()
    assert ears[0].frames == ears[1].frames
    assert len(ears[1].frames) == 6
    assert [heard.key for heard in ears[1].heard] == ["k"] * 3
    assert ears[1].heard[1].payload == {"a": [1, None, {"ż": "\x00 😀 \u2028"}]}


async def bytes_arrive_as_bytes(nodes: Nodes) -> None:
    here, there = await nodes.open("here", "there")
    ears = [Ear((pubsub, "room:1")) for pubsub in (here, there)]
    for data in (b"", b"\x00\xff[", b'{"a":1}'):
        here.broadcast("room:1", "blob", data, key="k")
    await nodes.settle()
    for ear in ears:
        assert [heard.payload for heard in ear.heard] == [b"", b"\x00\xff[", b'{"a":1}']
        assert {heard.key for heard in ear.heard} == {"k"}
        assert all(V2Serializer().broadcast(NULL_REF, heard).binary for heard in ear.heard)


async def the_sender_is_left_out_here_and_others_there_are_not(nodes: Nodes) -> None:
    here, there = await nodes.open("here", "there")
    sender, beside, other = Ear((here, "room:1")), Ear((here, "room:1")), Ear((there, "room:1"))
    assert here.broadcast_from(sender, "room:1", "new", {}) == 1
    await nodes.settle()
    assert [len(ear.heard) for ear in (sender, beside, other)] == [0, 1, 1]


async def direct_goes_to_one_node(nodes: Nodes) -> None:
    here, there, third = await nodes.open("here", "there", "third")
    ears = [Ear((pubsub, "room:1")) for pubsub in (here, there, third)]
    assert here.direct_broadcast("there", "room:1", "two", {}) == 0
    assert here.direct_broadcast("here", "room:1", "one", {}) == 1
    assert here.direct_broadcast("nowhere", "room:1", "none", {}) == 0
    assert here.publish(Broadcast("room:1", "presence_diff", {}), None, "here") == 1
    await nodes.settle()
    assert [ear.events for ear in ears] == [["one", "presence_diff"], ["two"], []]


async def many_and_matching_reach_the_other_nodes(nodes: Nodes) -> None:
    here, there = await nodes.open("here", "there")
    ears = [Ear((there, topic)) for topic in ("user:a", "user:b", "room:1")]
    assert here.broadcast_many(["user:a", "room:1"], "many", {"n": 1}, key="k") == 0
    assert here.broadcast_matching("user:*", "all", {"n": 2}) == 0
    await nodes.settle()
    assert [ear.events for ear in ears] == [["many", "all"], ["all"], ["many"]]
    assert [heard.payload for heard in ears[0].heard] == [{"n": 1}, {"n": 2}]
    assert [heard.key for heard in ears[0].heard] == ["k", None]


async def who_has_left_there_gets_nothing_more(nodes: Nodes) -> None:
    here, there = await nodes.open("here", "there")
    ear = Ear((there, "room:1"))
    there.unsubscribe("room:1", ear)
    here.broadcast("room:1", "new", {})
    await nodes.settle()
    assert ear.heard == []


async def a_payload_that_is_changed_later_arrives_as_it_was(nodes: Nodes) -> None:
    here, there = await nodes.open("here", "there")
    ear = Ear((there, "room:1"))
    payload = {"n": 1}
    here.broadcast("room:1", "new", payload)
    payload["n"] = 2
    await nodes.settle()
    assert ear.heard[0].payload == {"n": 1}


def _assert_raises(kind: type[Exception], beginning: str, call: Callable[[], object]) -> None:
    try:
        call()
    except kind as problem:
        assert str(problem).startswith(beginning), problem
        assert len(str(problem)) < 512
    else:
        raise AssertionError(f"no {kind.__name__}")


# With subscribers that raise, which is logged: the caller takes that out of the log.


async def one_that_raises_keeps_nobody_else_from_theirs(nodes: Nodes) -> None:
    here, there = await nodes.open("here", "there")
    good = []
    for pubsub in (here, there):
        Ear((pubsub, "room:1"), then=failing)
        good.append(Ear((pubsub, "room:1")))
        Ear((pubsub, "room:1"), then=failing)
    assert here.broadcast("room:1", "one", {}) == 1
    await nodes.settle()
    assert here.broadcast("room:1", "two", {}) == 1
    await nodes.settle()
    assert [ear.events for ear in good] == [["one", "two"]] * 2


ALONE: list[Check] = [
    it_provides_the_interface,
    a_broadcast_goes_to_the_subscribers_of_its_topic,
    publish_takes_any_event_and_gives_the_very_object,
    a_topic_is_no_pattern,
    the_sender_is_left_out_and_not_counted,
    a_sender_need_not_listen,
    subscribing_twice_is_as_once,
    unsubscribing_is_for_one_topic_and_one_subscriber,
    who_goes_during_a_broadcast_gets_no_more_and_who_comes_gets_the_next,
    the_last_may_go_and_others_come_during_a_broadcast,
    a_subscriber_may_broadcast,
    many_topics_count_once_each,
    a_pattern_matches_as_a_routers_does,
]
"""What a node that is alone keeps to."""

BETWEEN: list[Check] = [
    nobody_listens,
    broadcasts_are_heard_in_order,
    what_cannot_be_sent_fails_its_sender_and_nobody_else,
    names_are_checked_and_the_error_says_what_is_wrong,
    a_broadcast_reaches_the_other_nodes_once_and_is_counted_here_only,
    it_arrives_as_it_was_sent,
    bytes_arrive_as_bytes,
    the_sender_is_left_out_here_and_others_there_are_not,
    direct_goes_to_one_node,
    many_and_matching_reach_the_other_nodes,
    who_has_left_there_gets_nothing_more,
    a_payload_that_is_changed_later_arrives_as_it_was,
]
"""What nodes keep to that hear each other, besides `ALONE`."""
