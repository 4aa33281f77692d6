"""Whether Label Studio answers, for a notice on every view of the page. Asked only while somebody looks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from backend.errors import ScanqueueError
from backend.web.texts import text

log = logging.getLogger("scanqueue.page")

EVERY = 10.0  # seconds between two requests, however many people look
SLOW = 3.0  # seconds after which Label Studio counts as slow
PATIENCE = 0.5  # seconds that a view waits for a new answer


class StudioState:
    """`ask` sends a cheap request to Label Studio, and raises ScanqueueError on failure."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._began = self._ended = float("-inf")
        self._problem = ""
        self._took = 0.0

    def notice(self) -> str:
        """What is wrong with Label Studio now; "" if it answers in time. Never raises, and returns soon."""
        with self._lock:
            if self._idle.is_set() and time.monotonic() - self._ended > EVERY:
                self._idle.clear()
                self._began = time.monotonic()
                threading.Thread(target=self._asked, daemon=True).start()
        self._idle.wait(max(0.0, self._began + PATIENCE - time.monotonic()))
        with self._lock:
            waited = 0.0 if self._idle.is_set() else time.monotonic() - self._began
            if waited >= SLOW:
                return text("notice.waiting", seconds=int(waited))
            if not self._problem and self._took >= SLOW:
                return text("notice.slow", seconds=round(self._took))
            return self._problem

    def _asked(self) -> None:
        problem = ""
        try:
            self._ask()
        except ScanqueueError as error:
            problem = str(error)
        except Exception as error:
            log.exception("unexpected failure of a request to Label Studio")
            problem = text("notice.failed", error=type(error).__name__)
        with self._lock:
            self._ended = time.monotonic()
            self._took, self._problem = self._ended - self._began, problem
            self._idle.set()
