"""The life of a Session: five states, and what each event does in each of them.

=========  ==========================================================================
starting   its user is being looked up, for the first time or after a crash
ready      it has connections, or handshakes that will become some
away       it has none; the reconnection window runs
draining   it ends: nobody is let in, its connections are being closed
stopped    it has ended, and its name is free
=========  ==========================================================================
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    AWAY = "away"
    DRAINING = "draining"
    STOPPED = "stopped"


class Event(Enum):
    LOADED = "loaded"
    """The user was found, and the observers have been told."""
    REFUSED = "refused"
    """The user is unknown, or could not be looked up."""
    CLAIMED = "claimed"
    """A connection begins its handshake."""
    LEFT = "left"
    """The last connection has gone, and no handshake is under way."""
    ABANDONED = "abandoned"
    """The last handshake failed, and there never was a connection."""
    CRASHED = "crashed"
    """Something that runs for it failed."""
    ENDED = "ended"
    """It is to end: told to, given up, idle, or not returned to within the window."""
    TORN_DOWN = "torn down"
    """Its teardown has finished."""


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.STARTING, Event.LOADED): State.READY,
    (State.STARTING, Event.REFUSED): State.DRAINING,
    (State.STARTING, Event.CLAIMED): State.STARTING,
    (State.STARTING, Event.LEFT): State.STARTING,
    (State.STARTING, Event.ABANDONED): State.DRAINING,
    (State.STARTING, Event.CRASHED): State.STARTING,
    (State.STARTING, Event.ENDED): State.DRAINING,
    (State.READY, Event.CLAIMED): State.READY,
    (State.READY, Event.LEFT): State.AWAY,
    (State.READY, Event.ABANDONED): State.DRAINING,
    (State.READY, Event.CRASHED): State.STARTING,
    (State.READY, Event.ENDED): State.DRAINING,
    (State.AWAY, Event.CLAIMED): State.READY,
    (State.AWAY, Event.CRASHED): State.STARTING,
    (State.AWAY, Event.ENDED): State.DRAINING,
    (State.DRAINING, Event.LEFT): State.DRAINING,
    (State.DRAINING, Event.ABANDONED): State.DRAINING,
    (State.DRAINING, Event.CRASHED): State.DRAINING,
    (State.DRAINING, Event.ENDED): State.DRAINING,
    (State.DRAINING, Event.TORN_DOWN): State.STOPPED,
    (State.STOPPED, Event.CRASHED): State.STOPPED,
    (State.STOPPED, Event.ENDED): State.STOPPED,
}

ENDING: Final = frozenset({State.DRAINING, State.STOPPED})


class IllegalTransition(RuntimeError):  # noqa: N818
    """An event came in a state in which it cannot."""


def after(state: State, event: Event) -> State:
    """Find the state that follows.

    Raises:
        IllegalTransition: the event cannot come in that state.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        legal = ", ".join(known.value for before, known in TRANSITIONS if before is state)
        raise IllegalTransition(
            f"a Session that is {state.value} cannot be {event.value}; it takes: {legal}"
        ) from None


def diagram() -> str:
    """Draw the machine, in Mermaid's language; events that change nothing are left out."""
    changes: dict[tuple[State, State], list[str]] = {}
    for (before, event), behind in TRANSITIONS.items():
        if before is not behind:
            changes.setdefault((before, behind), []).append(event.value)
    arrows = [
        f"    {before.value} --> {behind.value}: {', '.join(events)}"
        for (before, behind), events in changes.items()
    ]
    return "\n".join(["stateDiagram-v2", "    [*] --> starting", *arrows, "    stopped --> [*]", ""])
