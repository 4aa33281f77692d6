"""Several annotators at once, who label through Label Studio only, and what they met."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
from service import Lab

from backend.demo.annotator import Annotator
from backend.errors import ScanqueueError

THINKING = (2.0, 6.0)  # seconds that a simulated annotator looks at a scan


class Reading:
    """Concurrent annotators, one thread each, and a record of what they met."""

    def __init__(
        self, lab: Lab, total: int, *, stubborn: bool = False, thinking: tuple[float, float] = THINKING
    ) -> None:
        """stubborn: retry what fails, as a person would."""
        self.lab, self.left, self.stubborn, self.thinking = lab, total, stubborn, thinking
        self.lock = threading.Lock()
        self.held: Counter[int] = Counter()
        self.twice: list[int] = []
        self.unpublished: list[int] = []
        self.asked: list[float] = []
        self.submitted: list[float] = []
        self.failed: list[str] = []
        self.threads = [threading.Thread(target=self._read, args=(a, i)) for i, a in enumerate(lab.annotators)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join()
        assert not self.failed, self.failed

    def _read(self, annotator: Annotator, seed: int) -> None:
        rng = random.Random(seed)
        while True:
            with self.lock:
                if self.left <= 0 or self.failed:
                    return
                self.left -= 1
            try:
                self._one(annotator, rng)
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                return

    def _one(self, annotator: Annotator, rng: random.Random) -> None:
        task = self._timed(self.asked, lambda: self._next(annotator))
        number = task["id"]
        with self.lock:
            self.held[number] += 1
            if self.held[number] > 1:
                self.twice.append(number)
            if not any(p["model_version"].startswith("scanqueue-r") for p in task["predictions"]):
                self.unpublished.append(number)
        time.sleep(rng.uniform(*self.thinking))
        truth = self.lab.truth(number)
        self._timed(self.submitted, lambda: self._submit(annotator, task, truth))
        with self.lock:
            self.held[number] -= 1
            self.lab.labelled.append(number)

    def _next(self, annotator: Annotator) -> dict[str, Any]:
        task = annotator.next_task(self.lab.project)
        if task is None:
            raise ScanqueueError("the queue ran dry")
        return task

    def _submit(self, annotator: Annotator, task: dict[str, Any], truth: list[dict[str, Any]]) -> None:
        # before a retry: the first attempt may have arrived
        if not self.stubborn or not self.lab.studio.annotations(task["id"]):
            annotator.submit(task, truth)

    def _timed(self, into: list[float], call: Callable[[], Any]) -> Any:
        until = time.monotonic() + 240
        while True:
            began = time.monotonic()
            try:
                found = call()
            except (httpx.TransportError, ScanqueueError):
                if not self.stubborn or time.monotonic() > until:
                    raise
                time.sleep(0.5)
            else:
                into.append(time.monotonic() - began)
                return found
