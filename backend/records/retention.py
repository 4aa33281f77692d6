"""Removes old checkpoints, unused cached files, and the temporary folders of killed writers.

Records stay, as does everything that cannot be recreated. Any number of workers may do this at once.
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
UNSEEN = 3 * EVERY  # a longer gap between two cleanups does not count as unused time
LEFT_OVER = DAY  # seconds after which a writer's temporary folder counts as a leftover
BRIEF = "arms"  # kind of models needed for one control trial only
KINDS = (*CACHES, "labels", "models", "maps", BRIEF)


@dataclass(frozen=True)
class Retention:
    """Removes files that the settings do not keep.

    keep_models  number of newest checkpoints kept per project, besides the active one and the latest round's; 0: all
    cache_days   days for which an unused cached file is kept; 0: forever
    """

    store: Store
    keep_models: int
    cache_days: int
    stopping: threading.Event

    def run(self) -> None:
        """Clean up soon, then once an hour, until `stopping`."""
        wait = FIRST
        while not self.stopping.wait(wait):
            wait = EVERY
            try:
                self.tidy()
            except ScanqueueError as error:
                log.warning("the cleanup is incomplete: %s", error)
            except Exception:
                log.exception("unexpected failure during the cleanup; will retry in an hour")

    def tidy(self) -> None:
        """Clean up once. Projects that a worker is using are left for the next time."""
        self.remove_files()  # first, because on a full disk this frees space for records
        for project in self.store.projects():
            if not self.stopping.is_set():
                self.remove_checkpoints(project)

    # -- checkpoints --------------------------------------------------------------------------

    def remove_checkpoints(self, project: int) -> list[str]:
        """Remove the project's old checkpoints; returns their fingerprints. Their records stay in the learning curve.

        A checkpoint that any project keeps stays, because equal scans with equal labels share one checkpoint.
        """
        removed: list[str] = []
        if self._there(self._spare(project)):
            with self.store.lock(project) as mine:
                if not mine:
                    return []
                with self.store.settled():  # so that nobody activates one of them in the meantime
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
        """Fingerprints of the project's models that no project keeps, whether their files exist or not."""
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
        """Remove cached files without recent use and folders of killed writers; returns how many.

        now  seconds since 1970; default: the clock

        Only time in which workers ran counts. If the last cleanup is long ago, because no worker ran or because the
        clock was changed, all files become younger by that gap, so that a wrong clock removes nothing.
        """
        with self.store.cache_slot() as mine:
            if not mine:
                return 0  # another worker cleans up
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
            with suppress(FileNotFoundError):  # just used or removed by another process
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
        """(entry, whether it is a writer's temporary folder) of cached files and temporary folders."""
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
