"""The exceptions that flowtx raises. Each says what happened, so that a caller can decide what to do.

A text in here may end in a log or in front of an operator; it never carries a token, a
password or a payload.
"""

from __future__ import annotations

from collections.abc import Mapping


class FlowtxError(Exception):
    """The root of all errors that flowtx raises on purpose."""


class ConfigError(FlowtxError):
    """A setting is unknown, of the wrong type, out of range or contradicts another one."""


class StartupError(FlowtxError):
    """The server cannot start: no database, a taken port, a data directory in use."""


class DataDirInUse(StartupError):  # noqa: N818
    """Another flowtx holds the data directory."""


class Refused(FlowtxError):  # noqa: N818 - the field's word, not an error of ours
    """An opening handshake is refused.

    Attributes:
        reason: one of the reasons that clients are told, e.g. ``expired_token``.
        status: the HTTP status of the answer.
        headers: further headers of the answer.
        user_id: whose handshake it was, where that is proved; nobody is told.
    """

    user_id: str | None = None

    def __init__(self, reason: str, status: int = 403, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.headers = dict(headers or {})


class InvalidPayload(FlowtxError):  # noqa: N818
    """What a client or a caller sent does not have the form that is asked for.

    Attributes:
        detail: what was got and what is taken, in one line.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Conflict(FlowtxError):  # noqa: N818
    """An idempotency key was used before, for something else."""


class AlreadyTracked(FlowtxError):  # noqa: N818
    """An owner tracks a presence a second time: an update is for that."""


class NotTracked(FlowtxError):  # noqa: N818
    """An owner updates a presence that it does not track."""


class PresenceFull(FlowtxError):  # noqa: N818
    """There are as many presences as there may be, on the topic or on this node.

    A channel that does not catch it answers the client's message ``presence_full``.
    """


class StorageError(FlowtxError):
    """The root of what can go wrong between flowtx and its database."""


class Unavailable(StorageError):  # noqa: N818
    """Nothing was sent to the database: it is down, or every connection stayed busy.

    Safe to try again.
    """


class UnknownOutcome(StorageError):  # noqa: N818
    """The connection was lost, or a deadline passed, while a statement was under way.

    It may have been carried out or not: repeat it only with an idempotency key.
    """


class SchemaError(StorageError):
    """The database's schema is not one that this version of flowtx can work with."""
