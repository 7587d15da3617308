"""Which types of notifications a user wants to be sent: patterns such as ``deal.*``."""

from __future__ import annotations

from collections.abc import Iterable


def matches(patterns: Iterable[str], type_: str) -> bool:
    """Tell whether a type is among those that patterns name.

    Args:
        patterns: each a type, or the beginning of types and a star.
        type_: e.g. ``deal.won``.
    """
    return any(
        type_.startswith(pattern[:-1]) if pattern.endswith("*") else type_ == pattern for pattern in patterns
    )
