"""Task changes in Label Studio, found without listing every task on every pass.

A cursor on `updated_at` finds most changes. It fails when Label Studio's clock is set back, so the counts on the
project page are compared with the recorded ones, and all tasks are listed occasionally: at once in a small project, in
parts in a large one, so that nobody waits. A large project that is new begins with a random part of its tasks.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from backend.image_value import reference
from backend.label_config import LabelConfig
from backend.label_studio.listing import PAGE, ProjectPage, TaskRow
from backend.label_studio.studio import Studio
from backend.loop.context import LoopContext
from backend.loop.publication import SMALL_POOL, WINDOW
from backend.loop.task_data import TASK_DATA_VERSION, TaskData, read_task_data, storable

OVERLAP = timedelta(seconds=10)  # transactions in Label Studio may become visible out of order
QUIET = 60.0  # seconds after which nothing older than the cursor is expected
LARGE = 5000  # tasks; more are listed in parts
PAGES = 4  # of such a part
FULL_EVERY = 900.0  # seconds between full listings, as a cursor is only as reliable as Label Studio's clock
FULL_SHARE = 20  # and at least so many times as long as one takes
FULL_AGAIN = 30.0  # minimum seconds between full listings when the counts differ
AGAIN_SHARE = 2  # and at least so many times as long as one takes
PLACES = 32  # of a new large project, whose tasks are listed first
STRATUM_LENGTH = 200  # maximum number of characters of a stratum
DATA_FIELDS = tuple(f.name for f in fields(TaskData))
LISTED_FIELDS = ("updated_at", "annotated", "skipped", "image", "stratum", *DATA_FIELDS)  # recorded from a listing

Left = tuple[int, int, int]  # tasks, annotations and skips that Label Studio counts but the records lack
Recorded = Mapping[int, tuple[Any, ...]]  # task: its LISTED_FIELDS


@dataclass(frozen=True)
class Cursor:
    """The newest `updated_at` seen, when it was first seen (monotonic seconds), and whether QUIET has passed since."""

    newest: str = ""
    first_seen: float = 0.0
    settled: bool = False


@dataclass(frozen=True)
class FullListing:
    """The last full listing.

    left     the counts that it could not explain, nor the one before it
    at       when it ended (monotonic)
    seconds  that it took
    found    the counts that it could not explain; it may have missed what changed meanwhile
    """

    left: Left = (0, 0, 0)
    at: float = float("-inf")
    seconds: float = 0.0
    found: Left = (0, 0, 0)


@dataclass
class Sweep:
    """A full listing under way, by task id.

    after    the id up to which all tasks are listed
    newest   the newest `updated_at` seen since it began
    done     number of tasks listed
    seconds  that it took so far
    again    too much changed meanwhile to know what, so another one must follow
    """

    after: int = 0
    newest: str = ""
    done: int = 0
    seconds: float = 0.0
    again: bool = False


@dataclass(frozen=True)
class Progress:
    """How much of a project is recorded.

    unlisted  number of tasks that are not recorded yet, as far as the listing under way may find them
    labels    likewise, of annotations
    after     the id up to which that listing has come; None: none is under way
    """

    unlisted: int = 0
    labels: int = 0
    after: int | None = None


class TaskListing:
    """Keeps the recorded tasks of each project up to date."""

    def __init__(self, context: LoopContext) -> None:
        self._context = context
        self._cursors: dict[int, Cursor] = {}
        self._full: dict[int, FullListing] = {}
        self._sweeps: dict[int, Sweep] = {}

    def update(
        self, project: int, row: Any, page: ProjectPage, value: str, stratify_by: str, *, first: int | None
    ) -> Progress:
        """Record all task changes since the last call.

        value        of the Image tag, see `image_value`; "": none is known
        stratify_by  the data key of the strata; "": none
        first        the least number of tasks that a new large project begins with; None: all are listed at once
        """
        store, began = self._context.store, time.monotonic()
        under_way = project in self._sweeps
        read = recorded_value(row), row["stratify_by"], row["task_data_version"]
        same = read == (value, stratify_by, TASK_DATA_VERSION)
        in_parts = first is not None and page.tasks > max(LARGE, 4 * first)
        if first is not None and in_parts and not row["cursor"] and not store.any_scan(project):
            cursor = self._begin(project, value, stratify_by, first)
        elif same and row["cursor"]:
            cursor = self._changes(project, row, value, stratify_by, page.tasks + LARGE, in_parts)
        else:  # different data is read from all tasks now
            cursor, in_parts = "", False
            self._sweeps[project] = Sweep(newest=self._context.studio.newest_change(project))
        full = self._full.get(project, FullListing())
        left = self._left(project, page)
        if left != full.left and project not in self._sweeps:
            page = self._context.studio.project(project)  # annotators may have submitted between the requests
            left = self._left(project, page)
        if _due(left, full, began - full.at, in_parts):
            self._sweeps.setdefault(project, Sweep())
        if in_parts:
            if left[0] < full.left[0] or under_way < (project in self._sweeps):
                self._forget_first(project)
        elif project in self._sweeps:
            while project in self._sweeps:
                self._context.check(project)
                self._advance(project, value, stratify_by, page.tasks)
            cursor = self._context.row(project)["cursor"]
            if not same:
                store.set_project(project, stratify_by=stratify_by, task_data_version=TASK_DATA_VERSION)
        self._settle(project, cursor, began)
        sweep = self._sweeps.get(project)
        if sweep is None:
            return Progress()
        unlisted, labels, _ = (max(0, one - before) for one, before in zip(left, full.left, strict=True))
        return Progress(unlisted, labels, sweep.after)

    def advance(self, project: int) -> None:
        """Go on with the full listing that is under way, if any, for a few seconds."""
        row = self._context.row(project)
        tasks = self._context.studio.task_count(project)
        for _ in range(PAGES):
            if project in self._sweeps:
                self._context.check(project)
                self._advance(project, recorded_value(row), row["stratify_by"], tasks)

    def _begin(self, project: int, value: str, stratify_by: str, first: int) -> str:
        """Record a random part of a new large project, and begin to list all of it. Returns the new cursor."""
        studio, store = self._context.studio, self._context.store
        self._sweeps[project] = Sweep()
        newest = studio.newest_change(project)
        rows = random_part(studio, project, studio.task_count(project), max(2 * SMALL_POOL, 2 * first))
        store.set_project(project, stratify_by=stratify_by, task_data_version=TASK_DATA_VERSION)
        store.put_tasks(project, _changed(rows, {}, project, value, stratify_by), newest)
        return newest

    def _changes(self, project: int, row: Any, value: str, stratify_by: str, most: int, in_parts: bool) -> str:
        """Record what changed since the cursor, or begin to list everything if that is too much. Returns the cursor."""
        studio, store = self._context.studio, self._context.store
        rows = studio.changed_tasks(project, self._since(project, row), LARGE if in_parts else most)
        if rows is None:
            cursor = studio.newest_change(project)
            sweep = self._sweeps.setdefault(project, Sweep())
            sweep.again = sweep.again or (sweep.after > 0 and cursor != row["cursor"])
            rows = []
        else:
            cursor = _newest([row["cursor"], *(r.updated_at for r in rows)])
        if project in self._sweeps:
            sweep = self._sweeps[project]
            sweep.newest = _newest([sweep.newest, cursor])
        recorded = self._recorded(project, rows)
        if in_parts and (project in self._sweeps or project not in self._full):
            listed = self._sweeps[project].after if project in self._sweeps else 0
            rows = [r for r in rows if r.task in recorded or r.task <= listed]  # the listing finds the others
        changed = _changed(rows, recorded, project, value, stratify_by)
        if changed or cursor != row["cursor"]:
            store.put_tasks(project, changed, cursor)
        return cursor

    def _advance(self, project: int, value: str, stratify_by: str, total: int) -> None:
        """List the next page of all `total` tasks; at the end, the listing is no longer under way."""
        studio, store = self._context.studio, self._context.store
        sweep, began = self._sweeps[project], time.monotonic()
        rows, more = studio.tasks_after(project, sweep.after, PAGE)
        last = rows[-1].task if more else None
        there = {r.task for r in rows}
        known = store.tasks_between(project, sweep.after, last)
        if missing := sorted(known - there):
            there |= studio.present(project, missing)  # only what two listings lack is forgotten, with its priority
            store.forget_tasks(project, sorted(known - there))
        changed = _changed(rows, self._recorded(project, rows), project, value, stratify_by)
        if changed or (last is None and sweep.newest):
            store.put_tasks(project, changed, sweep.newest if last is None else "")
        sweep.seconds += time.monotonic() - began
        if last is not None:
            sweep.after, sweep.done = last, sweep.done + len(rows)
            self._context.report(project, "listing tasks", sweep.done, max(total, sweep.done), sweep.seconds)
            return
        found, before = self._left(project, studio.project(project)), self._full.get(project, FullListing())
        left = found if found == before.found and not sweep.again else before.left
        at = float("-inf") if sweep.again else time.monotonic()
        self._full[project] = FullListing(left, at, sweep.seconds, found)
        del self._sweeps[project]

    def forget_deleted(self, project: int, tasks: Sequence[int]) -> bool:
        """Forget those of `tasks` that no longer exist. Returns whether any was recorded."""
        store = self._context.store
        gone = sorted(set(tasks) - self._context.studio.present(project, tasks))
        recorded = store.recorded(project, gone, LISTED_FIELDS)
        store.forget_tasks(project, gone)
        return bool(recorded)

    def _forget_first(self, project: int) -> None:
        """Forget deleted tasks at the beginning of the order; the others are found when all are listed."""
        latest = self._context.store.latest_round(project)
        if latest is not None:
            self.forget_deleted(project, [*latest["picks"].tasks[: latest["reach"] + WINDOW], *latest["carried"]])

    def _left(self, project: int, page: ProjectPage) -> Left:
        """The differences of the counts. They stay the same as long as no change is missed, regardless of clocks."""
        tasks, annotations, skips = self._context.store.totals(project)
        return page.tasks - tasks, page.annotations - annotations, page.skips - skips

    def _recorded(self, project: int, rows: Sequence[TaskRow]) -> Recorded:
        return self._context.store.recorded(project, [r.task for r in rows], LISTED_FIELDS)

    def _since(self, project: int, row: Any) -> str:
        """The time to list from."""
        since: str = row["cursor"]
        cursor = self._cursors.get(project, Cursor())
        if not (cursor.settled and since == cursor.newest):
            return (_moment(since) - OVERLAP).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return since

    def _settle(self, project: int, newest: str, now: float) -> None:
        """Drop the overlap once nothing older is expected.

        Otherwise, 5,000 scans imported at once would be listed on every pass until one is labelled.
        """
        cursor = self._cursors.get(project, Cursor())
        if newest != cursor.newest:
            self._cursors[project] = Cursor(newest, now)
        elif now - cursor.first_seen > QUIET:
            self._cursors[project] = Cursor(newest, cursor.first_seen, settled=True)


def _due(left: Left, full: FullListing, ago: float, in_parts: bool) -> bool:
    """Whether all tasks must be listed: it is time, or the cursor has missed a change.

    left  as it is now
    ago   seconds since the last full listing
    """
    if ago > max(FULL_EVERY, FULL_SHARE * full.seconds):
        return True
    if left[0] != full.left[0] and not in_parts:
        return True
    return left != full.left and ago > max(FULL_AGAIN, AGAIN_SHARE * full.seconds)


def random_part(studio: Studio, project: int, total: int, least: int) -> list[TaskRow]:
    """At least so many of a project's `total` tasks, in small groups from random places; the same at every call."""
    size = -(-least // PLACES)
    pages = random.Random(project).sample(range(1, total // size + 1), min(PLACES, total // size))
    return [row for page in pages for row in studio.tasks_on_page(project, page, size)]


def recorded_value(row: Any) -> str:
    """The value of the Image tag that the recorded tasks match; "" if there was none."""
    before = LabelConfig.from_json(row["config"])
    return before.image_value if before else ""


def _changed(
    rows: Sequence[TaskRow], recorded: Recorded, project: int, value: str, stratify_by: str
) -> list[dict[str, Any]]:
    """The listed tasks that differ from the recorded ones, as `Store.put_tasks` expects them."""
    changed = []
    for r in rows:
        image = reference(value, r.data, project, r.task) if value else ""
        group = r.data.get(stratify_by) if stratify_by else None
        stratum = "" if group is None else storable(str(group), STRATUM_LENGTH)
        counts = {"updated_at": r.updated_at, "annotated": r.annotated, "skipped": r.skipped}
        listed = counts | {"image": image, "stratum": stratum} | vars(read_task_data(r.data))
        if recorded.get(r.task) != tuple(listed[name] for name in LISTED_FIELDS):
            changed.append({"task": r.task, **listed})
    return changed


def _newest(times: Iterable[str]) -> str:
    """The latest of some `updated_at`; "" is earlier than all."""
    return max(times, default="", key=lambda text: (_moment(text).timestamp() if text else 0.0, text))


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
