"""What Label Studio's smart tools send, and what they get back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_files import scribble_prompt_file
from world import CONFIG, CONTROL, PROJECT, SIZE, KeptLearner, World, png

from backend.correction.corrector import Corrector
from backend.correction.prompt_tags import PromptTags, prompt_tags
from backend.correction.prompts import prompts, shown_mask, signs
from backend.demo.annotator import from_result, to_result
from backend.demo.phantoms import phantom
from backend.errors import UnreadableScan
from backend.facts import IMPORTED_MASKS
from backend.fingerprints import CLICK_FILE
from backend.label_config import LabelConfig, Tag
from backend.records.tables import scan_table
from backend.web.learning_curve import curve

H, W = 60, 90
BRUSH = LabelConfig("$image", (Tag("tag", "brush", "image", ("Lung", "Heart")),))
VERSION = "scanqueue-r0"


def click(x: float, y: float, label: str = "Lung", **more: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.3, "keypointlabels": [label]}
    return {"id": "k", "type": "keypointlabels", "from_name": "click", "to_name": "image", "value": value} | more


def rectangle(x: float, y: float, width: float, height: float, **more: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": ["Lung"]}
    return {"id": "r", "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value} | more


def square(row: int, column: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[row : row + side, column : column + side] = True
    return mask


def regions(mask: np.ndarray, label: str = "Lung") -> list[dict[str, Any]]:
    return list(to_result({label: mask}, CONTROL))


def read(*result: Any) -> Any:
    return prompts({"result": list(result)}, BRUSH, H, W)


def test_clicks_are_inside_unless_they_say_otherwise() -> None:
    seeds = read(click(50, 25), click(10, 90, is_positive=True), click(0, 100, is_positive=False))["Lung"]
    assert seeds.inside == [(15.0, 45.0), (54.0, 9.0)]
    assert seeds.outside == [(60.0, 0.0)]


def test_boxes_are_inside_or_nothing_of_them_is() -> None:
    seeds = read(rectangle(10, 10, 20, 50), rectangle(50, 50, 10, 10, is_positive=False))["Lung"]
    assert [int(box.sum()) for box in seeds.boxes] == [18 * 30]
    assert [int(out.sum()) for out in seeds.drawn_out] == [9 * 6]


def test_the_last_stroke_of_a_brush_comes_with_the_mask_so_far() -> None:
    before, stroke = regions(square(5, 5)), regions(square(40, 60, 4))
    seeds = read(*before, *stroke)["Lung"]
    assert seeds.current is not None
    assert np.array_equal(seeds.current, square(5, 5))
    assert np.array_equal(seeds.drawn_in[0], square(40, 60, 4))
    alone = read(stroke[0] | {"is_positive": False})["Lung"]
    assert (alone.current, len(alone.drawn_out)) == (None, 1)


def test_each_label_has_its_own_prompts_and_unknown_ones_none() -> None:
    found = read(click(50, 50), click(20, 20, "Heart"), click(1, 1, "Spleen"))
    assert set(found) == {"Lung", "Heart"}


@pytest.mark.parametrize("where", ["drafts", "annotations", "predictions"])
def test_the_mask_on_the_screen_is_that_of_the_draft_the_annotation_or_the_prediction(where: str) -> None:
    shown, other = regions(square(5, 5)), regions(square(30, 30))
    heart = regions(square(40, 70), "Heart")
    rows = [{"result": [*shown, *heart], "updated_at": "2026-11-29T10", "model_version": VERSION}]
    rows.append({"result": other, "updated_at": "2026-11-29T09", "model_version": "another"})
    behind = {"drafts": ("annotations", "predictions"), "annotations": ("predictions",), "predictions": ()}[where]
    task = {where: rows} | {name: [{"result": other, "model_version": VERSION}] for name in behind}
    found = shown_mask(task, "Lung", BRUSH, H, W, [VERSION])
    assert found is not None
    assert np.array_equal(found, square(5, 5))
    assert shown_mask({}, "Lung", BRUSH, H, W, [VERSION]) is None


def stroke(*points: float, width: float, kind: str = "add") -> dict[str, Any]:
    """A stroke of a draft: points x, y in percent, and a width in percent of the image's width."""
    return {"id": "t", "type": kind, "points": [], "relativePoints": list(points), "relativeStrokeWidth": width}


