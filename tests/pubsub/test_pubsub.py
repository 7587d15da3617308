"""What every IPubSub keeps to; each implementation runs the same tests."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from flowtx.interfaces import IPubSub
from flowtx.protocol.message import Broadcast
from flowtx.pubsub.memory import MemoryPubSub


class Listener:
    """Keeps what it hears."""

    def __init__(self, name: str = "", log: list[str] | None = None) -> None:
        self.name = name
        self.heard: list[Broadcast] = []
        self.log = [] if log is None else log
        self.then: Callable[[], None] = lambda: None

    def deliver(self, broadcast: Broadcast) -> None:
        self.heard.append(broadcast)
        self.log.append(self.name)
        self.then()


class PubSubContract:
    """The tests; a subclass that is a TestCase gives ``make``."""

    def make(self) -> IPubSub:
        raise NotImplementedError

    def test_provides_the_interface(self) -> None:
        assert verifyObject(IPubSub, self.make())

    def test_a_broadcast_goes_to_the_subscribers_of_its_topic(self) -> None:
        pubsub = self.make()
        first, second, other = Listener(), Listener(), Listener()
        pubsub.subscribe("room:1", first)
        pubsub.subscribe("room:1", second)
        pubsub.subscribe("room:2", other)
        broadcast = Broadcast("room:1", "new", {})
        assert pubsub.broadcast(broadcast) == 2
        assert first.heard == second.heard == [broadcast]
        assert first.heard[0] is broadcast
        assert other.heard == []

    def test_a_topic_is_no_pattern(self) -> None:
        pubsub = self.make()
        listener = Listener()
        for topic in ("room:*", "room:", "*"):
            pubsub.subscribe(topic, listener)
        assert pubsub.broadcast(Broadcast("room:1", "new", {})) == 0
        assert listener.heard == []

    def test_nobody_listens(self) -> None:
        assert self.make().broadcast(Broadcast("room:1", "new", {})) == 0

    def test_the_sender_is_left_out_and_not_counted(self) -> None:
        pubsub = self.make()
        sender, other = Listener(), Listener()
        pubsub.subscribe("room:1", sender)
        pubsub.subscribe("room:1", other)
        assert pubsub.broadcast(Broadcast("room:1", "new", {}), sender) == 1
        assert (len(sender.heard), len(other.heard)) == (0, 1)

    def test_a_sender_that_does_not_listen(self) -> None:
        pubsub = self.make()
        other = Listener()
        pubsub.subscribe("room:1", other)
        assert pubsub.broadcast(Broadcast("room:1", "new", {}), Listener()) == 1
        assert len(other.heard) == 1

    def test_subscribing_twice_is_as_once(self) -> None:
        pubsub = self.make()
        listener = Listener()
        pubsub.subscribe("room:1", listener)
        pubsub.subscribe("room:1", listener)
        assert pubsub.broadcast(Broadcast("room:1", "new", {})) == 1
        assert len(listener.heard) == 1
        pubsub.unsubscribe("room:1", listener)
        assert pubsub.broadcast(Broadcast("room:1", "new", {})) == 0

    def test_unsubscribing(self) -> None:
        pubsub = self.make()
        listener, other = Listener(), Listener()
        pubsub.subscribe("room:1", listener)
        pubsub.subscribe("room:2", listener)
        pubsub.subscribe("room:1", other)
        pubsub.unsubscribe("room:1", listener)
        assert pubsub.broadcast(Broadcast("room:1", "new", {})) == 1
        assert pubsub.broadcast(Broadcast("room:2", "new", {})) == 1
        assert [broadcast.topic for broadcast in listener.heard] == ["room:2"]

    def test_unsubscribing_what_is_not_subscribed(self) -> None:
        pubsub = self.make()
        listener, other = Listener(), Listener()
        pubsub.unsubscribe("room:1", listener)
        pubsub.subscribe("room:1", other)
        pubsub.unsubscribe("room:1", listener)
        assert pubsub.broadcast(Broadcast("room:1", "new", {})) == 1

    def test_subscribing_again(self) -> None:
        pubsub = self.make()
        listener = Listener()
        for _ in range(2):
            pubsub.subscribe("room:1", listener)
            pubsub.unsubscribe("room:1", listener)
        pubsub.subscribe("room:1", listener)
        assert pubsub.broadcast(Broadcast("room:1", "new", {})) == 1

    def test_a_subscriber_hears_broadcasts_in_order(self) -> None:
        pubsub = self.make()
        listener = Listener()
        pubsub.subscribe("room:1", listener)
        for number in range(20):
            pubsub.broadcast(Broadcast("room:1", str(number), {}))
        assert [broadcast.event for broadcast in listener.heard] == [str(number) for number in range(20)]

    def test_subscribers_may_come_and_go_during_a_broadcast(self) -> None:
        pubsub = self.make()
        leaving, joining, staying = Listener(), Listener(), Listener()

        def change() -> None:
            pubsub.unsubscribe("room:1", leaving)
            pubsub.subscribe("room:1", joining)

        leaving.then = change
        pubsub.subscribe("room:1", leaving)
        pubsub.subscribe("room:1", staying)
        pubsub.broadcast(Broadcast("room:1", "first", {}))
        assert (len(leaving.heard), len(joining.heard), len(staying.heard)) == (1, 0, 1)
        assert pubsub.broadcast(Broadcast("room:1", "second", {})) == 2
        assert (len(leaving.heard), len(joining.heard), len(staying.heard)) == (1, 1, 2)


class MemoryPubSubTests(PubSubContract, SynchronousTestCase):
    def make(self) -> IPubSub:
        return MemoryPubSub()

    def test_subscribers_hear_in_the_order_in_which_they_came(self) -> None:
        pubsub = MemoryPubSub()
        log: list[str] = []
        listeners = {name: Listener(name, log) for name in "dbca"}
        for listener in listeners.values():
            pubsub.subscribe("room:1", listener)
        pubsub.unsubscribe("room:1", listeners["b"])
        pubsub.subscribe("room:1", listeners["b"])
        pubsub.broadcast(Broadcast("room:1", "new", {}))
        self.assertEqual(log, ["d", "c", "a", "b"])

    def test_a_topic_without_subscribers_takes_no_room(self) -> None:
        pubsub = MemoryPubSub()
        listener = Listener()
        pubsub.subscribe("room:1", listener)
        pubsub.unsubscribe("room:1", listener)
        pubsub.unsubscribe("room:2", listener)
        pubsub.broadcast(Broadcast("room:3", "new", {}))
        self.assertEqual(pubsub._topics, {})
