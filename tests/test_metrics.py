"""The metrics: how many series there are whatever happens, and that no label says who it was."""

from __future__ import annotations

import ast
import gc
import json
import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from flowtx import Channel, Router
from flowtx.metrics import DATABASE_ERRORS, MAX_ROUTES, RATE_LIMITS, RESULTS, Metrics
from flowtx.pauses import Pauses, PauseWatch
from flowtx.recorder import FlightRecorder
from flowtx.sessions.history import REASONS
from flowtx.settings import Settings
from flowtx.testing import MemoryServer
from flowtx.web.admin import admin_site
from flowtx.web.keys import ApiKeys
from flowtx.web.operations import OperationCalls
from flowtx.web.recorder import RecorderCalls

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "deploy" / "grafana" / "flowtx.json"
MOST = 300

#: As the README and the documentation promise them.
PROMISED = {
    "flowtx_sessions",
    "flowtx_connections",
    "flowtx_session_duration_seconds",
    "flowtx_connects_total",
    "flowtx_messages_received_total",
    "flowtx_frames_sent_total",
    "flowtx_notifications_pushed_total",
    "flowtx_notifications_delivered_total",
    "flowtx_notify_latency_seconds",
    "flowtx_slow_consumers_total",
    "flowtx_session_restarts_total",
    "flowtx_outbox_bytes",
}


def series(metrics: Metrics) -> list[str]:
    """What Prometheus would store a sample of, each as name and labels."""
    families = text_string_to_metric_families(metrics.expose().decode())
    return [
        f"{sample.name}{sorted(sample.labels.items())}" for family in families for sample in family.samples
    ]


def names(metrics: Metrics) -> set[str]:
    families = text_string_to_metric_families(metrics.expose().decode())
    return {sample.name for family in families for sample in family.samples}


def everything() -> Metrics:
    """Metrics in which each label has had all the values that it can have."""
    metrics = Metrics()
    metrics.describe_build("EPollReactor")
    for result in (*RESULTS, "made up", "x" * 1_000):
        metrics.handshake_ended(result)
    for reason in (*REASONS, "other"):
        metrics.session_duration.labels(reason).observe(1.0)
    for limit in RATE_LIMITS:
        metrics.rate_limited.labels(limit).inc()
    for kind in DATABASE_ERRORS:
        metrics.database_errors.labels(kind).inc()
    for state in ("ready", "busy", "connecting"):
        metrics.database_connections.labels(state).set(1)
    for route in (None, *(f"/api/things/{number}" for number in range(1_000))):
        for status in (101, 200, 202, 304, 404, 500):
            metrics.http_answered(route, status, 0.01)
    return metrics


class SeriesTests(SynchronousTestCase):
    def test_there_are_never_more_than_300(self) -> None:
        found = series(everything())
        self.assertEqual(len(found), len(set(found)))
        self.assertLessEqual(len(found), MOST)
        self.assertLessEqual(len({line for line in found if "things" in line and "4xx" in line}), MAX_ROUTES)

    def test_paths_of_the_api_are_all_told_apart(self) -> None:
        # As they stand in the sources; those that need no key count as one.
        paths = set()
        for file in (ROOT / "flowtx" / "web").glob("*.py"):
            paths |= set(re.findall(r'"(/api/[^"]*)"', file.read_text()))
        self.assertGreater(len(paths), 10)
        self.assertLess(len(paths) + 1, MAX_ROUTES)

    def test_results_of_handshakes_are_known(self) -> None:
        reasons = set()
        for file in (ROOT / "flowtx").rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refused":
                    reasons |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
        self.assertGreater(len(reasons), 10)
        self.assertEqual(reasons - RESULTS, set())

    def test_promised_names_are_there(self) -> None:
        self.assertEqual({name for name in PROMISED if f"# HELP {name} " not in text(everything())}, set())

    def test_the_process_shows_itself(self) -> None:
        found = names(Metrics())
        wanted = {"process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"}
        self.assertEqual(wanted - found, set())


def text(metrics: Metrics) -> str:
    """The exposition, with the names as the samples have them."""
    return re.sub(r"# HELP (\S+) .*\n# TYPE \S+ counter", r"# HELP \1 ", metrics.expose().decode())


class Room(Channel):
    def handle_in(self, event: str, payload: Any) -> None:
        if event == "crash":
            raise RuntimeError(f"crashed by {payload}")


