"""Whether the threads that work still get on: a worker that hangs is ended and started again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopping(Exception):
    """The process is asked to end; what is under way is done again at the next start."""


class Watchdog:
    """Signs of life of the threads that are inside `watched`. Seconds are monotonic."""

    def __init__(self) -> None:
        self._beats: dict[int, float] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While inside, the calling thread is expected to call `beat` now and then."""
        me = threading.get_ident()
        before = self._beats.get(me)
        self._beats[me] = time.monotonic()
        try:
            yield
        finally:
            if before is None:
                del self._beats[me]

    def beat(self) -> None:
        """The calling thread has got on with its work."""
        me = threading.get_ident()
        if me in self._beats:
            self._beats[me] = time.monotonic()

    def working(self) -> int:
        """How many threads are at work."""
        return len(self._beats)

    def silence(self) -> float:
        """Seconds since the last sign of life of the thread that has been silent longest; 0 when none works."""
        beats = list(self._beats.values())
        return time.monotonic() - min(beats) if beats else 0.0
