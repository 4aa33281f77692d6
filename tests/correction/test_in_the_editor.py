"""Clicks in Label Studio's own editor, in Chromium, on a real Label Studio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from chromium import ARGUMENTS
from editor import Editor
from playwright.sync_api import Page, expect, sync_playwright
from service import Service

from backend.demo.annotator import from_result
from backend.demo.label_studio import LabelStudio
from backend.demo.phantoms import phantom

pytestmark = [pytest.mark.label_studio, pytest.mark.browser]

SIDE = 512
LABEL = '<Label value="Lung" background="#e4572e"/>'
XML = (
    f'<View><Image name="image" value="$image" maxWidth="{SIDE}px"/>'
    f'<BrushLabels name="mask" toName="image">{LABEL}</BrushLabels>'
    f'<KeyPointLabels name="click" toName="image" smart="true" smartOnly="true">{LABEL}</KeyPointLabels></View>'
)


class Clicker:
    """An annotator who corrects with clicks."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.get_by_text("Auto-Annotation").first.click()
        smart = page.locator("[class*=lsf-toolbar__group]").last
        for _ in range(4):  # each click selects the next smart tool
            smart.click()
            page.wait_for_timeout(500)
            if page.locator("[aria-label=key-point-tool][class*=tool_active]").count():
                return
        raise AssertionError("the smart key point cannot be selected")

    def click(self, row: float, column: float, *, outside: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Click with the label of the smart tool, with Alt if outside; returns what was sent and answered."""
        self.page.locator("[class*=label__text]", has_text="Lung").last.click()
        box = self.page.locator(".konvajs-content").first.bounding_box()
        assert box is not None
        if outside:
            self.page.keyboard.down("Alt")
        with self.page.expect_response(lambda r: "interactive-annotating" in r.url) as answer:
            self.page.mouse.click(box["x"] + column * box["width"] / SIDE, box["y"] + row * box["height"] / SIDE)
        if outside:
            self.page.keyboard.up("Alt")
        self.page.wait_for_timeout(1000)
        sent = answer.value.request.post_data_json
        return sent["context"], answer.value.json()["data"]["result"]

    def accept(self) -> None:
        """Press the check mark beside "1 suggestions"."""
        self.page.get_by_test_id("bottombar-accept-suggestions-button").click()

    def submit(self) -> list[dict[str, Any]]:
        with self.page.expect_response(lambda r: r.request.method == "POST" and "/annotations" in r.url) as stored:
            self.page.get_by_role("button", name="Submit current annotation").click()
        return list(stored.value.json()["result"])


def test_two_clicks_draw_a_lung_that_is_accepted_and_submitted(
    chromium: str, label_studio: LabelStudio, tmp_path: Path
) -> None:
    image, masks = phantom(3, (SIDE, SIDE))
    truth = masks["Lung"] & (np.arange(SIDE) < SIDE // 2)
    file = tmp_path / "scan.png"
    cv2.imwrite(str(file), image)
    project = label_studio.create_project("clicks", XML)
    (task,) = label_studio.import_files(project, [file])
    with Service(label_studio, tmp_path / "data") as service, sync_playwright() as playwright:
        label_studio.connect_backend(project, service.public_url, interactive=True)
        service.wait(project, lambda s: bool(s["queue"]))
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        Editor(page, label_studio, project).open(task)
        person = Clicker(page)

        row, column = (float(np.median(axis)) for axis in np.nonzero(truth))
        sent, answered = person.click(row, column)
        assert [region["is_positive"] for region in sent["result"]] == [True]
        first = from_result(answered, (SIDE, SIDE))["Lung"]
        assert first[int(row), int(column)]

        false = cv2.distanceTransform((first & ~truth).astype(np.uint8), cv2.DIST_L2, 5)
        away = np.unravel_index(int(false.argmax()), false.shape)
        sent, answered = person.click(float(away[0]), float(away[1]), outside=True)
        assert sorted(region["is_positive"] for region in sent["result"]) == [False, True]
        second = from_result(answered, (SIDE, SIDE))["Lung"]
        assert not second[away]
        assert 2 * (second & truth).sum() / (second.sum() + truth.sum()) > 0.85

        person.accept()
        expect(page.locator("[class*=outliner] [role=treeitem]")).to_have_count(1)  # the clicks are gone
        stored = person.submit()
        assert [region["type"] for region in stored] == ["brushlabels"]
        assert np.array_equal(from_result(stored, (SIDE, SIDE))["Lung"], second)
        assert errors == []
        browser.close()
