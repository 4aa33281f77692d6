"""A project with 100,000 tasks in a real Label Studio on PostgreSQL, whose scans another server holds."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import pytest
from servers import PostgresServer
from service import BRUSH, CONTROL, Lab, Service

from backend.demo.annotator import to_result
from backend.demo.label_studio import LabelStudio
from backend.demo.phantoms import phantom
from backend.facts import PENDING
from backend.records.store import Store

pytestmark = [pytest.mark.label_studio, pytest.mark.long, pytest.mark.timeout(5400)]

SCANS = 100_000
PER_IMPORT = 10_000
SIDE = 64
COLD, ROUND = 20, 10
SETTINGS = {"cold_start_size": COLD, "round_size": ROUND, "tolerance": 1.0}


class Archive:
    """Serves phantoms by number: /123.png."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                image, _ = phantom(int(self.path.strip("/").removesuffix(".png")), (SIDE, SIDE))
                data = cv2.imencode(".png", image)[1].tobytes()
                self.send_response(200)
                self.send_header("Content-Type", "image/png")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class LargeLab(Lab):
    """`count` tasks whose images are in the archive."""

    def __init__(self, studio: LabelStudio, archive: Archive, count: int) -> None:
        super().__init__(studio, [], config=BRUSH, extra_params=SETTINGS)
        self.seeds: dict[int, int] = {}
        for first in range(0, count, PER_IMPORT):
            seeds = range(first, min(first + PER_IMPORT, count))
            rows = [{"image": f"http://{archive.host}/{seed}.png"} for seed in seeds]
            self.seeds |= dict(zip(studio.import_tasks(self.project, rows), seeds, strict=True))

    def truth(self, task: int) -> list[dict[str, Any]]:
        return list(to_result({"Lung": phantom(self.seeds[task], (SIDE, SIDE))[1]["Lung"]}, CONTROL))


@pytest.fixture
def large_studio(postgres: PostgresServer, tmp_path: Path) -> Iterator[LabelStudio]:
    postgres.new_database("label-studio")
    database = {"NAME": "label-studio", "USER": postgres.user, "PASSWORD": postgres.password, "HOST": "127.0.0.1"}
    settings = {f"POSTGRE_{name}": value for name, value in database.items()} | {"POSTGRE_PORT": str(postgres.port)}
    folder = tmp_path / "label-studio"
    with LabelStudio.start(folder, extra_env=settings | {"DJANGO_DB": "default"}, timeout=1200) as studio:
        yield studio


def served_in_order(lab: Lab, service: Service, count: int) -> None:
    """What the annotators are given is the beginning of the order that the page announced.

    Of a large pool, only the next few tasks are announced while most of it is not in the order yet. People take longer
    for a scan than it takes to announce the next ones.
    """
    people = len(lab.annotators)
    for place in range(count // people):
        until = time.monotonic() + 300
        while True:
            version = lab.served_version()
            there = {p["task"] for p in lab.predictions() if p["model_version"] == version}
            announced = [task for task in service.status(lab.project)["queue"] if task not in lab.labelled][:people]
            if len(announced) == people and there.issuperset(announced):
                break
            assert time.monotonic() < until, (place, announced, sorted(there))
            time.sleep(1)
        assert [task["id"] for task in lab.label(people)] == announced


def test_two_rounds_of_a_hundred_thousand_tasks(
    large_studio: LabelStudio, postgres: PostgresServer, tmp_path: Path, record_property: Any
) -> None:
    url = postgres.new_database("scanqueue")
    seconds: dict[str, float] = {}

    def note(what: str, since: float) -> None:
        seconds[what] = round(time.monotonic() - since, 1)
        print(f"{what}: {seconds[what]} s", flush=True)

    with Archive() as archive:
        began = time.monotonic()
        lab = LargeLab(large_studio, archive, SCANS)
        note(f"import of {SCANS} tasks", began)
        env = {"SCANQUEUE_IMAGE_HOSTS": archive.host, "SCANQUEUE_DATABASE_URL": url}
        with Service(large_studio, tmp_path / "data", env=env) as service:
            connected = began = time.monotonic()
            lab.connect(service)
            note("connecting", began)
            lab.wait_for_round(0, seconds=600)
            note("from connecting to the first queue", began)
            served_in_order(lab, service, COLD)
            began = time.monotonic()
            lab.wait_for_round(1, seconds=900)
            note("from the last label to round 1", began)
            served_in_order(lab, service, ROUND)
            began = time.monotonic()
            lab.wait_for_round(2, seconds=900)
            note("from the last label to round 2", began)
            began = time.monotonic()
            service.status(lab.project)
            note("status", began)
            served_in_order(lab, service, ROUND)
            service.wait(lab.project, lambda s: s["labelled"] == COLD + 2 * ROUND)
            service.wait(lab.project, lambda s: s["scans"] == SCANS, seconds=600)
            note("from connecting to the last task listed", connected)
        store = Store(tmp_path / "data", url)
        assert len(set(lab.labelled)) == COLD + 2 * ROUND  # no task was given twice
        assert {r["task"] for r in store.labels(lab.project)} <= set(lab.labelled)
        assert store.counts(lab.project)["scans"] == SCANS
        counts = Counter((p["task"], p["model_version"]) for p in lab.predictions())
        assert set(counts.values()) == {1}
        assert {version for _, version in counts} - {PENDING} <= {f"scanqueue-r{n}" for n in range(4)}
        assert len(counts) < 1000  # nothing in Label Studio grows with the pool
        lab.close()
    for what, took in seconds.items():
        record_property(what, took)
