"""As many labels as a model can learn: the loop, the page, the legend and the curve stay fast and readable."""

from __future__ import annotations

import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fastapi.testclient import TestClient
from page_world import application
from world import COLD, CONFIG, PROJECT, World

from backend.web.learning_curve import curve
from backend.web.legend import label_names, legend
from backend.web.plots import curve_plot

pytestmark = pytest.mark.usefixtures("miniature")
NAMES = ("Lung", "Heart", *(f"structure {n} <of> 253" for n in range(251)))
SLOW = 60.0  # seconds of a processor


def test_253_labels_are_learnt_drawn_and_shown_in_bounded_time(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    quoted = (name.replace("<", "&lt;").replace(">", "&gt;") for name in NAMES)
    labels = "".join(f'<Label value="{name}"/>' for name in quoted)
    world.studio.change_config(CONFIG.replace('<Label value="Lung"/>', labels))
    world.cold_started()
    for _ in range(COLD):
        task = world.studio.next_task()
        assert task is not None
        world.submit(task, "Lung", "Heart")
    began = time.process_time()
    world.run()
    assert world.status()["model"] == "scanqueue-r1"
    assert world.status()["labels"] == list(NAMES)
    assert set(world.published()) <= set(world.masks)
    with TestClient(application(world)) as http:
        for view in ("", "/queue", "/curve", "/models", "/settings"):
            page = http.get(f"/projects/{PROJECT}{view}", headers={"Accept": "text/html"})
            assert page.status_code == 200
            assert len(page.content) < 1_000_000, view
    found = curve_plot(curve(world.store, PROJECT), kind="svg")
    assert time.process_time() - began < SLOW
    ElementTree.fromstring(found)
    assert len(found) < 500_000
    colours = legend(world.store, PROJECT, label_names(world.store, PROJECT, "scanqueue-r1"))
    assert list(colours) == list(NAMES)
