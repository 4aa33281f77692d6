"""Random requests based on our own /openapi.json, to a real server process: no failures, and answers as described."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from test_metrics import MODEL

from backend.demo.child import Child, free_port
from backend.facts import Lesson
from backend.learning.evaluation import LabelScore, Scores
from backend.loop.judging import judge
from backend.records.rounds import Pick
from backend.records.store import Store
from backend.settings import PREFIX
from backend.web.schemas import BODIES

AUTH = ("lab", "reading-room")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
QUICK = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

# nearly valid bodies, as from a careless or hostile sender
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x, max_size=3), max_leaves=5
)
_PROJECT = st.sampled_from([4, "4.1795404647", {"id": 4}, 9, 10**30, "4.", {"id": 10**20}]) | _JSON
_TASK = st.fixed_dictionaries({}, optional={"id": _JSON | st.sampled_from([1, 2, 10**30]), "data": _JSON})
NEAR = st.binary(max_size=50) | st.builds(
    lambda fields: json.dumps(fields).encode(),
    st.fixed_dictionaries(
        {"project": _PROJECT},
        optional={
            "tasks": st.lists(_TASK, max_size=3) | _JSON,
            "extra_params": _JSON | st.sampled_from(["\ud800", "\0", '{"round_size": 3}', {"a": "\ud800"}]),
            "action": st.just("START_TRAINING") | _JSON,
            "version": _JSON | st.sampled_from(["scanqueue-r1", "\ud800"]),
        },
    ),
)


def fill(store: Store) -> None:
    """Project 4 with scans, a round and a model, so that answers are not empty."""
    store.add_project(4)
    row = {"image": "/data/upload/4/a.png", "updated_at": "2026-01-01", "skipped": 0}
    store.put_tasks(4, [{"task": t, "annotated": int(t == 1), **row} for t in (1, 2, 3)], "2026-01-01")
    score = Scores({1: LabelScore(True, True, 0.1, 0.9, 2.0, 1.0)}, "px")
    details = {"champion": judge("scanqueue-r1", [(score, score, "")] * 5, ["Lung"]).details()}
    for n in (1, 2, 3):
        model = MODEL | {"version": f"scanqueue-r{n}", "trained_on": [Lesson(t, "d", "m") for t in range(n)]}
        model["details"] = details if n > 1 else {}
        store.put_model(4, model, active="", training_requests=0)
    store.set_project(4, active="scanqueue-r1")
    picks = [Pick(2, "paper", 0.5, 0.25, 0.75, 1), Pick(3, "medoid", cluster=0)]
    store.put_round(4, n=1, key="k", model="scanqueue-r1", picks=picks, carried=[], size=2, labels=1)
    store.set_scans(4, [{"task": 3, "digest": "", "height": 0, "width": 0, "problem": "not an image"}])
    store.report(4, "training scanqueue-r2 on 1 scans", 3, 12)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("openapi")
    fill(Store(folder))
    port = free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)} | {
        "SCANQUEUE_PORT": str(port),
        "SCANQUEUE_DATA_DIR": str(folder),
        "SCANQUEUE_EMBEDDER": "pixels",
        "SCANQUEUE_USER": AUTH[0],
        "SCANQUEUE_PASSWORD": AUTH[1],
        "SCANQUEUE_LABEL_STUDIO_URL": "http://127.0.0.1:1",
    }
    log = folder / "serve.log"
    child = Child("scanqueue", [sys.executable, "-m", "backend.cli", "serve", "--no-worker"], env=env, log=log)
    url = f"http://127.0.0.1:{port}"
    try:
        child.wait_healthy(f"{url}/health", timeout=120)
        yield url
        assert "unexpected failure" not in log.read_text()
    finally:
        child.stop()


@pytest.fixture(scope="module")
def described(server: str) -> dict[str, Any]:
    assert httpx.get(f"{server}/openapi.json", trust_env=False).status_code == 401
    return dict(httpx.get(f"{server}/openapi.json", auth=AUTH, trust_env=False).json())


def test_exactly_the_operations_are_described(described: dict[str, Any]) -> None:
    found = {(method, path) for path, operations in described["paths"].items() for method in operations}
    assert found - {("get", "/metrics")} == set(BODIES)
    for method, path in found:
        operation = described["paths"][path][method]
        assert ("requestBody" in operation) == (method == "post"), (method, path)
        assert operation.get("security") == (None if path == "/health" else [{"basic": []}])


def try_as_described(operation: Any, each: int, codes: Counter[str]) -> None:
    @settings(QUICK, max_examples=each)
    @given(operation.as_strategy())
    def ask(case: schemathesis.Case) -> None:
        answer = case.call(auth=AUTH, timeout=20)
        codes[f"{case.method} {case.path} {answer.status_code}"] += 1
        case.validate_response(answer, checks=CHECKS)

    ask()


def try_nearly(operation: Any, http: httpx.Client, each: int, codes: Counter[str]) -> None:
    path = operation.path.replace("{project}", "4")

    @settings(QUICK, max_examples=each)
    @given(NEAR)
    def ask(body: bytes) -> None:
        answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
        codes[f"POST {path} {answer.status_code}"] += 1
        assert answer.status_code < 500, (path, body, answer.text)
        assert str(answer.status_code) in operation.definition.raw["responses"], (path, body, answer.text)

    ask()


@pytest.mark.parametrize("each", [12, pytest.param(40, marks=pytest.mark.long)])
def test_no_request_makes_the_server_fail_or_deviate_from_its_description(
    each: int, server: str, described: dict[str, Any]
) -> None:
    """each: the number of requests per operation and generation method."""
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=server)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == len(BODIES) + 1
    codes: Counter[str] = Counter()
    began = time.monotonic()
    with httpx.Client(base_url=server, auth=AUTH, trust_env=False, timeout=20) as http:
        for operation in operations:
            try_as_described(operation, each, codes)
            if operation.method.upper() == "POST":
                try_nearly(operation, http, each, codes)
    print(f"{sum(codes.values())} requests in {time.monotonic() - began:.0f} s: {dict(sorted(codes.items()))}")
    for code in ("200", "201", "202", "400"):
        assert any(name.endswith(code) for name in codes), codes
