"""Takes the screenshots of the page for the documentation; run by scripts/screenshots."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from chromium import ARGUMENTS, find_chromium
from playwright.sync_api import Page, expect, sync_playwright
from service import Lab, Service, phantom_scans

from backend.demo.label_studio import LabelStudio

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SCANS, COLD, ROUND, ROUNDS = 160, 12, 8, 3
SIZE = (1366, 768)


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="scanqueue-screenshots-") as scratch, sync_playwright() as playwright:
        folder = Path(scratch)
        with LabelStudio.start(folder / "label-studio") as studio:
            lab = Lab(
                studio,
                phantom_scans(folder / "scans", SCANS, seed=3),
                extra_params={"cold_start_size": COLD, "round_size": ROUND, "strategy": "paper"},
            )
            lab.studio.patch(f"/api/projects/{lab.project}/", {"title": "Chest radiographs (synthetic)"})
            with Service(studio, folder / "data", env={"SCANQUEUE_TRAINING_STEPS": "120"}) as service:
                lab.connect(service)
                lab.wait_for_round(0)
                lab.label(COLD)
                for n in range(1, ROUNDS + 1):
                    lab.wait_for_round(n)
                    lab.label(ROUND if n < ROUNDS else ROUND // 2)
                service.wait(lab.project, lambda s: s["job"] is None and s["shown"]["n"] > 0)
                browser = playwright.chromium.launch(executable_path=find_chromium(), headless=True, args=ARGUMENTS)
                context = browser.new_context(viewport={"width": SIZE[0], "height": SIZE[1]}, color_scheme="light")
                take(context.new_page(), lab, f"{service.url}/projects/{lab.project}")
                browser.close()
            lab.close()


def take(page: Page, lab: Lab, address: str) -> None:
    """One screenshot per view."""

    def shot(name: str) -> None:
        page.screenshot(path=IMAGES / f"{name}.png")
        print(IMAGES / f"{name}.png")

    page.goto(f"{address}/map")
    page.locator("#map-plot canvas").first.wait_for()
    expect(page.locator("#map-legend li").first).to_be_visible()
    page.get_by_role("button", name="Lasso").click()
    box = page.locator("#map-plot").bounding_box()
    assert box is not None
    middle, centre = box["x"] + box["width"] * 0.72, box["y"] + box["height"] * 0.4
    page.mouse.move(middle, centre)
    page.mouse.down()
    for x, y in ((120, -60), (200, 40), (90, 130), (-20, 60)):
        page.mouse.move(middle + x, centre + y, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1000)
    shot("map")
    for view in ("queue", "curve"):
        page.goto(f"{address}/{view}", wait_until="networkidle")
        shot(view)
    page.goto(f"{address}/settings")
    with page.expect_response(lambda r: "/preview?" in r.url):
        page.locator("#alpha").fill("0.9")
    page.wait_for_timeout(1000)
    shot("settings")


if __name__ == "__main__":
    main()
