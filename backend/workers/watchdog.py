"""Detects hanging threads; the supervisor restarts their worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopping(Exception):
    """The process must exit; unfinished work is repeated after the next start."""


class GaveWay(Exception):
    """Other projects wait for a thread. The rest of this project's work is done when its turn comes again."""


class Watchdog:
    """Heartbeats of the threads inside `watched`. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._beats: dict[int, float] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While inside, the calling thread must call `beat` regularly."""
        me = threading.get_ident()
        before = self._beats.get(me)
        self._beats[me] = time.monotonic()
        try:
            yield
        finally:
            if before is None:
                del self._beats[me]

    def beat(self) -> None:
        """Report progress of the calling thread."""
        me = threading.get_ident()
        if me in self._beats:
            self._beats[me] = time.monotonic()

    def working(self) -> int:
        """Number of threads inside `watched`."""
        return len(self._beats)

    def silence(self) -> float:
        """Seconds since the last beat of the thread that has been silent longest; 0 without threads."""
        beats = list(self._beats.values())
        return time.monotonic() - min(beats) if beats else 0.0
