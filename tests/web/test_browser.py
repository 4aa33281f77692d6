"""An engineer in a real browser connects the service, draws a mask, and sees predicted masks.

Pictures of every step are left in test-output/browser/.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from chromium import ARGUMENTS, host
from numpy.typing import NDArray
from playwright.sync_api import BrowserContext, Locator, Page, Response, expect, sync_playwright
from service import Lab, Service

from backend.demo.annotator import Annotator, from_result, shown_prediction
from backend.demo.label_studio import LabelStudio
from backend.demo.phantoms import write_phantoms
from backend.demo.simulation import dice

pytestmark = [pytest.mark.label_studio, pytest.mark.browser]

PICTURES = Path(__file__).resolve().parents[2] / "test-output" / "browser"
COLD, ROUND = 4, 3
USER, PASSWORD = "radiology", "Röntgen: 5/1"
SIDE = 256  # of the scans, in pixels
BRUSH_WIDTH = 4  # of the page's brush, in pixels of such a scan, rounded down
PATIENCE = 600  # seconds; a training takes a few on an idle machine


class Engineer:
    """A person on Label Studio's pages: what they press and see, and the requests of the browser."""

    def __init__(self, context: BrowserContext, studio: LabelStudio) -> None:
        self.studio = studio
        self.asked: list[str] = []
        context.on("request", lambda request: self.asked.append(request.url))
        context.route(lambda url: host(url) not in ("", "127.0.0.1"), lambda route: route.abort())
        context.set_default_timeout(60_000)
        self.page: Page = context.pages[0] if context.pages else context.new_page()

    def hosts(self) -> set[str]:
        return {host(url) for url in self.asked} - {""}  # data: and blob: have none

    def picture(self, name: str) -> None:
        self.page.screenshot(path=PICTURES / f"{name}.png")

    def open(self, path: str) -> None:
        self.page.goto(self.studio.url + path)

    def press(self, words: str) -> None:
        self.page.locator("button", has_text=words).click()

    def sign_in(self) -> None:
        self.open("/user/login/")
        self.page.fill("[name=email]", self.studio.email)
        self.page.fill("[name=password]", self.studio.password)
        self.press("Log in")
        self.page.wait_for_url(lambda url: "/login" not in url)

    def connect(self, project: int, url: str) -> None:
        """Settings > Model > Connect Model, until Label Studio says "Connected"."""
        self.open(f"/projects/{project}/settings/ml")
        self.press("Connect Model")
        self.page.fill("[name=title]", "scanqueue")
        self.page.fill("[name=url]", url)
        self.page.locator("[data-name=auth_method]").click()
        self.page.get_by_role("option", name="Basic Authentication").click()
        self.page.fill("[name=basic_auth_user]", USER)
        self.page.fill("[name=basic_auth_pass]", PASSWORD)
        self.page.fill("[name=extra_params]", f'{{"cold_start_size": {COLD}, "round_size": {ROUND}}}')
        self.picture("1-connect")
        self.press("Validate and Save")
        expect(self.page.get_by_text("Connected", exact=True)).to_be_visible(timeout=60_000)
        self.picture("2-connected")

    def data_manager(self, project: int, version: str, picture: str) -> tuple[list[str], list[int]]:
        """Open the project and its tab "scanqueue"; returns the titles of all tabs, and the listed tasks."""
        self.open(f"/projects/{project}/data")
        ours = self.page.get_by_role("tab", name="scanqueue")
        ours.click()
        expect(ours).to_have_attribute("aria-selected", "true")
        expect(self.rows().first).to_contain_text(version, timeout=60_000)
        self.picture(picture)
        tabs = self.page.get_by_role("tab").evaluate_all("tabs => tabs.map(tab => tab.title)")
        return tabs, [int(text.split()[0]) for text in self.rows().all_inner_texts()]

    def rows(self) -> Locator:
        return self.page.locator("[class*=row-wrapper]")

    def label_all_tasks(self) -> dict[str, Any]:
        """Press "Label All Tasks"; returns the task as Label Studio served it, once the page shows it."""
        with self.page.expect_response(_is_next_task) as served:
            self.press("Label All Tasks")
        task: dict[str, Any] = served.value.json()
        self.wait_for_task(int(task["id"]))
        return task

    def wait_for_task(self, task: int) -> None:
        number = self.page.locator("[class*=current-task__task-id]")
        expect(number).to_have_text(re.compile(rf"^{task}"))
        assert number.evaluate("e => e.firstChild.textContent") == str(task)
        self.scan()

    def canvas(self) -> Locator:
        return self.page.locator(".konvajs-content").first

    def scan(self) -> NDArray[np.uint8]:
        """The pixels of the scan on the page, (side, side, 3); waits until they no longer change."""
        last: NDArray[np.uint8] | None = None
        for _ in range(100):
            seen = cv2.imdecode(np.frombuffer(self.canvas().screenshot(), np.uint8), cv2.IMREAD_COLOR)
            assert seen is not None
            side = min(seen.shape[:2])
            scan = seen[:side, :side].astype(np.uint8)
            if scan.std() > 10 and last is not None and np.array_equal(scan, last):
                return scan
            last = scan
            self.page.wait_for_timeout(100)
        raise AssertionError("the scan is not drawn, or keeps changing")

    def paint(self, label: str, mask: NDArray[np.bool_]) -> None:
        """Choose the label and fill the mask (side, side), with one brush stroke per connected part."""
        self.page.locator("[class*=label__text]", has_text=label).click()
        box = self.canvas().bounding_box()
        assert box is not None
        scale = min(box["width"], box["height"]) / len(mask)
        count, pieces = cv2.connectedComponents(mask.astype(np.uint8))
        for piece in range(1, count):
            held = False
            for number, y in enumerate(range(0, len(mask), BRUSH_WIDTH)):
                inside = np.flatnonzero(pieces[y] == piece)
                if len(inside) <= BRUSH_WIDTH:
                    continue
                ends = [int(inside[0]) + BRUSH_WIDTH // 2, int(inside[-1]) - BRUSH_WIDTH // 2]
                for x in ends if number % 2 else ends[::-1]:
                    self.page.mouse.move(box["x"] + (x + 0.5) * scale, box["y"] + (y + 0.5) * scale)
                    # a busy browser passes on only the last of several moves within one frame
                    self.page.evaluate("() => new Promise((done) => requestAnimationFrame(done))")
                    if not held:
                        self.page.mouse.down()
                        held = True
            self.page.mouse.up()
        expect(self.regions()).to_have_count(1)

    def regions(self) -> Locator:
        """The regions that the outliner lists."""
        return self.page.locator("[class*=outliner] [role=treeitem]")

    def submit(self) -> tuple[dict[str, Any], int | None]:
        """Press Submit; returns the stored annotation, and the task that opens next."""
        with (
            self.page.expect_response(_is_submit) as stored,
            self.page.expect_response(_is_next_task) as served,
        ):
            self.page.get_by_role("button", name="Submit current annotation").click()
        assert stored.value.status == 201, stored.value.text()
        following = int(served.value.json()["id"]) if served.value.ok else None
        if following is not None:
            self.wait_for_task(following)
        return dict(stored.value.json()), following


def _is_next_task(response: Response) -> bool:
    return "/api/dm/actions" in response.url and "id=next_task" in response.url


def _is_submit(response: Response) -> bool:
    path = urlsplit(response.url).path
    return response.request.method == "POST" and re.fullmatch(r"/api/tasks/\d+/annotations/?", path) is not None


def _scans(folder: Path) -> list[tuple[Path, Path]]:
    """12 synthetic radiographs, each with the mask of its lungs: a model learns them in a few steps."""
    pairs = []
    for image in write_phantoms(folder, 12, seed=1, size=(SIDE, SIDE)):
        labels = cv2.imread(str(folder / "masks" / image.name), cv2.IMREAD_GRAYSCALE)
        assert labels is not None
        lung = image.with_suffix(".lung.png")
        assert cv2.imwrite(str(lung), (labels == 1).astype(np.uint8) * 255)
        pairs.append((image, lung))
    return pairs


@pytest.fixture(scope="module")
def session(
    chromium: str,
    label_studio: LabelStudio,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """One session from the login to the first submitted mask, with what was observed on the way."""
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    folder = tmp_path_factory.mktemp("browser")
    lab = Lab(label_studio, _scans(folder / "scans"))
    service = Service(label_studio, folder / "data", env={"SCANQUEUE_USER": USER, "SCANQUEUE_PASSWORD": PASSWORD})
    seen: dict[str, Any] = {"lab": lab}
    with service, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder / "profile",
            executable_path=chromium,
            headless=True,
            args=ARGUMENTS,
            viewport={"width": 1440, "height": 900},
        )
        engineer = Engineer(context, label_studio)
        seen["engineer"] = engineer
        try:
            _connect(engineer, lab, service, seen)
            _draw_and_submit(engineer, lab, service, seen)
            _correct_a_mask(engineer, lab, service, seen)
        except BaseException:
            engineer.picture("failed")
            raise
        finally:
            context.close()
        seen["log"] = service.log()
    lab.close()
    return seen


def _connect(engineer: Engineer, lab: Lab, service: Service, seen: dict[str, Any]) -> None:
    engineer.sign_in()
    engineer.connect(lab.project, service.url)
    lab.wait_for_round(0, seconds=PATIENCE)
    seen["cold"] = service.wait(lab.project, lambda s: bool(s["queue"]) and s["job"] is None, seconds=PATIENCE)
    seen["backend"] = lab.studio.get("/api/ml", project=lab.project)


def _draw_and_submit(engineer: Engineer, lab: Lab, service: Service, seen: dict[str, Any]) -> None:
    seen["tabs"], seen["cold list"] = engineer.data_manager(lab.project, "scanqueue-r0", "3-cold-start-order")
    seen["first"] = engineer.label_all_tasks()["id"]
    seen["first regions"] = engineer.regions().count()
    engineer.picture("4-first-task")
    seen["wanted"] = from_result(lab.truth(seen["first"]), (SIDE, SIDE))["Lung"]
    engineer.paint("Lung", seen["wanted"])
    engineer.picture("5-painted")
    seen["painted"], held = engineer.submit()
    engineer.picture("6-next-task")
    # the same person goes on without the browser, beginning with the task that the page shows
    hand = Annotator(lab.studio.url, lab.studio.email, lab.studio.password)
    seen["labelled by hand"] = []
    for _ in range(COLD - 1):
        task = hand.next_task(lab.project)
        assert task is not None
        hand.submit(task, lab.truth(task["id"]))
        seen["labelled by hand"].append(task["id"])
    hand.close()
    seen["held"] = held


def _correct_a_mask(engineer: Engineer, lab: Lab, service: Service, seen: dict[str, Any]) -> None:
    lab.wait_for_round(1, seconds=PATIENCE)
    seen["active"] = service.wait(lab.project, lambda s: s["round"] == 1 and s["job"] is None, seconds=PATIENCE)
    _, seen["new list"] = engineer.data_manager(lab.project, "scanqueue-r1", "7-new-order")
    seen["served"] = engineer.label_all_tasks()
    engineer.regions().first.wait_for()
    seen["regions"] = engineer.regions().all_inner_texts()
    shown = engineer.scan()
    engineer.picture("8-mask")
    engineer.page.get_by_role("button", name="Hide all regions").click()
    engineer.page.get_by_role("button", name="Show all regions").wait_for()
    hidden = engineer.scan()
    engineer.picture("9-mask-hidden")
    engineer.page.get_by_role("button", name="Show all regions").click()
    engineer.page.get_by_role("button", name="Hide all regions").wait_for()
    seen["drawn"] = np.abs(shown.astype(int) - hidden.astype(int)).max(axis=2) > 8
    stored, _ = engineer.submit()
    engineer.picture("10-submitted")
    seen["stored"] = next(a for a in lab.studio.annotations(seen["served"]["id"]) if a["id"] == stored["id"])
    seen["webhooks"] = lab.studio.webhooks(lab.project)
    seen["after"] = service.wait(lab.project, lambda s: s["labelled"] == COLD + 1 and s["shown"]["n"] > 0)


def test_the_backend_is_connected_through_label_studios_own_form(session: dict[str, Any]) -> None:
    (backend,) = session["backend"]
    assert backend["state"] == "CO"  # Connected
    assert (backend["auth_method"], backend["basic_auth_user"]) == ("BASIC_AUTH", USER)
    assert session["cold"]["reason"] == f"0 of {COLD} labels needed for the first model."


def test_the_webhook_carries_our_secret(session: dict[str, Any]) -> None:
    (hook,) = session["webhooks"]
    assert hook["headers"]["X-Scanqueue-Secret"]
    assert hook["is_active"]
    assert hook["send_for_all_actions"]


def test_our_tab_is_next_to_the_one_with_all_tasks(session: dict[str, Any]) -> None:
    assert session["tabs"] == ["Default", "scanqueue"]


def test_our_tab_lists_the_unlabelled_scans_in_queue_order(session: dict[str, Any]) -> None:
    for listed, status in (("cold list", "cold"), ("new list", "active")):
        assert len(session[listed]) >= 6
        assert session[listed][:6] == session[status]["queue"][:6]


def test_label_all_tasks_opens_the_first_scan_of_the_cold_start_without_a_mask(session: dict[str, Any]) -> None:
    assert session["first"] == session["cold"]["queue"][0]
    assert session["first regions"] == 0


def test_the_painted_region_is_stored_where_it_was_painted(session: dict[str, Any]) -> None:
    (region,) = session["painted"]["result"]
    assert (region["original_height"], region["original_width"]) == (SIDE, SIDE)
    assert session["painted"]["parent_prediction"] is not None  # it only orders the scan and has no mask
    assert dice(from_result([region], (SIDE, SIDE))["Lung"], session["wanted"]) > 0.9


def test_the_order_goes_on_outside_the_browser(session: dict[str, Any]) -> None:
    assert [session["first"], *session["labelled by hand"]] == session["cold"]["queue"][:COLD]
    assert session["held"] == session["labelled by hand"][0]


def test_after_the_training_the_first_scan_of_the_new_order_opens(session: dict[str, Any]) -> None:
    assert session["active"]["model_version"] == "scanqueue-r1"
    assert session["active"]["labelled"] == COLD
    assert session["served"]["id"] == session["active"]["queue"][0]


def test_the_predicted_mask_is_listed_and_drawn(session: dict[str, Any]) -> None:
    prediction = shown_prediction(session["served"])
    assert prediction is not None
    assert prediction["model_version"] == "scanqueue-r1"
    assert [re.sub(r"\W|\d", "", text) for text in session["regions"]] == ["Lung"]
    mask = from_result(prediction["result"], (SIDE, SIDE))["Lung"]
    drawn = session["drawn"]
    expected = cv2.resize(mask.astype(np.uint8), drawn.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    overlap = (drawn & expected).sum() / (drawn | expected).sum()
    assert mask.mean() > 0.02
    assert overlap > 0.9


def test_the_submitted_mask_is_compared_with_the_shown_one(session: dict[str, Any]) -> None:
    prediction = shown_prediction(session["served"])
    assert prediction is not None
    assert session["stored"]["parent_prediction"] == prediction["id"]
    assert session["stored"]["was_cancelled"] is False
    before, after = session["active"], session["after"]
    assert after["labelled"] == before["labelled"] + 1
    assert (before["shown"]["n"], after["shown"]["n"]) == (0, 1)
    assert after["shown"]["dice"] > 0.99  # nothing was corrected
    assert session["served"]["id"] not in after["queue"]


def test_no_request_of_the_browser_leaves_the_machine(session: dict[str, Any]) -> None:
    engineer = session["engineer"]
    elsewhere = [url for url in engineer.asked if host(url) not in ("", "127.0.0.1")]
    assert elsewhere == []
    assert engineer.hosts() == {"127.0.0.1"}


def test_the_password_is_in_no_log(session: dict[str, Any]) -> None:
    assert PASSWORD not in session["log"]
