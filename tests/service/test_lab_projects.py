"""Projects as labs have them, on the real Label Studio: earlier work of others, renamed labels, bulk annotations."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service import BRUSH, Lab, Service, phantom_scans

from backend.demo.annotator import Annotator
from backend.demo.label_studio import LabelStudio
from backend.label_config import LabelConfig
from backend.label_studio.drawing import draw_mask
from backend.records.store import Store

pytestmark = pytest.mark.label_studio
SMALL = {
    "SCANQUEUE_TRAINING_STEPS": "5",
    "SCANQUEUE_IMAGE_SIZE": "32",
    "SCANQUEUE_ENCODER": "tu-test_resnet",  # what is trained matters here, not how well
}
COLD, SIDE = 4, 64
SETTINGS = {"cold_start_size": COLD, "round_size": 3, "queue_depth": 6}


@pytest.fixture(scope="module")
def service(label_studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(label_studio, tmp_path_factory.mktemp("service") / "data", env=SMALL) as running:
        yield running


def lab_with(studio: LabelStudio, folder: Path, count: int, config: str = BRUSH, people: int = 1) -> Lab:
    scans = phantom_scans(folder / "scans", count, seed=3, side=SIDE)
    return Lab(studio, scans, annotators=people, config=config, extra_params=SETTINGS)


def in_round(n: int) -> Any:
    return lambda status: status["round"] == n and status["phase"] == "active"


def test_a_renamed_label_keeps_its_masks_and_learns_nothing_wrong(
    service: Service, label_studio: LabelStudio, tmp_path: Path
) -> None:
    lab = lab_with(label_studio, tmp_path, 10)
    lab.connect(service)
    lab.wait_for_round(0)
    lab.label(COLD)
    lab.wait_for_round(1)
    before = lab.predictions()
    assert {r["value"]["brushlabels"][0] for p in before for r in p["result"]} <= {"Lung"}

    lab.studio.patch(f"/api/projects/{lab.project}/", {"label_config": BRUSH.replace('"Lung"', '"Lungs"')})
    status = service.wait(lab.project, lambda s: s["lost_labels"] and s["lost_labels"][0]["annotations"] == COLD)
    assert status["lost_labels"] == [{"label": "Lung", "annotations": COLD}]
    assert (status["phase"], status["labels"]) == ("blocked", ["Lungs"])
    assert lab.served_version() == "scanqueue-r1"
    assert lab.predictions() == before

    service.http.post(f"/api/projects/{lab.project}/labels", json={"Lung": "Lungs"}).raise_for_status()
    lab.wait_for_round(2)
    status = service.wait(lab.project, in_round(2))
    assert (status["model"], status["problems"], status["lost_labels"]) == ("scanqueue-r1", [], [])
    drawn = [p for p in lab.predictions() if p["model_version"] == "scanqueue-r2"]
    assert len(drawn) == 6
    assert {r["value"]["brushlabels"][0] for p in drawn for r in p["result"]} <= {"Lungs"}
    lab.close()


def test_after_the_data_folder_was_lost_the_new_order_is_served(label_studio: LabelStudio, tmp_path: Path) -> None:
    lab = lab_with(label_studio, tmp_path, 10)
    with Service(label_studio, tmp_path / "data", env=SMALL) as running:
        lab.connect(running)
        lab.wait_for_round(0)
        lab.label(COLD)
        lab.wait_for_round(1)
        before = lab.predictions()
        running.stop()
        shutil.move(tmp_path / "data", tmp_path / "lost")
        running.start()
        lab.studio.get("/api/ml", project=lab.project)  # what opening Settings > Model does
        # a round is announced once Label Studio serves it, a moment after the phase
        status = running.wait(
            lab.project, lambda s: s["phase"] == "active" and s["model_version"] == lab.served_version()
        )
        version = status["model_version"]
        assert int(version.removeprefix("scanqueue-r")) > 1
        after = lab.predictions()
        assert [p for p in after if p in before] == before
        served = {p["task"]: p["score"] for p in after if p["model_version"] == version}
        assert sorted(served, key=served.__getitem__) == status["queue"]
        assert set(served) == set(lab.names) - set(lab.labelled)
        first = lab.annotators[0].next_task(lab.project)
        assert first is not None
        assert first["id"] == status["queue"][0]
    lab.close()


def test_annotations_made_in_bulk_from_empty_predictions_are_not_normal_scans(
    service: Service, label_studio: LabelStudio, tmp_path: Path
) -> None:
    lab = lab_with(label_studio, tmp_path, 8)
    lab.connect(service)
    lab.wait_for_round(0)
    tasks = sorted({p["task"] for p in lab.predictions()})
    action = f"/api/dm/actions?id=predictions_to_annotations&project={lab.project}"
    selected = {"selectedItems": {"all": False, "included": tasks}, "project": str(lab.project)}
    lab.studio.post(action, {**selected, "model_version": "scanqueue-r0"})
    status = service.wait(lab.project, lambda s: len(s["problems"]) == len(tasks))
    assert all("nobody has looked at it" in p["what"] for p in status["problems"])
    assert service.get(f"/api/projects/{lab.project}/rounds")["models"] == []
    for task in tasks[:COLD]:  # what the page sends when the annotator opens it and presses Update
        (made,) = lab.studio.annotations(task)
        assert made["lead_time"] is None
        lab.studio.patch(f"/api/annotations/{made['id']}/", {"result": lab.truth(task), "lead_time": 4.2})
    lab.wait_for_round(1)
    (model,) = service.get(f"/api/projects/{lab.project}/rounds")["models"]
    assert model["trained_on"] == COLD
    last = {"selectedItems": {"all": False, "included": tasks[-1:]}, "project": str(lab.project)}
    copying = f"/api/dm/actions?id=propagate_annotations&project={lab.project}"
    lab.studio.post(copying, {**last, "source_annotation_id": made["id"]})
    status = service.wait(lab.project, lambda s: "copied from another task" in str(s["problems"]))
    assert [p["task"] for p in status["problems"] if "copied from" in p["what"]] == tasks[-1:]
    lab.close()


EVERY_TAG = """<View><Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="A"/></BrushLabels>
  <BitmaskLabels name="bits" toName="image"><Label value="B"/></BitmaskLabels>
  <PolygonLabels name="outline" toName="image"><Label value="C"/></PolygonLabels>
  <EllipseLabels name="oval" toName="image"><Label value="D"/></EllipseLabels>
  <Rectangle name="box" toName="image"/><Labels name="names" toName="image"><Label value="E"/></Labels>
