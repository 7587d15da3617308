"""Pushes notifications, by HTTP and by SQL, and records what it was told of each.

Writers are threads, as they wait for one answer at a time, like the workers of a backend.
"""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from itertools import count, cycle
from random import Random
from typing import Any, Final

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class

from tests.faults.history import History, Outcome, Place, Push, Way
from tests.faults.targets import FlowNode, Life

ORDERS: Final = "CREATE TABLE IF NOT EXISTS orders (marker text PRIMARY KEY)"
"""The business rows that are written beside a notification, in its transaction."""

TYPE: Final = "fault"

_HTTP_PATIENCE: Final = 10.0
_SEVERAL: Final = 0.1
_REFUSED: Final = 0.03
_LOST_ANSWERS: Final = 0.05
_ROLLED_BACK: Final = 0.15
_ABANDONED: Final = 0.05


class Writer(threading.Thread):
    """One writer; it ends after `stop`, once the outcome of its last push is known.

    Args:
        name: begins its markers.
        users: for whom it pushes.
        history: where it records.
        random: chooses.
        give_up: when it ends at the latest, monotonic seconds.
        rest: the most seconds between two pushes.

    Attributes:
        problem: what ended it, where that was no `stop`.
    """

    def __init__(
        self,
        name: str,
        *,
        users: Sequence[str],
        history: History,
        random: Random,
        give_up: float,
        rest: float,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.problem: BaseException | None = None
        self._users = users
        self._history = history
        self._random = random
        self._give_up = give_up
        self._rest = rest
        self._stopping = threading.Event()
        self._numbers = count(1)

    def stop(self) -> None:
        """Begin no further push."""
        self._stopping.set()

    def run(self) -> None:
        try:
            while not (self._stopping.is_set() or self._too_late):
                several = self._random.random() < _SEVERAL
                self.push(self._random.sample(self._users, 3 if several else 1))
                self._stopping.wait(self._random.uniform(0, self._rest))
        except BaseException as problem:
            self.problem = problem
            raise
        finally:
            self.close()

    @property
    def _too_late(self) -> bool:
        return time.monotonic() > self._give_up

    def push(self, users: Sequence[str]) -> Push:
        """Push one notification to users, and record it."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what it holds."""

    def _begin(self, users: Sequence[str], way: Way) -> Push:
        push = Push(f"{self.name}-{next(self._numbers)}", tuple(users), way, time.monotonic())
        self._history.pushes.append(push)
        return push

    @staticmethod
    def _complete(push: Push, outcome: Outcome, places: Mapping[str, Place] | None = None) -> None:
        push.outcome, push.places, push.completed_at = outcome, places or {}, time.monotonic()


class HttpWriter(Writer):
    """Pushes by ``POST /api/notifications``, to the nodes in turn, with an idempotency key.

    What has no answer, or 503, is tried again with the same key until it has one.

    Args:
        nodes: the nodes.
        life: that of their database.
        others: those of `Writer`.
    """

    def __init__(self, name: str, nodes: Sequence[FlowNode], life: Life, **others: Any) -> None:
        super().__init__(name, **others)
        self._life = life
        self._turns: Iterator[FlowNode] = cycle(nodes)

    def push(self, users: Sequence[str]) -> Push:
        push = self._begin(users, Way.HTTP)
        body = {
            "user_ids": list(users),
            "type": "" if self._random.random() < _REFUSED else TYPE,
            "payload": {"marker": push.marker},
            "idempotency_key": push.marker,
        }
        if self._random.random() < _LOST_ANSWERS:
            with suppress(OSError, HTTPException):
                self._lose_the_answer(next(self._turns), body)
        while not self._too_late:
            node = next(self._turns)
            lives = [(life, life.number) for life in (node.life, self._life)]
            try:
                status, answer = node.process.request("POST", "/api/notifications", body)
            except (OSError, HTTPException, ValueError):  # not there, or gone before its answer was whole
                time.sleep(self._random.uniform(0, 0.05))
                continue
            if status == 202:
                for life, number in lives:
                    life.served(number)
                places = {
                    entry["user_id"]: Place(entry["seq"], entry["id"]) for entry in answer["notifications"]
                }
                self._complete(push, Outcome.OK, places)
                break
            if status == 422:
                self._complete(push, Outcome.FAILED)
                break
            if status != 503:
                self._history.surprises.append(f"{push.marker}: {status} {answer}")
            time.sleep(self._random.uniform(0, 0.1))
        return push

    def _lose_the_answer(self, node: FlowNode, body: Mapping[str, Any]) -> None:
        """Send it, and go away: at once, or when the answer has come."""
        address = node.process.admin_url.removeprefix("http://")
        with closing(HTTPConnection(address, timeout=_HTTP_PATIENCE)) as connection:
            headers = {
                "Authorization": f"Bearer {node.process.api_key}",
                "Content-Type": "application/json",
            }
            connection.request("POST", "/api/notifications", json.dumps(body), headers)
            if self._random.random() < 0.5 and connection.sock is not None:
                select.select([connection.sock], [], [], _HTTP_PATIENCE)


class SqlWriter(Writer):
    """Pushes by ``flow.notify`` in a transaction of its own, with a business row beside it.

    Some are rolled back, and some end with the connection. What no answer tells, the business row does.

    Args:
        url: of the database.
        life: that of its server.
        others: those of `Writer`.
    """

    def __init__(self, name: str, url: str, life: Life, **others: Any) -> None:
        super().__init__(name, **others)
        self._url = url
        self._life = life
        self._connection: Connection | None = None

    def push(self, users: Sequence[str]) -> Push:
        push = self._begin(users, Way.SQL)
        life = self._life.number
        fate = self._random.random()
        try:
            connection = self._connected()
            places = self._notify(connection, push)
            # Others take the row locks and commit in another order meanwhile.
            time.sleep(self._random.uniform(0, 0.02))
            if fate < _ROLLED_BACK:
                connection.rollback()
            elif fate < _ROLLED_BACK + _ABANDONED:
                self.close()
        except psycopg2.Error:
            self._complete(push, Outcome.FAILED)  # no COMMIT was sent
            self._broken()
            return push
        if fate < _ROLLED_BACK + _ABANDONED:
            self._complete(push, Outcome.FAILED)
            return push
        try:
            connection.commit()
        except psycopg2.Error:
            self._broken()
            return push
        self._complete(push, Outcome.OK, places)
        self._life.served(life)
        return push

    def _notify(self, connection: Connection, push: Push) -> dict[str, Place]:
        payload = json.dumps({"marker": push.marker})
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (%s)", [push.marker])
            if len(push.users) == 1:
                cursor.execute("SELECT flow.notify(%s, %s, %s)", [push.users[0], TYPE, payload])
                return {push.users[0]: Place(cursor.fetchall()[0][0], None)}
            many = "SELECT user_id, seq, id::text FROM flow.notify_many(%s, %s, %s)"
            cursor.execute(many, [list(push.users), TYPE, payload])
            return {user: Place(seq, id_) for user, seq, id_ in cursor.fetchall()}

    def _connected(self) -> Connection:
        if self._connection is None:
            limits = "-c statement_timeout=8s -c idle_in_transaction_session_timeout=8s"
            self._connection = psycopg2.connect(self._url, connect_timeout=5, options=limits)
        return self._connection

    def _broken(self) -> None:
        self.close()
        time.sleep(self._random.uniform(0, 0.1))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
