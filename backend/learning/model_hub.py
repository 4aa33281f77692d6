"""The hub that weights are downloaded from, where there is one within reach."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

HUB_SECONDS = 3.0  # a hospital without internet waits no longer than this


def unreachable() -> str:
    """Why the hub cannot be asked; empty when it can."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return "" if answers(constants.ENDPOINT) else "no network"


def answers(url: str) -> bool:
    """Whether anything answers there in time. In a thread, as looking up a name has no time limit of its own."""
    import httpx

    answered = threading.Event()

    def ask() -> None:
        try:
            httpx.head(url, timeout=HUB_SECONDS)
        except (httpx.HTTPError, OSError, ValueError):
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return answered.is_set()


@contextlib.contextmanager
def offline_unless_reachable() -> Iterator[None]:
    """Let the hub's client use only its local cache, without retries, unless the hub answers in time."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(unreachable())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
