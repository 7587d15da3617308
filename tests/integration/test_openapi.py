"""The description of the HTTP API against the running server, asked for all that it allows, and more."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.flow_process import FlowProcess, run

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "negative_data_rejection",
    "unsupported_method",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowProcess]:
    with FlowProcess(tmp_path_factory.mktemp("openapi")) as process:
        yield process


@pytest.fixture(scope="module")
def description(server: FlowProcess) -> Any:
    status, found = server.request("GET", "/api/openapi.json")
    assert status == 200
    return found


def test_the_server_does_what_its_description_says(server: FlowProcess, tmp_path: Path) -> None:
    for user in ("alice", "bob"):
        server.push(user)
    program = str(Path(sys.executable).with_name("schemathesis"))
    options = [
        f"--header=Authorization: Bearer {server.api_key}",
        f"--checks={','.join(CHECKS)}",
        "--max-examples=15",
        "--phases=coverage,fuzzing",
        "--generation-deterministic",
        "--request-timeout=10",
        "--warnings=off",
        "--no-color",
    ]
    ended = run([program, "run", f"{server.admin_url}/api/openapi.json", *options], tmp_path, seconds=120)
    assert ended.status == 0, f"{ended.stdout}\n{ended.stderr}"
    assert "Tested:" in ended.stdout
    assert server.request("GET", "/health/ready") == (200, {"status": "ok"})
    assert "Traceback" not in server.log


def test_every_call_of_the_contract_is_there(description: Any) -> None:
    calls = {
        f"{method.upper()} {path}" for path, methods in description["paths"].items() for method in methods
    }
    assert calls >= {
        "POST /api/notifications",
        "POST /api/broadcasts",
        "GET /api/sessions",
        "GET /api/sessions/{user_id}",
        "DELETE /api/sessions/{user_id}",
        "POST /api/users/{user_id}/disconnect",
        "GET /api/users/{user_id}/notifications",
        "POST /api/users/{user_id}/notifications/read",
        "GET /api/presence/{topic}",
        "POST /api/presence/status",
        "POST /api/tokens/revoke",
        "GET /health/live",
        "GET /health/ready",
        "GET /metrics",
        "GET /api/openapi.json",
        "GET /",
    }


def test_every_call_is_described(description: Any) -> None:
    assert description["openapi"] == "3.1.0"
    names = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            names.append(operation["operationId"])
            assert operation["summary"], where
            answers = operation["responses"]
            assert [status for status in answers if status < "400"], where
            assert {"400", "403", "405", "408", "431", "503"} <= answers.keys(), where
            assert ("requestBody" in operation) == ("415" in answers) == ("413" in answers), where
            assert ("security" in operation) == ("401" in answers), where
    assert len(set(names)) == len(names)


def test_every_reference_leads_somewhere(description: Any) -> None:
    text = json.dumps(description)
    schemas = description["components"]["schemas"]
    asked = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert asked == schemas.keys()
    assert "\\Z" not in text


def test_what_is_not_there(server: FlowProcess) -> None:
    for path in ("/api/openapi.yaml", "/api", "/openapi.json", "/docs", "/api/openapi.json/"):
        status, answer = server.request("GET", path)
        assert (status, answer["error"]) == (404, "not_found"), path
    status, answer = server.request("POST", "/api/openapi.json", {})
    assert (status, answer["error"]) == (405, "method_not_allowed")
