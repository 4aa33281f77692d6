"""Counts and sums that every process keeps, and adds to the records now and then, for `GET /metrics`.

What is not yet added when a process is killed is lost: at most the last quarter of a minute.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from backend.errors import ScanqueueError

log = logging.getLogger("scanqueue.measures")

EVERY = 15.0  # seconds
LABELS = 500  # of one process; beyond them nothing new is counted, so that nobody can fill the records

Amounts = Mapping[tuple[str, str], tuple[int, float]]  # (name, label): how often, sum


class CountCallback(Protocol):
    """Counts something once, and adds `amount` (seconds, mostly) to its sum. Never raises, never waits long."""

    def __call__(self, name: str, label: str, amount: float = 0.0) -> None: ...


def discard(name: str, label: str, amount: float = 0.0) -> None:
    """For whoever does not count."""


class Counters:
    """`note` may be called by any thread; `add` writes what came together."""

    def __init__(self, add: Callable[[Amounts], None]) -> None:
        self._add = add
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str], tuple[int, float]] = {}

    def count(self, name: str, label: str, amount: float = 0.0) -> None:
        with self._lock:
            key = (name, label[:100])
            if key in self._waiting or len(self._waiting) < LABELS:
                count, total = self._waiting.get(key, (0, 0.0))
                self._waiting[key] = (count + 1, total + amount)

    def flush(self) -> None:
        """Write what is waiting; where that fails it goes on waiting."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
        if not taken:
            return
        try:
            self._add(taken)
        except ScanqueueError as error:
            log.debug("not written now: %s", error)
            with self._lock:
                for key, (count, total) in taken.items():
                    more, further = self._waiting.get(key, (0, 0.0))
                    self._waiting[key] = (count + more, total + further)

    def keep(self, stopping: threading.Event) -> None:
        """Flush now and then until `stopping` is set, and once more."""
        while not stopping.wait(EVERY):
            self.flush()
        self.flush()
