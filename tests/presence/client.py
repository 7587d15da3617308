"""What the class ``Presence`` of npm ``phoenix`` keeps of what it is sent, written again in Python."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

State = dict[str, Any]


class ModelClient:
    """One client's view of one topic.

    Attributes:
        state: who is present, as far as it has been told.
    """

    def __init__(self) -> None:
        self.state: State = {}
        self._synced = False
        self._pending: list[State] = []

    def joined(self) -> None:
        """It has joined the topic, anew perhaps: what it knows is to be compared with the next state."""
        self._synced = False

    def receive_state(self, state: State) -> None:
        self._synced = True
        joins: State = {}
        leaves: State = {key: known for key, known in self.state.items() if key not in state}
        for key, sent in state.items():
            known = self.state.get(key, {"metas": []})
            fresh, old = _refs(sent), _refs(known)
            joined = [meta for meta in sent["metas"] if meta["phx_ref"] not in old]
            left = [meta for meta in known["metas"] if meta["phx_ref"] not in fresh]
            if joined:
                joins[key] = {"metas": joined}
            if left:
                leaves[key] = {"metas": left}
        self._apply({"joins": joins, "leaves": leaves})
        pending, self._pending = self._pending, []
        for diff in pending:
            self._apply(diff)

    def receive_diff(self, diff: State) -> None:
        if self._synced:
            self._apply(diff)
        else:
            self._pending.append(diff)

    def _apply(self, diff: State) -> None:
        diff = deepcopy(diff)
        for key, sent in diff["joins"].items():
            known = self.state.get(key, {"metas": []})
            stay = [meta for meta in known["metas"] if meta["phx_ref"] not in _refs(sent)]
            self.state[key] = {"metas": stay + sent["metas"]}
        for key, sent in diff["leaves"].items():
            if key in self.state:
                stay = [meta for meta in self.state[key]["metas"] if meta["phx_ref"] not in _refs(sent)]
                self.state[key] = {"metas": stay}
                if not stay:
                    del self.state[key]


def _refs(presence: State) -> set[str]:
    return {meta["phx_ref"] for meta in presence["metas"]}
