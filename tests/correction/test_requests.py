"""Clicks as Label Studio sends them over HTTP: before the worker's first look, and beside regions of other images."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from weight_files import sam_folder
from world import KeptLearner, Ready, World

from backend.correction import tools
from backend.correction.corrector import Corrector
from backend.correction.prompt_tags import prompt_tags
from backend.correction.prompts import MOST, prompts, shown_mask
from backend.demo.annotator import Control, to_result
from backend.demo.child import free_port
from backend.formats.pixels import decode_image, letterbox
from backend.label_config import LabelConfig, Tag
from backend.label_studio.listing import read_config
from backend.label_studio.raster import decode_bitmask
from backend.learning.clicks import SAM, SAM_SIDE
from backend.learning.geodesic import Geodesic, Seeds
from backend.learning.sam import Sam
from backend.loop.predictor import Predictor
from backend.web.api import create_api

NEW = 7  # a project that no worker has looked at
SIZE, H, W = 64, 60, 90
LABELS = '<Label value="Lung"/><Label value="Heart"/>'
XML = (
    '<View><Image name="before" value="$before"/><Image name="image" value="$image"/>'
    f'<BitmaskLabels name="mask" toName="image">{LABELS}</BitmaskLabels>'
    f'<KeyPointLabels name="click" toName="image" smart="true">{LABELS}</KeyPointLabels></View>'
)
CONFIG = LabelConfig("image", (Tag("mask", "brush", "image", ("Lung", "Heart")),), ("image", "before"))


JUNK = (None, True, -1, 10**18, 10**400, -(10**30), 1.5, float("inf"), "1", "\ud800", [1], {"a": 1}, "x" * 10_000)


def test_tasks_of_junk_get_empty_answers_and_leave_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = Ready(tmp_path / "data").in_round_1()
    learner: Any = KeptLearner(world.settings)
    predictor, corrector = Predictor(world.store, world.studio, learner), Corrector(world.store, world.studio, learner)
    api = create_api(world.settings, world.store, lambda *_: None, predictor.predict, correct=corrector.correct)
    task = next(iter(world.masks))
    whole = {"id": task, "data": {"image": world.studio.reference(task)}}
    click = {"type": "keypointlabels", "value": {"x": 50, "y": 50, "width": 0.3, "keypointlabels": ["Lung"]}}
    with TestClient(api) as http:
        for junk in JUNK:
            for changed in (whole | {"id": junk}, whole | {"data": junk}, {"id": task}, {"data": junk}):
                for context in (None, {"result": [click]}):
                    body = {"tasks": [changed], "project": "1.1", "params": {"context": context}}
                    answer = http.post("/predict", content=json.dumps(body))
                    assert answer.status_code == 200
                    (item,) = answer.json()["results"]
                    assert set(item) == {"model_version", "score", "result"}
    corrector.close()
    assert [record.message for record in caplog.records if record.exc_info] == []


class Backend:
    """Our server on a real socket, and Label Studio's calls."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.corrector = Corrector(world.store, world.studio, KeptLearner(world.settings))  # type: ignore[arg-type]
        port = free_port()
        api = create_api(world.settings, world.store, lambda *_: None, lambda *_: [], correct=self.corrector.correct)
        self.server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning", ws="none"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)

    def connect(self, project: int) -> None:
        body = {
            "project": f"{project}.1764500000",
            "schema": XML,
            "hostname": "",
            "access_token": "",
            "extra_params": None,
        }
        assert self.http.post("/setup", json=body).status_code == 200

    def click(self, project: int, label_config: Any, *result: Any) -> list[dict[str, Any]]:
        task = next(iter(self.world.masks))
        image = self.world.studio.reference(task)
        body = {
            "tasks": [{"id": task, "data": {"image": image, "before": "/data/none.png"}}],
            "project": f"{project}.1764500000",
            "label_config": label_config,
            "params": {"login": None, "password": None, "context": {"result": list(result)}},
        }
        response = self.http.post("/predict", json=body)
        assert response.status_code == 200
        return list(response.json()["results"][0]["result"])

    def close(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join()
        self.corrector.close()


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    world = World(tmp_path_factory.mktemp("requests") / "data")
    world.add_scans(0, 1)
    backend = Backend(world)
    backend.connect(NEW)
    yield backend
    backend.close()


def click(x: float, y: float, *labels: str, **more: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.3, "keypointlabels": list(labels) or ["Lung"]}
    return {"id": "k", "type": "keypointlabels", "from_name": "click", "to_name": "image", "value": value} | more


def square(row: int, column: int, side: int = 10) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[row : row + side, column : column + side] = True
    return mask


def regions(mask: np.ndarray, label: str = "Lung", **more: Any) -> list[dict[str, Any]]:
    return [region | more for region in to_result({label: mask}, Control("mask", "image", "brushlabels"))]


# -- before the worker's first look -----------------------------------------------------------


def test_the_first_click_is_answered_from_the_label_config_in_its_request(backend: Backend) -> None:
    truth = next(iter(backend.world.masks.values()))["Lung"]
    left = truth & (np.arange(SIZE) < SIZE // 2)
    row, column = (float(np.median(axis)) for axis in np.nonzero(left))
    (region,) = backend.click(NEW, XML, click(100 * column / SIZE, 100 * row / SIZE))
    assert (region["type"], region["from_name"], region["to_name"]) == ("bitmasklabels", "mask", "image")
    found = decode_bitmask(region["value"]["imageDataURL"], SIZE, SIZE)
    assert 2 * (found & left).sum() / (found.sum() + left.sum()) > 0.8
    assert backend.world.store.project(NEW)["config"] == ""  # the worker's look is still to come


@pytest.mark.parametrize(
    "label_config",
    [None, "", "<View", 7, ["<View/>"], "<View/>", XML.replace("BitmaskLabels", "Choices"),
     '<!DOCTYPE a [<!ENTITY b "b">]>' + XML, XML.replace('name="mask" ', "")],
)  # fmt: skip
def test_a_label_config_that_cannot_be_used_gets_an_empty_answer(backend: Backend, label_config: Any) -> None:
    assert backend.click(NEW, label_config, click(30, 50)) == []


def test_a_project_that_is_not_connected_gets_an_empty_answer(backend: Backend) -> None:
    assert backend.click(NEW + 1, XML, click(30, 50)) == []


# -- which image, which label -----------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [{"to_name": "before"}, {"to_name": "gone"}, {"item_index": 1}])
def test_regions_of_another_image_are_no_prompts_and_no_masks(elsewhere: dict[str, Any]) -> None:
    assert prompts({"result": [click(50, 50, **elsewhere)]}, CONFIG, H, W) == {}
    mine, others = click(50, 25), [click(10, 10, **elsewhere), *regions(square(30, 30), **elsewhere)]
    (seeds,) = prompts({"result": [*others, mine, *others]}, CONFIG, H, W).values()
    assert (seeds.inside, seeds.current, seeds.drawn_in) == ([(15.0, 45.0)], None, [])
    draft = {"drafts": [{"result": [*regions(square(5, 5)), *regions(square(30, 30), **elsewhere)]}]}
    found = shown_mask(draft, "Lung", CONFIG, H, W, [])
    assert found is not None
    assert np.array_equal(found, square(5, 5))


@pytest.mark.parametrize("same", [{"item_index": 0}, {"item_index": None}, {"image_rotation": 90}])
def test_the_first_item_and_a_turned_image_count_as_they_are_stored(same: dict[str, Any]) -> None:
    """Label Studio stores the coordinates of a turned image as if it were not turned."""
    (seeds,) = prompts({"result": [click(50, 25, **same)]}, CONFIG, H, W).values()
    assert seeds.inside == [(15.0, 45.0)]


def test_a_long_list_of_other_regions_hides_no_prompt() -> None:
    others = regions(square(30, 30), to_name="before") * (2 * MOST)
    (seeds,) = prompts({"result": [click(50, 25), *others]}, CONFIG, H, W).values()
    assert seeds.inside == [(15.0, 45.0)]
    many = [click(number % 100, 25) for number in range(3 * MOST)]
    (seeds,) = prompts({"result": [*many, click(50, 75, is_positive=False)]}, CONFIG, H, W).values()
    assert (len(seeds.inside), seeds.outside) == (MOST - 1, [(45.0, 45.0)])  # the newest ones


def test_a_prompt_with_several_labels_counts_for_the_first_one_of_the_config() -> None:
    assert set(prompts({"result": [click(50, 25, "Spleen", "Heart", "Lung")]}, CONFIG, H, W)) == {"Heart"}


def test_a_region_with_two_labels_does_not_hide_the_mask_of_another_label() -> None:
    both = regions(square(30, 30))[0]
    both["value"]["brushlabels"] = ["Lung", "Heart"]
    draft = {"drafts": [{"result": [*regions(square(5, 5), "Heart"), both]}]}
    found = shown_mask(draft, "Heart", CONFIG, H, W, [])
    assert found is not None
    assert np.array_equal(found, square(5, 5))


# -- what is a prompt, and what was there before ----------------------------------------------

POINTS = '<KeyPointLabels name="{}" toName="image"{}><Label value="Lung"/></KeyPointLabels>'
BOXES = '<RectangleLabels name="{}" toName="image"{}><Label value="Lung"/></RectangleLabels>'
SMART, PLAIN = ' smart="true"', ' smart="false"'


def saved(region: dict[str, Any]) -> dict[str, Any]:
    """A key point as the page sends it after it was opened again."""
    return {key: value for key, value in region.items() if key != "is_positive"}


def box(x: float, y: float, **more: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["Lung"]}
    return {"id": "b", "type": "rectanglelabels", "from_name": "box", "origin": "manual", "value": value} | more


@pytest.mark.parametrize(("click_tag", "landmark_tag"), [(SMART, ""), (SMART, PLAIN), ("", PLAIN)])
def test_landmarks_of_another_tag_are_no_prompts(click_tag: str, landmark_tag: str) -> None:
    text = f"<View>{POINTS.format('click', click_tag)}{POINTS.format('landmark', landmark_tag)}</View>"
    mine, before = click(50, 25, is_positive=True), saved(click(30, 25, id="old"))
    landmark = saved(click(10, 10, id="l", from_name="landmark"))
    (seeds,) = prompts({"result": [landmark, before, mine]}, CONFIG, H, W, tags=prompt_tags(text)).values()
    assert seeds.inside == [(15.0, 27.0), (15.0, 45.0)]
    (seeds,) = prompts({"result": [landmark]}, CONFIG, H, W, tags=prompt_tags("<View")).values()  # nothing is known
    assert seeds.inside == [(6.0, 9.0)]
    clicked = {"result": [landmark | {"is_positive": True}]}  # with a smart tool, whatever its tag says
    assert prompts(clicked, CONFIG, H, W, tags=prompt_tags(text))


@pytest.mark.parametrize(
    ("mask_tag", "mask"),
    [(BOXES.format("mask", ""), {"from_name": "mask"}), (BOXES.format("mask", PLAIN), {"from_name": "mask"}),
     ("", {"origin": "prediction"}), ("", {"origin": "prediction-changed"})],
)  # fmt: skip
def test_a_rectangle_that_is_a_mask_is_no_box(mask_tag: str, mask: dict[str, Any]) -> None:
    """With a box, Label Studio sends all rectangles of its label."""
    tags = prompt_tags(f"<View>{mask_tag}{BOXES.format('box', SMART)}</View>")
    config = LabelConfig("image", (Tag(mask.get("from_name", "box"), "rectangle", "image", ("Lung",)),))
    there, drawn = box(10, 10, id="mask", **mask), box(60, 60)
    (seeds,) = prompts({"result": [there, drawn]}, config, H, W, tags=tags).values()
    assert [np.argwhere(found).min(axis=0).tolist() for found in seeds.boxes] == [[36, 54]]
    found = shown_mask(
        {"drafts": [{"result": [there]}]}, "Lung", config, H, W, [], {"result": [there, drawn]}, tags=tags
    )
    assert found is not None
    assert np.argwhere(found).min(axis=0).tolist() == [6, 9]
    assert prompts({"result": [there]}, config, H, W, tags=tags) == {}


def test_a_region_is_one_prompt_with_the_label_of_its_own_tag_or_of_labels_apart() -> None:
    """With a label of another tag chosen too, a region has a result of each; `<Labels>` always is another result."""
    mine = click(50, 25)
    more = click(50, 25, "Heart", from_name="landmark")
    assert set(prompts({"result": [mine, more, box(50, 25, id="k", from_name="mask")]}, CONFIG, H, W)) == {"Lung"}
    shape = {"x": 20, "y": 20, "width": 30, "height": 30, "rotation": 0}
    apart = [
        {"id": "r", "type": "rectangle", "from_name": "box", "value": shape},
        {"id": "r", "type": "labels", "from_name": "names", "value": shape | {"labels": ["Heart"]}},
    ]
    for result in (apart, apart[::-1]):
        ((label, seeds),) = prompts({"result": result}, CONFIG, H, W).items()
        assert (label, [int(found.sum()) for found in seeds.boxes]) == ("Heart", [18 * 27])


def test_a_label_has_one_name_whatever_its_aliases_in_the_tags_of_masks_and_prompts() -> None:
    names = '<Label value="Lung"{}/><Label value="Heart"{}/>'
    masks, asked = names.format("", ' alias="H"'), names.format(' alias="L"', "")
    text = (
        f'<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image">{masks}</BrushLabels>'
        f'<RectangleLabels name="box" toName="image" smart="true">{asked}</RectangleLabels>'
        f'<KeyPointLabels name="click" toName="image" smart="true">{asked}</KeyPointLabels></View>'
    )
    config = read_config(text, 1)
    assert (config.labels, config.prompts) == (("Lung", "H"), ("box",))
    drawn = box(5, 5)
    drawn["value"]["rectanglelabels"] = ["L"]
    result = [click(50, 50, "L"), click(20, 20, "Heart"), drawn]
    found = prompts({"result": result}, config, H, W, tags=prompt_tags(text))
    assert {label: (len(one.inside), len(one.boxes)) for label, one in found.items()} == {"Lung": (1, 1), "H": (1, 0)}


def test_a_click_outside_stays_outside_when_the_page_is_opened_again(backend: Backend) -> None:
    """Label Studio then no longer says that it was one, at first only to us, and with the next draft nowhere."""
    task = next(iter(backend.world.masks))
    data = {"image": backend.world.studio.reference(task), "before": "/data/none.png"}
    inside, outside = click(30, 50, id="in", is_positive=True), click(80, 50, id="out", is_positive=False)
    later = click(60, 50, id="later", is_positive=True)
    opened = {"result": [saved(inside), saved(outside), later]}

    def answer(corrector: Corrector, context: dict[str, Any], draft: list[dict[str, Any]]) -> list[bool]:
        body = {"id": task, "data": data, "drafts": [{"result": draft, "updated_at": "2026-11-30"}]}
        (region,) = corrector.correct(NEW, body, context, XML)["result"]
        found = decode_bitmask(region["value"]["imageDataURL"], SIZE, SIZE)
        return [bool(found[SIZE // 2, int(x * SIZE)]) for x in (0.3, 0.8, 0.6)]

    world = backend.world
    clicked, restarted = (Corrector(world.store, world.studio, KeptLearner(world.settings)) for _ in range(2))  # type: ignore[arg-type]
    assert answer(clicked, {"result": [inside, outside]}, [])[:2] == [True, False]
    assert answer(clicked, opened, [saved(inside), saved(outside)]) == [True, False, True]
    assert answer(restarted, opened, [inside, outside]) == [True, False, True]
    assert answer(restarted, opened, [saved(inside), saved(outside)]) == [True, False, True]
    clicked.close()
    restarted.close()


def test_a_second_reader_does_not_get_the_mask_of_the_first_one() -> None:
    """Where several people annotate each scan, Label Studio sends the annotations of all of them."""
    mine = regions(square(30, 30), id="m")
    task = {
        "annotations": [{"result": regions(square(5, 5), id="a"), "updated_at": "2026-11-30"}],
        "predictions": [{"result": mine, "model_version": "scanqueue-r1"}],
    }
    for blind, wanted in ((True, square(30, 30)), (False, square(5, 5))):
        found = shown_mask(task, "Lung", CONFIG, H, W, ["scanqueue-r1"], {"result": [click(50, 25)]}, blind=blind)
        assert found is not None
        assert np.array_equal(found, wanted)
    task["annotations"] += [{"result": [*regions(square(20, 60)), click(1, 1, id="old")], "updated_at": "2026-11-29"}]
    opened = {"result": [saved(click(1, 1, id="old")), click(50, 25, is_positive=True)]}
    found = shown_mask(task, "Lung", CONFIG, H, W, ["scanqueue-r1"], opened, blind=True)  # the page shows that one
    assert found is not None
    assert np.array_equal(found, square(20, 60))


def test_the_mask_of_a_scan_that_was_skipped_is_not_shown() -> None:
    skipped = {"annotations": [{"result": regions(square(5, 5)), "was_cancelled": True, "updated_at": "2026-11-30"}]}
    assert shown_mask(skipped, "Lung", CONFIG, H, W, []) is None


# -- published networks -----------------------------------------------------------------------


def test_segment_anything_answers_where_a_lab_has_it(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "PATIENCE", 300.0)
    file = sam_folder(tmp_path / "sam-vit-base", bright=True) / "model.safetensors"
    world, settings = backend.world, replace(backend.world.settings, weights_dir=tmp_path)
    task = next(iter(world.masks))
    image = world.studio.reference(task)
    corrector = Corrector(world.store, world.studio, KeptLearner(settings))  # type: ignore[arg-type]
    body = {"id": task, "data": {"image": image, "before": "/data/none.png"}}
    answer = corrector.correct(NEW, body, {"result": [click(50, 50)]}, XML)
    corrector.close()
    found = decode_bitmask(answer["result"][0]["value"]["imageDataURL"], SIZE, SIZE)
    scan = letterbox(decode_image(world.studio.images[image]), SAM_SIDE)
    paths = Geodesic(scan)
    seeds = Seeds(inside=[(SIZE / 2, SIZE / 2)])
    assert np.array_equal(found, Sam.load(SAM, file).tool(scan, paths).mask(seeds))
    assert not np.array_equal(found, paths.mask(seeds))
