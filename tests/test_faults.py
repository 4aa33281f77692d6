"""Redis, PostgreSQL, server and workers are killed under a running project: nothing lost, nothing doubled."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from servers import PostgresServer, RedisServer
from service import Lab, Service
from test_workers import worker_of

from backend.demo.label_studio import LabelStudio
from backend.store import Store

pytestmark = pytest.mark.label_studio

COLD, ROUND = 8, 5
SETTINGS = {"cold_start_size": COLD, "round_size": ROUND}
DOWN = 3.0  # seconds until what was killed is started again
Scans = list[tuple[Path, Path]]


@contextmanager
def down(server: RedisServer | PostgresServer) -> Iterator[None]:
    """While inside, the server was killed."""
    server.kill()
    try:
        yield
    finally:
        server.start()


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

            # the records and the queue go away while annotators submit
            lab.label(COLD - 2)
            with down(postgres):
                lab.label(1)
                time.sleep(DOWN)
            with down(broker):
                lab.label(1)
                time.sleep(DOWN)
            service.wait(lab.project, lambda s: s["phase"] == "training" or s["round"] == 1)

            # while it trains: the database once more, then the process that trains, whichever it is
            with down(postgres):
                time.sleep(DOWN)
            for keeper in service.workers:
                os.kill(worker_of(keeper.pid), signal.SIGKILL)
            lab.wait_for_round(1, seconds=600)

            # the server is away while annotators submit
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


def test_no_webhook_waits_for_a_queue_or_a_database_that_hangs(
    label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as broker:
        service = Service(label_studio, tmp_path / "data", workers=1, env={"SCANQUEUE_REDIS_URL": broker.url})
        lab = Lab(label_studio, scans60[:12], extra_params=SETTINGS)
        with service:
            lab.connect(service)
            lab.wait_for_round(0, seconds=300)
            os.kill(broker.child.pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                for _ in range(20):
                    hook = {"action": "PROJECT_UPDATED", "project": {"id": lab.project}}
                    assert service.http.post("/webhook", json=hook).status_code == 201
                assert time.monotonic() - began < 20  # one that waited for Redis would take 5 s or more each
                lab.label(2)
            finally:
                os.kill(broker.child.pid, signal.SIGCONT)
            service.wait(lab.project, lambda s: s["labelled"] == 2, seconds=120)
    lab.close()


def test_ten_thousand_webhooks_and_forged_ones_cost_looks_at_a_bounded_rate(
    label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    service = Service(label_studio, tmp_path / "data")
    lab = Lab(label_studio, scans60[:12], extra_params=SETTINGS)
    with service:
        lab.connect(service)
        lab.wait_for_round(0, seconds=300)
        before = lab.predictions()
        hook = {"action": "ANNOTATION_CREATED", "project": {"id": lab.project}, "annotation": {"result": "forged"}}
        bodies = [hook, {"action": "X", "project": {"id": 10**9}}, {"project": {"id": lab.project}}]
        answers: Counter[int] = Counter()
        lock = threading.Lock()

        def storm() -> None:
            for number in range(2500):
                status = service.http.post("/webhook", json=bodies[number % 3]).status_code
                with lock:
                    answers[status] += 1

        threads = [threading.Thread(target=storm) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {201: 10_000}
        malformed = [b"", b"[", b"[]", b"\xff", b'{"project": null}', b'{"project": {"id": "1; DROP TABLE scan"}}']
        assert {service.http.post("/webhook", content=body).status_code for body in malformed} == {400}
        assert service.http.post("/webhook", content=b" " * (50 * 2**20)).status_code == 413
        lab.label(2)
        service.wait(lab.project, lambda s: s["labelled"] == 2, seconds=120)
        assert lab.predictions() == before
    lab.close()


def test_two_servers_on_one_data_folder_do_no_harm(label_studio: LabelStudio, scans60: Scans, tmp_path: Path) -> None:
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
