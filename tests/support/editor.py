"""Label Studio's editor in Chromium."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page

from backend.demo.label_studio import LabelStudio

IMAGE = "window.Htx?.annotationStore?.selected?.objects?.find((one) => one.name === 'image')"
MISSING = "Failed to load resource: the server responded with a status of 404 (Not Found)"
OWN_MISSING = (  # what Label Studio 1.23.2's page requests, and its server does not have
    "heidi-tips",  # tips for beginners
    "[object%20Object]",  # an icon of the bottom bar that is no address
)


class Editor:
    """Label Studio's editor in Chromium, signed in.

    errors  of the page and its console, without the two that Label Studio's page always has
    """

    def __init__(self, page: Page, studio: LabelStudio, project: int) -> None:
        self.page, self.studio, self.project = page, studio, project
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._heard)
        page.set_default_timeout(60_000)
        page.goto(f"{studio.url}/user/login/")
        page.fill("[name=email]", studio.email)
        page.fill("[name=password]", studio.password)
        page.locator("button", has_text="Log in").click()
        page.wait_for_url(lambda url: "/login" not in url)

    def open(self, task: int) -> None:
        self.page.goto(f"{self.studio.url}/projects/{self.project}/data?task={task}")
        self.wait_for_image()

    def wait_for_image(self) -> None:
        self.page.wait_for_function(
            f"() => {IMAGE}?.currentImageEntity?.naturalWidth > 0 && document.querySelector('.konvajs-content canvas')"
        )

    def tool(self, name: str) -> None:
        """Press the smart tool until it is `name`: each press selects the next one. Auto-Annotation must be on."""
        self.rest()
        seen = []
        for _ in range(7):
            seen.append(self.page.evaluate(f"() => {IMAGE}.getToolsManager().findSelectedTool()?.fullName"))
            if seen[-1] == name:
                return
            self.page.locator("[class*=lsf-toolbar__group]").last.click()
            self.page.wait_for_timeout(200)
        raise AssertionError(f"{name} cannot be selected, only {seen}")

    def rest(self) -> None:
        """Press Escape: no region and no label is selected."""
        self.page.keyboard.press("Escape")
        self.page.wait_for_timeout(200)

    def switch(self, name: str, on: bool) -> None:
        """Turn a toggle of the bottom bar on or off."""
        toggle = self.page.get_by_role("checkbox", name=name)
        for _ in range(20):
            if toggle.is_checked() == on:
                return
            toggle.click(force=True)
            self.page.wait_for_timeout(300)
        raise AssertionError(f"{name} cannot be switched")

    def submit(self) -> list[dict[str, Any]]:
        """Press Submit; returns the regions of the annotation that Label Studio stored."""
        with self.page.expect_response(lambda r: r.request.method == "POST" and "/annotations" in r.url) as stored:
            self.page.get_by_role("button", name="Submit current annotation").click()
        return list(stored.value.json()["result"])

    def _heard(self, message: ConsoleMessage) -> None:
        address = urlsplit(str(message.location.get("url", ""))).path
        known = message.text == MISSING and address.rsplit("/", 1)[-1] in OWN_MISSING
        if message.type == "error" and not known:
            self.errors.append(f"{message.text} ({address})")
