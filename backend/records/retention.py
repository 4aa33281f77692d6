"""What is removed after a while: old checkpoints, cached files that nobody used, and what killed writers left.

Records stay, and so does everything that cannot be made again. Any number of workers may do this at once.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from backend.errors import ScanqueueError
from backend.records.artefacts import ASIDE, CACHES, USE_NOTED
from backend.records.store import Store

log = logging.getLogger("scanqueue.retention")

FIRST = 60.0  # seconds after the start of a worker
EVERY = 3600.0
DAY = 86400.0
UNSEEN = 3 * EVERY  # a longer time between two looks at the caches does not count as time in which nobody used them
LEFT_OVER = DAY  # seconds after which a folder of a writer is taken for that of a killed one
BRIEF = "arms"  # models that are needed for one comparison only
KINDS = (*CACHES, "labels", "models", "maps", BRIEF)


@dataclass(frozen=True)
class Retention:
    """Removes what the settings say is not kept.

    keep_models  checkpoints of every project besides the active one and that of its latest round; 0: all
    cache_days   days a cached file is kept without being used; 0: for ever
    """

    store: Store
    keep_models: int
    cache_days: int
    stopping: threading.Event

    def run(self) -> None:
        """Soon, and then once an hour, until `stopping`."""
        wait = FIRST
        while not self.stopping.wait(wait):
            wait = EVERY
            try:
                self.tidy()
            except ScanqueueError as error:
                log.warning("not everything was tidied up: %s", error)
            except Exception:
                log.exception("unexpected failure while tidying up; tried again in an hour")

    def tidy(self) -> None:
        """Once. What a worker is at is left for the next time."""
        self.remove_files()  # first: on a full disk it makes the room that records need
        for project in self.store.projects():
            if not self.stopping.is_set():
                self.remove_checkpoints(project)

    # -- checkpoints --------------------------------------------------------------------------

    def remove_checkpoints(self, project: int) -> list[str]:
        """Remove the project's old checkpoints; returns their fingerprints. Their records stay in the curve.

        Nothing is removed that any project keeps: the same scans with the same labels have one checkpoint.
        """
        removed: list[str] = []
        if self._there(self._spare(project)):
            with self.store.lock(project) as mine:
                if not mine:
                    return []
                with self.store.settled():  # so that nobody makes one of them active meanwhile
                    for name in self._spare(project):
                        removed += [name] if self.store.remove_folder("models", name) else []
        spare = self._spare(project)
        there = self._there(spare)
        scores = self.store.forget_uncertainty([name for name in spare if name not in there])
        if removed or scores:
            log.info("project %s: removed %s old checkpoints, and %s scores by them", project, len(removed), scores)
        return removed

    def _there(self, names: list[str]) -> set[str]:
        return {name for name in names if self.store.has("models", name)}

    def _spare(self, project: int) -> list[str]:
        """Fingerprints of the project's models that no project keeps, whether their files are there or not."""
        if not self.keep_models:
            return []
        models, drawing = self.store.checkpoints(), self.store.drawing()
        kept = {
            name
            for owner, rows in models.items()
            for place, (version, name) in enumerate(reversed(rows))
            if place < self.keep_models or version in drawing.get(owner, ())
        }
        return list(dict.fromkeys(name for _, name in models.get(project, ()) if name not in kept))

    # -- files --------------------------------------------------------------------------------

    def remove_files(self, now: float | None = None) -> int:
        """Remove cached files that were not used for so long, and folders of killed writers; returns how many.

        now  seconds since 1970; the clock's when it is not given

        Only time in which workers looked counts. When the last look is long ago, because no worker ran or because
        the clock was set, all files become younger by the time between, so that a wrong clock removes nothing.
        """
        with self.store.cache_slot() as mine:
            if not mine:
                return 0  # another worker is at it
            return self._remove_files(time.time() if now is None else now)

    def _remove_files(self, now: float) -> int:
        mark = self.store.folder / "caches.seen"
        try:
            between = now - mark.stat().st_mtime
        except FileNotFoundError:
            between = float("inf")
            mark.touch()
        skipped = between if between > UNSEEN else 0.0
        limits = {True: LEFT_OVER, False: self.cache_days * DAY + USE_NOTED if self.cache_days else float("inf")}
        removed = 0
        for entry, left_over in self._files():
            with suppress(FileNotFoundError):  # used, or removed, by somebody else just now
                at = entry.stat(follow_symlinks=False).st_mtime
                if skipped or at > now + UNSEEN:
                    at = min(at + skipped, now)
                    os.utime(entry.path, (at, at))
                if now - at <= limits[left_over]:
                    continue
                if left_over:
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)
                removed += 1
            if self.stopping.is_set():
                return removed
        os.utime(mark, (now, now))
        if removed:
            log.info("removed %s cached files that were not used for %s days, or left over", removed, self.cache_days)
        return removed

    def _files(self) -> Iterator[tuple[os.DirEntry[str], bool]]:
        """Every cached file, and (True) every folder in which something is or was written, or that is left of one."""
        for kind in KINDS:
            for folder in _entries(self.store.folder / kind):
                if folder.is_dir(follow_symlinks=False):
                    for entry in _entries(Path(folder.path)):
                        left_over = entry.name.startswith(ASIDE) or kind == BRIEF
                        if left_over or (kind in CACHES and entry.is_file(follow_symlinks=False)):
                            yield entry, left_over


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError), os.scandir(folder) as found:
        yield from found
