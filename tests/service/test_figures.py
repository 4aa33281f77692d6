"""A project on a real Label Studio in which most scans show nothing and labels have colours: what people are told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from service import CONTROL, Lab, Service

from backend.demo.annotator import to_result
from backend.demo.label_studio import LabelStudio
from backend.records.store import Store

pytestmark = pytest.mark.label_studio

COLD, LATER = 6, 3
QUICK = {"SCANQUEUE_TRAINING_STEPS": "8", "SCANQUEUE_IMAGE_SIZE": "32", "SCANQUEUE_ENCODER": "tu-test_resnet"}
SETTINGS = {"cold_start_size": COLD, "round_size": 20}
CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
    '<Label value="Lung" background="#ff0080"/><Label value="Heart" alias="cor" background="navy"/>'
    "</BrushLabels></View>"
)
LUNG, HEART = (0xFF, 0x00, 0x80), (0x00, 0x00, 0x80)


class Screening(Lab):
    """Annotators find something on the tasks in `positive` only."""

    positive: Mapping[int, bool]

    def truth(self, task: int) -> list[dict[str, Any]]:
        if not self.positive[task]:
            return []
        mask = cv2.imread(str(self._masks[task]), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        heart = np.zeros(mask.shape, bool)
        heart[100:160, 100:150] = True
        return list(to_result({"Lung": (mask > 127) & ~heart, "cor": heart}, CONTROL))


def colours_in(picture: bytes) -> set[tuple[int, ...]]:
    found = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return {tuple(pixel) for pixel in found[..., ::-1].reshape(-1, 3).tolist()}


def test_scans_without_foreground_are_told_apart_and_outlines_have_the_colours_of_the_config(
    label_studio: LabelStudio, scans60: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    lab = Screening(label_studio, scans60[:20], config=CONFIG, extra_params=SETTINGS)
    with Service(label_studio, tmp_path / "data", env=QUICK) as service:
        lab.connect(service)
        lab.wait_for_round(0)
        store = Store(service.folder)
        (first,) = store.rounds(lab.project)
        order = [pick.task for pick in first["picks"]][:COLD]
        lab.positive = {task: task == order[0] for task in lab.names}  # it is learnt, so nothing is on those held out
        lab.label(COLD)
        assert set(lab.labelled) == set(order)
        lab.wait_for_round(1)
        seen = service.wait(lab.project, lambda s: s["model"] is not None)
        validation = seen["validation"]
        assert (validation["dice"], validation["n"], validation["n_empty"]) == (None, 0, round(0.2 * COLD))
        assert 0 <= validation["false_alarm_rate"] <= 1
        assert seen["labelled_empty"] == COLD - 1

        lab.positive = {task: task % 2 == 0 for task in lab.names}
        lab.label(LATER)
        new = lab.labelled[COLD:]
        seen = service.wait(lab.project, lambda s: s["shown"]["n"] + s["shown"]["n_empty"] == LATER)
        shown, empty = seen["shown"], [task for task in new if task % 2]
        rows = {s["task"]: s for s in store.shown(lab.project)}
        assert (shown["n"], shown["n_empty"]) == (LATER - len(empty), len(empty))
        dices = [rows[task]["dice"] for task in new if task not in empty]
        assert shown["dice"] == (pytest.approx(np.mean(dices)) if dices else None)
        for task in empty:  # what was shown is what Label Studio has
            (drawn,) = [
                p["result"]
                for p in lab.predictions()
                if (p["task"], p["model_version"]) == (task, rows[task]["version"])
            ]
            assert rows[task]["shown_empty"] == int(not drawn)
        metrics = service.http.get("/metrics").text
        assert f'scanqueue_shown_empty_scans{{project="{lab.project}"}} {float(len(empty))}' in metrics
        assert f'scanqueue_validation_dice{{project="{lab.project}"}}' not in metrics

        page = service.http.get(f"/projects/{lab.project}/activity").text
        assert '--colour:#FF0080"></i> Lung' in page
        assert '--colour:#000080"></i> cor' in page
        picture = service.http.get(f"/projects/{lab.project}/scans/{order[0]}.png?side=256&model=annotator").content
        assert {LUNG, HEART} <= colours_in(picture)
    lab.close()
