"""How the tests start a browser: one that reaches nothing but this machine."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

from playwright.sync_api import expect

expect.set_options(timeout=60_000)  # as with everything else that a page is asked for: other tests run beside it

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # whatever the page or the browser itself wants from elsewhere, it cannot even look up
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


def find_chromium() -> str | None:
    """The program; None where there is none."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


def host(url: str) -> str:
    """Whom an address asks; "" for data: and blob:, which ask nobody."""
    return urlsplit(url).hostname or ""
