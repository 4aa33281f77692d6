"""Clicks, boxes and strokes in Label Studio's own editor, in Chromium, on a real Label Studio.

All tests use one page on one project; each has a task of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from chromium import ARGUMENTS
from editor import IMAGE, Editor
from numpy.typing import NDArray
from playwright.sync_api import Locator, Page, Request, Response, expect, sync_playwright
from service import Service

from backend.demo.annotator import Control, from_result, to_result
from backend.demo.label_studio import LabelStudio
from backend.demo.phantoms import phantom
from backend.facts import IMPORTED_MASKS
from backend.label_config import LabelConfig, smart_tags
from backend.label_studio.masks import read_mask
from backend.label_studio.strokes import painted

pytestmark = [pytest.mark.label_studio, pytest.mark.browser]

SIDE = 512
TASKS, PREDICTED = 13, 4  # the first ones show a predicted mask
LABELS = '<Label value="Lung" background="#e4572e"/><Label value="Heart" background="#2e86e4"/>'
XML = (
    f'<View><Image name="image" value="$image" maxWidth="{SIDE}px"/>'
    f'<BrushLabels name="mask" toName="image" smart="true">{LABELS}</BrushLabels>'
    f'<KeyPointLabels name="click" toName="image" smart="true" smartOnly="true">{LABELS}</KeyPointLabels>'
    f'<RectangleLabels name="box" toName="image" smart="true" smartOnly="true">{LABELS}</RectangleLabels>'
    f'<EllipseLabels name="round" toName="image" smart="true" smartOnly="true">{LABELS}</EllipseLabels>'
    f'<PolygonLabels name="outline" toName="image" smart="true" smartOnly="true">{LABELS}</PolygonLabels></View>'
)
MASK, CLICK, BOX = range(3)  # the tags, as their labels are shown below the scan
POINT, RECTANGLE, BRUSH = "KeyPointTool-dynamic", "RectangleTool-dynamic", "BrushTool-dynamic"
Mask = NDArray[np.bool_]
Regions = list[dict[str, Any]]
Place = tuple[float, float]  # (row, column)

PICTURE, MASKS = phantom(3, (SIDE, SIDE))
LEFT = MASKS["Lung"] & (np.arange(SIDE) < SIDE // 2)
RIGHT = MASKS["Lung"] & ~LEFT


def middle(mask: Mask) -> Place:
    row, column = (float(np.median(axis)) for axis in np.nonzero(mask))
    return row, column


def drawn(regions: Regions, label: str = "Lung") -> Mask:
    return from_result(regions, (SIDE, SIDE)).get(label, np.zeros((SIDE, SIDE), bool))


def dice(first: Mask, second: Mask) -> float:
    return float(2 * (first & second).sum() / max(first.sum() + second.sum(), 1))


def interactive(response: Response) -> bool:
    return "interactive-annotating" in response.url


def prompts_of(request: Request) -> Regions:
    return list(json.loads(request.post_data or "")["context"]["result"])


def saved_draft(response: Response) -> bool:
    return "/drafts" in response.url and response.request.method in ("POST", "PATCH")


class Person(Editor):
    """An annotator who uses smart tools.

    asked  the prompts of every request so far
    """

    def __init__(self, page: Page, studio: LabelStudio, project: int) -> None:
        super().__init__(page, studio, project)
        self.asked: list[Regions] = []
        page.on("request", self._note)

    def begin(self, task: int) -> None:
        """Open a task and turn on Auto-Annotation, which the page remembers."""
        self.errors.clear()
        self.open(task)
        self.asked.clear()
        self.switch("Auto-Annotation", True)
        self.switch("Auto-Accept Suggestions", False)

    @property
    def regions(self) -> Locator:
        return self.page.locator("[class*=outliner] [role=treeitem]")

    def choose(self, tag: int, label: str = "Lung") -> None:
        self.page.locator("[class*=label__text]", has_text=label).nth(tag).click()

    def at(self, place: Place) -> Place:
        """Where a place of the scan is in the window, (x, y)."""
        box = self.page.locator(".konvajs-content").first.bounding_box()
        assert box is not None
        return box["x"] + place[1] * box["width"] / SIDE, box["y"] + place[0] * box["height"] / SIDE

    def click(self, place: Place, label: str = "Lung", *, keys: tuple[str, ...] = ()) -> tuple[Regions, Regions]:
        """Click with a label of the smart tag while keys are pressed; returns the prompts and the answer."""
        self.choose(CLICK, label)
        for key in keys:
            self.page.keyboard.down(key)
        found = self.answer(lambda: self.page.mouse.click(*self.at(place)))
        for key in keys:
            self.page.keyboard.up(key)
        return found

    def drag(self, start: Place, end: Place) -> None:
        self.page.mouse.move(*self.at(start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(end), steps=10)
        self.page.mouse.up()
        self.page.wait_for_timeout(300)

    def smart_tools(self) -> set[str]:
        """The names of the tools that the smart tool's button goes through."""
        return set(
            self.page.evaluate(
                f"() => {IMAGE}.getToolsManager().allTools().filter(t => t.dynamic).map(t => t.fullName)"
            )
        )

    def answer(self, act: Callable[[], None]) -> tuple[Regions, Regions]:
        """What the page sends after an action of a person, and what it gets and shows."""
        with self.page.expect_response(interactive) as response:
            act()
        answered = response.value.json()["data"]["result"]
        self.page.wait_for_function("() => !window.Htx.awaitingSuggestions")
        return prompts_of(response.value.request), answered

    def accept(self) -> None:
        """Press the check mark beside "1 suggestions"."""
        self.page.get_by_test_id("bottombar-accept-suggestions-button").click()
        expect(self.page.get_by_role("checkbox", name="Auto-Accept Suggestions")).to_be_attached()

    def wait_for_draft(self, task: int, regions: Regions) -> None:
        """Wait until Label Studio has saved these regions."""
        for _ in range(60):
            self.page.wait_for_timeout(500)
            drafts = self.studio.get(f"/api/tasks/{task}/")["drafts"]
            if drafts and {region["id"] for region in regions} <= {region["id"] for region in drafts[0]["result"]}:
                return
        raise AssertionError(f"the draft of task {task} was not saved")

    def undo(self) -> None:
        self.page.keyboard.press("Control+z")
        self.page.wait_for_timeout(500)

    def _note(self, request: Request) -> None:
        if "interactive-annotating" in request.url:
            self.asked.append(prompts_of(request))


