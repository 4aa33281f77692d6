"""The live workers and their current work, for display only."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from backend.errors import ScanqueueError
from backend.records.store import Store

log = logging.getLogger("scanqueue.presence")

EVERY = 10  # seconds between heartbeats


class Roster:
    """The heartbeats of one worker, under its `name`.

    also  what to show beside its work; "" for nothing
    """

    def __init__(self, store: Store, name: str, also: Callable[[], str] = str) -> None:
        self._store, self._name, self._also = store, name, also
        self._at: list[str] = []
        self._changed = threading.Event()

    @contextmanager
    def at(self, work: str) -> Iterator[None]:
        """While inside, show `work` as the worker's current work."""
        self._at.append(work)
        self._changed.set()
        try:
            yield
        finally:
            self._at.remove(work)
            self._changed.set()

    def run(self, stopping: threading.Event) -> None:
        """Send heartbeats until `stopping`, even while the database is unavailable."""
        while not stopping.is_set():
            with suppress(ScanqueueError):
                self._store.present(self._name, ", ".join(filter(None, [*dict.fromkeys(self._at), self._also()])))
            self._changed.clear()
            for _ in range(EVERY):  # changes are written at most once a second
                if stopping.wait(1.0) or self._changed.is_set():
                    break
        with suppress(ScanqueueError):
            self._store.absent(self._name)
