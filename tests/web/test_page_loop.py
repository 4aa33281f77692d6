"""The page with a real Label Studio and real scans: what people see, and how their clicks change the queue.

Pictures of every view are left in test-output/page-loop/.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import ARGUMENTS, host
from playwright.sync_api import BrowserContext, Page, Request, expect, sync_playwright
from service import Lab, Service

from backend.demo.annotator import Annotator, from_result
from backend.demo.label_studio import LabelStudio
from backend.facts import round_of
from backend.fingerprints import fingerprint
from backend.records.store import Store

pytestmark = [pytest.mark.label_studio, pytest.mark.browser, pytest.mark.long]

PICTURES = Path(__file__).resolve().parents[2] / "test-output" / "page-loop"
COLD, ROUND = 8, 4
SETTINGS = {"cold_start_size": COLD, "round_size": ROUND, "tolerance": 1.0}  # every new model is accepted
USER, PASSWORD = "radiology", "a word"
TITLE = "<script>alert(1)</script> & lungs"
PATIENCE = 600  # seconds


class Visitor:
    """A person on the page of one project: what they see, and the requests and errors of the browser."""

    def __init__(self, context: BrowserContext, service: Service, project: int) -> None:
        self.base = f"{service.url}/projects/{project}"
        self.asked: list[str] = []
        self.complaints: list[str] = []
        context.on("request", lambda request: self.asked.append(request.url))
        context.set_default_timeout(60_000)
        self.page: Page = context.new_page()
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.dialogs: list[str] = []
        self.page.on("dialog", self._answer)

    def _answer(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.accept()

    def open(self, view: str = "") -> Page:
        self.page.goto(self.base + (f"/{view}" if view else ""))
        return self.page

    def picture(self, name: str) -> None:
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)

    def drawn(self) -> None:
        """Wait until the map shows its marks."""
        self.page.locator("#map-plot canvas").first.wait_for()
        expect(self.page.locator("#map-legend li").first).to_be_visible()

    def widths(self, pictures: str) -> list[int]:
        """Widths of the loaded pictures, in pixels; fails if one does not load."""
        found = self.page.locator(pictures).evaluate_all(
            """images => Promise.all(images.map(image => {
                image.loading = "eager";
                return image.decode().then(() => image.naturalWidth);
            }))"""
        )
        return list(found)

    def where(self, task: int) -> tuple[float, float]:
        """The position of a scan on the screen."""
        return tuple(
            self.page.evaluate(
                """async ([api, task]) => {
                    const atlas = await (await fetch(`${api}/atlas`)).json();
                    const i = atlas.task.indexOf(task);
                    const plot = document.getElementById("map-plot");
                    const {xaxis, yaxis} = plot._fullLayout;
                    const box = plot.getBoundingClientRect();
                    return [box.left + xaxis._offset + xaxis.l2p(atlas.x[i]),
                            box.top + yaxis._offset + yaxis.l2p(atlas.y[i])];
                }""",
                [self.base.replace("/projects/", "/api/projects/"), task],
            )
        )

    def sent(self, path: str, act: Callable[[], Any]) -> Any:
        """The body of the request that `act` triggers, after its response."""

        def ours(request: Request) -> bool:
            return request.method == "POST" and request.url.endswith(path)

        with self.page.expect_request(ours) as made:
            act()
        response = made.value.response()
        assert response is not None
        assert response.status == 202, response.text()
        return json.loads(made.value.post_data or "{}")


@pytest.fixture(scope="module")
def seen(
    chromium: str, label_studio: LabelStudio, scans60: list[tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """One session on the page, from a broken scan on the first day to an older model that is active again."""
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    folder = tmp_path_factory.mktemp("page-loop")
    broken = folder / "broken.png"
    broken.write_bytes(scans60[0][0].read_bytes()[:300])
    lab = Lab(label_studio, [*scans60[:40], (broken, scans60[0][1])], extra_params=SETTINGS)
    lab.studio.patch(f"/api/projects/{lab.project}/", {"title": TITLE})
    env = {"SCANQUEUE_USER": USER, "SCANQUEUE_PASSWORD": PASSWORD}
    found: dict[str, Any] = {"lab": lab}
    with Service(label_studio, folder / "data", env=env) as service, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=ARGUMENTS)
        context = browser.new_context(
            viewport={"width": 1366, "height": 768}, http_credentials={"username": USER, "password": PASSWORD}
        )
        visitor = Visitor(context, service, lab.project)
        found |= {"visitor": visitor, "store": Store(service.folder), "service": service}
        try:
            lab.connect(service)
            _first_day(visitor, lab, service, found)
            _lasso(visitor, lab, service, found)
            _with_models(visitor, lab, service, found)
            _settings(visitor, lab, service, found)
            _older_model(visitor, lab, service, found)
        except BaseException:
            visitor.picture("failed")
            raise
        yield found
        browser.close()
    lab.close()


def _settled(lab: Lab, service: Service, ready: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
    """The status, once nothing runs and Label Studio serves the newest round."""
    return service.wait(
        lab.project,
        lambda s: s["job"] is None and bool(s["queue"]) and s["model_version"] == lab.served_version() and ready(s),
        seconds=PATIENCE,
    )


def _first_day(visitor: Visitor, lab: Lab, service: Service, found: dict[str, Any]) -> None:
    found["cold"] = _settled(lab, service)
    (problem,) = found["cold"]["problems"]
    page = visitor.open()
    found["title"] = page.title()
    row = page.locator("table.problems tbody tr")
    found["problem"] = row.inner_text()
    found["workers"] = page.locator("[data-live=workers] tbody tr").count()
    visitor.picture("1-broken")
    good = lab.studio.get(f"/api/tasks/{found['cold']['queue'][0]}/")["data"]["image"]
    lab.studio.patch(f"/api/tasks/{problem['task']}/", {"data": {"image": good}})
    page.get_by_role("button", name=f"Try again with task {problem['task']}").click()
    expect(page.get_by_text("No scan has a problem.")).to_be_visible(timeout=120_000)  # without a reload
    visitor.picture("2-fixed")
    page.get_by_role("button", name="Run checks").click()
    expect(page.locator("#checks li").first).to_be_visible(timeout=60_000)
    found["checks"] = page.locator("#checks li").all_inner_texts()
    visitor.picture("3-checks")
    found["fixed"] = problem["task"]


def _lasso(visitor: Visitor, lab: Lab, service: Service, found: dict[str, Any]) -> None:
    before = _settled(lab, service)
    page = visitor.open("map")
    visitor.drawn()
    last = before["queue"][-1]
    x, y = visitor.where(last)
    page.mouse.move(x, y)
    expect(page.locator('[data-fact="task"]')).to_have_text(str(last))
    expect(page.locator("#map-thumb")).to_be_visible()
    found["pointed at"] = page.locator("#map-panel").inner_text()
    found["thumbnail"] = page.locator("#map-thumb").evaluate("image => image.naturalWidth")
    visitor.picture("4-pointed-at")
    with page.context.expect_page() as opened:
        page.mouse.click(x, y)
    found["opened"] = opened.value.url
    opened.value.close()
    page.get_by_role("button", name="Lasso").click()
    corners = [(x - 30, y - 30), (x + 30, y - 30), (x + 30, y + 30), (x - 30, y + 30), (x - 30, y - 30)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=5)
    page.mouse.up()
    expect(page.locator("#map-chosen")).to_contain_text("selected")
    visitor.picture("5-lasso")
    sent = visitor.sent("/wishes", page.get_by_role("button", name="Label these next").click)
    found["prioritized"] = sent["tasks"]
    after = _settled(lab, service, lambda s: s["round"] > before["round"])
    served = lab.annotators[0].next_task(lab.project)
    assert served is not None
    found["served after wishing"] = served["id"]
    found["queue after wishing"] = after["queue"]
    found["reason"] = service.get(f"/api/projects/{lab.project}/queue")["queue"][0]["kind"]
    visitor.picture("6-prioritized")
    visitor.sent("/undo", page.get_by_role("button", name="Undo").click)
    undone = _settled(lab, service, lambda s: s["round"] > after["round"])
    found["queue before"], found["queue after undoing"] = before["queue"], undone["queue"]


def _with_models(visitor: Visitor, lab: Lab, service: Service, found: dict[str, Any]) -> None:
    def published(models: int) -> Callable[[dict[str, Any]], bool]:
        """A check that `models` models were trained and that the round of the last one is open."""

        def is_so(status: dict[str, Any]) -> bool:
            trained = found["store"].models(lab.project)
            return len(trained) >= models and status["round"] >= (round_of(trained[-1]["version"]) or 0)

        return is_so

    lab.label(COLD)
    _settled(lab, service, published(1))
    lab.label(ROUND)
    found["status"] = _settled(lab, service, published(2))
    page = visitor.open("queue")
    pictures = page.locator("ol.cards img")
    pictures.first.wait_for()
    found["cards"] = [int(text.split()[-1]) for text in page.locator("ol.cards h2").all_inner_texts()]
    found["outlined"] = pictures.evaluate_all("images => images.filter(i => i.src.includes('model=')).length")
    found["loaded"] = len(visitor.widths("ol.cards img"))
    expect(page.locator("[data-fill] table").first).to_be_visible()
    found["lately"] = page.locator("section[data-fill]").inner_text()
    visitor.picture("7-queue")
    page = visitor.open("curve")
    found["curve drawn"] = page.locator("img[src*='curve.svg']").evaluate("i => i.decode().then(() => i.naturalWidth)")
    found["curve"] = page.locator("main").inner_text()
    visitor.picture("8-curve")
    for name in ("map.svg", "map.png", "curve.svg", "curve.png"):
        response = page.request.get(f"{visitor.base}/plots/{name}")
        found[name] = (response.status, response.headers["content-type"], response.body()[:200])


def _settings(visitor: Visitor, lab: Lab, service: Service, found: dict[str, Any]) -> None:
    before = _settled(lab, service)
    page = visitor.open("settings")
    page.locator("#strategy").select_option("paper")
    expect(page.locator("#preview-table tbody tr").first).to_be_visible()
    with page.expect_response(lambda r: "/preview?" in r.url and "alpha=1" in r.url):
        page.locator("#alpha").fill("1")
    page.wait_for_timeout(500)
    found["preview"] = [
        int(re.findall(r"\d+", text)[1]) for text in page.locator("#preview-table tbody tr").all_inner_texts()
    ]
    visitor.picture("9-preview")
    found["sent settings"] = visitor.sent("/settings", page.get_by_role("button", name="Save", exact=True).click)
    after = _settled(lab, service, lambda s: s["round"] > before["round"])
    found["order after settings"] = [p.task for p in found["store"].latest_round(lab.project)["picks"]]
    found["served after settings"] = lab.label(1)[0]["id"]
    found["queue after settings"] = after["queue"]
    expect(page.locator("[data-live=changes]")).to_contain_text("alpha")
    found["changes"] = page.locator("[data-live=changes]").inner_text()


def _older_model(visitor: Visitor, lab: Lab, service: Service, found: dict[str, Any]) -> None:
    models = service.get(f"/api/projects/{lab.project}/rounds")["models"]
    older, newer = models[0]["version"], next(m["version"] for m in models if m["active"])
    before = _settled(lab, service)
    page = visitor.open("models")
    visitor.picture("10-models")
    visitor.sent("/activate", page.get_by_role("button", name=f"Activate {older}").click)
    status = _settled(lab, service, lambda s: s["round"] > before["round"])
    task = status["queue"][0]
    found["older"], found["newer"], found["task"] = older, newer, task
    annotator: Annotator = lab.annotators[0]
    served = annotator.next_task(lab.project)
    assert served is not None
    found["served with older"] = served
    page = visitor.open(f"compare?first={older}&second={newer}")
    page.locator("main img").first.wait_for()
    found["compared"] = visitor.widths("main img")
    found["compare"] = page.locator("main").inner_text()
    visitor.picture("11-compare")
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    for view in ("", "map", "queue", "curve", "models", "settings"):
        visitor.open(view)
        if view == "map":
            visitor.drawn()
        visitor.picture(f"phone-{view or 'now'}")


def test_a_broken_scan_appears_with_advice_and_disappears_once_fixed(seen: dict[str, Any]) -> None:
    assert f"Task {seen['fixed']}" in seen["problem"]
    assert "truncated" in seen["problem"] or "damaged" in seen["problem"] or "cannot be" in seen["problem"]
    scan = seen["store"].scan(seen["lab"].project, seen["fixed"])
    assert (scan["problem"], bool(scan["digest"])) == ("", True)


def test_the_page_shows_the_workers_and_the_checks_of_the_doctor(seen: dict[str, Any]) -> None:
    assert seen["workers"] == 1
    assert len(seen["checks"]) >= 8
    assert any("webhook" in text for text in seen["checks"])


def test_pointing_at_a_mark_shows_the_scan_and_the_reason_for_its_place(seen: dict[str, Any]) -> None:
    assert "Most representative of the scans not represented yet." in seen["pointed at"]
    assert seen["thumbnail"] >= 32


def test_a_click_on_a_mark_opens_its_task_in_label_studio(seen: dict[str, Any]) -> None:
    lab = seen["lab"]
    assert seen["opened"].startswith(f"{lab.studio.url}/")


def test_scans_inside_the_lasso_are_served_next_by_label_studio(seen: dict[str, Any]) -> None:
    assert seen["prioritized"]
    assert seen["served after wishing"] in seen["prioritized"]
    assert set(seen["queue after wishing"][: len(seen["prioritized"])]) == set(seen["prioritized"])
    assert seen["reason"] == "wished"


def test_undo_restores_the_order(seen: dict[str, Any]) -> None:
    assert seen["queue after undoing"][: 3 * ROUND] == seen["queue before"][: 3 * ROUND]


def test_the_queue_shows_each_scan_with_the_outline_of_its_mask(seen: dict[str, Any]) -> None:
    assert seen["cards"] == seen["status"]["queue"][: len(seen["cards"])]
    assert seen["outlined"] == seen["loaded"] == len(seen["cards"]) > ROUND


def test_the_queue_shows_who_labelled_recently(seen: dict[str, Any]) -> None:
    emails = [a.email for a in seen["lab"].annotators]
    assert any(email in seen["lately"] for email in emails)


def test_the_learning_curve_is_shown_as_plot_and_numbers(seen: dict[str, Any]) -> None:
    assert seen["curve drawn"] > 100
    models = seen["store"].models(seen["lab"].project)
    assert f"{models[0]['validation']['dice']:.3f}" in seen["curve"]
    assert "px" in seen["curve"]


@pytest.mark.parametrize(
    ("name", "kind", "begins"),
    [
        ("map.svg", "image/svg+xml", b"<?xml"),
        ("curve.svg", "image/svg+xml", b"<?xml"),
        ("map.png", "image/png", b"\x89PNG"),
        ("curve.png", "image/png", b"\x89PNG"),
    ],
)
def test_the_plots_are_available_as_files(name: str, kind: str, begins: bytes, seen: dict[str, Any]) -> None:
    status, found, body = seen[name]
    assert status == 200
    assert found.startswith(kind)
    assert body.startswith(begins)


def test_the_preview_shows_the_order_after_saving(seen: dict[str, Any]) -> None:
    assert seen["sent settings"] == {"alpha": 1, "strategy": "paper"}
    assert len(seen["preview"]) >= ROUND
    assert seen["preview"][:ROUND] == seen["order after settings"][:ROUND]
    assert seen["served after settings"] == seen["queue after settings"][0] == seen["preview"][0]


def test_changes_show_the_name_of_their_author(seen: dict[str, Any]) -> None:
    assert USER in seen["changes"]
    assert "alpha: 1" in seen["changes"]


def test_an_activated_older_model_predicts_the_masks_of_new_tasks(seen: dict[str, Any]) -> None:
    lab, store = seen["lab"], seen["store"]
    assert seen["older"] != seen["newer"]
    task = seen["served with older"]
    model = store.model(lab.project, seen["older"])
    latest = store.latest_round(lab.project)
    assert latest["model"] == seen["older"]
    scan = store.scan(lab.project, task["id"])
    mask = store.arrays("masks", fingerprint(model["fingerprint"], scan["digest"]))["mask"]
    shown = next(p for p in task["predictions"] if p["model_version"] == f"scanqueue-r{latest['n']}")
    drawn = from_result(shown["result"], mask.shape)
    np.testing.assert_array_equal(drawn.get("Lung", np.zeros(mask.shape, bool)), mask == 1)


def test_two_models_are_shown_side_by_side_on_the_same_scans(seen: dict[str, Any]) -> None:
    assert len(seen["compared"]) >= 4
    assert min(seen["compared"]) > 100
    assert seen["older"] in seen["compare"]
    assert seen["newer"] in seen["compare"]
    assert "Dice" in seen["compare"]


def test_a_title_that_is_a_script_stays_text(seen: dict[str, Any]) -> None:
    assert TITLE in seen["title"]
    assert not [words for words in seen["visitor"].dialogs if words == "1"]


def test_the_browser_contacted_only_this_machine_and_reported_no_errors(seen: dict[str, Any]) -> None:
    visitor = seen["visitor"]
    assert {host(url) for url in visitor.asked} - {""} == {"127.0.0.1"}
    assert visitor.complaints == []
