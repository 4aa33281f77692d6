"""Clicks as Label Studio sends them over HTTP: before the worker's first look, and beside regions of other images."""

from __future__ import annotations

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
from weight_files import sam_folder
from world import KeptLearner, World

from backend.correction import tools
from backend.correction.corrector import Corrector
from backend.correction.prompts import MOST, prompts, shown_mask
from backend.demo.annotator import Control, to_result
from backend.demo.child import free_port
from backend.formats.pixels import decode_image, letterbox
from backend.label_config import LabelConfig, Tag
from backend.label_studio.raster import decode_bitmask
from backend.learning.clicks import SAM, SAM_SIDE
from backend.learning.geodesic import Geodesic, Seeds
from backend.learning.sam import Sam
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
