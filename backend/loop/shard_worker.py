"""What a worker does while it has no look to take: shards of other workers' bulk work."""

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

IDLE = 1.0  # seconds between looks for open shards


@dataclass
class ShardWorker:
    """Takes shards whenever no thread of this process is at work."""

    shards: Shards
    processor: BatchProcessor
    watchdog: Watchdog
    stopping: threading.Event
    roster: Roster
    _others: set[str] = field(default_factory=set)  # needs that this worker cannot meet; said once each

    def run(self) -> None:
        """Until `stopping`."""
        said = ""  # once, not every second
        while not self.stopping.is_set():
            try:
                found = not self.watchdog.working() and self.help()
                said = ""
            except ScanqueueError as error:
                if str(error) != said:
                    log.warning("while looking for shards: %s", error)
                found, said = False, str(error)
            except Exception:
                log.exception("unexpected failure while looking for shards")
                found = False
            if not found:
                self.stopping.wait(IDLE)

    def help(self) -> bool:
        """Take one shard and do it; False when there is none."""
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
                    log.info("project %s: did %r of %s scans for another", shard.project, shard.kind, len(shard.tasks))
        except Stopping:
            log.info("project %s: a part of %r is left to others", shard.project, shard.kind)
        except ScanqueueError as error:
            log.warning("project %s: a part of %r is left to its driver: %s", shard.project, shard.kind, error)
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
                "project %s: another worker reads with %r and this one would with %r, so this one does not help. "
                "Give all workers the same weights, device and settings.",
                *(shard.project, shard.requirements, mine),
            )
        return False
