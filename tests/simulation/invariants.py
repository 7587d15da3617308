"""What must hold: at any time, when all has come to rest, and when nobody is there any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from flowtx.channels.socket import MAX_QUEUED
from flowtx.channels.throttle import FULL
from flowtx.notifications.reader import WINDOW
from flowtx.presence.store import Status
from flowtx.transports.factory import TOKEN_GRACE
from tests.faults.checker import check
from tests.faults.history import History, Outcome, Row
from tests.simulation.clients import Device
from tests.simulation.clock import name_of
from tests.simulation.database import Database
from tests.simulation.node import Node
from tests.simulation.nodes import Nodes
from tests.simulation.writers import Writers

ONLINE: Final = "users:online"
Truth = dict[str, list[tuple[str, str | None]]]
"""By user, their devices with what each has said of its user; None where that is not known."""
LATE: Final = 3.0
"""Seconds that a node may take to close a connection; a frozen one may take as long as that lasts."""
IDLE: Final = frozenset({"Periodic._begin", "Listener._look", "Slot._check"})
"""What a node that nobody uses still does from time to time."""


class Invariants:
    """All of them.

    Args:
        right_time: the time of day; None in a run in which the nodes have been told another one.

    Attributes:
        broken: what did not hold.
    """

    def __init__(
        self,
        *,
        nodes: Nodes,
        database: Database,
        devices: Sequence[Device],
        writers: Writers,
        right_time: Callable[[], float | None],
    ) -> None:
        self.broken: list[str] = []
        self._nodes = nodes
        self._database = database
        self._devices = devices
        self._writers = writers
        self._right_time = right_time

    # At any time

    def watch(self) -> None:
        """See that nothing is more than it may be."""
        for node in self._nodes.alive:
            self.broken += _bounds(node)
            self.broken += self._outlived(node)

    def _outlived(self, node: Node) -> Iterator[str]:
        """Connections that are open though their tokens have ended."""
        now = self._right_time()
        for protocol in node.factory.connections if now is not None else ():
            socket = protocol._socket
            if socket is not None and not socket.closed:
                left = socket.principal.expires_at + TOKEN_GRACE - (now or 0.0)
                if left < -LATE and not node.clock.is_frozen:
                    yield f"{socket.principal.user_id} is here {-left:.1f} s after their token has ended"

    # At rest

    def unrest(self) -> str:
        """Tell what has not come to rest yet; nothing where all has."""
        return next(self._unrest(), "")

    def _unrest(self) -> Iterator[str]:
        node = self._nodes.current
        if node is None or node.state != "up":
            yield "there is no node"
            return
        if self._nodes.leaving is not None:
            yield "a node is still there that has been stopped"
        if self._writers.open:
            yield f"{self._writers.open} pushes are not acknowledged"
        for device in self._devices:
            if not device.is_settled:
                yield f"{device.name} has not joined: {device.inbox.state}, {device.online.state}"
        yield from self._not_shown()
        yield from self._absent(node)
        if node.history.waiting or node.presence_recorder.waiting:
            yield "rows wait for the database"

    def _not_shown(self) -> Iterator[str]:
        inboxes = self._database.inboxes._inboxes
        marked = dict.fromkeys(inboxes, 0)
        for device in self._devices:
            marked[device.user] = max(marked.get(device.user, 0), device.marked)
        for device in self._devices:
            inbox = inboxes.get(device.user)
            after = marked[device.user] if device.forgetful else 0
            wanted = set(range(after + 1, inbox.last_seq + 1)) if inbox is not None else set[int]()
            if missing := wanted - device.shown.seqs:
                yield f"{device.name} was not shown {sorted(missing)}"

    def _absent(self, node: Node) -> Iterator[str]:
        truth: Truth = {}
        for device in self._devices:
            truth.setdefault(device.user, []).append((device.name, device.status))
        for device in self._devices:
            if problem := _differs(truth, device.presence.state):
                yield f"{device.name} takes {problem}"
        for user, known in truth.items():
            statuses = {status for _, status in known}
            row = self._database.presence._rows.get(user)
            status: Status = "online" if "online" in statuses else "away"
            stored = "offline" if row is None else row.status
            if None not in statuses and stored != status:
                yield f"{user} is {status}, and stored as {stored}"
            if row is not None and row.instance.id != node.presence_recorder.instance.id:
                yield f"{user} is stored as being on another node"

    def judge(self) -> None:
        """See that nothing was lost, shown twice or out of order, all having come to rest."""
        readers = [device.shown.reader for device in self._devices if not device.forgetful]
        rows = [
            Row(user, seq, row.entry.id, _marker(row.entry.payload))
            for user, inbox in self._database.inboxes._inboxes.items()
            for seq, row in inbox.rows.items()
        ]
        verdict = check(History(self._writers.pushes, readers, rows, _committed(self._writers, rows)))
        self.broken += [f"{offence.fault.value}: {offence.what}" for offence in verdict.offences]
        for device in self._devices:
            self.broken += device.shown.faults
        self.broken += self._writers.surprises

    # The end

    def remains(self) -> str:
        """Tell what is left of the clients that have gone; nothing where nothing is."""
        node = self._nodes.current
        return "the node is gone" if node is None else next(_remains(node), "")

    def judge_end(self, node: Node) -> None:
        """See that a node that was stopped has left nothing behind."""
        # What is still on its way to it from the network and the database is none of its own.
        calls = [
            call
            for call in node.clock.pending
            if not getattr(call.func, "__module__", "").startswith("tests.")
        ]
        if calls:
            self.broken.append(f"a stopped node will still call {sorted(map(name_of, calls))}")
        if node.history.waiting or node.presence_recorder.waiting:
            self.broken.append("a stopped node has not written all rows")
        known = self._database.history._sessions
        lost = [session for session in node.witness.ended if session not in known]
        if lost:
            self.broken.append(f"the rows of {len(lost)} Sessions are not stored")

    def judge_memory(self, node: Node) -> None:
        """See that nothing of a stopped node's connections exists any more."""
        for kind, alive in (("protocols", node.protocols), ("Sessions", node.witness.sessions)):
            if alive:
                self.broken.append(f"{len(alive)} {kind} still exist")

    def gather(self) -> None:
        """Take what nodes and their witnesses saw."""
        self.broken += self._nodes.faults
        for node in (*self._nodes.past, *self._nodes.alive):
            self.broken += node.witness.faults