@pytest.fixture(scope="module")
def person(label_studio: LabelStudio, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    folder = tmp_path_factory.mktemp("editor")
    project = label_studio.create_project("clicks", XML)
    files = [folder / f"{number}.png" for number in range(TASKS)]
    assert all(cv2.imwrite(str(file), PICTURE) for file in files)
    tasks = label_studio.import_files(project, files)
    predicted = to_result({"Lung": LEFT, "Heart": MASKS["Heart"]}, Control("mask", "image", "brushlabels"))
    result = [region | {"origin": "prediction"} for region in predicted]
    for task in tasks[:PREDICTED]:
        label_studio.post("/api/predictions/", {"task": task, "model_version": IMPORTED_MASKS, "result": result})
    with Service(label_studio, folder / "data") as service, sync_playwright() as playwright:
        # the quick model would draw masks under the clicks once two scans are submitted
        label_studio.connect_backend(project, service.public_url, interactive=True, extra_params={"quick_model": "off"})
        service.wait(project, lambda s: bool(s["queue"]))
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield Person(browser.new_page(viewport={"width": 1400, "height": 900}), label_studio, project)
        browser.close()


@pytest.fixture(scope="module")
def tasks(person: Person) -> list[int]:
    """The tasks that no test has opened yet: those with a predicted mask first."""
    return person.studio.task_ids(person.project)


@pytest.fixture(autouse=True)
def _no_errors(person: Person) -> Iterator[None]:
    yield
    assert person.errors == []


def learned(person: Person, regions: Regions) -> dict[str, Mask]:
    """The mask of each label that scanqueue learns from regions."""
    parsed = person.studio.get(f"/api/projects/{person.project}/")["parsed_label_config"]
    config = LabelConfig.from_parsed(parsed, person.project, smart=smart_tags(XML))
    labelmap, _ = read_mask(regions, config, SIDE, SIDE)
    return {label: labelmap == number for number, label in enumerate(config.labels, start=1)}


# -- on scans without a mask ------------------------------------------------------------------------


def test_two_clicks_draw_a_lung_that_is_accepted_and_submitted(person: Person, tasks: list[int]) -> None:
    person.begin(tasks.pop())
    person.tool(POINT)
    sent, answered = person.click(middle(LEFT))
    assert [region["is_positive"] for region in sent] == [True]
    first = drawn(answered)
    assert first[tuple(map(int, middle(LEFT)))]

    false = cv2.distanceTransform((first & ~LEFT).astype(np.uint8), cv2.DIST_L2, 5)
    away = np.unravel_index(int(false.argmax()), false.shape)
    sent, answered = person.click((float(away[0]), float(away[1])), keys=("Alt",))
    assert sorted(region["is_positive"] for region in sent) == [False, True]
    second = drawn(answered)
    assert not second[away]
    assert dice(second, LEFT) > 0.85

    person.accept()
    expect(person.regions).to_have_count(1)  # the clicks are gone
    stored = person.submit()
    assert [region["type"] for region in stored] == ["brushlabels"]
    assert np.array_equal(drawn(stored), second)


def test_a_box_draws_what_is_in_it_and_draws_anew_when_it_is_moved(person: Person, tasks: list[int]) -> None:
    person.begin(tasks.pop())
    person.tool(RECTANGLE)
    person.choose(BOX)
    rows, columns = np.nonzero(RIGHT)
    up, left, down, right = rows.min() - 15, columns.min() - 60, rows.max() + 5, columns.max() - 40
    (sent,), first = person.answer(lambda: person.drag((up, left), (down, right)))
    assert sent["type"] == "rectanglelabels"
    person.rest()
    person.regions.last.click()
    (moved,), second = person.answer(lambda: person.drag((up + 9, left + 9), (up + 9, left + 59)))
    assert moved["id"] == sent["id"]
    assert moved["value"]["x"] > sent["value"]["x"] + 8
    assert dice(drawn(second), RIGHT) > max(0.85, dice(drawn(first), RIGHT))

    person.accept()  # while the box is selected, and with it its label
    expect(person.regions).to_have_count(1)
    stored = person.submit()
    assert np.array_equal(learned(person, stored)["Lung"], drawn(second))


def test_ellipses_and_polygons_have_no_smart_tool(person: Person, tasks: list[int]) -> None:
    """In Label Studio 1.23.2, whatever their tags say; the documentation names the two that do."""
    person.begin(tasks.pop())
    person.tool(RECTANGLE)
    offered = person.smart_tools()
    assert {POINT, RECTANGLE} < offered
    assert not any(name.startswith(("Ellipse", "Polygon")) for name in offered)


def test_two_labels_have_masks_of_their_own(person: Person, tasks: list[int]) -> None:
    person.begin(tasks.pop())
    person.tool(POINT)
    _, lung = person.click(middle(LEFT))
    person.choose(CLICK, "Heart")  # for the next click; the mask that is accepted now gets that label too
    person.accept()
    person.choose(CLICK, "Heart")  # choose nothing
    sent, heart = person.click(middle(MASKS["Heart"]), "Heart", keys=("Control",))
    assert [region["value"]["keypointlabels"] for region in sent] == [["Heart"]]
    assert [region["value"]["brushlabels"] for region in heart] == [["Heart"]]
    person.accept()
    expect(person.regions).to_have_count(2)
    stored = person.submit()
    assert np.array_equal(drawn(stored), drawn(lung))
    assert np.array_equal(drawn(stored, "Heart"), drawn(heart, "Heart"))
    assert [region["value"]["keypointlabels"] for region in stored if region["from_name"] == "click"] == [["Heart"]]
    masks = learned(person, stored)
    assert np.array_equal(masks["Heart"], drawn(heart, "Heart"))
    assert np.array_equal(masks["Lung"], drawn(lung) & ~masks["Heart"])  # where both are, the later one counts


def test_auto_accept_adds_each_answer_and_undo_takes_back_the_last_one(person: Person, tasks: list[int]) -> None:
    person.begin(tasks.pop())
    person.tool(POINT)
    person.switch("Auto-Accept Suggestions", True)
    _, left = person.click(middle(LEFT))
    expect(person.regions).to_have_count(1)
    _, right = person.click(middle(RIGHT))
    expect(person.regions).to_have_count(2)
    person.undo()
    expect(person.regions).to_have_count(1)
    person.page.keyboard.press("Control+Shift+z")
    expect(person.regions).to_have_count(2)
    stored = person.submit()
    assert [region["type"] for region in stored] == ["brushlabels"] * 2
    assert np.array_equal(drawn(stored), drawn(left) | drawn(right))
    assert dice(drawn(stored), MASKS["Lung"]) > 0.8


def test_undo_takes_back_a_click_and_an_accepted_mask(person: Person, tasks: list[int]) -> None:
    person.begin(tasks.pop())
    person.tool(POINT)
    (first,), _ = person.click(middle(LEFT))
    person.click(middle(RIGHT))
    person.undo()
    expect(person.regions).to_have_count(1)
    sent, answered = person.click(middle(LEFT & (np.indices(LEFT.shape)[0] < SIDE // 3)))
    assert len(sent) == 2
    assert sent[0] == first
    person.accept()
    person.undo()
    expect(person.regions).to_have_count(2)  # the two clicks again
    person.page.keyboard.press("Control+Shift+z")
    expect(person.regions).to_have_count(1)
    assert np.array_equal(drawn(person.submit()), drawn(answered))


def test_a_deleted_click_counts_no_more_and_one_outside_stays_when_the_page_is_opened_again(
    person: Person, tasks: list[int]
) -> None:
    """Label Studio then sends clicks without saying which ones were outside."""
    task, outside = tasks.pop(), (20.0, 490.0)
    person.begin(task)
    person.tool(POINT)
    (kept,), _ = person.click(middle(LEFT))
    person.click(middle(RIGHT))
    person.rest()
    person.regions.last.click()
    person.page.keyboard.press("Backspace")
    expect(person.regions).to_have_count(1)
    sent, answered = person.click(outside, keys=("Alt",))
    assert len(sent) == 2
    assert sent[0] == kept
    assert not drawn(answered)[tuple(map(int, middle(RIGHT)))]

    person.wait_for_draft(task, sent)
    person.begin(task)
    person.tool(POINT)
    sent, answered = person.click(middle(RIGHT))
    assert [region.get("is_positive") for region in sent] == [None, None, True]
    mask = drawn(answered)
    assert [bool(mask[tuple(map(int, at))]) for at in (middle(LEFT), outside, middle(RIGHT))] == [True, False, True]
    person.accept()
    expect(person.regions).to_have_count(3)  # the mask, and the clicks from before
    assert np.array_equal(drawn(person.submit()), mask)


def test_a_stroke_of_the_smart_brush_asks_for_nothing_and_is_kept(person: Person, tasks: list[int]) -> None:
    """Label Studio 1.23.2 does not mark these strokes as prompts."""
    person.begin(tasks.pop())
    person.tool(BRUSH)
    person.choose(MASK)
    person.drag((200, 100), (400, 100))
    person.page.wait_for_timeout(2000)  # it would ask 1.2 s after the stroke
    assert person.asked == []
    (stored,) = person.submit()
    assert drawn([stored])[210:390, 98:102].all()


def test_strokes_drawn_by_hand_are_part_of_the_mask_that_a_click_corrects(person: Person, tasks: list[int]) -> None:
    task = tasks.pop()
    person.begin(task)
    person.page.locator("[aria-label=brush-tool]").first.click()
    person.choose(MASK)
    with person.page.expect_response(saved_draft):
        person.drag((470, 120), (470, 320))
    draft = person.studio.get(f"/api/tasks/{task}/")["drafts"][0]["result"]
    person.tool(POINT)
    _, answered = person.click(middle(LEFT))
    assert drawn(answered)[470, 140:300].all()
    person.accept()
    stored = person.submit()
    by_hand = drawn([region for region in stored if region["id"] == draft[0]["id"]])
    assert by_hand[466:474, 130:310].all()
    assert dice(drawn([dict(painted(draft[0], SIDE, SIDE))]), by_hand) > 0.95


# -- on predicted masks -----------------------------------------------------------------------------


def test_a_predicted_mask_is_corrected_with_clicks_inside_and_outside(person: Person, tasks: list[int]) -> None:
    person.begin(tasks.pop(0))
    expect(person.regions).to_have_count(2)
    person.tool(POINT)
    _, answered = person.click(middle(RIGHT))
    assert (drawn(answered) & LEFT).sum() > 0.9 * LEFT.sum()
    top = middle(LEFT & (np.indices(LEFT.shape)[0] < SIDE // 4))
    sent, answered = person.click(top, keys=("Control", "Alt"))  # Control: on top of a mask
    assert [region["is_positive"] for region in sent] == [True, False]
    mask = drawn(answered)
    assert not mask[tuple(map(int, top))]
    assert mask[tuple(map(int, middle(RIGHT)))]
    person.accept()
    expect(person.regions).to_have_count(3)
    person.rest()
    person.regions.first.click()  # the mask that was corrected
    person.page.keyboard.press("Backspace")
    expect(person.regions).to_have_count(2)
    stored = person.submit()
    assert np.array_equal(drawn(stored), mask)
    assert np.array_equal(drawn(stored, "Heart"), MASKS["Heart"])


def test_a_mask_corrected_by_hand_a_moment_ago_survives_a_suggestion(person: Person, tasks: list[int]) -> None:
    """Label Studio has not saved the stroke yet when the click is answered."""
    person.begin(tasks.pop(0))
    person.regions.first.click()
    person.page.locator("[aria-label=brush-tool]").first.click()
    person.drag((470, 120), (470, 320))
    person.page.locator("[aria-label=eraser]").first.click()
    person.drag((200, 100), (200, 130))
    person.tool(POINT)
    _, answered = person.click(middle(RIGHT))
    person.accept()
    expect(person.regions).to_have_count(3)
    stored = person.submit()
    (by_hand,) = (region for region in stored if region["origin"] == "prediction-changed")
    assert by_hand["id"] not in [region["id"] for region in answered]
    mask = drawn([by_hand])
    assert mask[466:474, 130:310].all()
    assert not mask[197:203, 102:128].any()
    assert (mask & LEFT).sum() > 0.9 * LEFT.sum()


# -- at the end: it takes the tasks that are left ---------------------------------------------------


def test_after_submit_with_an_open_click_the_next_scan_has_no_suggestion(person: Person, tasks: list[int]) -> None:
    person.page.goto(f"{person.studio.url}/projects/{person.project}/data?labeling=1")
    person.wait_for_image()
    person.switch("Auto-Annotation", True)
    task = person.page.evaluate("() => window.Htx.task.id")
    before = person.regions.count()
    person.tool(POINT)
    person.click(middle(RIGHT))
    expect(person.regions).to_have_count(before + 1)
    person.asked.clear()
    stored = person.submit()
    assert [region["type"] for region in stored if region["origin"] == "manual"] == ["keypointlabels"]
    person.page.wait_for_function(f"() => window.Htx?.task?.id && window.Htx.task.id !== {task}")
    person.wait_for_image()
    person.page.wait_for_timeout(1500)
    assert all(prompts == [] for prompts in person.asked)
    predicted = person.studio.get("/api/predictions/", task=person.page.evaluate("() => window.Htx.task.id"))
    assert person.regions.count() == max(len(row["result"]) for row in predicted)
    assert person.page.evaluate("() => window.Htx.annotationStore.selected.suggestions.size") == 0
