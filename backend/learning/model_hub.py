"""The model hub that weights are downloaded from, and whether it is reachable."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

HUB_SECONDS = 3.0  # maximum wait without internet access


def unreachable() -> str:
    """The reason why the hub is not reachable; empty if it is."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return "" if answers(constants.ENDPOINT) else "no network"


def answers(url: str) -> bool:
    """Whether a server answers in time. Runs in a thread, because name lookups have no timeout."""
    import huggingface_hub

    answered = threading.Event()

    def ask() -> None:
        try:
            huggingface_hub.get_session().head(url, timeout=HUB_SECONDS, follow_redirects=False)
        except Exception:  # no route, unknown name, refused by a proxy; a lab may configure its own session
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