def _bounds(node: Node) -> Iterator[str]:
    limit = node.settings.outbox_limit
    waiting = 0
    for protocol in node.factory.connections:
        waiting += protocol.waiting_bytes
        if protocol.waiting_bytes > limit:
            yield f"{protocol.waiting_bytes} bytes wait in an outbox of {limit}"
        socket = protocol._socket
        if socket is None:
            continue
        if socket._queued % FULL > MAX_QUEUED + 1:
            yield f"{socket._queued} messages of a client wait"
        if socket.closed is False and node.sessions.get_session(socket.principal.user_id) is None:
            yield f"{socket.principal.user_id} has a connection without a Session"
        for reader in node.notifications.delivery.readers(socket.principal.user_id):
            if reader.in_flight > WINDOW:
                yield f"{reader.in_flight} notifications are on their way to a client"
    if waiting != node.metrics.outbox_waiting:
        yield f"{node.metrics.outbox_waiting} bytes are counted as waiting, and {waiting} wait"


def _remains(node: Node) -> Iterator[str]:
    if node.factory.connections:
        yield f"{len(node.factory.connections)} connections"
    if node.sessions.namedServices:
        yield f"Sessions of {list(node.sessions.namedServices)}"
    if len(node.online) or list(node.tracker.keys(ONLINE)):
        yield f"{len(node.online)} users online, shown {list(node.tracker.keys(ONLINE))}"
    if node.presence._refs:
        yield "refs of presences"
    if node.notifications.delivery._readers:
        yield f"readers of {list(node.notifications.delivery._readers)}"
    if node.pubsub._topics:
        yield f"subscriptions to {list(node.pubsub._topics)}"
    if node.metrics.outbox_waiting:
        yield f"{node.metrics.outbox_waiting} waiting bytes"
    if node.factory.admission.under_way:
        yield f"{node.factory.admission.under_way} handshakes"
    if node.metrics.connections._value.get():
        yield f"{node.metrics.connections._value.get()} connections in the metrics"
    if node.gate.under_way:
        yield f"{node.gate.under_way} requests"
    if node.history.waiting or node.presence_recorder.waiting:
        yield "rows that wait for the database"
    other = sorted({*map(name_of, node.clock.pending)} - IDLE)
    if other:
        yield f"timers: {other}"


def _differs(truth: Truth, shown: dict[str, Any]) -> str:
    """Tell in what a client's view of who is present is wrong."""
    for user in sorted(truth.keys() | shown.keys()):
        devices = sorted(truth.get(user, []), key=str)
        metas = [(meta["device"], meta["status"]) for meta in shown.get(user, {"metas": []})["metas"]]
        if sorted(name for name, _ in devices) != sorted(str(name) for name, _ in metas):
            return f"{user} to be on {metas}, not on {devices}"
        known = dict(metas)
        wrong = [name for name, status in devices if status is not None and known[name] != status]
        if wrong:
            return f"{user} to be {metas}, not {devices}"
    return ""


def _marker(payload: object) -> str:
    return bytes(payload).decode().split('"')[3]  # type: ignore[call-overload, no-any-return]


def _committed(writers: Writers, rows: Sequence[Row]) -> frozenset[str]:
    """The markers of the transactions that committed: there is no other table here to tell them by."""
    stored = {row.marker for row in rows}
    return frozenset(
        push.marker for push in writers.pushes if push.outcome is Outcome.OK or push.marker in stored
    )
