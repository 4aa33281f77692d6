"""The attempts that this process makes: recorded before the work, and taken back when the process is asked to end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from backend.errors import ScanqueueError, StorageFull, StoreUnavailable, WorkersLost
from backend.records.store import Store

Begun = tuple[int, str, tuple[str, ...]]  # project, work, keys


class AttemptLog:
    """Records attempts at work, see `AttemptRecords`. For any thread.

    wanted  exceptions that interrupt work on purpose
    """

    def __init__(self, store: Store, wanted: tuple[type[BaseException], ...]) -> None:
        self._store = store
        self._wanted: tuple[type[BaseException], ...] = (*wanted, ScanqueueError)
        self._running: set[Begun] = set()
        self._mutex = threading.Lock()
        self._stopped = False

    @contextmanager
    def attempt(
        self, project: int, work: str, *keys: str, size: int = 0, first: bool = True, alone: bool = False
    ) -> Iterator[None]:
        """Inside, the work is an attempt. It counts if its process dies, or fails for a reason that we cannot explain.

        first  earlier attempts at the work are forgotten
        alone  the work is on a single scan: attempts at others are kept
        """
        begun = (project, work, keys)
        with self._mutex:
            if not self._stopped:  # a stop before this counts nothing, and one after it takes this back
                if alone:
                    self._store.suspect(project, work, keys)
                else:
                    self._store.begin_attempt(project, work, keys, size, first=first)
                self._running.add(begun)
        try:
            yield
        except WorkersLost:
            raise
        except self._wanted:
            self._cancel(begun)
            raise
        finally:
            with self._mutex:
                self._running.discard(begun)
        self._store.end_attempts(project, work, keys[0] if alone else "")

    def stop(self) -> None:
        """The process ends on purpose: what runs does not count, even if the process is killed before that ends."""
        with self._mutex:
            self._stopped = True
            running = list(self._running)
        for begun in running:
            self._cancel(begun)

    def _cancel(self, begun: Begun) -> None:
        with self._mutex:
            if begun not in self._running:
                return  # done already
            self._running.discard(begun)
        with suppress(StoreUnavailable, StorageFull):
            self._store.cancel_attempt(*begun)
