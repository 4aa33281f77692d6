"""The whole loop on a real Label Studio: cold start, labelling, training, the rewritten queue, restarts."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from service import Forwarder, Lab, Service

from backend.demo.annotator import from_result
from backend.demo.label_studio import LabelStudio
from backend.records.maps import read_map
from backend.records.store import Store

pytestmark = pytest.mark.label_studio

COLD, ROUND = 8, 5
SETTINGS = {"cold_start_size": COLD, "round_size": ROUND, "strategy": "paper"}  # the order is compared with S(i)
ALPHA = 0.5
Scans = list[tuple[Path, Path]]


def end_state(lab: Lab, service: Service) -> dict[str, Any]:
    """Everything that must not depend on what happened on the way, by file name."""
    store = Store(service.folder)
    name = lab.names
    project = lab.studio.get(f"/api/projects/{lab.project}/")
    predictions = [
        (p["model_version"], name[p["task"]], round(p["score"], 9), digest(p["result"])) for p in lab.predictions()
    ]
    return {
        "served": (project["model_version"], project["sampling"], project["show_collab_predictions"]),
        "orders": [[(name[p.task], p.reason) for p in r["picks"]] for r in store.rounds(lab.project)],
        "models": [
            (m["version"], m["fingerprint"], m["validation"], m["accepted"], len(m["trained_on"]))
            for m in store.models(lab.project)
        ],
        "predictions": sorted(predictions),
        "labelled": sorted(name[s["task"]] for s in store.scans(lab.project) if s["annotated"]),
        "read": sorted(name[r["task"]] for r in store.labels(lab.project) if r["mask"] and not r["problem"]),
        "shown": sorted((name[s["task"]], s["version"], s["dice"]) for s in store.shown(lab.project)),
    }


def digest(result: Any) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


def greedy(entropy: np.ndarray, xy: np.ndarray, labelled: list[int], alpha: float) -> list[int]:
    """S(i) in its slow, obvious form: every distance is computed again for every pick."""
    pool = [i for i in range(len(xy)) if i not in labelled]
    low, high = min(entropy[pool]), max(entropy[pool])
    order: list[int] = []
    while pool:
        far = {i: min(float(np.hypot(*(xy[i] - xy[j]))) for j in labelled + order) for i in pool}
        least, most = min(far.values()), max(far.values())

        def s(i: int, far: dict[int, float] = far, least: float = least, most: float = most) -> float:
            h = (entropy[i] - low) / (high - low)
            d = (far[i] - least) / (most - least) if most > least else 0.0
            return float(alpha * h + (1 - alpha) * d)

        best = max(pool, key=lambda i: (round(s(i), 9), -i))
        order.append(best)
        pool.remove(best)
    return order


@pytest.fixture(scope="module")
def run(
    label_studio: LabelStudio, scans60: Scans, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """One undisturbed run, with its observations: connect, 8 labels, round 1, 5 labels, round 2."""
    folder = tmp_path_factory.mktemp("undisturbed")
    forwarder = Forwarder()
    service = Service(label_studio, folder / "data", public_port=forwarder.port)
    forwarder.target = service.url
    lab = Lab(label_studio, scans60, extra_params=SETTINGS)
    with service:
        began = time.monotonic()
        lab.connect(service)
        lab.wait_for_round(0, seconds=120)
        seen: dict[str, Any] = {"lab": lab, "service": service, "first queue": time.monotonic() - began}
        seen["cold queue"] = service.wait(lab.project, lambda s: s["round"] == 0)["queue"]
        asked = len([p for p in forwarder.paths if p != "/webhook"])
        seen["cold served"] = lab.label(COLD)
        seen["asked while serving"] = len([p for p in forwarder.paths if p != "/webhook"]) - asked
        lab.wait_for_round(1)
        seen["status 1"] = service.wait(lab.project, lambda s: s["round"] == 1)
        asked = len([p for p in forwarder.paths if p != "/webhook"])
        seen["served 1"] = lab.label(ROUND)
        seen["asked while serving"] += len([p for p in forwarder.paths if p != "/webhook"]) - asked
        lab.wait_for_round(2)
        service.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == COLD + ROUND)
        seen["duration"] = time.monotonic() - began
        seen["end"] = end_state(lab, service)
        seen["paths"] = Counter(forwarder.paths)
        yield seen
    lab.close()
    forwarder.close()


def test_the_order_served_is_the_cold_start_order(run: dict[str, Any]) -> None:
    served = [task["id"] for task in run["cold served"]]
    assert served == run["cold queue"][:COLD]
    assert len(run["cold queue"]) == 3 * ROUND
    rounds = Store(run["service"].folder).rounds(run["lab"].project)
    assert served == [pick.task for pick in rounds[0]["picks"]][:COLD]
    assert rounds[0]["picks"][0].reason == "medoid"


def test_the_first_queue_is_published_within_a_minute(run: dict[str, Any]) -> None:
    assert run["first queue"] < 60


def test_serving_a_task_makes_no_request_to_the_backend(run: dict[str, Any]) -> None:
    assert run["asked while serving"] == 0, run["paths"]
    assert run["paths"]["/webhook"] >= COLD + ROUND  # so the webhook was set, with our secret


def test_the_order_after_the_first_training_is_s_of_i(run: dict[str, Any]) -> None:
    lab, service = run["lab"], run["service"]
    store = Store(service.folder)
    model = store.models(lab.project)[0]
    scans = store.scans(lab.project)
    found = read_map(store, lab.project, "pixels")
    assert found is not None
    where = dict(zip(found[0], found[1], strict=True))
    xy = np.array([where[s["digest"]] for s in scans])
    entropies = store.image_entropies(model["fingerprint"])
    entropy = np.array([entropies.get(s["digest"], np.nan) for s in scans])
    row = {s["task"]: i for i, s in enumerate(scans)}
    labelled = [row[task["id"]] for task in run["cold served"]]
    expected = [scans[i]["task"] for i in greedy(entropy, xy, labelled, ALPHA)]
    assert run["status 1"]["queue"][: 3 * ROUND] == expected[: 3 * ROUND]
    assert [task["id"] for task in run["served 1"]] == expected[:ROUND]


def test_every_served_task_opens_with_a_mask(run: dict[str, Any]) -> None:
    for task in run["served 1"]:
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "scanqueue-r1"
        (region,) = prediction["result"]
        assert region["value"]["brushlabels"] == ["Lung"]
        assert (region["original_height"], region["original_width"]) == (256, 256)


def test_a_smart_tool_gets_a_mask_that_replaces_nothing(run: dict[str, Any]) -> None:
    """Accepting a suggestion replaces the region of its id: what the annotator had drawn would be lost."""
    lab, service = run["lab"], run["service"]
    (backend,) = lab.studio.get("/api/ml", project=lab.project)
    path = f"/api/ml/{backend['id']}"
    same = {"project": lab.project, "url": service.public_url, "extra_params": SETTINGS}
    lab.studio.patch(path, same | {"is_interactive": True})
    try:
        task = run["served 1"][0]
        drawn = task["predictions"][0]["result"]
        (annotation,) = lab.studio.get(f"/api/tasks/{task['id']}")["annotations"]  # the mask on the screen by now
        mask = from_result(annotation["result"], (256, 256))["Lung"]
        columns = np.flatnonzero(mask.any(axis=0))
        column = int(columns[len(columns) // 4])
        row = int(np.median(np.flatnonzero(mask[:, column])))
        value = {"x": 100 * column / 256, "y": 100 * row / 256, "width": 0.3, "keypointlabels": ["Lung"]}
        click = {"id": "k", "type": "keypointlabels", "from_name": "click", "to_name": "image", "value": value}
        for prompts in ([click], [click | {"is_positive": False}], annotation["result"]):
            body = {"task": task["id"], "context": {"result": prompts}}
            (region,) = lab.studio.post(f"{path}/interactive-annotating", body)["data"]["result"]
            found = from_result([region], (256, 256))["Lung"]
            assert bool(found[row, column]) == (prompts[0].get("is_positive") is not False)
            assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) > 0.4  # a click outside may take a lung away
            assert region["from_name"] == drawn[0]["from_name"]
            assert region["id"] not in {one["id"] for one in (*drawn, *annotation["result"])}
        nothing = {"task": task["id"], "context": {"result": []}}  # what the page sends after Submit
        assert lab.studio.post(f"{path}/interactive-annotating", nothing)["data"]["result"] == []
        assert UUID(drawn[0]["id"]).version == 5
    finally:
        lab.studio.patch(path, same | {"is_interactive": False})


def test_each_task_has_at_most_one_prediction_per_version(run: dict[str, Any]) -> None:
    counts = Counter((p["task"], p["model_version"]) for p in run["lab"].predictions())
    assert set(counts.values()) == {1}
    assert {version for _, version in counts} == {"scanqueue-r0", "scanqueue-r1", "scanqueue-r2"}


def test_every_shown_mask_is_compared_with_the_submitted_one(run: dict[str, Any]) -> None:
    shown = {task: dice for task, version, dice in run["end"]["shown"] if version == "scanqueue-r1"}
    assert set(shown) == {run["lab"].names[task["id"]] for task in run["served 1"]}
    assert all(0 <= dice <= 1 for dice in shown.values())
    rounds = run["service"].get(f"/api/projects/{run['lab'].project}/rounds")["rounds"]
    assert [r["shown"]["n"] for r in rounds] == [0, ROUND, 0]
    assert rounds[1]["shown"]["dice"] == pytest.approx(np.mean(list(shown.values())))


def test_a_reconcile_with_nothing_to_do_writes_nothing(run: dict[str, Any]) -> None:
    lab, service = run["lab"], run["service"]
    before = end_state(lab, service)
    log = service.log()
    service.http.post("/webhook", json={"action": "PROJECT_UPDATED", "project": {"id": lab.project}})
    time.sleep(4)
    assert end_state(lab, service) == before
    assert service.log() == log


def test_ten_tasks_labelled_while_the_backend_was_down_are_caught_up(run: dict[str, Any]) -> None:
    lab, service = run["lab"], run["service"]
    service.stop()
    lab.label(10)
    began = time.monotonic()
    service.start()
    service.wait(lab.project, lambda s: s["labelled"] == COLD + ROUND + 10, seconds=90)
    store = Store(service.folder)
    while len([r for r in store.labels(lab.project) if r["mask"]]) < COLD + ROUND + 10:
        assert time.monotonic() - began < 90
        time.sleep(0.5)
    lab.wait_for_round(3)


def test_an_activated_older_model_predicts_the_masks_again(run: dict[str, Any]) -> None:
    lab, service = run["lab"], run["service"]
    command = [sys.executable, "-m", "backend.cli", "models", "activate", "scanqueue-r1"]
    subprocess.run([*command, "--project", str(lab.project), "--data-dir", str(service.folder)], check=True)
    lab.wait_for_round(4)
    listed = {m["version"]: m["active"] for m in service.get(f"/api/projects/{lab.project}/rounds")["models"]}
    assert [version for version, active in listed.items() if active] == ["scanqueue-r1"]
    drawn: dict[tuple[str, int], list[Any]] = {
        (p["model_version"], p["task"]): [region["value"] for region in p["result"]] for p in lab.predictions()
    }
    both = [task for version, task in drawn if version == "scanqueue-r4" and ("scanqueue-r1", task) in drawn]
    assert both
    for task in both:
        assert drawn["scanqueue-r4", task] == drawn["scanqueue-r1", task]
    (served,) = lab.label(1)
    (prediction,) = served["predictions"]
    assert prediction["model_version"] == "scanqueue-r4"
    assert prediction["result"]


def _with_kills(
    kills: int, run: dict[str, Any], label_studio: LabelStudio, scans: Scans, folder: Path
) -> dict[str, Any]:
    """The same run as `run`, with server and worker killed `kills` times at random moments."""
    rng = random.Random(kills)
    service = Service(label_studio, folder / "data")
    lab = Lab(label_studio, scans, extra_params=SETTINGS)
    over = threading.Event()
    failures: list[BaseException] = []
    killed = []

    def killer() -> None:
        try:
            for _ in range(kills):
                over.wait(rng.uniform(0.5, run["duration"] / kills))
                if over.is_set():
                    return
                service.kill()
                killed.append(time.monotonic())
                service.start()
            while not over.wait(1.0):  # three kills of one training in a row: somebody presses Start Training
                store = Store(service.folder)
                if "was cut off" in store.trouble(lab.project):
                    store.request_training(lab.project)
                    store.set_trouble(lab.project, "")
                store.close()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=killer)
    with service:
        lab.connect(service)
        thread.start()
        try:
            lab.wait_for_round(0, seconds=300)
            lab.label(COLD)
            lab.wait_for_round(1, seconds=900)
            lab.label(ROUND)
            lab.wait_for_round(2, seconds=900)
        finally:
            over.set()
            thread.join()
        assert not failures
        assert killed
        service.wait(lab.project, lambda s: s["job"] is None and s["labelled"] == COLD + ROUND)
        time.sleep(3)
        service.wait(lab.project, lambda s: s["job"] is None)
        state = end_state(lab, service)
    lab.close()
    return state


def _assert_same(state: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    for part in undisturbed:
        assert state[part] == undisturbed[part], part


@pytest.mark.long
def test_three_kills_lead_to_the_same_end_state(
    run: dict[str, Any], label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    _assert_same(_with_kills(3, run, label_studio, scans60, tmp_path), run["end"])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_kills_lead_to_the_same_end_state(
    run: dict[str, Any], label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    _assert_same(_with_kills(10, run, label_studio, scans60, tmp_path), run["end"])
