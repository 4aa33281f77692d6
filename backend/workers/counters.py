"""Counts and sums for `GET /metrics`, collected in each process and added to the records every 15 seconds.

A killed process loses the counts of at most 15 seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from backend.errors import ScanqueueError

log = logging.getLogger("scanqueue.measures")

EVERY = 15.0  # seconds
LABELS = 500  # maximum number of (name, label) pairs per process, so that nobody can fill the records

Amounts = Mapping[tuple[str, str], tuple[int, float]]  # (name, label): (count, sum)


class CountCallback(Protocol):
    """Counts something once and adds `amount` (mostly seconds) to its sum. Never raises, never blocks."""

    def __call__(self, name: str, label: str, amount: float = 0.0) -> None: ...


def discard(name: str, label: str, amount: float = 0.0) -> None:
    """A CountCallback that counts nothing."""


class Counters:
    """Any thread may call `count`; `add` writes the collected amounts."""

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
        """Write the collected amounts; after a failure they are kept for the next time."""
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
        """Flush every 15 seconds until `stopping` is set, then once more."""
        while not stopping.wait(EVERY):
            self.flush()
        self.flush()
