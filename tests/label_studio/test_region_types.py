"""Every region type in Label Studio's own editor: what it shows is what we read, what we write is what it shows.

Prints a table: the Dice of what Chromium shows and what we read, of a mask and what Chromium shows of our regions for
it, and of the annotation and its export. Run with `-s` to see it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from chromium import ARGUMENTS
from editor import IMAGE, Editor
from numpy.typing import NDArray
from playwright.sync_api import expect, sync_playwright

from backend.demo.label_studio import LabelStudio
from backend.export.run import Export
from backend.label_config import LabelConfig
from backend.label_studio.drawing import draw_mask
from backend.label_studio.masks import read_mask
from backend.label_studio.raster import encode_bitmask, encode_brush
from backend.label_studio.studio import Studio

pytestmark = [pytest.mark.label_studio, pytest.mark.browser]

H, W = 240, 320
KINDS = ("Brush", "Bitmask", "Polygon", "Ellipse", "Rectangle")
TAGS = (f'<{k}Labels name="{k}" toName="image"><Label value="{k}" background="#ffffff"/></{k}Labels>' for k in KINDS)
XML = f"""<View><Image name="image" value="$image" maxWidth="{W}px" rotateControl="true"/>{"".join(TAGS)}</View>"""
Mask = NDArray[np.bool_]


def blob() -> Mask:
    """A ring with a bite: not convex, with a hole."""
    rows, columns = np.mgrid[:H, :W]
    far = np.hypot(rows - 120, columns - 160)
    return np.asarray((far < 90) & (far > 40) & ~((rows < 80) & (columns > 200)))


RING = [[20, 20], [80, 20], [80, 80], [20, 80], [20, 20], [40, 40], [40, 60], [60, 60], [60, 40], [40, 40]]
VALUES: dict[str, tuple[str, dict[str, Any]]] = {
    "brush": ("Brush", {"format": "rle", "rle": encode_brush(blob())}),
    "bitmask": ("Bitmask", {"imageDataURL": encode_bitmask(blob())}),
    "polygon with a hole": ("Polygon", {"points": RING, "closed": True}),
    "rectangle": ("Rectangle", {"x": 30, "y": 20, "width": 40, "height": 50, "rotation": 0}),
    "rectangle, 30 degrees": ("Rectangle", {"x": 50, "y": 20, "width": 35, "height": 30, "rotation": 30}),
    "ellipse": ("Ellipse", {"x": 50, "y": 50, "radiusX": 30, "radiusY": 15, "rotation": 0}),
    "ellipse, 30 degrees": ("Ellipse", {"x": 50, "y": 50, "radiusX": 30, "radiusY": 15, "rotation": 30}),
}


def region(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    about = {"id": f"{kind}1", "from_name": kind, "to_name": "image", "type": f"{kind.lower()}labels"}
    size = {"original_width": W, "original_height": H, "image_rotation": 0}
    return {**about, **size, "value": {**value, f"{kind.lower()}labels": [kind]}}


def dice(first: Mask, second: Mask) -> float:
    return float(2 * (first & second).sum() / max(first.sum() + second.sum(), 1))


class Drawing(Editor):
    """What the editor shows and draws."""

    def shown(self, task: int) -> Mask:
        """The pixels that the editor colours on the black image, (H, W)."""
        self.open(task)
        expect(self.page.locator("[class*=outliner] [role=treeitem]").first).to_be_visible()
        last = None
        for _ in range(60):
            picture = cv2.imdecode(np.frombuffer(self._canvas().screenshot(), np.uint8), cv2.IMREAD_GRAYSCALE)
            assert picture is not None
            if last is not None and np.array_equal(last, picture) and picture.max() > 20:
                scan = picture[:H, :W]
                return np.asarray(scan > 20)
            last = picture
            self.page.wait_for_timeout(150)
        raise AssertionError("the editor shows nothing, or does not stand still")

    def _canvas(self) -> Any:
        return self.page.locator(".konvajs-content").first

    def draw_rotated(self, task: int) -> list[dict[str, Any]]:
        """Turn the image to the left, drag a brush stroke along the left edge as it is shown, and submit."""
        self.open(task)
        steady = 0
        while steady < 4:  # the page may load the task a second time, upright again
            if self.page.evaluate(f"() => {IMAGE}?.rotation") == 270:
                steady += 1
            else:
                self.page.locator("[aria-label=rotate-left]").click()
                steady = 0
            self.page.wait_for_timeout(500)
        self.page.locator("[class*=label__text]", has_text="Brush").first.click()
        box = self._canvas().bounding_box()
        self.page.mouse.move(box["x"] + 20, box["y"] + 40)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + 20, box["y"] + 200, steps=12)
        self.page.mouse.up()
        expect(self.page.locator("[class*=outliner] [role=treeitem]")).to_have_count(1)
        return self.submit()


def test_what_the_editor_shows_is_read_and_what_is_written_is_shown(
    chromium: str, label_studio: LabelStudio, tmp_path: Path
) -> None:
    project = label_studio.create_project("region types", XML)
    config = LabelConfig.from_parsed(label_studio.get(f"/api/projects/{project}/")["parsed_label_config"], 1)
    images = []
    for number in range(len(VALUES) + len(KINDS) + 1):
        pixels = np.zeros((H, W), np.uint8)
        pixels[H - 1, W - 1 - number] = 1  # every file is another one
        images.append(tmp_path / f"{number}.png")
        assert cv2.imwrite(str(images[-1]), pixels)
    tasks = label_studio.import_files(project, images)
    read_tasks, written_tasks, rotated = tasks[: len(VALUES)], tasks[len(VALUES) : -1], tasks[-1]
    for task, (kind, value) in zip(read_tasks, VALUES.values(), strict=True):
        label_studio.post(f"/api/tasks/{task}/annotations/", {"result": [region(kind, value)], "lead_time": 1})
    rows = []
    for task, kind in zip(written_tasks, KINDS, strict=True):
        result = draw_mask(blob().astype(np.uint8), [kind], config, "x")
        rows.append({"task": task, "model_version": "x", "score": 0.5, "result": result})
    studio = Studio(label_studio.url, label_studio.personal_access_token())
    studio.import_predictions(project, rows)  # raises if Label Studio drops one

    read, written = {}, {}
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=chromium, headless=True, args=ARGUMENTS,
            viewport={"width": 1440, "height": 900},
        )  # fmt: skip
        editor = Drawing(context.pages[0], label_studio, project)
        stroke = editor.draw_rotated(rotated)
        for task, (name, (kind, value)) in zip(read_tasks, VALUES.items(), strict=True):
            ours, _ = read_mask([region(kind, value)], config, H, W)
            read[name] = dice(ours > 0, editor.shown(task)), ours
        for task, kind in zip(written_tasks, KINDS, strict=True):
            written[kind.lower()] = dice(blob(), editor.shown(task))
        context.close()
    assert editor.errors == []
    assert stroke[0]["image_rotation"] == 270
    turned, _ = read_mask(stroke, config, H, W)
    assert turned.any()
    rows_, columns = np.nonzero(turned)
    # shown at the left edge, from top to middle: in the image as it is in its file, along the top, right half
    assert rows_.max() < 60
    assert columns.min() > W * 0.2
    assert columns.max() > W * 0.8

    Export(studio, project, formats=("png",)).run(tmp_path / "out")
    slices = json.loads((tmp_path / "out" / "manifest.json").read_text())["slices"]
    files = {row["task"]: tmp_path / "out" / row["png"] for row in slices}
    exported = {}
    for task, name in zip(read_tasks, VALUES, strict=True):
        exported[name] = dice(read[name][1] > 0, cv2.imread(str(files[task]), cv2.IMREAD_UNCHANGED) > 0)

    print(f"\n{'region type':24} {'read':>7} {'written':>8} {'exported':>9}")
    for name, (found, _) in read.items():
        kind = VALUES[name][0].lower()
        print(f"{name:24} {found:7.3f} {written[kind]:8.3f} {exported[name]:9.3f}")
    assert min(found for found, _ in read.values()) > 0.97
    assert min(written[k] for k in ("brush", "bitmask", "polygon")) > 0.97
    assert set(exported.values()) == {1.0}


def test_label_studio_accepts_our_regions_where_labels_are_a_tag_of_their_own(label_studio: LabelStudio) -> None:
    studio = Studio(label_studio.url, label_studio.personal_access_token())
    for kind in KINDS:
        labels = '<Labels name="n" toName="i"><Label value="Tumour" alias="T"/></Labels>'
        xml = f'<View><Image name="i" value="$image"/><{kind} name="t" toName="i"/>{labels}</View>'
        project = label_studio.create_project(kind, xml)
        (task,) = label_studio.import_tasks(project, [{"data": {"image": "http://127.0.0.1/scan.png"}}])
        config = studio.project(project).masks_config(project)
        result = draw_mask(blob().astype(np.uint8), ["T"], config, "x")
        studio.import_predictions(project, [{"task": task, "model_version": "x", "score": 0.5, "result": result}])
        (stored,) = label_studio.get("/api/predictions/", project=project)
        mask, _ = read_mask(stored["result"], config, H, W)
        assert dice(mask > 0, blob()) > (0.97 if kind in ("Brush", "Bitmask", "Polygon") else 0.7)