def test_strokes_that_a_draft_has_as_points_are_part_of_the_mask() -> None:
    (shown,) = regions(square(5, 5, 30))
    changed = {**shown, "value": {**shown["value"], "touches": [
        stroke(60, 10, 60, 90, width=10),
        stroke(0, 25, 100, 25, width=4, kind="eraser"),
        {"relativePoints": ["x", math.nan]}, "no stroke",
    ]}}  # fmt: skip
    value = {"format": "rle", "touches": [stroke(90, 50, 90, 50, width=5)], "brushlabels": ["Lung"]}
    new = {**shown, "id": "new", "value": value}
    found = shown_mask({"drafts": [{"result": [changed, new]}]}, "Lung", BRUSH, H, W, [VERSION])
    assert found is not None
    assert found[30:50, 51:57].all()  # the stroke: 9 pixels around column 54
    assert not found[14:16].any()  # the eraser, across both
    assert found[5:12, 5:35].all()  # what was there when the draft began
    assert found[29:31, 80:82].all()  # a region of nothing but a dot
    assert not found[:, 60:76].any()
    damaged = {**changed, "value": {**changed["value"], "rle": [1, 2]}}
    assert shown_mask({"drafts": [{"result": [damaged]}]}, "Lung", BRUSH, H, W, [VERSION]) is None


