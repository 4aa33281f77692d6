"""Label Studio's editor in Chromium."""

from __future__ import annotations

from playwright.sync_api import Page

from backend.demo.label_studio import LabelStudio

IMAGE = "window.Htx?.annotationStore?.selected?.objects?.find((one) => one.name === 'image')"


class Editor:
    """Label Studio's editor in Chromium, signed in."""

    def __init__(self, page: Page, studio: LabelStudio, project: int) -> None:
        self.page, self.studio, self.project = page, studio, project
        page.set_default_timeout(60_000)
        page.goto(f"{studio.url}/user/login/")
        page.fill("[name=email]", studio.email)
        page.fill("[name=password]", studio.password)
        page.locator("button", has_text="Log in").click()
        page.wait_for_url(lambda url: "/login" not in url)

    def open(self, task: int) -> None:
        self.page.goto(f"{self.studio.url}/projects/{self.project}/data?task={task}")
        self.page.wait_for_function(
            f"() => {IMAGE}?.currentImageEntity?.naturalWidth > 0 && document.querySelector('.konvajs-content canvas')"
        )
