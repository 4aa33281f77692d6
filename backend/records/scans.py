"""Scans: facts from the task listing and from their pixels."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select, update

from backend.facts import Scan, Stage
from backend.records.attempts import forgotten_scans
from backend.records.database import VARIABLES, Row
from backend.records.labels import forgotten
from backend.records.stages import StageRecords, random_place
from backend.records.tables import label_table, project_table, scan_table

PROBLEM_RETRY = 600.0  # seconds until an unreadable scan is tried again
PRIORITY_NEXT, PRIORITY_EXCLUDED = 1, -1  # priorities of a scan: label next, exclude from the order
FACTS: tuple[str, ...] = ("task", "image", "digest", "annotated", "skipped", "problem", "stratum", "priority", "volume")
FACTS += ("slice", "patient", "row_mm", "column_mm", "blank", "stage", "draw")


def scan_of(row: Row) -> Scan:
    """The recorded facts of a scan, from the columns FACTS."""
    spacing = (row["row_mm"], row["column_mm"])
    return Scan(
        task=row["task"],
        image=row["image"],
        digest=row["digest"],
        annotated=bool(row["annotated"]),
        skipped=bool(row["skipped"]),
        problem=row["problem"],
        stratum=row["stratum"],
        priority=row["priority"],
        volume=row["volume"],
        slice=row["slice"],
        patient=row["patient"],
        spacing=spacing if all(spacing) else None,
        blank=bool(row["blank"]),
        stage=Stage(row["stage"]),
        draw=row["draw"],
    )


class ScanRecords(StageRecords):
    """Reads and writes the table `scan`."""

    def put_tasks(self, project: int, rows: Sequence[Mapping[str, Any]], cursor: str) -> None:
        """Store tasks {task, image, updated_at, annotated, skipped, ...} and the listing's cursor.

        `annotated` and `skipped` are counts. The other keys, the same in all rows, are columns from the tasks' data.
        A task whose image changed is read again, as is an updated task with a problem. The label of a task without
        annotations is deleted. If only the number of annotations changed, they are read again, since Label Studio's
        "Propagate annotations" leaves `updated_at` as it is.
        """
        with self.write() as connection:
            for start in range(0, len(rows), VARIABLES):
                chunk = rows[start : start + VARIABLES]
                tasks = [row["task"] for row in chunk]
                old = {
                    r["task"]: r
                    for r in connection.execute(
                        select(scan_table).where(scan_table.c.project == project, scan_table.c.task.in_(tasks))
                    ).mappings()
                }
                merged = []
                recounted = []
                for row in chunk:
                    before = old.get(row["task"])
                    same = before is not None and before["image"] == row["image"]
                    moved = before is None or before["updated_at"] != row["updated_at"]
                    kept = {
                        "digest": before["digest"] if before and same else "",
                        "height": before["height"] if before and same else 0,
                        "width": before["width"] if before and same else 0,
                        "blank": before["blank"] if before and same else 0,
                        "problem": before["problem"] if before and same and not moved else "",
                        "problem_at": before["problem_at"] if before and same and not moved else 0.0,
                        "stage": before["stage"] if before and same else 0,
                        "draw": random_place(row["task"], row.get("volume", ""), row.get("slice", 0)),
                    }
                    merged.append({"project": project, **row, **kept})
                    if before and not moved and before["annotated"] != row["annotated"]:
                        recounted.append(row["task"])
                if merged:
                    self._upsert(connection, scan_table, merged)
                bare = [row["task"] for row in chunk if not row["annotated"]]
                here = label_table.c.project == project
                connection.execute(delete(label_table).where(here, label_table.c.task.in_(bare)))
                connection.execute(forgotten(here, label_table.c.task.in_(recounted)))
            if cursor:
                connection.execute(update(project_table).where(project_table.c.id == project).values(cursor=cursor))

    def tasks_between(self, project: int, after: int, last: int | None) -> set[int]:
        """The tasks with ids above `after`, up to `last`; None: up to the highest."""
        found = select(scan_table.c.task).where(scan_table.c.project == project, scan_table.c.task > after)
        found = found if last is None else found.where(scan_table.c.task <= last)
        return {task for (task,) in self._tuples(found)}

    def forget_tasks(self, project: int, tasks: Sequence[int]) -> None:
        """Delete tasks, with their labels. Models trained on them stay."""
        if not tasks:
            return
        with self.write() as connection:
            for start in range(0, len(tasks), VARIABLES):
                chunk = tasks[start : start + VARIABLES]
                for table in (scan_table, label_table):
                    connection.execute(delete(table).where(table.c.project == project, table.c.task.in_(chunk)))

    def scans(self, project: int) -> list[Row]:
        return self.rows(select(scan_table).where(scan_table.c.project == project).order_by(scan_table.c.task))

    def scans_from(self, project: int, stage: Stage, last: Stage = Stage.ORDERED) -> list[Scan]:
        """The readable scans from a stage on, up to the `last`, by task."""
        scan = scan_table.c
        here = (scan.project == project, scan.stage >= stage, scan.stage <= last, scan.problem == "")
        columns = [scan[name] for name in FACTS]
        rows = self._each(select(*columns).where(*here).order_by(scan.task))
        return [scan_of(dict(zip(FACTS, row, strict=True))) for row in rows]

    def scan(self, project: int, task: int) -> Row | None:
        """One scan, without reading the others."""
        here = (scan_table.c.project == project, scan_table.c.task == task)
        rows = self.rows(select(scan_table).where(*here))
        return rows[0] if rows else None

    def columns(self, project: int, *names: str) -> list[tuple[Any, ...]]:
        """Some columns of all scans, ordered by task; whole rows of 100,000 scans would take seconds."""
        columns = [scan_table.c[name] for name in names]
        return self._tuples(select(*columns).where(scan_table.c.project == project).order_by(scan_table.c.task))

    def counts(self, project: int) -> dict[str, int]:
        """Numbers of scans: all, embedded, labelled, with a problem, left out, open, and waiting.

        open     neither labelled nor left out, and without a problem
        waiting  those of them that the latest round has not considered yet
        """
        scan = scan_table.c
        here = scan.project == project
        few = (scan.annotated, scan.problem, scan.priority, scan.stage)
        # two conditions at a time, each with an index of its own
        broken = self._tuples(select(*few).where(here, scan.problem != ""))
        placed = self._tuples(select(*few).where(here, scan.priority != 0))
        total, labelled = self._number(here), self._number(here, scan.annotated > 0)
        left_out = sum(priority < 0 for _, _, priority, _ in placed)
        closed = [Stage.UNREAD for annotated, *_ in broken if not annotated]
        closed += [at for known, problem, priority, at in placed if priority < 0 and not known and not problem]
        early = [self._number(here, scan.stage == s, scan.annotated == 0) for s in Stage if s < Stage.ORDERED]
        return {
            "scans": total,
            "embedded": total - self._number(here, scan.stage == Stage.UNREAD, scan.digest == ""),
            "labelled": labelled,
            "problems": len(broken),
            "left_out": left_out,
            "open": total - labelled - len(closed),
            "waiting": sum(early) - sum(at < Stage.ORDERED for at in closed),
        }

    def annotated(self, project: int) -> dict[int, str]:
        """When each task with annotations was updated."""
        here = (scan_table.c.project == project, scan_table.c.annotated > 0)
        return dict(self._tuples(select(scan_table.c.task, scan_table.c.updated_at).where(*here)))

    def has_labels(self) -> bool:
        """Whether a scan of any project has an annotation."""
        return bool(self.rows(select(scan_table.c.task).where(scan_table.c.annotated > 0).limit(1)))

    def problems(self, project: int) -> list[tuple[int, str]]:
        """(task, problem) of the unreadable scans."""
        here = (scan_table.c.project == project, scan_table.c.problem != "")
        return self._tuples(select(scan_table.c.task, scan_table.c.problem).where(*here))

    def siblings(self, project: int, task: int) -> frozenset[int]:
        """The tasks of all slices of this task's volume, including itself; only itself if it has no volume."""
        scan = scan_table.c
        its = select(scan.volume).where(scan.project == project, scan.task == task).scalar_subquery()
        found = self._tuples(select(scan.task).where(scan.project == project, scan.volume != "", scan.volume == its))
        return frozenset(t for (t,) in found) | {task}

    def waiting(self, project: int, tasks: Iterable[int]) -> list[tuple[int, int]]:
        """(task, number of skips) of those of the scans that have no annotation or problem and are not left out."""
        rows = self.scans_of(project, tasks)
        open_ = (r for r in rows if not (r["annotated"] or r["problem"]) and r["priority"] >= 0)
        return [(r["task"], r["skipped"]) for r in open_]

    def set_scans(self, project: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write {task, digest, height, width, blank, problem} of scans that were read.

        A row with `image`, the fetched reference, is dropped if the task now has a different image.
        A label is read again when the digest of its scan changes.
        """
        read = {row["task"]: row["digest"] for row in rows if row.get("digest")}
        with self.write() as connection:
            known = (scan_table.c.project == project, scan_table.c.task.in_(read), scan_table.c.digest != "")
            before = connection.execute(select(scan_table.c.task, scan_table.c.digest).where(*known)) if read else ()
            replaced = [task for task, digest in before if digest != read[task]]
            connection.execute(forgotten(label_table.c.project == project, label_table.c.task.in_(replaced)))
            for row in rows:
                at = time.time() if row.get("problem") else 0.0
                here = [scan_table.c.project == project, scan_table.c.task == row["task"]]
                if "image" in row:
                    here.append(scan_table.c.image == row["image"])
                values = {k: v for k, v in row.items() if k not in ("task", "image")}
                if row.get("problem") or row["task"] in replaced:
                    values["stage"] = int(Stage.UNREAD)
                connection.execute(update(scan_table).where(*here).values(problem_at=at, **values))

    def retry(self, project: int, task: int | None = None) -> None:
        """Let the next run of the loop read the scan and its annotation again, if either has a problem, however often
        its process died with the scan.

        task  None: all scans
        """
        scan, label = scan_table.c, label_table.c
        broken = [scan.project == project, scan.problem != ""]
        doubtful = [label.project == project]
        if task is not None:
            broken.append(scan.task == task)
            doubtful.append(label.task == task)
        # the image of a broken scan may have changed, and its mask must fit it
        of_broken = label.task.in_(select(scan.task).where(*broken))
        with self.write() as connection:
            where = (*doubtful, of_broken | (label.problem != "") | (label.remark != ""))
            connection.execute(forgotten(*where))
            connection.execute(forgotten_scans(project, task))
            connection.execute(update(scan_table).where(*broken).values(problem="", problem_at=0.0, digest="", stage=0))
