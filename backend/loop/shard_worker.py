"""The work of an idle worker, one without a project to reconcile: shards of other workers' batch work."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from backend.errors import ScanqueueError
from backend.loop.batch import BatchProcessor
from backend.workers.roster import Roster
from backend.workers.shards import Shard, Shards
from backend.workers.watchdog import Stopping, Watchdog

log = logging.getLogger("scanqueue.helper")

IDLE = 1.0  # seconds between checks for open shards


@dataclass
class ShardWorker:
    """Does shards while no thread of this process is working."""

    shards: Shards
    processor: BatchProcessor
    watchdog: Watchdog
    stopping: threading.Event
    roster: Roster
    _others: set[str] = field(default_factory=set)  # requirements that this worker does not meet, each logged once

    def run(self) -> None:
        """Run until `stopping` is set."""
        logged = ""  # a repeated error is logged once
        while not self.stopping.is_set():
            try:
                found = not self.watchdog.working() and self.do_one()
                logged = ""
            except ScanqueueError as error:
                if str(error) != logged:
                    log.warning("cannot check for shards: %s", error)
                found, logged = False, str(error)
            except Exception:
                log.exception("unexpected failure while checking for shards")
                found = False
            if not found:
                self.stopping.wait(IDLE)

    def do_one(self) -> bool:
        """Take and process one shard; False when no shard is available."""
        shard = self.shards.take()
        if shard is None:
            return False
        done = False
        try:
            helping = self.roster.at(f"helping with project {shard.project}")
            with self.watchdog.watched(), self.shards.beating(shard), helping:
                if self._can(shard):
                    self.processor.do(shard.kind, shard.project, shard.requirements, shard.tasks)
                    self.shards.finish(shard)
                    done = True
                    log.info(
                        "project %s: did %r on %s scans for another worker", shard.project, shard.kind, len(shard.tasks)
                    )
        except Stopping:
            log.info("project %s: a shard of %r is left to other workers", shard.project, shard.kind)
        except ScanqueueError as error:
            log.warning("project %s: a shard of %r is left to its driver: %s", shard.project, shard.kind, error)
        finally:
            if not done:
                self.shards.give_back(shard, failed=not self.stopping.is_set())
        return True

    def _can(self, shard: Shard) -> bool:
        if shard.kind != "read" or shard.requirements == (mine := self.processor.reading_requirements()):
            return True
        if shard.requirements not in self._others:
            self._others.add(shard.requirements)
            log.warning(
                "project %s: another worker reads with %r but this one would read with %r, so it does not help. "
                "Give all workers the same weights, device and settings.",
                *(shard.project, shard.requirements, mine),
            )
        return False
