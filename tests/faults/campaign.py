"""One run: servers, writers, readers and nemeses together, then a quiet end, then the verdict."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import jwt
import psycopg2
from twisted.internet.defer import Deferred, FirstError, gatherResults

from tests.faults.checker import Fault, Verdict, check
from tests.faults.history import History, Outcome, Reader, Row
from tests.faults.nemesis import Budget, Cutter, Killer, StuckError, Timing, describe
from tests.faults.plan import Plan
from tests.faults.readers import PhoenixReader, PhoenixReaders, RawReader
from tests.faults.targets import FlowNode, PostgresServer, Target
from tests.faults.writers import ORDERS, HttpWriter, SqlWriter, Writer
from tests.integration.flow_process import TWISTD, run_sql


@dataclass(frozen=True)
class Report:
    """How a run went.

    Attributes:
        line: all of it in a line.
        verdict: what the checker found.
        stuck: what did not come to its end, where something did not.
        surprises: what no fault explains; it is red for them too.
    """

    line: str
    verdict: Verdict
    stuck: str | None
    surprises: Sequence[str]

    @property
    def passed(self) -> bool:
        return not (self.verdict.offences or self.stuck or self.surprises)

    def is_red_for(self, fault: Fault) -> bool:
        """Whether it found this fault; a bug may well leave readers behind too."""
        return self.verdict.count(fault) > 0

    def __str__(self) -> str:
        """The line, and the first of all that is wrong."""
        offences = [f"  {offence.fault.value}: {offence.what}" for offence in self.verdict.offences[:10]]
        stuck = [f"  stuck: {self.stuck}"] if self.stuck else []
        surprises = [f"  surprise: {surprise}" for surprise in self.surprises[:10]]
        return "\n".join([self.line, *stuck, *offences, *surprises])


async def run(plan: Plan, *, reactor: Any, tell: Callable[[str], object] = lambda _: None) -> Report:
    """Do a run.

    Args:
        plan: what it does.
        reactor: runs it.
        tell: is told how far it is, now and then.

    Returns:
        How it went. Nothing of it runs any more.
    """
    directory = Path(mkdtemp(prefix="ftx-", dir="/tmp"))
    campaign = Campaign(plan, directory, reactor=reactor, tell=tell)
    try:
        report = await campaign.run()
    finally:
        await campaign.close()
    if report.passed or plan.bug:
        shutil.rmtree(directory)
    return report


class Campaign:
    """See `run`."""

    def __init__(self, plan: Plan, directory: Path, *, reactor: Any, tell: Callable[[str], object]) -> None:
        self._plan = plan
        self._reactor = reactor
        self._tell = tell
        self._directory = directory
        self._history = History()
        self._began = time.monotonic()
        self._timing = Timing(reactor, plan.seconds)
        self._users = [f"user-{number}" for number in range(1, plan.users + 1)]
        self._postgres = PostgresServer(directory, reactor=reactor)
        secret = directory / "secret"
        secret.touch(mode=0o600)
        secret.write_bytes(base64.b64encode(os.urandom(64)))
        self._secret = secret.read_text()
        launch = TWISTD[1:] if plan.bug is None else ("-m", "tests.faults.planted", plan.bug)
        self._nodes = [
            FlowNode(name, directory / name, database=self._postgres.url, secret_file=secret, launch=launch)
            for name in ("node-1", "node-2")
        ]
        flow_kills = plan.kills - plan.kills // 2
        self._budgets = {"flowtx": Budget(flow_kills), "postgres": Budget(plan.kills // 2)}
        self._writers: list[Writer] = []
        self._raw: list[RawReader] = []
        self._phoenix: PhoenixReaders | None = None

    def _random(self, name: str) -> Random:
        """Chances of somebody's own, so that one more of another changes nothing for them."""
        return Random(f"{self._plan.seed} {name}")

    @property
    def _readers(self) -> list[RawReader | PhoenixReader]:
        return [*self._raw, *(self._phoenix.readers.values() if self._phoenix else ())]

    async def run(self) -> Report:
        stuck: str | None = None
        try:
            await self._start()
            await self._storm()
            await self._quieten()
        except StuckError as problem:
            stuck = str(problem)
        stuck = "; ".join([*filter(None, [stuck]), *self._problems()]) or None
        with suppress(psycopg2.Error):  # where it is stuck, they may not be there
            self._read_tables()
        return self._report(check(self._history), stuck)

    # Its parts, in their order

    async def _start(self) -> None:
        await self._postgres.create()
        self._postgres.spawn()
        await self._timing.until(self._is_prepared, "PostgreSQL takes connections", 30.0)
        for node in self._nodes:
            node.spawn()
        await self._timing.until(self._is_ready, "the nodes have started", 60.0)
        users = [(user, user.title()) for user in self._users]
        for user, name in users:
            run_sql(self._postgres.url, "INSERT INTO flow.users (id, name) VALUES (%s, %s)", user, name)
        tokens = {user: self._token(user) for user in self._users}
        ports = [node.port for node in self._nodes]
        self._history.readers = [
            Reader(f"{kind}-{user}", user) for kind in ("raw", "phoenix") for user in self._users
        ]
        raw, phoenix = self._history.readers[: len(users)], self._history.readers[len(users) :]
        self._phoenix = PhoenixReaders(phoenix, tokens, ports, reactor=self._reactor)
        self._phoenix.start()
        for record in raw:
            random = self._random(record.name)
            reader = RawReader(record, tokens[record.user], ports, random=random, reactor=self._reactor)
            self._raw.append(reader)
            reader.start()
        await self._all_joined([0] * len(self._readers))

    async def _storm(self) -> None:
        plan = self._plan
        for number in range(1, plan.http_writers + 1):
            name = f"http-{number}"
            self._writers.append(HttpWriter(name, self._nodes, self._postgres.life, **self._shares(name)))
        for number in range(1, plan.sql_writers + 1):
            name = f"sql-{number}"
            writer = SqlWriter(name, self._postgres.url, self._postgres.life, **self._shares(name))
            self._writers.append(writer)
        for started in self._writers:
            started.start()
        cutter = Cutter(self._readers, self._random("cutter"), self._timing)
        cutting = Deferred.fromCoroutine(cutter.run())
        kills = [*(self._kills(node) for node in self._nodes), self._kills(self._postgres)]
        work = [*kills, Deferred.fromCoroutine(self._tell_progress())]
        try:
            await gatherResults(work, consumeErrors=True)
        except FirstError as problem:
            problem.subFailure.raiseException()
        finally:
            for each in work:
                each.cancel()
            cutter.stop()
            await cutting

    def _shares(self, name: str) -> dict[str, Any]:
        return {
            "users": self._users,
            "history": self._history,
            "random": self._random(name),
            "give_up": self._timing.deadline,
            "rest": 0.06,
        }

    def _kills(self, target: Target) -> Deferred[None]:
        killer = Killer(
            target,
            self._budgets[target.kind],
            random=self._random(target.name),
            timing=self._timing,
            history=self._history,
            dwell=1.0,
            outage=0.3,
        )
        return Deferred.fromCoroutine(killer.run())

    async def _quieten(self) -> None:
        """Let everybody finish, come back once more, and get one more each: what was on its way is there."""
        for writer in self._writers:
            writer.stop()
        await self._timing.until(
            lambda: not any(writer.is_alive() for writer in self._writers),
            "the writers end",
            self._plan.patience,
        )
        await self._all_caught_up()
        joined = [reader.joined for reader in self._readers]
        for reader in self._readers:
            reader.drop()
        await self._all_joined(joined)
        last = HttpWriter("last", self._nodes, self._postgres.life, **self._shares("last"))
        for user in self._users:
            while (push := last.push([user])).outcome is Outcome.FAILED:
                pass  # one that was to be refused
            if push.outcome is Outcome.UNKNOWN:
                raise StuckError(f"{push.marker} was not acknowledged")
        await self._all_caught_up()

    # What it waits for

    def _is_prepared(self) -> bool:
        try:
            run_sql(self._postgres.url, ORDERS)
        except psycopg2.OperationalError:
            return False
        return True

    def _is_ready(self) -> bool:
        for node in self._nodes:
            if node.has_ended:
                raise StuckError(f"{node.name} did not start: {node.last_words}")
            try:
                if node.process.request("GET", "/health/ready")[0] != 200:
                    return False
            except OSError:
                return False
        return True

    async def _all_joined(self, earlier: Sequence[int]) -> None:
        await self._timing.until(
            lambda: all(
                reader.joined > before for reader, before in zip(self._readers, earlier, strict=True)
            ),
            "all readers have joined",
            self._plan.patience,
        )

    async def _all_caught_up(self) -> None:
        self._read_tables()
        last = dict.fromkeys(self._users, 0)
        for row in self._history.rows:
            last[row.user] = max(last[row.user], row.seq)

        def behind() -> list[str]:
            return [r.record.name for r in self._readers if r.record.taken < last[r.record.user]]

        try:
            await self._timing.until(lambda: not behind(), "all readers catch up", self._plan.patience)
        except StuckError:
            raise StuckError(f"these readers did not catch up: {' '.join(behind())}") from None

    def _read_tables(self) -> None:
        url = self._postgres.url
        stored = "SELECT user_id, seq, id::text, payload->>'marker' FROM flow.notifications"
        self._history.rows = [Row(*row) for row in run_sql(url, stored)]
        self._history.orders = frozenset(row[0] for row in run_sql(url, "SELECT marker FROM orders"))

    # What it tells

    async def _tell_progress(self) -> None:
        told = self._began
        while any(budget.done < budget.kills for budget in self._budgets.values()):
            await self._timing.pause(0.2)
            if self._timing.over:
                return
            if time.monotonic() - told > 10.0:
                told = time.monotonic()
                self._tell(f"{told - self._began:.0f} s · {describe(self._budgets)}")

    def _problems(self) -> list[str]:
        found = [repr(writer.problem) for writer in self._writers if writer.problem]
        found += [reader.problem for reader in self._raw if reader.problem]
        if self._phoenix and self._phoenix.ended:
            found.append(f"the process of npm phoenix ended: {self._phoenix.complaints}")
        return found

    def _report(self, verdict: Verdict, stuck: str | None) -> Report:
        history = self._history
        short = [kind for kind, budget in self._budgets.items() if budget.done < budget.kills]
        if short and stuck is None:
            stuck = f"too few kills of {' and '.join(short)}"
        passed = not (verdict.offences or stuck or history.surprises)
        unknown = sum(push.outcome is Outcome.UNKNOWN for push in history.pushes)
        line = " · ".join(
            [
                describe(self._budgets),
                f"pushed {verdict.pushed}",
                verdict.counts,
                "PASS" if passed else "FAIL",
                f"seed {self._plan.seed}",
                f"{time.monotonic() - self._began:.0f} s",
                f"repeated {verdict.repeated}",
                f"{sum(len(reader.joins) for reader in history.readers)} joins",
                f"unknown {unknown} of {len(history.pushes)} pushes",
                f"failed starts {len(history.failed_starts)}",
                f"surprises {len(history.surprises)}",
                *([] if passed or self._plan.bug else [f"see {self._directory}"]),
            ]
        )
        return Report(line, verdict, stuck, [*history.surprises])

    def _token(self, user: str) -> str:
        claims = {"sub": user, "exp": int(time.time() + self._plan.seconds + 600)}
        return jwt.encode(claims, self._secret, "HS512")

    async def close(self) -> None:
        """End whatever still runs."""
        for writer in self._writers:
            writer.stop()
        for reader in self._raw:
            reader.stop()
        if self._phoenix is not None:
            self._phoenix.stop()
        for node in self._nodes:
            await node.kill()
        try:
            await self._postgres.kill()
        finally:
            self._postgres.leave_nothing()
