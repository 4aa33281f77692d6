"""Shared by all parts of the loop: clients, records, locks, progress reports and the exceptions that end a step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backend.errors import ProjectGone, StorageFull, StoreUnavailable
from backend.facts import Model
from backend.label_studio.studio import Studio
from backend.learning.learner import Learner
from backend.loop.attempt_log import AttemptLog
from backend.loop.batch import BatchProcessor
from backend.records.locks import LockHandle
from backend.records.store import Store
from backend.settings import Settings
from backend.workers.cluster import Cluster
from backend.workers.watchdog import GaveWay, Stopping, Watchdog

log = logging.getLogger("scanqueue.reconcile")

LOG_EVERY = 15.0  # seconds between progress lines in the log
SLICE = 5.0  # seconds that a project may work while others wait for a thread
REPORT_PAUSE = 30.0  # seconds without progress reports after one failed


class Busy(Exception):
    """Another process is working on this project, or others train or lay out their maps. Retry in a few seconds."""


class Replan(Exception):
    """The facts behind the planned step have changed; observe and plan again."""


class Postponed(Exception):
    """Another project is being trained, and nobody waits for this training. A later pass does it."""


def cluster_of(settings: Settings) -> Cluster | None:
    """The cluster of these settings; None without one."""
    return Cluster(settings.dask_scheduler) if settings.dask_scheduler else None


@dataclass
class LoopContext:
    """The clients and records of one process.

    stopping  checked between and during steps
    news      whether a project was requested again since its step began or since the last call
    crowded   whether other projects wait for a thread
    began     when each project that is worked on got its thread
    models    what was read of models lately, by project, version and time of creation
    """

    studio: Studio
    store: Store
    learner: Learner
    settings: Settings
    stopping: Callable[[], bool] = lambda: False
    watchdog: Watchdog = field(default_factory=Watchdog)
    news: Callable[[int], bool] = lambda _: False
    crowded: Callable[[], bool] = lambda: False
    began: dict[int, float] = field(default_factory=dict)
    locks: dict[int, LockHandle] = field(default_factory=dict)
    models: Mapping[tuple[int, str, float], Model] = field(default_factory=dict)
    _logged: float = 0.0
    _silent_until: float = 0.0

    def __post_init__(self) -> None:
        self.cluster = cluster_of(self.settings)
        self.processor = BatchProcessor(self.studio, self.store, self.learner, self.alive, self.cluster)
        self.attempts = AttemptLog(self.store, (Busy, Replan, Postponed, GaveWay, Stopping))

    def row(self, project: int) -> Any:
        """The project's record. Raises ProjectGone."""
        row = self.store.project(project)
        if row is None:
            raise ProjectGone(f"project {project} is not known here; connect it in Label Studio first.")
        return row

    def model(self, project: int, version: str) -> dict[str, Any] | None:
        """The record of a model; None for "" and for an unknown version."""
        return self.store.model(project, version) if version else None

    def model_summary(self, project: int, version: str) -> dict[str, Any] | None:
        """The same without what grows with the number of labels."""
        return self.store.model_summary(project, version) if version else None

    def alive(self) -> None:
        """Called whenever work makes progress. Raises Stopping when the process is asked to end."""
        self.watchdog.beat()
        if self.stopping():
            raise Stopping

    def check(self, project: int) -> None:
        """Like `alive`; raises Busy when another process has taken the project's lock."""
        self.alive()
        lock = self.locks.get(project)
        if lock is not None and lock.lost():
            raise Busy

    def give_way(self, project: int) -> None:
        """Called where the work of a project can be interrupted at no cost. Raises GaveWay when others wait and the
        project has had its slice of time."""
        if time.monotonic() - self.began.get(project, time.monotonic()) >= SLICE and self.crowded():
            raise GaveWay

    def report(self, project: int, step: str, done: int, total: int, spent: float | None = None) -> None:
        """Report the progress of a step: to the status at every call, to the log occasionally.

        A failed write does not end the step, which may last longer than the outage.
        """
        self.watchdog.beat()
        if time.monotonic() < self._silent_until:
            return
        try:
            self.store.report(project, step, done, total, spent)
        except (StoreUnavailable, StorageFull) as error:
            log.warning("project %s: the progress of %r cannot be recorded: %s", project, step, error)
            self._silent_until = time.monotonic() + REPORT_PAUSE
            return
        if time.monotonic() - self._logged < LOG_EVERY or not 0 < done < total:
            return
        self._logged = time.monotonic()
        progress = self.store.progress(project)
        if progress and progress["seconds_left"] is not None:
            left = progress["seconds_left"]
            log.info("project %s: %s, %s of %s, %.0f s left", project, step, done, total, left)
