"""GET /metrics: read with Prometheus' own parser, and compared with docs/reference/metrics.md."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from servers import PostgresServer, RedisServer

from backend import __version__
from backend.errors import StoreUnavailable
from backend.facts import Lesson
from backend.label_config import LabelConfig, Tag
from backend.records.rounds import Pick
from backend.records.store import Store
from backend.settings import Settings
from backend.web import metrics
from backend.web.api import PATIENCE, create_api
from backend.workers.counters import Amounts, Counters
from backend.workers.worker import Queue

DOC = Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md"
MODEL: dict[str, Any] = {
    "version": "scanqueue-r1",
    "fingerprint": "f",
    "labels": ["Lung"],
    "trained_on": [Lesson(1, "d", "m")],
    "accepted": 1,
    "validation": {
        "dice": 0.875,
        "hd95": 2.0,
        "hd": 3.0,
        "unit": "px",
        "n": 4,
        "miss_rate": 0.25,
        "n_empty": 5,
        "false_alarm_rate": 0.4,
        "per_label": {
            "Lung": {"n": 4, "n_without": 5, "sensitivity": 0.75, "false_alarm_rate": 0.4, "false_alarm_area": 0.01}
            | {"dice": 0.875, "dice_low": None, "dice_high": None, "hd95": 2.0, "hd": 3.0}
        },
    },
    "details": {},
}


def read(text: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Values by name and labels; the parser refuses invalid formats."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def documented() -> dict[str, set[str]]:
    """The metric names in the table, with their labels."""
    rows = re.findall(r"^\| `(scanqueue_\w+)` \|([^|]*)\|", DOC.read_text(encoding="utf-8"), re.M)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


@pytest.fixture
def busy(tmp_path: Path) -> Store:
    """Project 4 is busy; project 5 has just been connected."""
    store = Store(tmp_path)
    for project in (4, 5):
        store.add_project(project)
    row = {"image": "/data/upload/4/a.png", "updated_at": "2026-01-01", "skipped": 0}
    store.put_tasks(4, [{"task": t, "annotated": int(t == 1), **row} for t in (1, 2, 3)], "2026-01-01")
    store.put_model(4, MODEL, active="scanqueue-r1", training_requests=0)
    picks = [Pick(2, "medoid"), Pick(3, "medoid")]
    store.put_round(4, n=1, key="k", model="scanqueue-r1", picks=picks, carried=[], size=2, labels=1)
    store.mark_published(4, 1)
    shown = {"task": 1, "version": "scanqueue-r1", "label": "l", "dice": 0.5, "hd": 1.0, "hd95": 1.0, "unit": "px"}
    store.put_shown(4, shown)
    for task, drawn in ((2, 0), (3, 1)):  # nothing to see on either; a mask was shown on one of them
        empty = {"label_empty": 1, "shown_empty": 1 - drawn, "dice": 1.0 - drawn}
        store.put_shown(4, shown | {"task": task} | empty)
    config = LabelConfig("image", (Tag("tag", "brush", "image", ("Lung",)),)).to_json()
    store.set_project(4, config=config, phase="rounds", trouble="Label Studio does not answer.")
    store.report(4, "training scanqueue-r2 on 1 labels", 3, 12)
    store.add_counters({("step", "Train"): (1, 60.0), ("studio", "GET /api/tasks"): (3, 0.5)})
    store.add_counters({("studio", "GET /api/tasks"): (1, 0.25), ("studio_error", "no answer"): (2, 0.0)})
    store.add_counters({("correction", "drawn"): (4, 0.5), ("correction_slow", "drawn"): (1, 0.0)})
    store.add_counters({("http", "/webhook 201"): (5, 0.125), ("http_slow", "/predict"): (2, 0.0)})
    return store


def test_the_metrics_match_the_records_and_the_queue(busy: Store) -> None:
    queue = Queue(Settings(data_dir=busy.folder))
    queue.request(4)
    found = read(metrics.render(busy, queue.waiting))
    four = (("project", "4"),)
    assert found["scanqueue_info"] == {(("version", __version__),): 1}
    expected = {"scans": 3, "scans_embedded": 0, "labels": 1, "round": 1, "queue_left": 2, "problems": 0, "trouble": 1}
    expected |= {"validation_dice": 0.875, "validation_foreground_scans": 4, "validation_miss_ratio": 0.25}
    expected |= {"validation_empty_scans": 5, "validation_false_alarm_ratio": 0.4}
    expected |= {"shown_dice": 0.5, "shown_foreground_scans": 1, "shown_miss_ratio": 0}
    expected |= {"shown_empty_scans": 2, "shown_false_alarm_ratio": 0.5}
    assert {name: found[f"scanqueue_{name}"][four] for name in expected} == expected
    lung = (("label", "Lung"), ("project", "4"))
    each = {"dice": 0.875, "scans": 4, "sensitivity_ratio": 0.75, "scans_without": 5, "false_alarm_ratio": 0.4}
    each |= {"false_alarm_area_ratio": 0.01}
    assert {name: found[f"scanqueue_validation_label_{name}"][lung] for name in each} == each
    assert found["scanqueue_shown_label_false_alarm_ratio"][lung] == 0.5
    assert "scanqueue_shown_label_false_alarm_area_ratio" not in found  # an older version did not record it
    assert found["scanqueue_job_progress_ratio"] == {(("project", "4"), ("step", "training")): 0.25}
    assert 0 <= found["scanqueue_job_age_seconds"][("project", "4"), ("step", "training")] < 60
    assert found["scanqueue_phase"] == {
        (("phase", "training"), ("project", "4")): 1,
        (("phase", "empty"), ("project", "5")): 1,
    }
    assert found["scanqueue_jobs_waiting"][()] == 1
    assert (found["scanqueue_store_up"][()], found["scanqueue_queue_up"][()]) == (1, 1)
    assert found["scanqueue_projects"][()] == 2
    requests = (("request", "GET /api/tasks"),)
    assert found["scanqueue_label_studio_seconds_count"][requests] == 4
    assert found["scanqueue_correction_seconds_count"] == {(("outcome", "drawn"),): 4}
    assert found["scanqueue_label_studio_seconds_sum"][requests] == 0.75
    assert found["scanqueue_label_studio_errors_total"] == {(("kind", "no answer"),): 2}
    assert found["scanqueue_step_seconds_sum"] == {(("step", "Train"),): 60}
    assert found["scanqueue_http_seconds_count"] == {(("code", "201"), ("path", "/webhook")): 5}
    assert found["scanqueue_http_slow_total"] == {(("path", "/predict"),): 2}
    assert found["scanqueue_correction_slow_total"] == {(("outcome", "drawn"),): 1}
    assert set(found["scanqueue_round"]) == {four}  # project 5 has no round


def test_the_metrics_match_the_documentation(busy: Store) -> None:
    quiet = {"task": 3, "label_empty": 1, "shown_empty": 1, "dice": 1.0}
    busy.put_shown(4, dict(busy.shown(4)[0]) | quiet)  # so that the area of false alarms is known
    found = read(metrics.render(busy, lambda: 0))
    assert {name: {key for labels in rows for key, _ in labels} for name, rows in found.items()} == documented()


def test_step_labels_are_few_however_many_versions_there_are() -> None:
    assert metrics._step("training scanqueue-r17 on 93 labels") == "training"
    assert metrics._step("embedding with timm:vit_small") == "scans"


def test_no_metric_contains_scans_or_addresses(busy: Store) -> None:
    assert b"upload" not in metrics.render(busy, lambda: 0)
    assert b"Label Studio does not" not in metrics.render(busy, lambda: 0)


def test_a_store_without_projects_is_reported_as_up(tmp_path: Path) -> None:
    found = read(metrics.render(Store(tmp_path)))
    assert found["scanqueue_store_up"][()] == 1
    assert found["scanqueue_projects"][()] == 0
    assert "scanqueue_jobs_waiting" not in found


def test_metrics_are_served_without_database_and_queue(tmp_path: Path) -> None:
    with PostgresServer() as server, RedisServer(tmp_path / "redis") as broker:
        store = Store(tmp_path, server.new_database("records"))
        store.add_project(4)
        queue = Queue(Settings(data_dir=tmp_path, redis_url=broker.url))
        server.kill()
        broker.kill()
        found = read(metrics.render(store, queue.waiting))
    assert found["scanqueue_store_up"][()] == 0
    assert found["scanqueue_queue_up"][()] == 0
    assert "scanqueue_scans" not in found


def test_metrics_require_credentials(busy: Store) -> None:
    settings = Settings(data_dir=busy.folder, user="lab", password="secret")
    http = TestClient(create_api(settings, busy, lambda *_: None, lambda *_: [], waiting=lambda: 7))
    assert http.get("/metrics").status_code == 401
    answer = http.get("/metrics", auth=("lab", "secret"))
    assert (answer.status_code, answer.headers["content-type"]) == (200, metrics.CONTENT_TYPE)
    assert read(answer.content)["scanqueue_jobs_waiting"][()] == 7


def test_counts_of_several_processes_are_summed_and_survive_an_unreachable_database(tmp_path: Path) -> None:
    store = Store(tmp_path)
    away = True

    def add(amounts: Amounts) -> None:
        if away:
            raise StoreUnavailable("is away")
        store.add_counters(amounts)

    one, two = Counters(add), Counters(store.add_counters)
    for seconds in (1.0, 2.0):
        one.count("step", "Train", seconds)
        one.flush()
    away = False
    two.count("step", "Train", 4.0)
    two.flush()
    one.flush()
    one.flush()
    assert store.counters("step") == {"Train": (3, 7.0)}


def test_requests_cannot_fill_the_records_with_labels(tmp_path: Path) -> None:
    store = Store(tmp_path)
    counters = Counters(store.add_counters)
    for n in range(2000):
        counters.count("http", f"/{n} 404")
    counters.flush()
    assert len(store.counters("http")) == 500


def test_requests_are_counted_by_purpose(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_project(4)
    counted: list[tuple[str, str]] = []
    settings = Settings(data_dir=tmp_path, user="lab", password="secret")
    count = lambda name, label, amount=0.0: counted.append((name, label))  # noqa: E731
    http = TestClient(create_api(settings, store, lambda *_: None, lambda *_: [], count=count))
    http.post("/webhook", json={})
    for path in ("/api/projects/4", "/api/projects/9", "/secret-of-mine"):
        http.get(path, auth=("lab", "secret"))
    labels = ["/webhook 401", "/api/projects/{project} 200", "/api/projects/{project} 404", "other 404"]
    assert counted == [("http", label) for label in labels]


def test_answers_slower_than_the_timeout_of_label_studio_are_counted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    counters = Counters(store.add_counters)
    slowly = lambda _, tasks: time.sleep(PATIENCE + 0.05) or [{} for _ in tasks]  # noqa: E731
    http = TestClient(create_api(Settings(data_dir=tmp_path), store, lambda *_: None, slowly, count=counters.count))
    assert http.post("/predict", json={"project": "4.1", "tasks": [{"id": 1}]}).status_code == 200
    assert http.get("/health").status_code == 200
    counters.flush()
    assert store.counters("http_slow") == {"/predict": (1, 0.0)}
