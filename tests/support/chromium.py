"""The browser for tests, which can reach only this machine."""

from __future__ import annotations

import shutil
from urllib.parse import urlsplit

from playwright.sync_api import expect

expect.set_options(timeout=60_000)  # generous, because other tests run at the same time

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # no other host name resolves, whether the page or the browser requests it
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


def find_chromium() -> str | None:
    """The path of the executable; None if there is none."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


def host(url: str) -> str:
    """The host of an address; "" for data: and blob:, which have none."""
    return urlsplit(url).hostname or ""
