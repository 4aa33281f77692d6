"""Which slices of a project already have a task, and how to add tasks without duplicates.

Label Studio does not detect duplicate tasks and cannot create one "if missing". So an import lists all tasks at the
start; checks before each batch that their number is still the known one; and lists new tasks after a request that
failed or was not answered. This also covers requests of an earlier import that was killed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backend.errors import StudioUnavailable
from backend.label_studio.studio import Studio

log = logging.getLogger("scanqueue.intake")

PATIENCE = 600.0  # seconds to wait for a Label Studio that does not answer
SETTLED = 3  # consecutive equal task counts after which no request of ours is still running
PAUSE = 1.0  # seconds between them
MAX_SLICES = 100_000  # per scan; larger slice numbers in task data are ignored

Key = tuple[str, str, int]  # scan, axis, slice


class ExistingTasks:
    """Which (scan, axis, slice) have a task in a project."""

    def __init__(self, studio: Studio, project: int, *, patience: float = PATIENCE) -> None:
        self._studio = studio
        self._project = project
        self._patience = patience
        self._existing: dict[tuple[str, str], int] = {}  # one bit per slice
        self._added: dict[tuple[str, str], int] = {}  # slices added by this run
        self._windows: dict[tuple[str, str], tuple[float, float]] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._mine: list[range] = []  # ids of tasks created since the last refresh
        self._last = 0  # the highest id at the last refresh
        self._tasks = -1
        self.doubles = 0  # tasks for slices that already have another task; they are kept

    # -- existing tasks ---------------------------------------------------------------------

    def refresh(self) -> None:
        """List tasks not known yet. If a slice that we have just added gets a second task, delete the second."""
        self._tasks = self._studio.task_count(self._project)
        last, superfluous = self._last, []
        for task, data, touched in self._studio.task_data(self._project, after=self._last):
            last = max(last, task)
            key = key_of(data)
            if key is None or any(task in numbers for numbers in self._mine):
                continue
            place, bit = key[:2], 1 << key[2]
            if self._existing.get(place, 0) & bit:
                if self._added.get(place, 0) & bit and not touched:
                    superfluous.append(task)
                else:
                    self.doubles += 1
                continue
            self._existing[place] = self._existing.get(place, 0) | bit
            self._counts.setdefault(place, int(data["slices"]) if _is_whole(data.get("slices")) else 0)
            window = data.get("window")
            if isinstance(window, list) and len(window) == 2 and all(isinstance(v, int | float) for v in window):
                self._windows.setdefault(place, (float(window[0]), float(window[1])))
        self._last, self._mine = last, []
        for task in superfluous:
            self._studio.delete_task(task)
            self._tasks -= 1

    def refresh_if_changed(self) -> None:
        """Refresh if the number of tasks differs from the known one."""
        if self._studio.task_count(self._project) != self._tasks:
            self.refresh()

    def scans(self) -> Iterator[str]:
        """Every scan with a task."""
        yield from dict.fromkeys(scan for scan, _ in self._existing)

    def has(self, scan: str, axis: str, number: int) -> bool:
        return bool(self._existing.get((scan, axis), 0) >> number & 1)

    def numbers(self, scan: str, axis: str) -> frozenset[int]:
        """The slices of a scan along an axis with a task."""
        bits = self._existing.get((scan, axis), 0)
        return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)

    def window(self, scan: str, axis: str) -> tuple[float, float] | None:
        """Their window (center, width); None if unknown."""
        return self._windows.get((scan, axis))

    def slices(self, scan: str, axis: str) -> int:
        """Their total number according to the task data; 0 if unknown."""
        return self._counts.get((scan, axis), 0)

    # -- adding -----------------------------------------------------------------------------

    def add(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Create the missing tasks; returns how many. Each row of task data has a scan, an axis and a slice.

        Raises StudioUnavailable if Label Studio does not answer; the next import finds the tasks that were created.
        """
        wanted = {key: row for row in rows if (key := key_of(row)) is not None}
        made, until = 0, time.monotonic() + self._patience
        self.refresh_if_changed()
        while True:
            missing = {key: row for key, row in wanted.items() if not self.has(*key)}
            if not missing:
                return made
            try:
                numbers = self._studio.add_tasks(self._project, list(missing.values()))
            except StudioUnavailable as error:
                if time.monotonic() > until:
                    raise
                log.warning("Label Studio did not confirm new tasks; checking which of them it has")
                self._settle(until, error)
                self.refresh()
                made += sum(self.has(*key) for key in missing)
                continue
            for scan, axis, number in missing:
                self._existing[scan, axis] = self._existing.get((scan, axis), 0) | 1 << number
                self._added[scan, axis] = self._added.get((scan, axis), 0) | 1 << number
            self._mine += _ranges(numbers)
            self._tasks += len(numbers)
            return made + len(numbers)

    def _settle(self, until: float, error: StudioUnavailable) -> None:
        """Wait until Label Studio answers and creates no more tasks."""
        same, before = 0, -1
        while same < SETTLED:
            time.sleep(PAUSE)
            try:
                now = self._studio.task_count(self._project)
            except StudioUnavailable as silent:
                if time.monotonic() > until:
                    raise silent from error
                same = 0
                continue
            same, before = (same + 1 if now == before else 0), now


def key_of(data: Mapping[str, Any]) -> Key | None:
    """Scan, axis and slice of a task that an import created; None for any other task."""
    scan, axis, number = data.get("scan"), data.get("axis"), data.get("slice")
    if isinstance(scan, str) and isinstance(axis, str) and _is_whole(number) and 0 <= int(number or 0) < MAX_SLICES:
        return scan, axis, int(number or 0)
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ranges(numbers: Sequence[int]) -> list[range]:
    """The numbers as few ranges; those of one request are consecutive."""
    found: list[range] = []
    for number in sorted(numbers):
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found
