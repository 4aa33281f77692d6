"""Task changes in Label Studio, found without listing every task on every pass.

A cursor on `updated_at` finds most changes. It fails when Label Studio's clock is set back, so the counts on the
project page are compared with the recorded ones, and all tasks are listed occasionally.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from backend.image_value import reference
from backend.label_config import LabelConfig
from backend.label_studio.listing import ProjectPage, TaskRow
from backend.loop.context import LoopContext
from backend.loop.task_data import TASK_DATA_VERSION, TaskData, read_task_data, storable

OVERLAP = timedelta(seconds=10)  # transactions in Label Studio may become visible out of order
QUIET = 60.0  # seconds after which nothing older than the cursor is expected
FULL_EVERY = 900.0  # seconds between full listings, as a cursor is only as reliable as Label Studio's clock
FULL_AGAIN = 30.0  # minimum seconds between full listings when the counts differ
STRATUM_LENGTH = 200  # maximum number of characters of a stratum
DATA_FIELDS = tuple(f.name for f in fields(TaskData))
LISTED_FIELDS = ("updated_at", "annotated", "skipped", "image", "stratum", *DATA_FIELDS)  # recorded from a listing

Uncounted = tuple[int, int]  # annotations and skips that Label Studio counts but the recorded tasks lack
Recorded = Mapping[int, tuple[Any, ...]]  # task: its LISTED_FIELDS


@dataclass(frozen=True)
class Cursor:
    """The newest `updated_at` seen, when it was first seen (monotonic seconds), and whether QUIET has passed since."""

    newest: str = ""
    first_seen: float = 0.0
    settled: bool = False


@dataclass(frozen=True)
class FullListing:
    """The counts that the last full listing could not explain, and its time (monotonic seconds)."""

    uncounted: Uncounted = (0, 0)
    at: float = float("-inf")


class TaskListing:
    """Keeps the recorded tasks of each project up to date."""

    def __init__(self, context: LoopContext) -> None:
        self._context = context
        self._cursors: dict[int, Cursor] = {}
        self._full: dict[int, FullListing] = {}

    def update(self, project: int, row: Any, page: ProjectPage, value: str, stratify_by: str) -> None:
        """Record all task changes since the last call.

        value        of the Image tag, see `image_value`; "": none is known
        stratify_by  the data key of the strata; "": none
        """
        studio, store = self._context.studio, self._context.store
        began = time.monotonic()
        full = self._full.get(project, FullListing())
        since = self._since(project, row, value, stratify_by) if began - full.at <= FULL_EVERY else ""
        rows = studio.tasks(project, since)
        recorded = self._recorded(project, rows)
        new = sum(1 for r in rows if r.task not in recorded)
        totals = store.totals(project)
        if totals[0] + new != page.tasks:
            known = {task for (task,) in store.columns(project, "task")}
            present = studio.task_ids(project)
            if not known <= present:
                present |= studio.task_ids(project)  # only what two listings lack is forgotten, with its priority
            store.keep_tasks(project, present)
            recorded = {task: values for task, values in recorded.items() if task in present}
            if not present <= known | {r.task for r in rows}:
                rows, since = studio.tasks(project), ""
                recorded = self._recorded(project, rows)
            totals = store.totals(project)
        changed = _changed(rows, recorded, project, value, stratify_by)
        uncounted = _uncounted(page, totals, recorded, changed)
        if since and uncounted != full.uncounted:
            page = studio.project(project)  # annotators may have submitted between the two requests
            uncounted = _uncounted(page, totals, recorded, changed)
        if since and uncounted != full.uncounted and began - full.at > FULL_AGAIN:
            # The cursor misses a change: Label Studio's clock was set back.
            rows, since = studio.tasks(project), ""
            recorded = self._recorded(project, rows)
            changed = _changed(rows, recorded, project, value, stratify_by)
            uncounted = _uncounted(page, totals, recorded, changed)
        self._full[project] = full if since else FullListing(uncounted, began)
        cursor = max((r.updated_at for r in rows), default="", key=lambda text: _moment(text) if text else text)
        cursor = max(cursor, row["cursor"] if since else "")
        if changed or (cursor and cursor != row["cursor"]):
            store.put_tasks(project, changed, cursor)
        if row["stratify_by"] != stratify_by or row["task_data_version"] != TASK_DATA_VERSION:
            store.set_project(project, stratify_by=stratify_by, task_data_version=TASK_DATA_VERSION)
        self._settle(project, cursor, began)

    def _recorded(self, project: int, rows: Sequence[TaskRow]) -> Recorded:
        return self._context.store.recorded(project, [r.task for r in rows], LISTED_FIELDS)

    def _since(self, project: int, row: Any, value: str, stratify_by: str) -> str:
        """The time to list from; "" when all tasks must be listed, because different data is read from them now."""
        same = recorded_value(row) == value and row["stratify_by"] == stratify_by
        if not same or row["task_data_version"] != TASK_DATA_VERSION:
            return ""
        since: str = row["cursor"]
        cursor = self._cursors.get(project, Cursor())
        if since and not (cursor.settled and since == cursor.newest):
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


def recorded_value(row: Any) -> str:
    """The value of the Image tag that the recorded tasks match; "" if there was none."""
    before = LabelConfig.from_json(row["config"])
    return before.image_value if before else ""


def _uncounted(
    page: ProjectPage, totals: tuple[int, int, int], recorded: Recorded, changed: Sequence[Mapping[str, Any]]
) -> Uncounted:
    """The difference between the counts. It stays the same as long as no annotation is missed, regardless of clocks.

    totals  numbers of recorded tasks, annotations and skips, without the changes
    """
    _, annotations, skips = totals
    for row in changed:
        _, annotated, skipped, *_ = recorded.get(row["task"], ("", 0, 0))
        annotations += row["annotated"] - annotated
        skips += row["skipped"] - skipped
    return page.annotations - annotations, page.skips - skips


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


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
