"""A simulated annotator: one browser session that presses the buttons of Label Studio's labelling page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
from label_studio_sdk.converter import brush
from numpy.typing import NDArray

from backend.demo.administrator import answer, sign_in

Mask = NDArray[np.bool_]
Result = list[dict[str, Any]]


@dataclass(frozen=True)
class Control:
    """A project's labelling control: its names in the label config, and its kind."""

    from_name: str
    to_name: str
    kind: str  # "brushlabels" or "polygonlabels"


class Annotator:
    """A member of the organization who labels. Not thread-safe."""

    def __init__(self, ls_url: str, email: str, password: str) -> None:
        self.email = email
        self.browser = sign_in(ls_url, email, password)
        self._tab: dict[int, int] = {}

    def next_task(self, project: int) -> dict[str, Any] | None:
        """Press "Label All Tasks" or Next. Returns the task that Label Studio serves, or None when no task is left.

        The task carries `predictions` (what the page draws) and `queue` (how it was chosen).
        """
        response = self.browser.post(
            "/api/dm/actions",
            params={"id": "next_task", "tabID": self._tab_of(project), "project": project},
            json={"project": str(project)},
        )
        if response.status_code == 404 and "no tasks" in response.text:
            return None
        return dict(answer(response))

    def submit(self, task: Mapping[str, Any], result: Result, *, lead_time: float = 5.0) -> dict[str, Any]:
        """Press Submit. As on the page, an annotation based on the shown prediction refers to it."""
        shown = shown_prediction(task)
        return self._annotate(task, result, lead_time, shown["id"] if shown else None, skip=False)

    def skip(self, task: Mapping[str, Any], *, lead_time: float = 1.0) -> dict[str, Any]:
        """Press Skip."""
        shown = shown_prediction(task)
        result = list(shown["result"]) if shown else []
        return self._annotate(task, result, lead_time, shown["id"] if shown else None, skip=True)

    def click(self, backend: int, task: Mapping[str, Any], prompts: Result) -> Result:
        """Click with a smart key point. Returns the suggested regions.

        backend  Label Studio's number of the ML backend
        prompts  all key points so far of this label, see `to_key_points`
        """
        body = {"task": int(task["id"]), "context": {"result": prompts}}
        reply = answer(self.browser.post(f"/api/ml/{backend}/interactive-annotating", json=body))
        return list((reply.get("data") or {}).get("result") or [])

    def update(self, annotation: int, result: Result) -> dict[str, Any]:
        """Press Update on an annotation submitted earlier."""
        return dict(answer(self.browser.patch(f"/api/annotations/{annotation}/", json={"result": result})))

    def delete(self, annotation: int) -> None:
        """Delete an annotation."""
        answer(self.browser.delete(f"/api/annotations/{annotation}/"))

    def close(self) -> None:
        self.browser.close()

    def _annotate(
        self, task: Mapping[str, Any], result: Result, lead_time: float, shown: int | None, *, skip: bool
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"lead_time": lead_time, "result": result, "draft_id": 0}
        if shown is not None:
            body["parent_prediction"] = shown
        if skip:
            body["was_cancelled"] = True
        params = {"project": int(task["project"])}
        return dict(answer(self.browser.post(f"/api/tasks/{task['id']}/annotations/", params=params, json=body)))

    def _tab_of(self, project: int) -> int:
        if project not in self._tab:
            views = answer(self.browser.get("/api/dm/views/", params={"project": project}))
            self._tab[project] = int(views[0]["id"]) if views else 0
        return self._tab[project]


def shown_prediction(task: Mapping[str, Any]) -> dict[str, Any] | None:
    """The prediction that the labelling page shows first: the newest of the task's predictions."""
    return max(task.get("predictions") or [], key=lambda prediction: int(prediction["id"]), default=None)


def file_name(task: Mapping[str, Any], key: str = "image") -> str:
    """The file name with which the scan was imported, without the prefix that an upload adds."""
    name = unquote(str(task["data"][key])).rsplit("/", 1)[-1]
    if "/data/upload/" in str(task["data"][key]):
        name = re.sub(r"^[0-9a-f]{8}-", "", name)
    return name


