"""History, revocations and the batched directory on a real PostgreSQL, and on one that is away."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from secrets import token_bytes
from socket import gethostname
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from flowtx.auth import TokenVerifier, mint
from flowtx.config import USERS_QUERY, Settings
from flowtx.errors import InvalidPayload, StorageError, Unavailable
from flowtx.interfaces import FinishedSession, Principal
from flowtx.keys import StaticKey, secret_key
from flowtx.metrics import Metrics
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.sessions.directory import BatchedRevocations, BatchedUserDirectory
from flowtx.sessions.history import History
from flowtx.sessions.service import Claim, SessionService
from flowtx.storage.link import Rows
from flowtx.storage.postgres import Database
from flowtx.storage.revocations import MARGIN, PostgresRevocations
from flowtx.storage.sessions import PostgresHistoryStore
from flowtx.storage.users import SqlUserDirectory
from tests.integration.flow_process import FlowProcess
from tests.integration.proxy import Proxy
from tests.storage import history_contract, revocations_contract
from tests.storage.history_contract import finished
from tests.storage.revocations_contract import token

reactor: Any = global_reactor

STORM = 5_000


class CountingDatabase(Database):
    """Counts its queries by the table that they are about."""

    def __init__(self, url: str) -> None:
        super().__init__(url, reactor=reactor)
        self.counts: Counter[str] = Counter()

    async def query(
        self,
        sql: str,
        params: Sequence[object] = (),
        *,
        timeout: float = 5.0,  # noqa: ASYNC109
    ) -> Rows:
        for table in ("users", "sessions", "revoked_tokens"):
            self.counts[table] += f"flow.{table}" in sql
        return await super().query(sql, params, timeout=timeout)


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    proxy = Proxy(database_url)
    yield proxy
    proxy.close()


@pytest_twisted.async_yield_fixture
async def remote(database: Database, proxy: Proxy) -> AsyncIterator[CountingDatabase]:
    """The test's own database, by way of the proxy."""
    service = CountingDatabase(proxy.url)
    await service.startService()
    yield service
    await service.stopService()


async def until(condition: Callable[[], object], within: float) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        await deferLater(reactor, 0.005)


# --- the history -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check", history_contract.CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_history_contract(check: history_contract.Check, database: Database) -> None:
    await check(PostgresHistoryStore(database))


@pytest_twisted.ensureDeferred
async def test_a_row_that_cannot_be_kept_keeps_the_others_out_and_is_told_from_an_outage(
    database: Database,
) -> None:
    store = PostgresHistoryStore(database)
    for reason in ("a\0b", "\ud800"):
        bad = FinishedSession("2", "alice", "n", 1.0, 2.0, 1.0, reason, 0, 0, 0)
        with pytest.raises(InvalidPayload):
            await store.add([finished("1"), bad])
    assert await store.latest("alice", 10) == []
    await database.query("DROP TABLE flow.sessions")
    for call in (store.add([finished("1")]), store.latest("alice", 1)):
        with pytest.raises(StorageError, match="does not exist"):
            await call


class Ended:
    """As much of a Session as the history reads."""

    restarts = messages_received = 0
    reason = "drain"

    def __init__(self, number: int) -> None:
        self.user_id = "alice"
        self.session_id = str(number)
        self.started_at = reactor.seconds() - 60
        self.connections = 1


def history_of(database: Database, max_queued: int = 60_000) -> History:
    return History(
        PostgresHistoryStore(database),
        node="node-a",
        clock=reactor,
        metrics=Metrics(),
        max_queued=max_queued,
    )


async def end(history: History, numbers: range) -> None:
    for number in numbers:
        await history.session_closing(Ended(number))  # type: ignore[arg-type]


async def kept(database: Database) -> int:
    [(rows, sessions)] = await database.query(
        "SELECT count(*), count(DISTINCT session_id) FROM flow.sessions"
    )
    assert rows == sessions
    return int(rows)


@pytest_twisted.ensureDeferred
async def test_all_that_a_full_node_has_is_written_before_the_stop_is_over(
    remote: CountingDatabase, database: Database
) -> None:
    history = history_of(remote)
    history.startService()
    await end(history, range(50_000))
    await history.stopService()
    assert await kept(database) == 50_000
    assert remote.counts["sessions"] == 100


@pytest_twisted.ensureDeferred
async def test_rows_of_an_outage_are_written_after_it_and_once(
    remote: CountingDatabase, database: Database, proxy: Proxy
) -> None:
    history = history_of(remote)
    history.startService()
    await end(history, range(1_000))
    await until(lambda: history.waiting == 0, 5)
    # A statement that goes into the hole is carried out when it opens: its outcome is unknown till then.
    proxy("hole")
    await end(history, range(1_000, 2_500))
    await deferLater(reactor, 1.0)
    assert await kept(database) == 1_000
    proxy("cut")
    proxy("pass")
    await until(lambda: history.waiting == 0, 10)
    assert await kept(database) == 2_500
    assert history.dropped == 0
    await history.stopService()


