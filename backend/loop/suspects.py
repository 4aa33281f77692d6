"""Scans whose work ends its process: they are found one by one, and left out like unreadable ones.

A process dies with a whole part of its scans. Next time, these come last and one at a time, so that the others are
done first. A scan that was at work each time when a process died, MOST_ATTEMPTS times, becomes a problem.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backend.fingerprints import fingerprint
from backend.loop.attempt_log import AttemptLog
from backend.loop.batch import BatchProcessor
from backend.loop.steps import MOST_ATTEMPTS
from backend.records.attempts import ON_SCANS, PART

log = logging.getLogger("scanqueue.bulk")

AT_ONCE = 16  # tasks of a part
LEAST = 4  # of a part that one of several threads does
WORK = {"read": "read this scan", "score": "scored this scan", "draw": "drew the mask of this scan"}


def parts_of(tasks: Sequence[int], threads: int = 1) -> Iterator[Sequence[int]]:
    """The tasks in parts of AT_ONCE; smaller towards the end, if several threads share them, so that all end together.

    Source: Polychronopoulos & Kuck 1987 (guided self-scheduling).
    """
    start = 0
    while start < len(tasks):
        fair = (len(tasks) - start) // (2 * threads) if threads > 1 else AT_ONCE
        size = min(AT_ONCE, max(LEAST, fair))
        yield tasks[start : start + size]
        start += size


@dataclass
class Suspects:
    """The attempts at batch work of a kind on the scans of a project.

    kind  "read", "score" or "draw"
    """

    processor: BatchProcessor
    attempts: AttemptLog
    project: int
    kind: str

    def parts(self, tasks: Sequence[int], threads: int) -> tuple[list[Sequence[int]], list[Sequence[int]], int]:
        """These tasks in parts; the suspects, to be done after them, alone; how many became problems instead."""
        store, project, now = self.processor.store, self.project, self._inputs()
        begun = store.attempts(project)
        left = [key for (work, key), (times, _) in begun.items() if work == self.kind + PART and times]
        if left:
            store.suspect(project, self.kind, left)
        suspects: set[int] = set()
        guilty: dict[int, str] = {}
        for (work, key), (times, _) in (store.attempts(project) if left else begun).items():
            task, _, inputs = key.partition(":")
            if work not in ON_SCANS or not times or inputs != now:
                continue
            if times >= MOST_ATTEMPTS:
                guilty[int(task)] = work
            elif work == self.kind:
                suspects.add(int(task))
        rows = [{"task": task, "problem": _problem(guilty[task])} for task in tasks if task in guilty]
        if rows:
            log.warning("project %s: left out, as their work ended the process: %s", project, [r["task"] for r in rows])
            store.set_scans(project, rows)
        calm = [task for task in tasks if task not in suspects and task not in guilty]
        alone: list[Sequence[int]] = [[task] for task in tasks if task in suspects and task not in guilty]
        return list(parts_of(calm, threads)), alone, len(rows)

    def do(self, requirements: str, tasks: Sequence[int]) -> None:
        """Do a part as an attempt at its scans."""
        keys = self._keys(tasks)
        alone = len(tasks) == 1
        work = self.kind if alone else self.kind + PART
        with self.attempts.attempt(self.project, work, *keys, alone=alone):
            self.processor.do(self.kind, self.project, requirements, tasks)

    def lost(self, tasks: Sequence[int]) -> None:
        """Workers of a cluster died, one after the other, doing this part; it was the only one if it is of one task."""
        self.processor.store.suspect(
            self.project, self.kind, self._keys(tasks), times=MOST_ATTEMPTS if len(tasks) == 1 else 1
        )

    def done(self, tasks: Sequence[int]) -> None:
        """A cluster has done this part."""
        if len(tasks) == 1:
            self.processor.store.end_attempts(self.project, self.kind, self._keys(tasks)[0])

    def _keys(self, tasks: Sequence[int]) -> list[str]:
        inputs = self._inputs()
        return [f"{task}:{inputs}" for task in tasks]

    def _inputs(self) -> str:
        """With others, the same scans are tried again."""
        return fingerprint(self.processor.reading_requirements())[:8]


def _problem(work: str) -> str:
    return (
        f"the worker ended {MOST_ATTEMPTS} times while it {WORK[work]}, so the scan is left out. Most likely its "
        "memory ran out: give the worker more memory, or export the image smaller and upload it again; then choose "
        '"Try again". The log of the worker says more.'
    )
