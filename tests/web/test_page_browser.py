"""The page in a real browser, with a fake lab: rendering, clicks and requests.

Pictures of every view at two sizes and in both colour schemes are left in test-output/page/.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import ARGUMENTS, host
from fastapi import FastAPI
from page_lab import PROJECT, SCRIPT, Lab, make_app, served
from page_world import application, used_world
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from world import PROJECT as REAL_PROJECT

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "test-output" / "page"
AXE = ROOT / ".cache" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
RUN = "window.ran=1"
HOSTILE = {
    "markup": f"\"'><script>{RUN}</script></title></textarea></style></script>--><img src=x onerror={RUN}><svg/onload="
    f"{RUN}><iframe srcdoc=x><a href=javascript:{RUN}>a</a>{{{{7*7}}}} {{% raw %}} ${{7*7}} $\\frac{{$ %s &#60;b&#62; "
    "\u202e\u2067gpj.nacs \ufeff\u200b \0\x07\x1b[31m \N{GRINNING FACE}\u0301\u0301",
    "endless": "W" * 10_000,
}
SIZES = {"laptop": (1366, 768), "phone": (390, 844)}
VIEWS = {
    "index": "/?all",
    "now": f"/projects/{PROJECT}",
    "map": f"/projects/{PROJECT}/map",
    "queue": f"/projects/{PROJECT}/queue",
    "curve": f"/projects/{PROJECT}/curve",
    "models": f"/projects/{PROJECT}/models",
    "compare": f"/projects/{PROJECT}/compare?first=scanqueue-r1&second=scanqueue-r2",
    "settings": f"/projects/{PROJECT}/settings",
    "docs": "/docs",
    "error": "/projects/9",
}


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, headless=True, args=ARGUMENTS)
        yield found
        found.close()


class Visit:
    """One tab on one lab; records every error in it."""

    def __init__(self, page: Page, lab: Lab, url: str) -> None:
        self.page, self.lab, self.url = page, lab, url
        self.asked: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.set_default_timeout(60_000)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} {message.location}")

    def open(self, view: str) -> Page:
        self.page.goto(self.url + VIEWS.get(view, view))
        self.page.wait_for_load_state("networkidle")
        return self.page


@contextmanager
def visit(
    browser: Browser,
    lab: Lab,
    *,
    app: FastAPI | None = None,
    size: str = "laptop",
    colours: str = "light",
    scripts: bool = True,
) -> Iterator[Visit]:
    """A separate tab; at the end, it must have contacted no other machine, and its console must be empty."""
    width, height = SIZES[size]
    with served(app or make_app(lab)) as url:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if colours == "dark" else "light",
            reduced_motion="reduce",
            locale="en-GB",
            timezone_id="UTC",
            java_script_enabled=scripts,
        )
        try:
            seen = Visit(context.new_page(), lab, url)
            yield seen
            assert {host(url) for url in seen.asked} - {""} == {"127.0.0.1"}
            assert seen.errors == []
        finally:
            context.close()


@pytest.fixture(scope="module")
def axe() -> str:
    if not AXE.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "axe-core is not there; install npm and run `make setup`"
        )
    return AXE.read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def pictures() -> None:
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)


def violations(page: Page, axe: str) -> list[str]:
    """The serious and critical violations that axe-core finds, each with its elements."""
    page.evaluate(axe)
    found: dict[str, Any] = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{v['id']}: {node['target']} {node['failureSummary']}"
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


@pytest.mark.parametrize(
    ("size", "colours"),
    [
        ("laptop", "light"),
        ("phone", "dark"),
        pytest.param("laptop", "dark", marks=pytest.mark.long),
        pytest.param("phone", "light", marks=pytest.mark.long),
    ],
)
def test_every_view_is_accessible(browser: Browser, axe: str, size: str, colours: str) -> None:
    with visit(browser, Lab(), size=size, colours=colours) as seen:
        for name in VIEWS:
            page = seen.open(name)
            page.evaluate("scrollTo(0, document.body.scrollHeight)")  # pictures below load lazily
            page.wait_for_load_state("networkidle")
            page.screenshot(path=PICTURES / f"{name}-{size}-{colours}.png", full_page=True)
            assert violations(page, axe) == [], name
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{name} is {wide} pixels wider than the window"
        seen.errors = [e for e in seen.errors if "/projects/9" not in e]  # browsers log every 404


def numbers_on_the_map(page: Page) -> list[str]:
    page.locator("#map-plot canvas").first.wait_for()
    texts: list[str] = page.evaluate("document.getElementById('map-plot').layout.annotations.map((a) => a.text)")
    return [text for text in texts if text.isdigit()]


def test_the_map_numbers_the_scans_in_the_queue(browser: Browser) -> None:
    lab = Lab()
    atlas = lab.atlas()
    queued = [*range(1, 10), 12, 21]  # the first of the order, and some that were carried over from the one before
    atlas["served"] = [int(rank in queued) for rank in atlas["rank"]]
    lab.atlas = lambda: atlas  # type: ignore[method-assign]
    with visit(browser, lab) as seen:
        page = seen.open("map")
        assert sorted(map(int, numbers_on_the_map(page))) == queued
        expect(page.locator("#map-legend")).to_contain_text("in the queue: paper")


def test_the_map_fills_its_box_after_the_window_was_resized_unless_somebody_zoomed(browser: Browser) -> None:
    filled = """() => {
        const {data, _fullLayout} = document.getElementById("map-plot");
        return Math.max(...["x", "y"].map((name) => {
            const axis = _fullLayout[`${name}axis`];
            const places = data.flatMap((trace) => Array.from(trace[name])).map((v) => axis.l2p(v));
            return (Math.max(...places) - Math.min(...places)) / axis._length;
        }));
    }"""
    with visit(browser, Lab(), size="phone") as seen:
        page = seen.open("map")
        page.locator("#map-plot canvas").first.wait_for()
        assert 0.85 < page.evaluate(filled) <= 1
        for size in ({"width": 1366, "height": 768}, {"width": 390, "height": 844}, {"width": 1000, "height": 500}):
            page.set_viewport_size(size)  # type: ignore[arg-type]
            page.wait_for_timeout(300)
            page.wait_for_function(f"() => {{ const now = ({filled})(); return now > 0.85 && now <= 1; }}")
        page.evaluate("Plotly.relayout('map-plot', {'xaxis.range': [0, 5], 'yaxis.range': [0, 5]})")
        page.set_viewport_size({"width": 1366, "height": 768})
        page.wait_for_timeout(1000)
        assert page.evaluate(filled) > 1  # some scans are outside still


def test_the_names_of_clusters_cover_no_mark_where_there_is_room(browser: Browser) -> None:
    with visit(browser, Lab()) as seen:
        page = seen.open("map")
        page.locator("#map-plot canvas").first.wait_for()
        covered = page.evaluate("""() => {
            const plot = document.getElementById("map-plot");
            const {xaxis, yaxis} = plot._fullLayout;
            const {left, top} = plot.getBoundingClientRect();
            const all = [...plot.querySelectorAll(".annotation")];
            const tags = all.filter((tag) => tag.textContent.startsWith("cluster"));
            return tags.map((tag) => {
                const box = tag.getBoundingClientRect();
                const inside = (x, y) => x > box.left && x < box.right && y > box.top && y < box.bottom;
                const marks = plot.data.flatMap((trace) => Array.from(trace.x, (x, i) => [x, trace.y[i]]));
                return marks.filter(([x, y]) => inside(
                    left + xaxis._offset + xaxis.l2p(x), top + yaxis._offset + yaxis.l2p(y))).length;
            });
        }""")
        assert covered == [0, 0, 0, 0]


def test_only_colours_that_some_scan_has_can_be_chosen(browser: Browser) -> None:
    lab = Lab()
    atlas = lab.atlas()
    atlas["score"] = [None] * len(atlas["score"])
    lab.atlas = lambda: atlas  # type: ignore[method-assign]
    with visit(browser, lab) as seen:
        page = seen.open("map")
        page.locator("#map-plot canvas").first.wait_for()
        off = page.locator("#map-colour option[disabled]")
        expect(off).to_have_text(["S(i) of the strategy “paper”: no scan has it now"])
        page.locator("#map-choose input").fill("31")
        page.get_by_role("button", name="Select", exact=True).click()
        expect(page.locator("[data-fact=entropy]")).to_be_visible()
        expect(page.locator("[data-fact=score]")).to_be_hidden()


def test_now_updates_without_a_reload(browser: Browser) -> None:
    lab = Lab()
    with visit(browser, lab) as seen:
        page = seen.open("now")
        page.evaluate("document.body.dataset.mark = 'same page'")
        lab.one |= {"phase": "blocked", "reason": "The disk is full. Free disk space.", "job": None, "labelled": 35}
        expect(page.locator("h1")).to_have_text("Stopped: action needed")
        expect(page.get_by_text("The disk is full. Free disk space.")).to_be_visible()
        expect(page.locator("progress")).to_have_count(0)
        expect(page.locator(".tiles")).to_contain_text("35")
        expect(page.locator(".top .phase")).to_have_text("Stopped: action needed")
        assert page.evaluate("document.body.dataset.mark") == "same page"


def test_a_problem_appears_and_disappears_and_the_focus_stays(browser: Browser) -> None:
    lab = Lab()
    with visit(browser, lab) as seen:
        page = seen.open("now")
        page.get_by_role("button", name="Try again with task 59").focus()
        lab.one["problems"] = [{"task": 57, "what": f"{SCRIPT} is no image. Replace it."}, *lab.one["problems"]]
        expect(page.get_by_text(f"{SCRIPT} is no image.")).to_be_visible()
        assert page.evaluate("document.activeElement.dataset.key") == "retry-59"
        lab.one["problems"] = []
        expect(page.get_by_text("No scan has a problem.")).to_be_visible()


def test_a_hidden_tab_sends_no_requests(browser: Browser) -> None:
    lab = Lab()
    with visit(browser, lab) as seen:
        page = seen.open("now")
        page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        page.wait_for_timeout(2500)
        looks = lab.looks
        page.wait_for_timeout(5000)
        assert lab.looks == looks


def test_the_page_reports_that_scanqueue_is_unreachable(browser: Browser) -> None:
    from backend.errors import StoreUnavailable

    lab = Lab()
    with visit(browser, lab) as seen:
        page = seen.open("now")
        lab.broken = StoreUnavailable("The database does not answer.")
        expect(page.locator("body.away")).to_have_count(1)
        lab.broken = None
        expect(page.locator("body.away")).to_have_count(0)
        seen.errors.clear()  # the browser logged the failed requests


def test_train_now_and_try_again_are_sent(browser: Browser) -> None:
    lab = Lab()
    with visit(browser, lab) as seen:
        page = seen.open("now")
        page.get_by_role("button", name="Train now").click()
        expect(page.get_by_role("status").filter(has_text="Requested.")).to_be_visible()
        page.get_by_role("button", name="Try again with task 58").click()
        expect(page.get_by_text("Task 58 is being read again.")).to_be_visible()
        assert lab.asked == [("train", {}), ("retry", {"task": 58})]


def test_train_now_follows_the_state_of_the_project(browser: Browser) -> None:
    lab = Lab()
    with visit(browser, lab) as seen:
        page = seen.open("now")
        button = page.get_by_role("button", name="Train now")
        expect(button).to_be_enabled()
        lab.one |= {"phase": "deleted", "no_training": "Training is not possible: Label Studio has no such project."}
        expect(button).to_be_disabled()
        expect(button).to_have_accessible_description(lab.one["no_training"])
        expect(page.locator(".top .phase")).to_have_text("Not found in Label Studio")
        lab.one |= {"phase": "active", "no_training": ""}
        expect(button).to_be_enabled()


def test_an_open_view_says_that_label_studio_does_not_answer(browser: Browser) -> None:
    lab = Lab()
    with visit(browser, lab) as seen:
        seen.page.clock.install()
        page = seen.open("curve")
        expect(page.locator(".studio-state")).to_be_hidden()
        lab.notice = "Label Studio has not answered for 12 seconds."
        page.clock.fast_forward(15_000)
        expect(page.get_by_text(lab.notice)).to_be_visible(timeout=30_000)
        lab.notice = ""
        page.clock.fast_forward(15_000)
        expect(page.locator(".studio-state")).to_be_hidden(timeout=30_000)


def test_the_checks_run_on_request_and_stay_text(browser: Browser) -> None:
    with visit(browser, Lab()) as seen:
        page = seen.open("now")
        page.get_by_role("button", name="Run checks").click()
        expect(page.get_by_text("1 of 2 checks found a problem.")).to_be_visible()
        expect(page.locator("#checks .error")).to_have_text(f"Fix The folder {SCRIPT} is not there. Make it.")
        page.screenshot(path=PICTURES / "now-checks.png", full_page=True)


def test_a_scan_is_excluded_and_restored_at_once(browser: Browser) -> None:
    lab = Lab()
    with visit(browser, lab) as seen:
        page = seen.open("queue")
        page.get_by_role("button", name="Leave out task 33").click()
        expect(page.locator("#scan-33.out")).to_have_count(1)
        page.screenshot(path=PICTURES / "queue-left-out.png")
        page.get_by_role("button", name="Undo").click()
        expect(page.locator("#scan-33.out")).to_have_count(0)
        assert lab.asked == [("wishes", {"tasks": [33], "wish": "out"}), ("undo", {"change": 13})]


def test_the_queue_shows_what_is_being_labelled(browser: Browser) -> None:
    with visit(browser, Lab()) as seen:
        page = seen.open("queue")
        expect(page.get_by_text("ben@lab.example has a draft")).to_be_visible()
        expect(page.get_by_text("23 Nov 2026, 10:15").first).to_be_visible()


def test_moving_alpha_previews_the_queue_and_changes_nothing(browser: Browser) -> None:
    lab = Lab()
    with visit(browser, lab) as seen:
        page = seen.open("settings")
        page.get_by_label("Alpha: uncertainty or diversity, slider").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#preview-message")).to_have_text(
            "6 of the first 10 places would change; 1 would go to scans that are not in the queue now."
        )
        rows = page.locator("#preview-table tbody tr")
        expect(rows.nth(0)).to_contain_text("Task 35")
        expect(rows.nth(0)).to_contain_text("up from 5")
        expect(rows.nth(1)).to_contain_text("down from 1")
        expect(rows.nth(9)).to_contain_text("new")
        assert page.locator("#alpha").input_value() == "0.65"
        assert lab.asked == []
        page.screenshot(path=PICTURES / "settings-preview.png")
        page.get_by_role("button", name="Discard").click()
        assert page.locator("#alpha").input_value() == "0.6"
        expect(page.locator("#preview-table")).to_be_hidden()


def test_only_what_was_changed_is_saved_and_can_be_undone(browser: Browser) -> None:
    lab = Lab()
    with visit(browser, lab) as seen:
        page = seen.open("settings")
        page.get_by_label("Round size").fill("15")
        page.get_by_label("Training", exact=True).select_option("button")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Saved.")).to_be_visible()
        assert lab.asked == [("settings", {"round_size": 15, "retrain": "button"})]
        expect(page.get_by_label("Round size")).to_have_value("15")
        page.get_by_role("button", name="Undo round_size to 15, retrain to button").click()
        expect(page.get_by_text("Undone.", exact=True)).to_be_visible()
        assert lab.asked[-1] == ("undo", {"change": 13})


def test_a_setting_is_reset_to_the_value_in_label_studio(browser: Browser) -> None:
    lab = Lab()
    with visit(browser, lab) as seen:
        page = seen.open("settings")
        page.get_by_role("button", name="Restore the value from Label Studio for Alpha").click()
        expect(page.get_by_text("Alpha: uncertainty or diversity: restored.")).to_be_visible()
        assert lab.asked == [("settings", {"alpha": None})]


def test_an_invalid_value_is_refused_with_a_reason_beside_the_form(browser: Browser) -> None:
    with visit(browser, Lab()) as seen:
        page = seen.open("settings")
        page.get_by_label("Round size").fill("0")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("alert")).to_have_text("round_size is 0; it must be a whole number, 1 or more.")
        seen.errors.clear()  # browsers log every 400


def test_another_model_is_activated_after_confirmation(browser: Browser) -> None:
    lab = Lab()
    with visit(browser, lab) as seen:
        page = seen.open("models")
        questions = []

        def answer(dialog: Any) -> None:
            questions.append(dialog.message)
            dialog.accept()

        page.on("dialog", answer)
        page.get_by_role("button", name="Activate scanqueue-r1").click()
        expect(page.get_by_text("scanqueue-r1 will draw the masks as soon as a worker is free.")).to_be_visible()
        assert lab.asked == [("activate", {"version": "scanqueue-r1"})]
        assert "Use scanqueue-r1 to draw the masks from now on?" in questions[0]


def test_two_models_are_chosen_and_compared(browser: Browser) -> None:
    with visit(browser, Lab()) as seen:
        page = seen.open("models")
        page.get_by_label("Model A").select_option("scanqueue-r1")
        page.get_by_label("Model B").select_option("scanqueue-r2")
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_text("B better by 0.231")).to_be_visible()
        assert page.url.endswith("/compare?first=scanqueue-r1&second=scanqueue-r2")


def test_the_keyboard_reaches_everything_in_visual_order(browser: Browser) -> None:
    with visit(browser, Lab()) as seen:
        page = seen.open("now")
        names = []
        for _ in range(12):
            page.keyboard.press("Tab")
            names.append(page.evaluate("document.activeElement.innerText.trim() || document.activeElement.ariaLabel"))
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert names == [
            *("Skip to content", "scanqueue", "Chest radiographs, 2026", "Label Studio", "API"),
            *("Now", "Map", "Queue", "Curve", "Models", "Settings", "Train now"),
        ]
        page.keyboard.press("Shift+Tab")
        page.locator(".skip").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.innerText") == "Train now"


def foreign(page: Page) -> list[str]:
    """What a page has that only hostile words can have put there."""
    found: list[str] = page.evaluate(
        """() => [
            ...(window.ran ? ["a script ran"] : []),
            ...[...document.querySelectorAll("img[src=x], iframe, svg[onload], [onerror], [href^='javascript:' i]"),
                ...[...document.scripts].filter((e) => !e.src.includes("/assets/"))].map((e) => e.outerHTML),
        ]"""
    )
    return found


def too_wide(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_titles_labels_and_names_stay_words_in_every_view(attack: str, browser: Browser) -> None:
    from test_page import hostile

    words = HOSTILE[attack]
    for size in ("laptop", "phone") if attack == "endless" else ("laptop",):
        with visit(browser, hostile(words), size=size) as seen:
            for name in sorted(set(VIEWS) - {"compare", "docs", "error"}):
                page = seen.open(name)
                page.screenshot(path=PICTURES / f"hostile-{attack}-{name}-{size}.png")
                assert foreign(page) == [], name
                assert too_wide(page) <= 0, name
                expect(page.locator("body")).to_contain_text(words[:60])
            page.get_by_label("Alpha: uncertainty or diversity, slider").focus()
            page.keyboard.press("ArrowRight")
            expect(page.locator("#preview-message")).to_contain_text("places would change")
            assert foreign(page) == []
            assert "\u202e" not in page.content()


def test_without_scripts_everything_can_still_be_read(browser: Browser) -> None:
    with visit(browser, Lab(), scripts=False) as seen:
        page = seen.open("now")
        expect(page.get_by_text("4 of 10 labels before the next model is trained.")).to_be_visible()
        expect(page.get_by_role("button", name="Train now")).to_be_disabled()
        page.get_by_role("link", name="Queue", exact=True).click()
        page.get_by_role("link", name="Ask Label Studio").click()
        expect(page.get_by_text("ben@lab.example has a draft")).to_be_visible()
        page.goto(seen.url + VIEWS["settings"])
        expect(page.get_by_label("Round size")).to_have_value("12")
        expect(page.get_by_label("Round size")).to_be_disabled()


def test_the_queue_page_is_small(browser: Browser) -> None:
    with visit(browser, Lab()) as seen:
        sizes: list[int] = []
        seen.page.on("requestfinished", lambda request: sizes.append(request.sizes()["responseBodySize"]))
        seen.open("now")
        seen.open("settings")
        assert sum(sizes) < 200_000


def test_on_real_records_the_order_and_the_settings_are_changed_and_restored(
    browser: Browser, axe: str, tmp_path: Path
) -> None:
    world = used_world(tmp_path / "data")
    first = world.status()["queue"][0]

    def priority() -> int:
        return int(dict(world.store.columns(REAL_PROJECT, "task", "priority"))[first])

    with visit(browser, Lab(), app=application(world)) as seen:
        for name in ("", "/map", "/queue", "/activity", "/curve", "/models", "/settings"):
            page = seen.open(f"/projects/{REAL_PROJECT}{name}")
            page.screenshot(path=PICTURES / f"real{name.replace('/', '-')}.png", full_page=True)
            assert violations(page, axe) == [], name
        seen.open("/docs").screenshot(path=PICTURES / "real-docs.png")
        page = seen.open(f"/projects/{REAL_PROJECT}/queue")
        page.get_by_role("button", name=f"Leave out task {first}", exact=True).click()
        expect(page.locator(f"#scan-{first}.out")).to_have_count(1)
        assert priority() == -1
        page.get_by_role("button", name="Undo").click()
        expect(page.locator(f"#scan-{first}.out")).to_have_count(0)
        assert priority() == 0
        page = seen.open(f"/projects/{REAL_PROJECT}/settings")
        page.get_by_label("Alpha: uncertainty or diversity", exact=True).fill("0")
        expect(page.locator("#preview-message")).to_contain_text("place")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("button", name="Undo alpha: 0", exact=True)).to_be_visible()
        page.get_by_role("button", name="Undo alpha: 0", exact=True).click()
        expect(page.get_by_text("Undone.", exact=True)).to_be_visible()
        expect(page.locator("#alpha")).to_have_value("0.7")
