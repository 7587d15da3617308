"""The console command ``flowtx``.

Exit status 0; 1 for a failure, told in one line; 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import react

from flowtx.auth import MAX_EXPIRY, USER_ID_PATTERN, mint, signing_algorithm
from flowtx.bench.load import put_load
from flowtx.bench.plan import Plan, names, read_api_key, read_tokens
from flowtx.config import HMAC_ALGORITHMS, Settings, load
from flowtx.data_dir import DataDir
from flowtx.errors import ConfigError, DataDirInUse, FlowtxError
from flowtx.example import example_file
from flowtx.interfaces import User
from flowtx.preflight import check
from flowtx.service import OrderedMultiService
from flowtx.storage.embedded import EmbeddedPostgres, embedded_url
from flowtx.storage.migrations import migrate
from flowtx.storage.notifications import PostgresNotificationStore
from flowtx.storage.postgres import Database
from flowtx.storage.sessions import PostgresHistoryStore
from flowtx.storage.users import add_user, list_users
from flowtx.web.keys import SCOPES, add_key
from flowtx.why import MAX_SHOWN, Known, Unreachable, ask, tell

T = TypeVar("T")

BENCH_TTL = 3_600.0
MAX_HISTORY = 10
"""Sessions that ``flowtx why`` reads of the history."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except FlowtxError as error:
        return _failed(str(error).splitlines()[0])
    except (CancelledError, KeyboardInterrupt):
        return _failed("interrupted")
    except BrokenPipeError:
        # Whoever read the output has what they wanted; Python would complain of it when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _failed(why: str) -> int:
    print(f"flowtx: {why}", file=sys.stderr)
    return 1


