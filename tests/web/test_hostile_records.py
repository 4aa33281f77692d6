"""Hostile labels, task data, users and titles go through the whole loop, to the real server and a real browser."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import httpx
import pytest
from page_lab import Lab
from page_world import application
from playwright.sync_api import Browser, Page
from test_page_browser import HOSTILE, PICTURES, browser, foreign, too_wide, visit
from world import COLD, CONTROL, PROJECT, ROUND, World

from backend.demo.annotator import to_result
from backend.loop import audit
from backend.simulate.report import write_report
from backend.simulate.results import RANDOM, Row

__all__ = ["browser"]  # a fixture
pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("miniature")]

BAD = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f]")  # what XML, and so a label config, cannot contain
WORDS = f"]]>\"'{BAD.sub('', HOSTILE['markup'])}]]>"
LONG = "W" * 10_000
LABELS = {f"{WORDS} A": "Lung", f"{LONG[:999]}B": "Heart", f"{WORDS} not drawn": ""}
VIEWS = ("", "/map", "/queue", "/activity", "/curve", "/models", "/settings")


class Hostile(World):
    """A world whose label config, tasks, people and title are hostile."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, quick_model="on")
        labels = "".join(f"<Label value={quoteattr(label)}/>" for label in LABELS)
        self.studio.__init__(  # type: ignore[misc]
            f'<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">{labels}'
            "</BrushLabels></View>"
        )
        self.studio.title = WORDS

    def truth(self, task: int, *_: str) -> list[dict[str, Any]]:
        return list(to_result({label: self.masks[task][part] for label, part in LABELS.items() if part}, CONTROL))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = Hostile(tmp_path_factory.mktemp("hostile") / "data")
    for number, task in enumerate(world.add_scans(0, 24)):
        words = {"site": f"{WORDS} {number % 2}", "patient": f"{WORDS} {LONG} {number}", WORDS: WORDS}
        world.studio.set_data(task, {"image": f"/data/upload/1/{task:08x}-scan.png", **words})
    broken = world.add_scans(24, 1)
    world.studio.set_data(broken[0], {"image": f"/data/upload/1/{WORDS}.png"})
    world.set(quick_model="on", strategy="stratified+power-entropy", stratify_by="site")
    for count in (COLD, ROUND):
        world.label(count)
        world.run()
    audit.set_overrides(world.store, PROJECT, WORDS, {"alpha": 0.7})
    audit.set_priorities(world.store, PROJECT, LONG, [world.order()[-1]], "out")
    world.run()
    return world


def test_the_loop_learns_hostile_labels(world: World) -> None:
    found = world.status()
    assert (found["model"], found["labels"], found["labelled"]) == ("scanqueue-r2", [*LABELS], COLD + ROUND)
    assert len(found["problems"]) == 1


def test_every_view_shows_hostile_records_as_words(world: World, browser: Browser) -> None:
    with visit(browser, Lab(), app=application(world, WORDS)) as seen:
        for size in ({"width": 1366, "height": 768}, {"width": 390, "height": 844}):
            seen.page.set_viewport_size(size)  # type: ignore[arg-type]
            for view in VIEWS:
                page = seen.open(f"/projects/{PROJECT}{view}")
                page.screenshot(path=PICTURES / f"hostile-records{view.replace('/', '-')}-{size['width']}.png")
                assert foreign(page) == [], view
                assert too_wide(page) <= 0, view
                assert "\u202e" not in page.content(), view
        page = seen.open(f"/projects/{PROJECT}/map")
        _point_at_scans(page)
        assert foreign(page) == []
        assert too_wide(page) <= 0


def _point_at_scans(page: Page) -> None:
    """Show the panel of several scans, by the mouse, in every colour that the map has."""
    page.set_viewport_size({"width": 1366, "height": 768})
    page.locator("#map-plot canvas").first.wait_for()
    for colour in page.locator("#map-colour option:not([disabled])").all():
        page.locator("#map-colour").select_option(colour.get_attribute("value"))
        places = page.evaluate("""() => {
            const plot = document.getElementById("map-plot");
            const {xaxis, yaxis} = plot._fullLayout;
            const {left, top} = plot.getBoundingClientRect();
            return plot.data.flatMap((trace) => Array.from(trace.x, (x, i) => [
                left + xaxis._offset + xaxis.l2p(x), top + yaxis._offset + yaxis.l2p(trace.y[i])])).slice(0, 8);
        }""")
        for x, y in places:
            page.mouse.move(x, y)
        page.locator("#map-point").wait_for(state="visible")
        assert foreign(page) == []


def test_the_figures_are_well_formed_and_run_nothing(world: World, browser: Browser) -> None:
    with visit(browser, Lab(), app=application(world, WORDS)) as seen:
        for name in ("curve.svg", "map.svg"):
            url = f"{seen.url}/projects/{PROJECT}/plots/{name}"
            answer = httpx.get(url, trust_env=False, timeout=60)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
            root = ElementTree.fromstring(answer.content)
            assert {e.tag.rpartition("}")[2] for e in root.iter()} & {"script", "foreignObject", "image"} <= {"image"}
            assert not [k for e in root.iter() for k in e.attrib if k.rpartition("}")[2].lower().startswith("on")]
            page = seen.page
            page.goto(url)
            assert page.evaluate("document.documentElement.localName") == "svg"
            assert page.evaluate("document.querySelector('parsererror') === null && !window.ran")


def test_the_report_of_a_simulation_shows_hostile_names_as_words(tmp_path: Path, browser: Browser) -> None:
    rows = [
        Row(strategy, "e", seed, budget, budget, 0.6 + budget / 200 + gain, 9.0, 4.0, "px", 30, data)
        for data in (WORDS, LONG)
        for seed in range(2)
        for strategy, gain in ((RANDOM, 0.0), (data, 0.02 + seed / 100))
        for budget in (10, 20)
    ]
    about = {"title": WORDS, "images": WORDS, "masks": LONG, "command": f"simulate {WORDS}", WORDS: WORDS, LONG: LONG}
    write_report(rows, tmp_path, about=about, resamples=50)
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    try:
        page = context.new_page()
        page.goto((tmp_path / "report.html").as_uri())
        assert foreign(page) == []
        assert too_wide(page) <= 0
        assert "\u202e" not in page.content()
        assert page.locator("h1").inner_text()[:20] == WORDS[:20]
    finally:
        context.close()