@pytest_twisted.ensureDeferred
async def test_the_stop_does_not_wait_for_a_database_that_is_away(
    remote: CountingDatabase, database: Database, proxy: Proxy
) -> None:
    history = history_of(remote)
    history.startService()
    proxy("hole")
    await end(history, range(1_000))
    started = time.monotonic()
    await history.stopService()
    assert 4.5 < time.monotonic() - started < 12
    assert history.waiting == 1_000
    assert await kept(database) == 0


# --- revocations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check", revocations_contract.CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_revocations_contract(check: revocations_contract.Check, database: Database) -> None:
    await check(PostgresRevocations(database))


@pytest_twisted.ensureDeferred
async def test_the_second_of_the_revocation(database: Database) -> None:
    revocations = PostgresRevocations(database)
    await database.query(
        "INSERT INTO flow.revoked_tokens (user_id, revoked_at) VALUES ('alice', to_timestamp(100.7))"
    )
    asked = [token("alice", iat=iat) for iat in (99.0, 100.0, 100.9, 101.0)]
    assert await revocations.revoked(asked) == set(asked[:3])


@pytest_twisted.ensureDeferred
async def test_the_later_revocation_of_a_user_counts(database: Database) -> None:
    revocations = PostgresRevocations(database)
    await database.query(
        "INSERT INTO flow.revoked_tokens (user_id, revoked_at) VALUES "
        "('alice', to_timestamp(100)), ('bob', to_timestamp(4e9))"
    )
    new = [token("alice", iat=200.0), token("bob", iat=3e9)]
    assert await revocations.revoked(new) == {new[1]}
    for user_id in ("alice", "bob"):
        await revocations.revoke(user_id=user_id)
    assert await revocations.revoked(new) == set(new)


@pytest_twisted.ensureDeferred
async def test_rows_go_when_what_they_revoke_has_ended(database: Database) -> None:
    await PostgresRevocations(database).revoke(token_id="for ever")
    await PostgresRevocations(database, 3_600.0).revoke(token_id="a while")
    await PostgresRevocations(database, 3_600.0).revoke(user_id="alice")
    rows = await database.query(
        "SELECT coalesce(jti, user_id), extract(epoch FROM expires_at - revoked_at)::float8 "
        "FROM flow.revoked_tokens ORDER BY 1"
    )
    assert [(name, seconds and round(seconds)) for name, seconds in rows] == [
        ("a while", 3_600 + MARGIN),
        ("alice", 3_600 + MARGIN),
        ("for ever", None),
    ]
    await database.query("UPDATE flow.revoked_tokens SET expires_at = now() WHERE jti = 'a while'")
    await PostgresRevocations(database).revoke(token_id="new")
    rows = await database.query("SELECT coalesce(jti, user_id) FROM flow.revoked_tokens ORDER BY 1")
    assert rows == [("alice",), ("for ever",), ("new",)]


@pytest_twisted.ensureDeferred
async def test_what_no_token_can_carry_is_an_invalid_payload(database: Database) -> None:
    revocations = PostgresRevocations(database)
    for jti in ("", "x" * 257, "a\0b", "\ud800"):
        with pytest.raises(InvalidPayload, match="jti"):
            await revocations.revoke(token_id=jti)
    for user_id in ("", "a b", "x" * 129, "a\0b"):
        with pytest.raises(InvalidPayload, match="user_id"):
            await revocations.revoke(user_id=user_id)
    assert await database.query("SELECT * FROM flow.revoked_tokens") == []


@pytest_twisted.ensureDeferred
async def test_a_row_names_a_token_or_a_user(database: Database) -> None:
    for columns, values in (("revoked_at", "now()"), ("jti, user_id", "'a', 'alice'")):
        with pytest.raises(psycopg2.errors.CheckViolation):
            await database.query(f"INSERT INTO flow.revoked_tokens ({columns}) VALUES ({values})")


@pytest_twisted.ensureDeferred
async def test_revocations_that_cannot_be_read_are_a_storage_error(database: Database) -> None:
    revocations = PostgresRevocations(database)
    await database.query("DROP TABLE flow.revoked_tokens")
    for call in (revocations.revoked([token("alice")]), revocations.revoke(user_id="alice")):
        with pytest.raises(StorageError, match="does not exist"):
            await call


@pytest_twisted.ensureDeferred
async def test_a_real_token_is_revoked_with_its_user_and_a_new_one_is_good(database: Database) -> None:
    secret, now = token_bytes(64), time.time()
    keys = StaticKey(secret_key(secret, ["HS512"]))
    verifier = TokenVerifier(Settings(jwt_algorithms=("HS512",)), keys)
    old = await verifier.verify(mint(secret, "HS512", "alice", ttl=60, now=now))
    new = await verifier.verify(mint(secret, "HS512", "alice", ttl=60, now=now + 2))
    revocations = PostgresRevocations(database)
    await database.query(
        "INSERT INTO flow.revoked_tokens (user_id, revoked_at) VALUES ('alice', to_timestamp(%s))", [now]
    )
    assert await revocations.revoked([old, new]) == {old}


# --- many at once ----------------------------------------------------------------------------------


