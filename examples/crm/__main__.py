"""The one command: flowtx with the application, on the embedded database, and a server for the page."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.task import react
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.web.static import File

import flowtx.web
from flowtx import make_service
from flowtx.auth import mint, signing_algorithm
from flowtx.config import Settings, load
from flowtx.data_dir import DataDir
from flowtx.demo import url
from flowtx.errors import FlowtxError
from flowtx.interfaces import User
from flowtx.storage.cluster import embedded_url
from flowtx.storage.users import add_user
from flowtx.web.site import AdminSite

USERS: Final = (
    User("alice", "Alice Adams", "alice@example.com"),
    User("bob", "Bob Brown", "bob@example.com"),
)
TOKEN_LIFETIME: Final = 43_200.0

_TEXT: Final = """
The deals board is running. Ctrl-C stops it, its database included.
Open each link in a window of its own:

  {0.name:<12} {1}
  {2.name:<12} {3}
"""


def page() -> File:
    """The page and its files; the Phoenix client is the one that flowtx brings."""
    File.contentTypes[".mjs"] = "text/javascript"
    root = File(str(Path(__file__).with_name("static")))
    phoenix = Path(flowtx.web.__path__[0], "static", "phoenix.mjs")
    root.putChild(b"phoenix.mjs", File(str(phoenix)))
    return root


async def run(reactor: Any, settings: Settings, port: int) -> None:
    """Run everything until the reactor stops."""
    # Twisted's own clock follows the wall clock: a step of it would fire every timeout at once.
    reactor.seconds = time.monotonic
    flow = make_service(settings, reactor=reactor)
    reactor.addSystemEventTrigger("before", "shutdown", flow.stopService)
    await flow.startService()
    for user in USERS:
        await add_user(flow.database, user)
    listening = await serverFromString(reactor, f"tcp:{port}:interface=127.0.0.1").listen(
        AdminSite(page(), reactor=reactor)
    )
    here, socket = url("http", listening.getHost()), url("ws", flow.clients[0].address) + "/socket"
    links = [f"{here}/#socket={socket}&token={token(settings, user.id)}" for user in USERS]
    sys.stdout.write(_TEXT.format(USERS[0], links[0], USERS[1], links[1]))
    sys.stdout.flush()
    await Deferred()


def token(settings: Settings, user_id: str) -> str:
    """Make a token, as the backend of the product would."""
    secret = DataDir.peek(settings.data_dir).secret(settings.secret_file)
    algorithm = signing_algorithm(settings.jwt_algorithms, secret)
    return mint(secret, algorithm, user_id, ttl=TOKEN_LIFETIME, now=time.time())


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.crm",
        description="A deals board on flowtx. Settings of flowtx are taken from its environment variables.",
    )
    parser.add_argument("--port", type=int, default=4002, help="where the page is served; default 4002")
    port = parser.parse_args().port
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    try:
        settings = load({"app": "examples.crm:make_router"})
        os.environ["DATABASE_URL"] = settings.database or embedded_url(Path(settings.data_dir).absolute())
    except FlowtxError as problem:
        sys.exit(f"flowtx: {problem}")

    async def started(reactor: Any) -> None:
        try:
            await run(reactor, settings, port)
        except CancelledError:
            pass  # stopped while it started
        except (FlowtxError, CannotListenError) as problem:
            # One line for whoever typed the command.
            raise SystemExit(f"flowtx: {problem}") from None

    react(started)


if __name__ == "__main__":
    main()