def test_prompts_that_a_draft_has_are_not_part_of_the_mask() -> None:
    before, outline = regions(square(5, 5))[0] | {"id": "mask"}, regions(square(30, 30))[0] | {"id": "prompt"}
    draft = {"drafts": [{"result": [before, outline]}]}
    moved = {"result": [regions(square(40, 60))[0] | {"id": "prompt"}]}
    found = shown_mask(draft, "Lung", BRUSH, H, W, [VERSION], moved)
    assert found is not None
    assert np.array_equal(found, square(5, 5))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([1e300, -1, "Lung"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y", "a"]), inner, max_size=3),
    max_leaves=8,
)
KINDS = ("keypoint", "rectangle", "ellipse", "polygon", "brush", "bitmask", "labels", "")
KEYS = ("x", "y", "width", "height", "rotation", "radiusX", "radiusY", "points", "rle", "imageDataURL", "maskDataURL")
STROKE = st.fixed_dictionaries(
    {"relativePoints": st.lists(st.floats() | JSON), "relativeStrokeWidth": st.floats() | JSON}
)
REGION = st.fixed_dictionaries(
    {"type": st.sampled_from([f"{kind}labels" for kind in KINDS]) | JSON},
    optional={
        "value": st.dictionaries(st.sampled_from([*KEYS, *(f"{k}labels" for k in KINDS)]), JSON | st.just(["Lung"]))
        | st.fixed_dictionaries({"brushlabels": st.just(["Lung"]), "touches": st.lists(STROKE | JSON, max_size=3)}),
        "is_positive": JSON,
        "from_name": JSON,
        "id": JSON | st.sampled_from(["one", "two"]),
        "origin": JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(JSON | st.fixed_dictionaries({"result": st.lists(REGION | JSON, max_size=5) | JSON}), st.lists(REGION) | JSON)
def test_no_input_raises(context: Any, more: Any) -> None:
    tags = PromptTags(("a",), {"Lung": "Heart"})
    assert set(prompts(context, BRUSH, H, W)) <= {"Lung", "Heart"}
    assert set(prompts(context, BRUSH, H, W, tags=tags, negative={"one"})) <= {"Lung", "Heart"}
    assert prompt_tags(context) is None or isinstance(context, str)
    for name in ("drafts", "annotations", "predictions"):
        assert all(isinstance(positive, bool) for _, positive in signs(context, {name: more}))
        shown_mask({name: more}, "Lung", BRUSH, H, W, [VERSION])
        row = {"result": more, "model_version": VERSION}
        shown_mask({name: [row, row]}, "Lung", BRUSH, H, W, [VERSION], context, tags=tags, blind=True)


# -- answers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("clicks") / "data")
    world.add_scans(0, 3)
    world.run()
    return world


def asked(world: World, task: int, *result: Any, **more: Any) -> dict[str, Any]:
    data = {"image": world.store.scan(PROJECT, task)["image"]}
    corrector = Corrector(world.store, world.studio, KeptLearner(world.settings))  # type: ignore[arg-type]
    return corrector.correct(PROJECT, {"id": task, "data": data, **more}, {"result": list(result)})


def test_a_click_on_a_lung_draws_it_in_the_projects_own_tag_and_ids_are_never_the_same(world: World) -> None:
    task = next(iter(world.masks))
    truth = world.masks[task]["Lung"]
    left = truth & (np.arange(SIZE) < SIZE // 2)
    row, column = (float(np.median(axis)) for axis in np.nonzero(left))
    prompt = click(100 * column / SIZE, 100 * row / SIZE)
    one, other = (asked(world, task, prompt)["result"] for _ in range(2))
    assert [(r["type"], r["from_name"], r["value"]["brushlabels"]) for r in one] == [("brushlabels", "tag", ["Lung"])]
    found = from_result(one, (SIZE, SIZE))["Lung"]
    assert 2 * (found & left).sum() / (found.sum() + left.sum()) > 0.8
    assert UUID(one[0]["id"]) != UUID(other[0]["id"])
    assert from_result(other, (SIZE, SIZE))["Lung"].tolist() == found.tolist()


def test_a_click_outside_shrinks_the_mask_of_the_draft(world: World) -> None:
    task = next(iter(world.masks))
    truth = world.masks[task]["Lung"]
    drawn = truth.copy()
    drawn[:6, :6] = True
    draft = [{"result": to_result({"Lung": drawn}, CONTROL), "updated_at": "now"}]
    answer = asked(world, task, click(3, 3, is_positive=False), drafts=draft)
    found = from_result(answer["result"], (SIZE, SIZE))["Lung"]
    assert not found[:3, :3].any()
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85


def test_a_click_corrects_the_prediction_of_the_newest_round_and_not_the_imported_one(world: World) -> None:
    """The page shows that one, with imported masks in it as long as there is no model."""
    task = next(iter(world.masks))
    imported, newest = np.zeros((2, SIZE, SIZE), bool)
    imported[:20, :20], newest[40:60, 40:60] = True, True
    rows = [
        {"model_version": name, "result": to_result({"Lung": mask}, CONTROL)}
        for name, mask in ((IMPORTED_MASKS, imported), (VERSION, newest))
    ]
    for shown, mask in ((rows, newest), (rows[:1], imported)):
        place = np.argwhere(mask).mean(axis=0) * 100 / SIZE
        answer = asked(world, task, click(place[1], place[0]), predictions=shown)["result"]
        assert np.array_equal(from_result(answer, (SIZE, SIZE))["Lung"], mask)


def test_in_a_project_with_two_readers_a_click_does_not_correct_the_mask_of_the_other_one(tmp_path: Path) -> None:
    world = World(tmp_path)
    (task,) = world.add_scans(0, 1)
    world.run()
    other = np.zeros((SIZE, SIZE), bool)
    other[:8, :8] = True
    rows = [{"result": to_result({"Lung": other}, CONTROL), "updated_at": "2026-11-30"}]
    found = {}
    for readers in (1, 2):
        row = world.store.project(PROJECT)
        assert row is not None
        world.store.set_project(PROJECT, title=row["title"], config=row["config"], overlap=readers)
        answer = asked(world, task, click(30, 50), annotations=rows)["result"]
        found[readers] = from_result(answer, (SIZE, SIZE))["Lung"]
    assert found[1][:8, :8].all()
    assert not found[2][:8, :8].any()


@pytest.mark.parametrize("result", [[], [click(50, 50, "Spleen")], [{"x": 1}], [click(50, 50, is_positive=False)]])
def test_without_usable_prompts_the_answer_is_empty(world: World, result: list[Any]) -> None:
    assert asked(world, next(iter(world.masks)), *result)["result"] == []


def test_an_unreadable_scan_and_an_unknown_project_get_an_empty_answer(world: World) -> None:
    counted: list[str] = []
    learner = KeptLearner(world.settings)
    corrector = Corrector(world.store, world.studio, learner, lambda name, label, amount=0.0: counted.append(label))  # type: ignore[arg-type]
    context = json.loads(json.dumps({"result": [click(50, 50)]}))
    for project, task in ((PROJECT, {"id": 99, "data": {"image": "/data/none.png"}}), (8, {"id": 1}), (PROJECT, {})):
        assert corrector.correct(project, task, context)["result"] == []
    assert counted == ["failed", "empty", "failed"]


def test_on_a_slice_without_a_mask_the_mask_of_the_slice_beside_it_is_corrected(tmp_path: Path) -> None:
    world = World(tmp_path)
    image, masks = phantom(0, (SIZE, SIZE))
    tasks = world.studio.add_scans([png(image), png(np.clip(image * 1.02, 0, 255).astype(np.uint8))])
    world.masks |= dict.fromkeys(tasks, masks)
    world.run()
    with world.store.write() as connection:
        for number, task in enumerate(tasks):
            here = (scan_table.c.project == PROJECT, scan_table.c.task == task)
            connection.execute(scan_table.update().where(*here).values(volume="v", slice=number))
    truth = masks["Lung"]
    far = np.argwhere(~truth & (np.hypot(*np.mgrid[:SIZE, :SIZE]) < 5))[0]
    prompt = click(100 * (far[1] + 0.5) / SIZE, 100 * (far[0] + 0.5) / SIZE, is_positive=False)
    assert asked(world, tasks[1], prompt)["result"] == []  # nothing tells where the lung is
    world.submit(tasks[0])
    world.run()
    with world.store.write() as connection:
        connection.execute(scan_table.update().where(scan_table.c.task == tasks[0]).values(volume="v", slice=0))
        connection.execute(scan_table.update().where(scan_table.c.task == tasks[1]).values(volume="v", slice=1))
    found = from_result(asked(world, tasks[1], prompt)["result"], (SIZE, SIZE))["Lung"]
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85


def test_after_a_click_the_next_scans_of_the_queue_are_ready_even_without_label_studio(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrector = Corrector(world.store, world.studio, KeptLearner(world.settings))  # type: ignore[arg-type]
    first, second, *_ = world.order()
    tasks = [{"id": task, "data": {"image": world.store.scan(PROJECT, task)["image"]}} for task in (first, second)]
    context = {"result": [click(30, 50)]}
    assert corrector.correct(PROJECT, tasks[0], context)["result"]
    corrector.close()  # waits for what goes on afterwards

    def fail(image: str) -> bytes:
        raise UnreadableScan(f"{image} is not available")

    monkeypatch.setattr(world.studio, "image", fail)
    for file in (world.folder / "pixels").rglob("*"):
        if file.is_file():
            file.unlink()
    assert corrector.correct(PROJECT, tasks[1], context)["result"]
    fresh = Corrector(world.store, world.studio, KeptLearner(world.settings))  # type: ignore[arg-type]
    assert not fresh.correct(PROJECT, tasks[1], context)["result"]


def test_what_smart_tools_were_worth_is_recorded_and_shown_on_the_curve(tmp_path: Path) -> None:
    world = World(tmp_path)
    first, second, third = world.add_scans(0, 3)
    world.run()
    corrector = Corrector(world.store, world.studio, KeptLearner(world.settings))  # type: ignore[arg-type]
    truth = world.masks[first]["Lung"]
    left = truth & (np.arange(SIZE) < SIZE // 2)
    prompts = []
    for lung in (left, truth & ~left):
        row, column = (float(np.median(axis)) for axis in np.nonzero(lung))
        prompts.append(click(100 * column / SIZE, 100 * row / SIZE))
        task = {"id": first, "data": {"image": world.store.scan(PROJECT, first)["image"]}}
        answer = corrector.correct(PROJECT, task, {"result": prompts})
    corrector.correct(PROJECT, {"id": second, "data": {"image": "/data/none.png"}}, {"result": prompts})
    corrector.close()
    assert world.status()["clicks"] == {"answers": 3, "failed": 1, "slow": 0}
    for one in (first, second, third):
        world.submit(one)
    world.run()
    answered = from_result(answer["result"], (SIZE, SIZE))["Lung"]
    wanted = 2 * (answered & truth).sum() / (answered.sum() + truth.sum())
    found = curve(world.store, PROJECT)["corrections"]
    assert {name: row["scans"] for name, row in found.items()} == {"masked": 0, "blank": 1, "by_hand": 1}
    assert found["blank"]["prompts"] == {"mean": 2.0, "low": None, "high": None, "n": 1}
    assert found["blank"]["after"]["mean"] == pytest.approx(wanted, abs=1e-6)
    assert found["blank"]["before"]["n"] == 0
    assert world.store.correction(PROJECT, first) is None  # the answer itself is no longer kept


def test_the_mask_before_the_clicks_is_the_one_that_the_task_opened_with(tmp_path: Path) -> None:
    world = World(tmp_path).in_round_1()
    task = world.order()[0]
    world.store.add_correction(PROJECT, task, 1.0, 0.1, {"Lung": world.masks[task]["Lung"]})
    world.store.add_correction(PROJECT, task, 2.0, 1.5, None)
    assert world.label(1) == [task]
    world.run()
    ((shown,), (row,)) = world.store.shown(PROJECT), world.store.corrections(PROJECT)
    assert 0 <= shown["dice"] < 1
    assert (row["before"], row["after"], row["answers"]) == (pytest.approx(shown["dice"]), 1.0, 2)
    found = curve(world.store, PROJECT)["corrections"]
    assert (found["masked"]["scans"], found["blank"]["scans"]) == (1, 0)
    assert world.store.recent_corrections(PROJECT, 0.0) == {"answers": 2, "failed": 1, "slow": 1}


def test_before_the_first_model_the_published_network_answers_where_a_lab_has_it(world: World, tmp_path: Path) -> None:
    """Weights with which it draws the box itself."""
    scribble_prompt_file(tmp_path, channel=1)
    task, prompt = next(iter(world.masks)), rectangle(25, 12.5, 50, 37.5)
    box = np.zeros((SIZE, SIZE), bool)
    box[SIZE // 8 : SIZE // 2, SIZE // 4 : 3 * SIZE // 4] = True
    body = {"id": task, "data": {"image": world.store.scan(PROJECT, task)["image"]}}
    found = []
    for folder in (tmp_path, None):
        learner = KeptLearner(replace(world.settings, weights_dir=folder))
        corrector = Corrector(world.store, world.studio, learner)  # type: ignore[arg-type]
        answer = corrector.correct(PROJECT, body, {"result": [prompt]})
        corrector.close()
        mask = from_result(answer["result"], (SIZE, SIZE))["Lung"]
        found.append(2 * (mask & box).sum() / (mask.sum() + box.sum()))
    assert found[0] > 0.97
    assert found[1] < 0.9


def test_a_round_trains_a_network_for_clicks_which_answers_if_it_is_better(tmp_path: Path) -> None:
    world = World(tmp_path, steps=60)
    smart = '<KeyPointLabels name="click" toName="image" smart="true"><Label value="Lung"/></KeyPointLabels></View>'
    world.studio.change_config(CONFIG.replace("</View>", smart))
    world.in_round_1()
    model = world.store.model(PROJECT, "scanqueue-r1")
    compared = model["details"]["clicks"]["compared"]
    assert compared["n"] > 0
    assert compared["network"] > compared["geodesic"]
    kept = KeptLearner.click_details(world.store.path("models", model["fingerprint"]))
    assert kept == model["details"]["clicks"]  # as after a kill between the training and its record
    task = world.order()[0]
    truth = world.masks[task]["Lung"]
    row, column = (float(np.median(axis)) for axis in np.nonzero(truth & (np.arange(SIZE) < SIZE // 2)))
    prompt = click(100 * column / SIZE, 100 * row / SIZE)
    found = {}
    for name in ("network", "geodesic"):
        if name == "geodesic":  # the file is lost
            (world.store.path("models", model["fingerprint"]) / CLICK_FILE).unlink()
        result = asked(world, task, prompt)["result"]
        mask = from_result(result, (SIZE, SIZE))["Lung"]
        found[name] = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    assert found["network"] > found["geodesic"]  # it draws both lungs after a click on one