class TrafficTests(SynchronousTestCase):
    """Ten thousand users with names, topics and addresses of their own."""

    def test_labels_and_series_under_varied_traffic(self) -> None:
        router = Router().channel("room:*", Room)
        server = MemoryServer(router, rate_limit="1/2", reconnect_window=0)
        before = len(series(server.metrics))
        for number in range(10_000):
            client = server.connect(f"canary-user-{number}")
            topic = f"room:canary-topic-{number}"
            client.join(topic)
            if number % 100 == 0:
                client.push(topic, "crash", {"canary": number})
                for _ in range(5):
                    client.push(topic, f"canary-event-{number}", {})
                server.settle()
            client.lose()
            if number % 500 == 0:
                server.advance(1)
        server.advance(60)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 100)
        found = series(server.metrics)
        self.assertLess(len(found), before + 30)
        self.assertLessEqual(len(found), MOST)
        self.assertNotIn("canary", "\n".join(found))
        self.assertIn("flowtx_rate_limited_total", "\n".join(found))

    def test_hostile_calls_of_the_http_api(self) -> None:
        metrics = Metrics()
        keys = ApiKeys(lambda: "canary-key-" + "k3y" * 20, None)
        calls = [
            *OperationCalls(metrics, lambda: True, {}).routes(),
            *RecorderCalls(FlightRecorder()).routes(),
        ]
        site = admin_site(Settings(), calls, keys, reactor=Clock(), metrics=metrics)
        for number in range(500):
            for path, method in (
                (f"/canary-{number}", "GET"),
                (f"/api/users/canary-{number}/recorder", "GET"),
                (f"/api/users/canary-{number}/recorder", "DELETE"),
                (f"/metrics?canary={number}", "GET"),
                ("/", f"CANARY{number}"),
            ):
                channel = site.buildProtocol(None)
                transport = StringTransport()
                channel.makeConnection(transport)
                channel.dataReceived(
                    f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: canary-{number}\r\n"
                    f"X-Request-Id: canary-{number}\r\nConnection: close\r\n\r\n".encode()
                )
                self.assertIn(f"X-Request-Id: canary-{number}".encode(), transport.value())
        found = "\n".join(series(metrics))
        self.assertNotIn("canary", found.lower())
        self.assertLess(len(series(metrics)), 150)
        for line in ("('route', 'unmatched'), ('status', '4xx')", "recorder'), ('status', '4xx')"):
            self.assertIn(line, found)


class PauseTests(SynchronousTestCase):
    def test_collections_are_counted_while_it_runs(self) -> None:
        pauses = Pauses()
        watch = PauseWatch(pauses)

        def count() -> float:
            [family] = pauses.collect()
            return max(sample.value for sample in family.samples if sample.name.endswith("_count"))

        gc.collect()
        self.assertEqual(count(), 0)
        watch.startService()
        gc.collect()
        seen = count()
        self.assertGreaterEqual(seen, 1)
        watch.stopService()
        gc.collect()
        self.assertEqual(count(), seen)
        self.assertNotIn(pauses.called, gc.callbacks)

    def test_each_pause_is_in_its_bucket(self) -> None:
        pauses = Pauses()
        times = iter([0.0, 0.0005, 1.0, 1.05, 2.0, 12.0])
        self.patch(__import__("flowtx.pauses", fromlist=["time"]).time, "perf_counter", lambda: next(times))
        for _ in range(3):
            pauses.called("start", {})
            pauses.called("stop", {})
        [family] = pauses.collect()
        buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
        self.assertEqual(buckets, {"0.001": 1, "0.01": 1, "0.1": 2, "1.0": 2, "+Inf": 3})


class DashboardTests(SynchronousTestCase):
    """The dashboard asks for what there is, and shows what is promised."""

    def setUp(self) -> None:
        dashboard = json.loads(DASHBOARD.read_text())
        self.expressions = [
            target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
        ]
        variables = dashboard["templating"]["list"]
        self.queries = [variable["query"] for variable in variables if variable["type"] == "query"]

    def asked(self) -> set[str]:
        return set(re.findall(r"\b(?:flowtx|process)_\w+", " ".join([*self.expressions, *self.queries])))

    def test_every_name_is_exposed(self) -> None:
        self.assertGreater(len(self.expressions), 30)
        self.assertEqual(self.asked() - names(everything()), set())

    def test_every_expression_names_a_metric(self) -> None:
        for expression in self.expressions:
            self.assertRegex(expression, r"(flowtx|process)_\w+\{job=\"\$job\",instance=~\"\$instance\"")
            self.assertEqual(expression.count("("), expression.count(")"))

    def test_all_of_ours_are_shown(self) -> None:
        ours = {re.sub("_(bucket|sum|count)$", "", name) for name in names(everything())}
        shown = {re.sub("_(bucket|sum|count)$", "", name) for name in self.asked()}
        self.assertEqual(PROMISED - shown, set())
        self.assertEqual({name for name in ours if name.startswith("flowtx_")} - shown, set())

    def test_labels_of_the_expressions_are_there(self) -> None:
        known = {
            label
            for family in text_string_to_metric_families(everything().expose().decode())
            for sample in family.samples
            for label in sample.labels
        }
        by = re.findall(r"by \(([^)]*)\)", " ".join(self.expressions))
        asked = {label.strip() for labels in by for label in labels.split(",")}
        self.assertEqual(asked - known - {"instance"}, set())


class GuideTests(SynchronousTestCase):
    def test_the_guide_lists_them_all(self) -> None:
        guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
        section = guide.partition("## Metrics\n")[2].partition("\n## ")[0]
        listed = set(re.findall(r"\bflowtx_\w+", section))
        ours = {re.sub("_(bucket|sum|count)$", "", name) for name in names(everything())}
        self.assertEqual(listed, {name for name in ours if name.startswith("flowtx_")})