</View>"""


def _as_people_see_it(lab: Lab, task: int) -> dict[str, Any]:
    """What others put into a task; ours is left out."""
    found = lab.studio.get(f"/api/tasks/{task}/")
    return {
        "annotations": sorted(found["annotations"], key=lambda a: a["id"]),
        "drafts": found["drafts"],
        "predictions": [p for p in found["predictions"] if not p["model_version"].startswith("scanqueue")],
        "data": found["data"],
    }


def test_earlier_work_of_three_people_is_learned_and_left_as_it_is(
    service: Service, label_studio: LabelStudio, tmp_path: Path
) -> None:
    """25 annotations of every region type, predictions of another model, drafts, a tab and settings of the lab."""
    lab = lab_with(label_studio, tmp_path, 30, config=EVERY_TAG, people=3)
    config = LabelConfig.from_parsed(lab.studio.get(f"/api/projects/{lab.project}/")["parsed_label_config"], 1)
    tasks = sorted(lab.names)
    squares = np.zeros((SIDE, SIDE), np.uint8)
    for n in range(5):
        squares[8:48, 4 + 12 * n : 14 + 12 * n] = n + 1
    regions = draw_mask(squares, "ABCDE", config, "x")
    assert {r["type"] for r in regions} == {
        *("brushlabels", "bitmasklabels", "polygonlabels", "ellipselabels", "rectangle", "labels")
    }
    people: Iterator[Annotator] = itertools.cycle(lab.annotators)
    for task in tasks[:25]:
        next(people).submit({"id": task, "project": lab.project}, regions)
    foreign = [{"task": t, "model_version": "lab-2024", "score": 0.5, "result": regions[:1]} for t in tasks[20:]]
    lab.studio.post(f"/api/projects/{lab.project}/import/predictions", foreign)
    lab.studio.post(f"/api/tasks/{tasks[28]}/drafts?project={lab.project}", {"result": regions[:1], "lead_time": 3})
    tab = {"title": "Second readings", "type": "list", "target": "tasks", "ordering": ["-tasks:id"]}
    lab.studio.post("/api/dm/views/", {"project": lab.project, "data": tab})
    lab.studio.patch(
        f"/api/projects/{lab.project}/", {"expert_instruction": "Mark all lesions.", "maximum_annotations": 1}
    )
    before = {t: _as_people_see_it(lab, t) for t in tasks}
    tabs = lab.studio.get("/api/dm/views/", project=lab.project)
    settings = lab.studio.get(f"/api/projects/{lab.project}/")

    lab.connect(service)
    lab.wait_for_round(1)
    status = service.wait(lab.project, in_round(1))
    assert (status["labelled"], status["problems"]) == (25, [])
    (model,) = service.get(f"/api/projects/{lab.project}/rounds")["models"]
    assert model["trained_on"] == 25
    store = Store(service.folder)
    (name,) = {r["mask"] for r in store.labels(lab.project)}
    learned = store.arrays("labels", name)["mask"]
    for n, label in enumerate(config.labels, start=1):
        want = squares == "ABCDE".index(label) + 1
        assert 2 * ((learned == n) & want).sum() / ((learned == n).sum() + want.sum()) > (0.8 if label == "D" else 0.99)

    assert {t: _as_people_see_it(lab, t) for t in tasks} == before
    after = lab.studio.get("/api/dm/views/", project=lab.project)
    assert [v for v in after if v["data"]["title"] != "scanqueue"] == tabs
    changed = {k for k, v in lab.studio.get(f"/api/projects/{lab.project}/").items() if settings[k] != v}
    assert changed <= {  # as documented; the rest are Label Studio's own counters
        *("model_version", "sampling", "show_collab_predictions"),
        *("total_predictions_number", "finished_task_number", "queue_done", "config_suitable_for_bulk_annotation"),
    }
    drawn = [p for p in lab.predictions() if p["model_version"] == "scanqueue-r1"]
    assert {p["task"] for p in drawn} == set(tasks[25:])
    lab.close()
