"""The example application without its page: moves as transactions, its Channel on real deals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from examples.crm.board import TOPIC, BoardChannel
from examples.crm.deals import Deals
from flowtx import Router
from flowtx.storage.postgres import Database
from flowtx.testing import ANY, Client, MemoryServer
from tests.integration.async_flow_process import until
from tests.integration.flow_process import run_sql

PATIENCE = 10.0


@pytest_twisted.async_yield_fixture
async def deals(database: Database, database_url: str) -> AsyncIterator[Deals]:
    deals = Deals(database_url, reactor=reactor)
    yield deals
    await deals.stop()


def notified(url: str) -> list[Any]:
    return run_sql(url, "SELECT user_id, payload->>'stage' FROM flow.notifications ORDER BY 1, seq")


@pytest_twisted.ensureDeferred
async def test_of_two_who_move_a_deal_at_once_one_is_told_how_it_is_now(
    deals: Deals, database_url: str
) -> None:
    await deals.all()
    first, second = await gatherResults(
        [
            Deferred.fromCoroutine(deals.move(2, stage, 1, "alice"))  # which is Bob's
            for stage in ("proposal", "lost")
        ]
    )
    assert sorted([first[1], second[1]]) == [False, True]
    assert first[0] is not None
    assert first[0] == second[0]
    assert (first[0].version, notified(database_url)) == (2, [("bob", first[0].stage)])


@pytest_twisted.ensureDeferred
async def test_the_owner_is_told_if_and_only_if_the_deal_was_moved(deals: Deals, database_url: str) -> None:
    assert (await deals.move(1, "won", 1, "alice"))[1]  # her own
    assert await deals.move(1, "won", 1, "bob") == (await deals.find(1), False)
    assert await deals.move(99, "won", 1, "bob") == (None, False)
    assert notified(database_url) == []
    # No user can have such an id: the notification fails, and the move with it.
    run_sql(database_url, "UPDATE crm.deals SET owner = 'no such id' WHERE id = 3")
    with pytest.raises(psycopg2.Error):
        await deals.move(3, "won", 1, "bob")
    deal = await deals.find(3)
    assert deal is not None
    assert (deal.stage, deal.version) == ("lead", 1)


# --- the Channel ------------------------------------------------------------------------------------


@pytest_twisted.async_yield_fixture
async def server(deals: Deals) -> AsyncIterator[MemoryServer]:
    server = MemoryServer(lambda services: Router().channel(TOPIC, lambda: BoardChannel(deals, services)))
    yield server
    server.stop()


async def comes(take: Any) -> Any:
    """Wait for what the database has to answer first; ``take`` is an ``assert_…`` of a client."""
    taken: list[Any] = []

    def try_it() -> bool:
        try:
            taken.append(take())
        except AssertionError:
            return False
        return True

    await until(try_it, PATIENCE)
    return taken[0]


async def joins(server: MemoryServer, user_id: str) -> Client:
    client = server.connect(user_id)
    client.join(TOPIC)
    await comes(lambda: client.assert_push("board"))
    return client


@pytest_twisted.ensureDeferred
async def test_moves_reach_the_others(server: MemoryServer) -> None:
    alice, bob = await joins(server, "alice"), await joins(server, "bob")
    ref = alice.push(TOPIC, "move", {"id": 2, "stage": "won", "version": 1})
    await comes(lambda: alice.assert_reply(ref, "ok", {"deal": {"id": 2, "stage": "won", "version": 2}}))
    bob.assert_push("deal_moved", {"by": "alice", "deal": {"stage": "won", "version": 2}})
    alice.refute_push("deal_moved")
    late = bob.push(TOPIC, "move", {"id": 2, "stage": "lost", "version": 1})
    now = {"reason": "moved_meanwhile", "deal": {"stage": "won", "version": 2}}
    await comes(lambda: bob.assert_reply(late, "error", now))
    alice.refute_push("deal_moved")


@pytest_twisted.ensureDeferred
async def test_a_question_is_a_notification(server: MemoryServer) -> None:
    alice, bob = await joins(server, "alice"), server.connect("bob")
    bob.join("user:bob")
    for _ in range(2):
        ref = alice.push(TOPIC, "ask", {"id": 2})
        await comes(lambda ref=ref: alice.assert_reply(ref, "ok"))
    bob.assert_push("notification", {"type": "deal.asked", "seq": 1, "payload": {"deal": 2, "by": "alice"}})
    bob.refute_push("notification")


@pytest_twisted.ensureDeferred
async def test_who_looks_at_the_board(server: MemoryServer) -> None:
    alice, bob = await joins(server, "alice"), await joins(server, "bob")
    server.advance(1)
    alice.assert_push("presence_diff", {"joins": {"bob": {"metas": [ANY]}}})
    await bob.lose()
    server.advance(1)
    alice.assert_push("presence_diff", {"leaves": {"bob": {"metas": [ANY]}}})


@pytest_twisted.ensureDeferred
async def test_what_is_wrong_is_answered(server: MemoryServer) -> None:
    alice = await joins(server, "alice")
    for event, payload, reason in (
        ("move", {"id": 99, "stage": "won", "version": 1}, "no_such_deal"),
        ("ask", {"id": 99}, "no_such_deal"),
        ("move", {"id": 2, "stage": "elsewhere", "version": 1}, "invalid_payload"),
        ("move", {"id": 2**70, "stage": "won", "version": 1}, "invalid_payload"),
        ("ask", None, "invalid_payload"),
    ):
        ref = alice.push(TOPIC, event, payload)
        await comes(lambda ref=ref, reason=reason: alice.assert_reply(ref, "error", {"reason": reason}))
    alice.push(TOPIC, "elsewhere")
    alice.assert_push("phx_error", topic=TOPIC)