def _settings(parsed: Any) -> Settings:
    names = ("config", "data-dir", "database", "api-keys", "admin")
    given = {name: getattr(parsed, name.replace("-", "_"), None) for name in names}
    return load({name: value for name, value in given.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flowtx", description="Commands beside the server, which is run by: twistd flow"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    # No defaults: an action's own would hide what was given before it.
    where = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    where.add_argument("--config", metavar="FILE", help="TOML file with settings")
    where.add_argument("--data-dir", metavar="DIR", help="data directory; default .flow")
    where.add_argument("--database", metavar="URL", help="postgresql:// URL; default the embedded one")

    def command(name: str, run: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[where], help=text, description=text)
        added.set_defaults(run=run)
        return added

    token = command("token", _token, "print a token for a user")
    token.add_argument("user_id", metavar="USER_ID")
    token.add_argument(
        "--ttl", type=float, default=3600.0, metavar="S", help="seconds until it expires; default 3600"
    )
    token.add_argument(
        "--claim",
        action="append",
        default=[],
        type=_claim,
        metavar="K=V",
        help="a further claim; V is JSON or text",
    )
    command("check-config", _check_config, "say what a start would say of the settings and their files")
    command("example-config", _example_config, "print a settings file with every setting and its default")
    command("migrate", _migrate, "make the schema flow, or bring it up to date")
    users = command("users", _users, "add a user to flow.users, or list them")
    actions = users.add_subparsers(metavar="ACTION", required=True)
    add = actions.add_parser("add", parents=[where], help="add a user, or change their name and e-mail")
    add.add_argument("user_id", metavar="USER_ID")
    add.add_argument("--name", help="default: the id")
    add.add_argument("--email")
    add.set_defaults(action=_add_user)
    listed = actions.add_parser("list", parents=[where], help="print id, name and e-mail, tab-separated")
    listed.set_defaults(action=_list_users)
    command("database-url", _database_url, "print the URL of the database, the embedded one too")
    keys = command("api-key", _api_key, "add a key to the file of --api-keys, and print it")
    actions = keys.add_subparsers(metavar="ACTION", required=True)
    add = actions.add_parser("add", parents=[where], help="make a key; the server takes it after a SIGHUP")
    add.add_argument("name", metavar="NAME", help="whose it is, for the log")
    add.add_argument("--api-keys", metavar="FILE", help="where the server reads them; made if absent")
    add.add_argument(
        "--scope", action="append", choices=SCOPES, required=True, help="what it may do; repeatable"
    )
    why = command("why", _why, "tell why a user dropped")
    why.add_argument("user_id", metavar="USER")
    why.add_argument("--admin", metavar="ENDPOINT", help="the server's, as it was given to it")
    why.add_argument(
        "--events", type=int, default=MAX_SHOWN, metavar="N", help="how many events at the most; default 40"
    )
    bench = command("bench", _bench, "put a simple load on a running server and tell what its clients see")
    ours = "ws://127.0.0.1:4000", "http://127.0.0.1:4001"
    bench.add_argument("url", metavar="URL", nargs="?", default=ours[0], help="default %(default)s")
    bench.add_argument("--api", metavar="URL", default=ours[1], help="default %(default)s")
    bench.add_argument("--api-key-file", metavar="FILE", help="default that of the data directory")
    bench.add_argument("--clients", type=int, default=100, metavar="N", help="default 100")
    bench.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of each load; default 5")
    bench.add_argument("--rate", type=float, default=10.0, metavar="N", help="messages a second of a client")
    bench.add_argument("--tokens", metavar="FILE", help="a user id and a token a line; default: signs them")
    command("version", _version, "print the version")
    return parser


def _claim(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"got {text!r}; it takes NAME=VALUE")
    try:
        return name, msgspec.json.decode(value)
    except ValueError:
        return name, value


def _token(parsed: Any) -> int:
    settings = _settings(parsed)
    if not USER_ID_PATTERN.fullmatch(parsed.user_id):
        raise ConfigError(f"USER_ID: got {parsed.user_id!r}; it takes 1 to 128 of A-Z a-z 0-9 _ . : @ -")
    sign = _signer(settings)
    now = time.time()
    longest = settings.jwt_max_lifetime or MAX_EXPIRY - now
    if not 0 < parsed.ttl <= longest:
        raise ConfigError(
            f"--ttl: got {parsed.ttl:g}; it takes more than 0 and at most {longest:.0f} (--jwt-max-lifetime)"
        )
    print(sign(parsed.user_id, parsed.ttl, dict(parsed.claim)))
    return 0


def _signer(settings: Settings) -> Callable[[str, float, dict[str, object]], str]:
    """Make a function that signs a token: of a user, for some seconds, with further claims."""
    if not HMAC_ALGORITHMS.issuperset(settings.jwt_algorithms):
        raise ConfigError(
            f"--jwt-algorithms: {', '.join(settings.jwt_algorithms)} verifies with a public key; "
            "tokens come from whoever has the private one"
        )
    if settings.secret_file is None:
        secret = DataDir.peek(settings.data_dir).secret()
    else:  # which is enough where the server itself is elsewhere
        secret = DataDir(Path(settings.data_dir), None).secret(settings.secret_file)
    algorithm = signing_algorithm(settings.jwt_algorithms, secret)
    parties = {"iss": settings.jwt_issuer, "aud": settings.jwt_audience}
    usual = {name: text for name, text in parties.items() if text}

    def sign(user_id: str, ttl: float, claims: dict[str, object]) -> str:
        return mint(secret, algorithm, user_id, ttl=ttl, now=time.time(), claims={**usual, **claims})

    return sign


def _check_config(parsed: Any) -> int:
    settings = _settings(parsed)
    for warning in check(settings):
        print(f"flowtx: warning: {warning}", file=sys.stderr)
    print(f"good: {settings}")
    return 0


def _example_config(_: Any) -> int:
    print(example_file(), end="")
    return 0


def _migrate(parsed: Any) -> int:
    print(f"schema flow: version {_with_database(_settings(parsed), migrate)}")
    return 0


def _users(parsed: Any) -> int:
    status: int = parsed.action(parsed, _settings(parsed))
    return status


def _add_user(parsed: Any, settings: Settings) -> int:
    if not USER_ID_PATTERN.fullmatch(parsed.user_id):
        raise ConfigError(f"USER_ID: got {parsed.user_id!r}; it takes 1 to 128 of A-Z a-z 0-9 _ . : @ -")
    user = User(parsed.user_id, parsed.name or parsed.user_id, parsed.email)

    async def add(database: Database) -> None:
        await migrate(database)
        await add_user(database, user)

    _with_database(settings, add)
    return 0


def _list_users(_: Any, settings: Settings) -> int:
    async def read(database: Database) -> list[User]:
        await migrate(database)
        return await list_users(database)

    for user in _with_database(settings, read):
        print(user.id, user.name, user.email or "", sep="\t")
    return 0


def _database_url(parsed: Any) -> int:
    settings = _settings(parsed)
    print(settings.database or embedded_url(DataDir.peek(settings.data_dir).path))
    return 0


def _api_key(parsed: Any) -> int:
    file = _settings(parsed).api_keys
    if file is None:
        raise ConfigError("--api-keys: got none; it takes the file that the server reads its keys from")
    print(add_key(Path(file), parsed.name, frozenset(parsed.scope)))
    return 0


def _why(parsed: Any) -> int:
    settings, user_id = _settings(parsed), parsed.user_id
    if not USER_ID_PATTERN.fullmatch(user_id):
        raise ConfigError(f"USER: got {user_id!r}; it takes 1 to 128 of A-Z a-z 0-9 _ . : @ -")
    try:
        known = ask(settings.admin, DataDir.peek(settings.data_dir).existing_api_key(), user_id)
    except Unreachable as problem:
        print(f"flowtx: {problem}; what follows is out of the database", file=sys.stderr)
        known = Known()
    if not known.ends:
        # It may have been started anew since.
        async def read(database: Database) -> None:
            known.history = await PostgresHistoryStore(database).latest(user_id, MAX_HISTORY)
            if known.unread is None:
                inbox = await PostgresNotificationStore(database).list_page(user_id, None, 1, unread=True)
                known.unread = inbox.unread

        _with_database(settings, read)
    for line in tell(known, user_id, datetime.now(UTC), max(0, parsed.events)):
        print(line)
    return 1 if known.empty else 0


def _bench(parsed: Any) -> int:
    settings = _settings(parsed)
    if parsed.tokens is None:
        sign = _signer(settings)
        tokens = {user: sign(user, BENCH_TTL, {}) for user in names(parsed.clients)}
    else:
        tokens = read_tokens(parsed.tokens)
    if parsed.api_key_file is None:
        api_key = DataDir.peek(settings.data_dir).existing_api_key()
    else:
        api_key = read_api_key(parsed.api_key_file)
    plan = Plan(parsed.url, parsed.api, api_key, tokens, parsed.seconds, parsed.rate)
    _with_reactor(lambda reactor: put_load(plan, lambda line: print(line, flush=True), reactor))
    return 0


def _version(_: Any) -> int:
    print(f"flowtx {version('flowtx')}")
    return 0


def _with_database(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do some work with the database, the embedded one started for it unless a server runs it."""
    return _with_reactor(lambda reactor: _connected(settings, work, reactor))


def _with_reactor(work: Callable[[Any], Awaitable[T]]) -> T:
    outcome: list[T | Exception] = []

    async def run(reactor: Any) -> None:
        try:
            outcome.append(await work(reactor))
        except Exception as error:
            outcome.append(error)

    def start(reactor: Any) -> Deferred[None]:
        running = Deferred.fromCoroutine(run(reactor))
        ended: Deferred[None] = Deferred()

        def interrupt() -> Deferred[None]:
            running.cancel()
            return ended

        # Else the reactor would not wait for what has started to be stopped.
        reactor.addSystemEventTrigger("before", "shutdown", interrupt)
        return running.addBoth(ended.callback)

    with suppress(SystemExit):
        react(start)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


async def _connected(settings: Settings, work: Callable[[Database], Awaitable[T]], reactor: Any) -> T:
    services = OrderedMultiService()
    data_dir = None
    url = settings.database
    if url is None:
        try:
            data_dir = DataDir.open(settings.data_dir)
        except DataDirInUse:
            url = embedded_url(DataDir.peek(settings.data_dir).path)
        else:
            embedded = EmbeddedPostgres(data_dir.path, reactor=reactor)
            embedded.setServiceParent(services)
            url = embedded.url
    database = Database(url, reactor=reactor, slots=1, application_name="flowtx command")
    database.setServiceParent(services)
    try:
        await services.startService()
        return await work(database)
    finally:
        await services.stopService()
        if data_dir is not None:
            data_dir.close()