async def add_users(database: Database) -> list[Principal]:
    await database.query(
        "INSERT INTO flow.users (id, name) SELECT 'user-' || n, 'User ' || n FROM generate_series(1, %s) n",
        [STORM],
    )
    return [
        Principal(f"user-{number}", 4e9, f"jti-{number}", issued_at=1.0) for number in range(1, STORM + 1)
    ]


def sessions_on(database: Database, history: History) -> SessionService:
    return SessionService(
        BatchedUserDirectory(SqlUserDirectory(database, USERS_QUERY), clock=reactor),
        [history],
        pubsub=MemoryPubSub(),
        clock=reactor,
        revocations=BatchedRevocations(PostgresRevocations(database), clock=reactor),
    )


def claim_all(sessions: SessionService, principals: Sequence[Principal]) -> list[Deferred[Claim]]:
    return [Deferred.fromCoroutine(sessions.claim(principal)) for principal in principals]


@pytest_twisted.ensureDeferred
async def test_a_storm_costs_a_query_for_many_and_leaves_a_row_for_each(
    remote: CountingDatabase, database: Database
) -> None:
    principals = await add_users(database)
    history = history_of(remote)
    history.startService()
    sessions = sessions_on(remote, history)
    sessions.startService()
    claims = await gatherResults(claim_all(sessions, principals))
    assert len(list(sessions)) == STORM
    assert [claim.session.user and claim.session.user.name for claim in claims[:2]] == ["User 1", "User 2"]
    assert 0 < remote.counts["users"] <= STORM / 50
    assert 0 < remote.counts["revoked_tokens"] <= STORM / 50
    for claim in claims:
        claim.release()
    await sessions.stopService()
    await history.stopService()
    assert await kept(database) == STORM
    assert await database.query("SELECT count(DISTINCT user_id) FROM flow.sessions") == [(STORM,)]
    assert remote.counts["sessions"] <= STORM / 50


async def all_unavailable(sessions: SessionService, principals: Sequence[Principal]) -> float:
    """Have them all refused; the seconds that this took."""
    started = time.monotonic()
    outcomes = []
    for claiming in claim_all(sessions, principals):
        claiming.addBoth(lambda result: outcomes.append((result.type, time.monotonic() - started)))
    await until(lambda: len(outcomes) == len(principals), 10)
    assert {kind for kind, _ in outcomes} == {Unavailable}
    return max(seconds for _, seconds in outcomes)


@pytest.mark.parametrize("outage", ["hole", "down"])
@pytest_twisted.ensureDeferred
async def test_without_a_database_everybody_is_refused_and_nothing_piles_up(
    remote: CountingDatabase, database: Database, proxy: Proxy, outage: str
) -> None:
    principals = await add_users(database)
    history = history_of(remote)
    sessions = sessions_on(remote, history)
    sessions.startService()
    before = len(reactor.getDelayedCalls())
    if outage == "down":
        proxy.close()
        await until(lambda: remote.ready == 0, 2)
    else:
        proxy("hole")
    seconds = [await all_unavailable(sessions, principals) for _ in range(2)]
    # The deadline itself is held by a test on a Clock; here a busy machine may add to it.
    assert max(seconds) < 12
    assert remote.waiting <= 2
    assert len(reactor.getDelayedCalls()) < before + 20
    assert list(sessions) == []
    if outage != "down":
        proxy("pass")
        await until(lambda: remote.ready, 10)
        claims = await gatherResults(claim_all(sessions, principals[:100]))
        for claim in claims:
            claim.release()
    await sessions.stopService()


# --- a whole server --------------------------------------------------------------------------------


def test_a_server_that_is_stopped_leaves_a_row_for_each_session(tmp_path: Path, database_url: str) -> None:
    with FlowProcess(tmp_path, database=database_url) as server:
        users = [server.new_user() for _ in range(20)]
        for user_id in users:
            assert server.handshake(server.token(user_id)) == "HTTP/1.1 101 Switching Protocols"
        assert server.sql("SELECT count(*) FROM flow.sessions") == [(0,)]
        server.stop()
        rows = server.sql(
            "SELECT user_id, node, reason, connections, ended_at - connected_at < '1 min', "
            "duration_seconds BETWEEN 0 AND 60, now() - ended_at < '1 min' FROM flow.sessions"
        )
        expected = [(user_id, gethostname(), "drain", 1, True, True, True) for user_id in users]
        assert sorted(rows) == sorted(expected)


def test_a_server_refuses_what_is_revoked(tmp_path: Path, database_url: str) -> None:
    with FlowProcess(tmp_path, database=database_url) as server:
        alice, bob = server.new_user(), server.new_user()
        server.sql("INSERT INTO flow.revoked_tokens (jti) VALUES ('stolen')")
        server.sql("INSERT INTO flow.revoked_tokens (user_id) VALUES (%s)", bob)
        answers = [
            server.handshake(server.token(user_id, **claims)).split()[1]
            for user_id, claims in (
                (alice, {"jti": "stolen"}),
                (alice, {"jti": "other"}),
                (bob, {"iat": int(time.time()) - 1}),
                (bob, {"iat": int(time.time()) + 2}),
                (bob, {}),
            )
        ]
        assert answers == ["403", "101", "403", "101", "403"]
