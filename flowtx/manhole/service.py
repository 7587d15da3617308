"""The manhole: an SSH shell into the running server, for those who have a key of its own.

Off unless ``--manhole`` is given. See docs/manhole.md for what it is to those who use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.application.service import Service
from twisted.conch.ssh.keys import BadKeyError, FingerprintFormats, Key
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from flowtx.data_dir import DataDir
from flowtx.errors import ConfigError, StartupError
from flowtx.listening import Listening
from flowtx.manhole.authorized_keys import read_keys
from flowtx.manhole.namespace import (
    Config,
    Groups,
    Notifications,
    Presence,
    PubSub,
    Sessions,
    help_on,
)
from flowtx.manhole.ssh import ManholeFactory

if TYPE_CHECKING:
    from flowtx.app import Services
    from flowtx.config import Settings
    from flowtx.presence.online import OnlineUsers


class Manhole(Service):
    """See the module.

    Args:
        endpoint: where it listens.
        keys_file: who may log in.
        data_dir: has the host key.
        namespace: the names at the prompt.
        stopped: called when it has stopped.
        reactor: the reactor.

    Raises:
        StartupError: the file of keys or the host key cannot be used.
    """

    _log = Logger()

    def __init__(
        self,
        endpoint: str,
        keys_file: str,
        data_dir: DataDir,
        namespace: Mapping[str, object],
        *,
        stopped: Callable[[], object],
        reactor: Any,
    ) -> None:
        self._keys = len(read_keys(keys_file))
        self._host_key = host_key(data_dir)
        self._factory = ManholeFactory(self._host_key, keys_file, namespace, clock=reactor)
        self._listening = Listening("manhole", endpoint, self._factory, reactor=reactor)
        self._endpoint = endpoint
        self._stopped = stopped

    @property
    def address(self) -> IAddress | None:
        """Where it listens, while it runs."""
        return self._listening.address

    def startService(self) -> Deferred[None]:
        """Listen; fails with `StartupError` where the address cannot be had."""
        super().startService()
        return self._listening.startService().addCallback(self._started)

    def _started(self, _: None) -> None:
        self._log.info(
            "The manhole listens on {endpoint} for {keys} keys; its host key is SHA256:{fingerprint}",
            endpoint=self._endpoint,
            keys=self._keys,
            fingerprint=self._host_key.fingerprint(FingerprintFormats.SHA256_BASE64).rstrip("="),
        )

    def stopService(self) -> Deferred[None]:
        """Listen no more, and close all shells; fires once they are gone."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._listening.stopService()
        await self._factory.close()
        self._stopped()


def open_manhole(
    settings: Settings,
    data_dir: DataDir,
    services: Services,
    *,
    online: OnlineUsers,
    storage: object,
    recorder: object,
) -> Manhole:
    """Make the manhole of a server; its clock is the reactor.

    Args:
        settings: say where, and for whom.
        data_dir: has the host key.
        services: the server's.
        online: who is online.
        storage: the database, as an operator looks at it.
        recorder: what last happened to each user.

    Raises:
        ConfigError, StartupError: see `Manhole`.
    """
    if settings.manhole is None or settings.manhole_keys is None:
        raise ConfigError("--manhole: needs --manhole-keys")
    sessions = Sessions(services)
    names: dict[str, object] = {
        "sessions": sessions,
        "notifications": Notifications(services),
        "presence": Presence(services, online),
        "pubsub": PubSub(services),
        "groups": Groups(services),
        "storage": storage,
        "recorder": recorder,
        "config": Config(settings.redacted()),
    }
    names["help"] = help_on(
        names, {"recorder": "What last happened to each user: events(user_id), ends(user_id)."}
    )
    return Manhole(
        settings.manhole,
        settings.manhole_keys,
        data_dir,
        names,
        stopped=sessions.release_all,
        reactor=services.clock,
    )


def host_key(data_dir: DataDir) -> Key:
    """Read the host key, and make it before where there is none.

    Raises:
        StartupError: it cannot be read or made, or is no key.
    """
    text = data_dir.host_key(_new_key)
    try:
        key: Key = Key.fromString(text + b"\n")
        if key.isPublic() or key.type() != "Ed25519":
            raise BadKeyError("a key of another kind")
    except Exception:  # noqa: BLE001, RUF100 - of many kinds, for what only looks like a key
        raise StartupError(
            "--data-dir: ssh_host_ed25519_key holds no private Ed25519 key; "
            "without the file a new one is made, which clients will not know"
        ) from None
    return key


def _new_key() -> bytes:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