def label_map_to_masks(label_map: NDArray[Any], labels: Sequence[str]) -> dict[str, Mask]:
    """Split a label map: 0 is background, 1 is the first of `labels`. A single label covers all nonzero values."""
    if len(labels) == 1:
        return {labels[0]: label_map > 0}
    return {label: label_map == number for number, label in enumerate(labels, start=1)}


def to_brush(masks: Mapping[str, Mask], control: Control) -> Result:
    """One brush region per label whose mask is not empty; exact."""
    result = []
    for number, (label, mask) in enumerate(masks.items()):
        if mask.any():
            painted = np.where(mask, np.uint8(255), np.uint8(0))
            value = {"format": "rle", "rle": _encode(painted), "brushlabels": [label]}
            result.append(_region(f"brush{number}", "brushlabels", mask, value, control))
    return result


def to_polygons(masks: Mapping[str, Mask], control: Control) -> Result:
    """One polygon per outer contour, in percent of the image. Holes and specks with fewer than 3 points are lost."""
    result = []
    count = itertools.count()
    for label, mask in masks.items():
        height, width = mask.shape
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        for contour in contours:
            if len(contour) >= 3:
                # contours run through pixel centres
                points = (contour[:, 0, :] + 0.5) * (100.0 / width, 100.0 / height)
                value = {"points": points.tolist(), "closed": True, "polygonlabels": [label]}
                result.append(_region(f"polygon{next(count)}", "polygonlabels", mask, value, control))
    return result


def to_result(masks: Mapping[str, Mask], control: Control) -> Result:
    """The masks as regions of the project's own control."""
    return to_polygons(masks, control) if control.kind == "polygonlabels" else to_brush(masks, control)


def to_key_points(
    clicks: Sequence[tuple[bool, tuple[float, float]]], label: str, shape: tuple[int, int], control: Control
) -> Result:
    """Key points of a label, as the page sends them: whether each is inside, and (row, column) in pixels of `shape`."""
    return [
        {
            **_region(f"click{number}", "keypointlabels", np.zeros(shape, bool), value, control),
            "is_positive": inside,
        }
        for number, (inside, (row, column)) in enumerate(clicks)
        for value in [{"x": 100 * column / shape[1], "y": 100 * row / shape[0], "keypointlabels": [label]}]
    ]


def from_result(result: Result, shape: tuple[int, int]) -> dict[str, Mask]:
    """The masks as the page would draw them: the union of each label's regions, scaled to `shape` (height, width)."""
    masks: dict[str, Mask] = {}
    for region in result:
        value = region["value"]
        if region["type"] == "brushlabels":
            size = (int(region["original_height"]), int(region["original_width"]))
            mask = np.reshape(brush.decode_rle(value["rle"]), (*size, 4))[:, :, 3] > 127
            if size != shape:
                scaled = cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST)
                mask = scaled.astype(bool)
        elif region["type"] == "polygonlabels":
            height, width = shape
            points = np.asarray(value["points"]) * (width / 100.0, height / 100.0) - 0.5
            canvas = np.zeros(shape, np.uint8)
            cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 1)
            mask = canvas.astype(bool)
        else:
            continue
        for label in value[region["type"]]:
            masks[label] = masks[label] | mask if label in masks else mask
    return masks


def _encode(painted: NDArray[np.uint8]) -> list[int]:
    rle: list[int] = brush.mask2rle(painted)  # type: ignore[no-untyped-call]
    return rle


def _region(name: str, kind: str, mask: Mask, value: dict[str, Any], control: Control) -> dict[str, Any]:
    return {
        "id": name,
        "from_name": control.from_name,
        "to_name": control.to_name,
        "type": kind,
        "origin": "manual",
        "original_width": mask.shape[1],
        "original_height": mask.shape[0],
        "image_rotation": 0,
        "value": value,
    }
