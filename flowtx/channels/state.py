"""Where in its life a channel is."""

from enum import Enum


class State(Enum):
    JOINING = "joining"
    JOINED = "joined"
    ENDING = "ending"
    """No message is handled any more; ``terminate`` may still send."""
    CLOSED = "closed"
