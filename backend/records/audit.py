"""The audit log: every change that a person makes, with the change itself in one transaction."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, update

from backend.label_config import Renames
from backend.records.database import VARIABLES, Database, Row, from_json, to_json
from backend.records.tables import change_table, project_table, scan_table


@dataclass(frozen=True)
class Change:
    """What a person changed. `before` and `after` are JSON values; `undoes` is the number of the change it reverts."""

    user: str
    kind: str
    what: str
    before: Any = None
    after: Any = None
    undoes: int | None = None


class AuditRecords(Database):
    """Reads and writes the table `change`."""

    def add_change(
        self,
        project: int,
        change: Change,
        *,
        overrides: Mapping[str, Any] | None = None,
        priorities: Mapping[int, int] = {},
        renames: Renames | None = None,
    ) -> int:
        """Apply a change and record it, both or neither; returns the number of the change.

        overrides   changed settings of the page; None: no longer set there
        priorities  new priorities of scans, by task
        renames     what is known of the label config's labels from now on
        """
        with self.settled() as connection:  # one at a time; else two changes get the same number, or one is lost
            number = self._record(connection, project, change)
            if overrides:
                here = project_table.c.id == project
                now = connection.execute(select(project_table.c.overrides).where(here)).scalar_one()
                merged = {k: v for k, v in (from_json(now or "{}") | dict(overrides)).items() if v is not None}
                values = {"overrides": to_json(merged) if merged else ""}
                connection.execute(update(project_table).where(here).values(values))
            if renames is not None:
                here = project_table.c.id == project
                connection.execute(update(project_table).where(here).values(label_renames=renames.to_json()))
            by_priority: dict[int, list[int]] = defaultdict(list)
            for task, priority in priorities.items():
                by_priority[priority].append(task)
            for priority, tasks in sorted(by_priority.items()):
                for start in range(0, len(tasks), VARIABLES):
                    chunk = scan_table.c.task.in_(tasks[start : start + VARIABLES])
                    these = update(scan_table).where(scan_table.c.project == project, chunk)
                    connection.execute(these.values(priority=priority))
            return number

    def _record(self, connection: Connection, project: int, change: Change) -> int:
        """Record a change in a transaction of `settled`; returns the number of the change."""
        here = change_table.c.project == project
        last = connection.execute(select(func.max(change_table.c.n)).where(here)).scalar_one()
        row = {"project": project, "n": (last or 0) + 1, "at": time.time(), "undone": 0}
        values = {"before": to_json(change.before), "after": to_json(change.after)}
        about = {"user": change.user, "kind": change.kind, "what": change.what}
        connection.execute(change_table.insert().values(**row, **about, **values))
        if change.undoes is not None:
            connection.execute(update(change_table).where(here, change_table.c.n == change.undoes).values(undone=1))
        return int(row["n"])

    def changes(self, project: int, limit: int = 200) -> list[Row]:
        """Changes, newest first: {n, at, user, kind, what, undone}."""
        columns = [c for c in change_table.c if c.name not in ("before", "after")]  # they may be large
        statement = select(*columns).where(change_table.c.project == project).order_by(change_table.c.n.desc())
        return self.rows(statement.limit(limit))

    def activations(self, project: int) -> list[dict[str, Any]]:
        """Activations of models, oldest first: {change, version, before, at, user}."""
        here = (change_table.c.project == project, change_table.c.kind == "activate")
        rows = self.rows(select(change_table).where(*here).order_by(change_table.c.n))
        parsed = ((r, from_json(r["before"]), from_json(r["after"])) for r in rows)
        return [
            {"change": r["n"], "version": after, "before": before, "at": r["at"], "user": r["user"]}
            for r, before, after in parsed
        ]

    def change(self, project: int, n: int) -> dict[str, Any] | None:
        rows = self.rows(select(change_table).where(change_table.c.project == project, change_table.c.n == n))
        return dict(rows[0]) | {k: from_json(rows[0][k]) for k in ("before", "after")} if rows else None
