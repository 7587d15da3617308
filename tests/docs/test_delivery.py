"""The guide to notifications: what its examples push, as clients of a running server get it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import pytest_twisted

from tests.docs.examples import Example, Reader
from tests.docs.member import Member
from tests.integration.flow_process import FlowProcess, run_sql


@pytest.fixture
def server(tmp_path: Path, reader: Reader) -> Iterator[FlowProcess]:
    """A server on the reader's database, whose data directory is the reader's ``.flow``."""
    with FlowProcess(tmp_path / "server", database=reader.database_url) as server:
        (reader.directory / ".flow").symlink_to(server.data_dir)
        server.sql("INSERT INTO flow.users VALUES ('42', 'Alice')")
        yield server


@pytest_twisted.ensureDeferred
async def test_a_client_gets_what_committed_and_nothing_else(
    server: FlowProcess, reader: Reader, guide: Mapping[str, Example]
) -> None:
    member = await Member.join(server, "42")
    reader.succeed(guide["rollback"])
    reader.run(guide["psql"])
    got = await member.notification()
    assert (got["seq"], got["type"], got["payload"]) == (1, "deal.won", {"deal": 7})
    member.leave()

    reader.succeed(guide["many"])
    back = await Member.join(server, "42", last_seq=1)
    assert back.reply["last_seq"] == 2
    assert (await back.notification())["seq"] == 2
    back.leave()


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
@pytest_twisted.ensureDeferred
async def test_curl(server: FlowProcess, reader: Reader, guide: Mapping[str, Example]) -> None:
    member = await Member.join(server, "42")
    printed = guide["curl"]
    assert "http://127.0.0.1:4001/" in printed.text
    here = Example("sh", printed.text.replace("http://127.0.0.1:4001/", f"{server.admin_url}/"))
    outcomes = [reader.run(here) for _ in range(2)]
    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert outcomes[0].stdout == outcomes[1].stdout
    got = await member.notification()
    assert f'{{"user_id":"42","id":"{got["id"]}","seq":1}}' in outcomes[0].stdout
    assert run_sql(reader.database_url, "SELECT count(*) FROM flow.notifications") == [(2,)]
    member.leave()


def test_python(reader: Reader, guide: Mapping[str, Example]) -> None:
    nowhere = {"FLOWTX_LISTEN": "tcp:0:interface=127.0.0.1", "FLOWTX_ADMIN": "tcp:0:interface=127.0.0.1"}
    owner = Reader(reader.directory, reader.database_url, nowhere)
    assert owner.succeed(guide["python"])[0].endswith(" 1")
    assert run_sql(reader.database_url, "SELECT user_id, seq, type FROM flow.notifications") == [
        ("42", 1, "deal.won")
    ]


@pytest_twisted.ensureDeferred
async def test_what_expired_and_what_was_replaced_is_not_there(
    server: FlowProcess, reader: Reader, guide: Mapping[str, Example]
) -> None:
    assert reader.succeed(guide["expiry"]) == ["1"]
    assert reader.succeed(guide["collapse"]) == ["2", "3"]
    before = await Member.join(server, "42")
    assert before.reply["unread"] == 2
    assert [(await before.notification())["seq"] for _ in range(2)] == [1, 3]
    before.leave()

    # The ten minutes pass.
    run_sql(
        reader.database_url,
        "UPDATE flow.notifications SET expires_at = expires_at - interval '11 minutes' WHERE seq = 1",
    )
    after = await Member.join(server, "42", last_seq=0)
    assert (after.reply["unread"], after.reply["last_seq"]) == (1, 3)
    got = await after.notification()
    assert (got["seq"], got["payload"]) == (3, {"deal": 7, "count": 2})
    after.leave()
