"""Two annotators and a new project on a real Label Studio: from the third scan on, tasks open with a mask, although
the service is killed three times."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service import Lab, Service

from backend.demo.annotator import shown_prediction
from backend.demo.label_studio import LabelStudio
from backend.records.store import Store

LABELS = 16  # fewer than start the first training
KILLED = {5: 0.3, 8: 0.6, 11: 0.9}  # after these labels, server and worker are killed: seconds after Submit
Scans = list[tuple[Path, Path]]


@pytest.mark.label_studio
def test_tasks_open_with_a_mask_from_the_third_on_in_the_announced_order(
    label_studio: LabelStudio, scans60: Scans, tmp_path: Path
) -> None:
    with Service(label_studio, tmp_path / "data", env={"SCANQUEUE_EMBEDDER": "auto"}) as service:
        lab = Lab(label_studio, scans60[:40])
        lab.connect(service)
        lab.wait_for_round(0)
        order = service.status(lab.project)["queue"]
        one, other = lab.annotators
        held: list[tuple[Any, dict[str, Any]]] = []
        opened: list[dict[str, Any]] = []
        for annotator in (one, other):
            task = annotator.next_task(lab.project)
            assert task is not None
            held.append((annotator, task))
            opened.append(task)
        while len(lab.labelled) < LABELS:
            annotator, task = held.pop(0)
            now = {p["id"]: p["result"] for p in lab.predictions() if p["task"] == task["id"]}
            assert now == {p["id"]: p["result"] for p in task["predictions"]}, "changed while somebody held it"
            annotator.submit(task, lab.truth(task["id"]))
            lab.labelled.append(task["id"])
            if (moment := KILLED.get(len(lab.labelled))) is not None:
                time.sleep(moment)
                service.kill()
                service.start()
            if len(lab.labelled) > 1:  # nothing is drawn from a single label; people take longer than the redrawing
                service.wait(lab.project, lambda s: bool(s["quick"]) and s["quick"]["labels"] == len(lab.labelled))
            task = annotator.next_task(lab.project)
            assert task is not None
            held.append((annotator, task))
            opened.append(task)
        assert [task["id"] for task in opened] == order[: len(opened)]
        shown = [bool((shown_prediction(task) or {"result": []})["result"]) for task in opened]
        later = shown[5:]  # opened after the third label: two are held by then
        assert sum(later) >= 0.9 * len(later), shown
        counted = [(p["task"], p["model_version"]) for p in lab.predictions()]
        assert len(counted) == len(set(counted))
        store = Store(service.folder)
        dice = {row["task"]: row["dice"] for row in store.shown(lab.project, "scanqueue-r0")}
        late = [dice[task["id"]] for task in opened[6:LABELS] if task["id"] in dice]
        assert np.mean(late) >= 0.85, late
        assert "Traceback" not in service.log()
        lab.close()
