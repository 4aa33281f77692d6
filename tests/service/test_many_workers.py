"""Several workers on one data folder, with a real Label Studio: they share the work and survive failures of others."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from service import Forwarder, Lab, Service, phantom_scans

from backend.demo.label_studio import LabelStudio
from backend.records.store import Store

pytestmark = pytest.mark.label_studio

COLD, ROUND, SCANS = 8, 5, 160
SETTINGS = {"cold_start_size": COLD, "round_size": ROUND}
Scans = list[tuple[Path, Path]]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Scans:
    return phantom_scans(tmp_path_factory.mktemp("many"), SCANS, seed=7)


def published_once(lab: Lab) -> None:
    counts = Counter((p["task"], p["model_version"]) for p in lab.predictions())
    assert counts
    assert set(counts.values()) == {1}


@pytest.mark.long  # test_engine has two workers, too
def test_two_workers_share_the_reading_of_all_scans(label_studio: LabelStudio, many: Scans, tmp_path: Path) -> None:
    service = Service(label_studio, tmp_path / "data", workers=2)
    lab = Lab(label_studio, many, extra_params=SETTINGS)
    with service:
        time.sleep(8)  # both are running before there is any work
        lab.connect(service)
        lab.wait_for_round(0, seconds=300)
        assert service.status(lab.project)["embedded"] == SCANS
        assert "did 'read' of" in service.log()
        lab.label(COLD)
        lab.wait_for_round(1)
        service.wait(lab.project, lambda s: s["job"] is None)
        published_once(lab)
        store = Store(service.folder)
        assert len(store.models(lab.project)) == 1  # training runs once
        scans = {s["digest"] for s in store.scans(lab.project) if not s["annotated"]}
        assert scans <= set(store.image_entropies(store.models(lab.project)[0]["fingerprint"]))
    lab.close()


@pytest.mark.long  # test_engine kills workers in the short run, too
def test_the_work_of_a_killed_or_frozen_worker_is_done_by_another(
    label_studio: LabelStudio, many: Scans, tmp_path: Path
) -> None:
    # a frozen worker holds its file lock until its supervisor kills it
    service = Service(label_studio, tmp_path / "data", workers=2, env={"SCANQUEUE_HANG_SECONDS": "10"})
    lab = Lab(label_studio, many, extra_params=SETTINGS)
    with service:
        time.sleep(8)
        lab.connect(service)
        service.wait(lab.project, lambda s: s["embedded"] > 0)
        os.killpg(service.workers[0].pid, signal.SIGKILL)  # the supervisor and the worker: nothing restarts it
        frozen = worker_of(service.workers[1].pid)
        os.kill(frozen, signal.SIGSTOP)
        lab.wait_for_round(0, seconds=300)
        assert service.status(lab.project)["embedded"] == SCANS
        assert "no sign of life" in service.log()
        published_once(lab)
    lab.close()


@pytest.mark.long  # test_supervisor has a hanging step without a Label Studio
def test_a_worker_that_hangs_in_a_step_is_killed_and_another_does_the_step(
    label_studio: LabelStudio, many: Scans, tmp_path: Path
) -> None:
    """Its request is never answered: its threads wait, but the process itself is alive."""
    between = Forwarder(label_studio.url)
    env = {"SCANQUEUE_HANG_SECONDS": "10", "SCANQUEUE_LABEL_STUDIO_URL": f"http://127.0.0.1:{between.port}"}
    service = Service(label_studio, tmp_path / "data", workers=1, env=env)
    lab = Lab(label_studio, many, extra_params=SETTINGS)
    with service:
        lab.connect(service)
        service.wait(lab.project, lambda s: s["embedded"] > 0)
        hanging = worker_of(service.workers[0].pid)
        between.delay = 3600.0
        until = time.monotonic() + 45  # long before the request times out
        while "no sign of life" not in service.log():
            assert time.monotonic() < until, service.log()[-2000:]
            time.sleep(0.2)
        between.delay = 0.0
        lab.wait_for_round(0, seconds=300)
        assert worker_of(service.workers[0].pid) != hanging
        assert service.status(lab.project)["embedded"] == SCANS
        published_once(lab)
    lab.close()
    between.close()


def worker_of(keeper: int) -> int:
    """The worker process, started by `scanqueue worker` or by a thread of `scanqueue serve`."""
    children = [
        pid for task in Path(f"/proc/{keeper}/task").iterdir() for pid in (task / "children").read_text().split()
    ]
    workers = []
    for pid in children:  # among short-lived helpers, such as an ldconfig that a library runs while loading
        with contextlib.suppress(OSError):
            if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                workers.append(pid)
    assert len(workers) == 1
    return int(workers[0])
