"""What Label Studio holds of a project's slices, and how tasks are added to it so that none is there twice.

Label Studio keeps no two tasks apart and cannot be asked to make one "if it is not there". So it is asked for all it
holds at the start; before each batch, whether the number of its tasks is still the one we know; and after a request
that failed or was not answered, what came of it. What an earlier, killed import had on its way is met in the same way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backend.errors import StudioUnavailable
from backend.label_studio.studio import Studio

log = logging.getLogger("scanqueue.intake")

PATIENCE = 600.0  # seconds that a silent Label Studio is waited for
SETTLED = 3  # looks, a second apart, with the same number of tasks: nothing of ours is on its way any more
PAUSE = 1.0
MOST_SLICES = 100_000  # of one scan that are believed

Key = tuple[str, str, int]  # scan, axis, slice


class ExistingTasks:
    """Which (scan, axis, slice) have a task in a project."""

    def __init__(self, studio: Studio, project: int, *, patience: float = PATIENCE) -> None:
        self._studio = studio
        self._project = project
        self._patience = patience
        self._existing: dict[tuple[str, str], int] = {}  # a bit for each slice
        self._added: dict[tuple[str, str], int] = {}  # those of this run
        self._windows: dict[tuple[str, str], tuple[float, float]] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._mine: list[range] = []  # numbers of tasks made since the last look
        self._last = 0  # the highest number that the last look saw
        self._tasks = -1
        self.doubles = 0  # tasks found that show a slice which another one shows, and that were left

    # -- what is there ----------------------------------------------------------------------

    def refresh(self) -> None:
        """Ask for the tasks that are not known yet. Of a slice that we have just added, a second one is removed."""
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
        """Look, unless the number of tasks is the one we know."""
        if self._studio.task_count(self._project) != self._tasks:
            self.refresh()

    def scans(self) -> Iterator[str]:
        """Every scan that has a task."""
        yield from dict.fromkeys(scan for scan, _ in self._existing)

    def has(self, scan: str, axis: str, number: int) -> bool:
        return bool(self._existing.get((scan, axis), 0) >> number & 1)

    def numbers(self, scan: str, axis: str) -> frozenset[int]:
        """The slices of a scan along an axis that have a task."""
        bits = self._existing.get((scan, axis), 0)
        return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)

    def window(self, scan: str, axis: str) -> tuple[float, float] | None:
        """What they are shown with."""
        return self._windows.get((scan, axis))

    def slices(self, scan: str, axis: str) -> int:
        """How many there are in all, as their tasks say; 0 when they do not."""
        return self._counts.get((scan, axis), 0)

    # -- adding -----------------------------------------------------------------------------

    def add(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Make the tasks that are not there; how many were made. Each of `rows` has a scan, an axis and a slice.

        Raises StudioUnavailable when Label Studio stays silent: what it got is found when the import is run again.
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
                log.warning("new tasks were not confirmed; Label Studio is asked which of them it has")
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
        """Wait until Label Studio answers and makes no more tasks."""
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
    """Scan, axis and slice of a task that an import made; None for any other."""
    scan, axis, number = data.get("scan"), data.get("axis"), data.get("slice")
    if isinstance(scan, str) and isinstance(axis, str) and _is_whole(number) and 0 <= int(number or 0) < MOST_SLICES:
        return scan, axis, int(number or 0)
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ranges(numbers: Sequence[int]) -> list[range]:
    """The numbers as few ranges; those of one request follow each other."""
    found: list[range] = []
    for number in sorted(numbers):
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found
