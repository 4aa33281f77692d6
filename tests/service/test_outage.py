"""Label Studio, behind a real proxy, answers 500 to everything for minutes, at several moments of a running loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from service import LENGTHY, Forwarder, Lab, Service

from backend.demo.label_studio import LabelStudio
from backend.label_studio.client import RETRY_AFTER
from backend.records.store import Store
from backend.workers.worker import SWEEP

pytestmark = [pytest.mark.label_studio, pytest.mark.long]

COLD, ROUND = 6, 4
SETTINGS = {"cold_start_size": COLD, "round_size": ROUND}
OTHERS = 16  # requests that do not depend on the length of an outage: those that ran, and those that people cause
TELLS = "Label Studio answered 500"
Scans = list[tuple[Path, Path]]


def page_when(service: Service, lab: Lab, ready: Callable[[str], bool], *, seconds: float) -> str:
    """The page of the project, as soon as it is ready."""
    until = time.monotonic() + seconds
    while not ready(text := service.http.get(f"/projects/{lab.project}").text):
        assert time.monotonic() < until, text
        time.sleep(0.5)
    return text


@contextmanager
def outage(forwarder: Forwarder, service: Service, lab: Lab, *, seconds: float) -> Iterator[None]:
    """500 to everything for so long; few requests meanwhile, and the page says it until it is over, and no longer."""
    requests, began = len(forwarder.paths), time.monotonic()
    forwarder.status = 500
    yield
    page = page_when(service, lab, lambda text: TELLS in text, seconds=seconds)
    assert "retries every minute" in page
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    looks = (time.monotonic() - began) / SWEEP + 1
    assert len(forwarder.paths) - requests <= len(RETRY_AFTER) * looks + OTHERS, forwarder.paths[requests:]
    forwarder.status = 0
    service.wait(lab.project, lambda s: s["trouble"] == "", seconds=2 * SWEEP)
    page_when(service, lab, lambda text: TELLS not in text, seconds=SWEEP)


def test_nothing_is_lost_or_doubled_while_label_studio_fails_for_minutes(
    label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    forwarder = Forwarder(label_studio.url)
    env = {"SCANQUEUE_LABEL_STUDIO_URL": f"http://127.0.0.1:{forwarder.port}", **LENGTHY}
    service = Service(label_studio, tmp_path / "data", env=env)
    lab = Lab(label_studio, scans60[:30], extra_params=SETTINGS)
    with service:
        lab.connect(service)
        service.wait(lab.project, lambda s: s["embedded"] > 0)
        with outage(forwarder, service, lab, seconds=20):  # while scans are read
            pass
        lab.wait_for_round(0)
        with outage(forwarder, service, lab, seconds=130):  # more than two sweeps, while people go on labelling
            lab.label(COLD)
        service.wait(lab.project, lambda s: bool(s["job"]) and s["phase"] == "training" and s["job"]["done"] > 0)
        with outage(forwarder, service, lab, seconds=20):  # in a training: its round cannot be published
            lab.label(1)
        lab.wait_for_round(1)
        with outage(forwarder, service, lab, seconds=20):
            lab.label(ROUND - 1)
        lab.wait_for_round(2)
        service.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == COLD + ROUND and not s["trouble"])
        lab.check_complete(Store(service.folder), 2)
        assert [len(m["trained_on"]) for m in Store(service.folder).models(lab.project)][-1] == COLD + ROUND
        assert "Traceback" not in service.log()
    lab.close()
    forwarder.close()
