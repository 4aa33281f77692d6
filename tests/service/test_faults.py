"""Redis, PostgreSQL, server and workers are killed under a running project: nothing is lost or duplicated."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from servers import PostgresServer, RedisServer
from service import LENGTHY, Forwarder, Lab, Service
from test_many_workers import worker_of

from backend.demo.label_studio import LabelStudio
from backend.facts import SECRET_HEADER
from backend.loop.steps import MOST_ATTEMPTS, TRAIN
from backend.records.store import Store
from backend.web.access import LOOKUP_INTERVAL
from backend.workers.worker import GAP

pytestmark = pytest.mark.label_studio

COLD, ROUND = 8, 5
SETTINGS = {"cold_start_size": COLD, "round_size": ROUND}
CREDENTIALS = {"SCANQUEUE_USER": "lab", "SCANQUEUE_PASSWORD": "reading-room"}
WELL_UNDER = 0.9  # seconds; Label Studio abandons a webhook after one
PAGES_PER_RECONCILIATION = 1  # requests of the project's page by a reconciliation that finds nothing new
DOWN = 3.0  # seconds until a killed process is restarted
Scans = list[tuple[Path, Path]]


@contextmanager
def down(server: RedisServer | PostgresServer) -> Iterator[None]:
    """Inside the context, the server is down."""
    server.kill()
    try:
        yield
    finally:
        server.start()


@pytest.mark.long  # test_engine has a shorter version
def test_killed_one_after_the_other_the_parts_of_the_stack_recover_by_themselves(
    label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    with PostgresServer() as postgres, RedisServer(tmp_path / "redis", password="only-for-tests") as broker:
        url = postgres.new_database("scanqueue")
        env = {"SCANQUEUE_DATABASE_URL": url, "SCANQUEUE_REDIS_URL": broker.url}
        service = Service(label_studio, tmp_path / "data", workers=2, env=env)
        lab = Lab(label_studio, scans60, extra_params=SETTINGS)
        with service:
            lab.connect(service)
            service.wait(lab.project, lambda s: s["embedded"] > 0)
            redis.Redis.from_url(broker.url).flushall()
            lab.wait_for_round(0, seconds=300)

            # records and queue become unavailable while annotators submit
            lab.label(COLD - 2)
            with down(postgres):
                lab.label(1)
                time.sleep(DOWN)
            with down(broker):
                lab.label(1)
                time.sleep(DOWN)
            service.wait(lab.project, lambda s: s["phase"] == "training" or s["round"] == 1)

            # during training: the database again, then the training process, whichever it is
            with down(postgres):
                time.sleep(DOWN)
            for keeper in service.workers:
                os.kill(worker_of(keeper.pid), signal.SIGKILL)
            lab.wait_for_round(1, seconds=600)

            # the server is down while annotators submit
            service.kill_server()
            lab.label(ROUND)
            service.start_server()
            lab.wait_for_round(2, seconds=600)
            service.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == COLD + ROUND)
        store = Store(service.folder, url)
        assert [m["version"] for m in store.models(lab.project)] == ["scanqueue-r1", "scanqueue-r2"]
        assert [len(m["trained_on"]) for m in store.models(lab.project)] == [COLD, COLD + ROUND]
        assert sum(1 for r in store.labels(lab.project) if r["mask"] and not r["problem"]) == COLD + ROUND
        assert all(s["digest"] and not s["problem"] for s in store.scans(lab.project))
        counts = Counter((p["task"], p["model_version"]) for p in lab.predictions())
        assert set(counts.values()) == {1}
        assert {version for _, version in counts} == {"scanqueue-r0", "scanqueue-r1", "scanqueue-r2"}
    lab.close()


@pytest.mark.long  # test_api has a hanging database, in one process
@pytest.mark.parametrize("frozen", ["queue", "database"])
def test_no_webhook_waits_for_a_hanging_queue_or_database(
    frozen: str, label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    with PostgresServer() as postgres, RedisServer(tmp_path / "redis") as broker:
        url = postgres.new_database("scanqueue")
        env = CREDENTIALS | {"SCANQUEUE_REDIS_URL": broker.url, "SCANQUEUE_DATABASE_URL": url}
        service = Service(label_studio, tmp_path / "data", workers=1, env=env)
        lab = Lab(label_studio, scans60[:12], extra_params=SETTINGS)
        with service:
            lab.connect(service)
            lab.wait_for_round(0, seconds=300)
            row = Store(service.folder, url).project(lab.project)
            assert row is not None
            secret = {SECRET_HEADER: row["secret"]}
            hook = {"action": "PROJECT_UPDATED", "project": {"id": lab.project}}
            assert httpx.post(f"{service.url}/webhook", json=hook, headers=secret, trust_env=False).status_code == 201
            time.sleep(LOOKUP_INTERVAL)  # that webhook counts as a recent read for this long
            with broker.frozen() if frozen == "queue" else postgres.frozen():
                for _ in range(10):
                    assert quickly(service, hook, headers=secret) == 201
                    assert quickly(service, hook, auth=service.credentials) == 201
                    unknown = quickly(service, hook, headers={SECRET_HEADER: "unknown"})
                    assert unknown == (401 if frozen == "queue" else 503)
                lab.label(2)
                training = {"action": "START_TRAINING", "project": {"id": lab.project}}
                assert quickly(service, training, auth=service.credentials) == 201
                time.sleep(DOWN)
                began = time.monotonic()
                assert service.http.get("/health").status_code == 200
                assert time.monotonic() - began < WELL_UNDER
            service.wait(lab.project, lambda s: s["labelled"] == 2, seconds=120)
            lab.wait_for_round(1, seconds=300)  # the requested training
        assert len(Store(service.folder, url).models(lab.project)) == 1
    lab.close()


def quickly(service: Service, hook: Mapping[str, Any], **given: Any) -> int:
    """The status of the answer to a webhook, which must arrive well within Label Studio's limit of a second."""
    began = time.monotonic()
    status = httpx.post(f"{service.url}/webhook", json=hook, trust_env=False, **given).status_code
    assert time.monotonic() - began < WELL_UNDER
    return status


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_a_storm_of_webhooks_and_forged_ones_causes_reconciliations_at_a_bounded_rate(
    count: int, label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    seen = Forwarder(label_studio.url)  # our requests to Label Studio
    service = Service(
        label_studio,
        tmp_path / "data",
        env=CREDENTIALS | {"SCANQUEUE_LABEL_STUDIO_URL": f"http://127.0.0.1:{seen.port}"},
    )
    lab = Lab(label_studio, scans60[:12], extra_params=SETTINGS)
    with service:
        lab.connect(service)
        lab.wait_for_round(0, seconds=300)
        service.wait(lab.project, lambda s: s["job"] is None)
        store = Store(service.folder)
        row = store.project(lab.project)
        assert row is not None
        before = lab.predictions()
        hook = {"action": "ANNOTATION_CREATED", "project": {"id": lab.project}, "annotation": {"result": "forged"}}
        unknown, bare = {"action": "X", "project": {"id": 10**9}}, {"project": {"id": lab.project}}
        training = {"action": "START_TRAINING", "project": {"id": lab.project}}
        right: dict[str, Any] = {"headers": {SECRET_HEADER: row["secret"]}}
        sent: list[tuple[dict[str, Any], dict[str, Any], int]] = [
            (hook, right, 201),
            (hook, {"headers": {SECRET_HEADER: "wrong"}}, 401),
            (hook, {}, 401),
            (training, right, 201),  # recorded, but requests no training
            (unknown, right, 403),
            (unknown, {"auth": service.credentials}, 201),
            (bare, {"auth": service.credentials}, 201),
        ]
        wrong: Counter[tuple[int, int]] = Counter()
        answers: Counter[int] = Counter()
        lock = threading.Lock()

        def storm() -> None:
            with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as http:
                for number in range(count // 4):
                    body, given, code = sent[number % len(sent)]
                    status = http.post("/webhook", json=body, **given).status_code
                    with lock:
                        answers[status] += 1
                        wrong[(status, code)] += status != code

        page = f"/api/projects/{lab.project}/"
        before_storm, began = seen.paths.count(page), time.monotonic()
        threads = [threading.Thread(target=storm) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        pages = seen.paths.count(page) - before_storm
        assert wrong.total() == 0, wrong
        assert answers.total() == count
        assert pages <= PAGES_PER_RECONCILIATION * (took / GAP + 3), (pages, took)
        until = time.monotonic() + 60
        while seen.paths.count(page) == before_storm:
            assert time.monotonic() < until, "no reconciliation"
            time.sleep(0.1)
        asked = store.project(lab.project)
        assert asked is not None
        assert (asked["training_requests"], store.models(lab.project)) == (0, [])
        malformed = [b"", b"[", b"[]", b"\xff", b'{"project": null}', b'{"project": {"id": "1; DROP TABLE scan"}}']
        assert {service.http.post("/webhook", content=body).status_code for body in malformed} == {400}
        assert service.http.post("/webhook", content=b" " * (50 * 2**20)).status_code == 413
        lab.label(2)
        service.wait(lab.project, lambda s: s["labelled"] == 2, seconds=120)
        assert lab.predictions() == before
    lab.close()
    seen.close()


@pytest.mark.long  # test_engine has a server and two workers, test_driver two processes on one folder
def test_two_servers_on_one_data_folder_cause_no_damage(
    label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    one, two = Service(label_studio, tmp_path / "data"), Service(label_studio, tmp_path / "data")
    lab = Lab(label_studio, scans60[:24], extra_params=SETTINGS)
    with one, two:
        lab.connect(one)
        lab.wait_for_round(0, seconds=300)
        lab.label(COLD)
        lab.wait_for_round(1, seconds=600)
        assert two.status(lab.project)["labelled"] == one.status(lab.project)["labelled"] == COLD
        counts = Counter((p["task"], p["model_version"]) for p in lab.predictions())
        assert set(counts.values()) == {1}
        assert len(Store(one.folder).models(lab.project)) == 1
    lab.close()


@pytest.mark.long  # test_cut_off does the same in one process
def test_a_worker_that_is_killed_at_every_training_serves_the_rest_and_says_what_helps(
    label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    given_up = "was cut off 3 times, so scanqueue goes on without it"
    service = Service(label_studio, tmp_path / "data", env=LENGTHY)
    lab = Lab(label_studio, scans60[:12], extra_params={"cold_start_size": 6, "round_size": 3})
    with service:
        lab.connect(service)
        lab.wait_for_round(0, seconds=300)
        lab.label(6)
        store = Store(service.folder)
        for number in range(1 + MOST_ATTEMPTS):
            service.wait(lab.project, lambda s: bool(s["job"]) and s["job"]["step"].startswith("training"))
            worker = worker_of(service.pid)
            if number == 0:  # a planned stop, which the training does not survive
                os.kill(worker, signal.SIGTERM)
                time.sleep(2)
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
            store.finish(lab.project)  # a dead process's progress counts for two minutes
            assert [n for (work, _), (n, _) in store.attempts(lab.project).items() if work == TRAIN] == [number]
        service.wait(lab.project, lambda s: given_up in s["trouble"])
        lab.label(2)
        service.wait(lab.project, lambda s: s["labelled"] == 8 and "on 8 labels" in s["trouble"])
        assert "after 1 more labels" in service.status(lab.project)["trouble"]
        assert "SCANQUEUE_IMAGE_SIZE" in service.http.get(f"/projects/{lab.project}").text
        service.http.post(f"/api/projects/{lab.project}/train", json={})
        lab.wait_for_round(1, seconds=300)
        service.wait(lab.project, lambda s: s["trouble"] == "")
    lab.close()
