"""The progress of a project's running step."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import delete, select

from backend.records.database import Database
from backend.records.tables import progress_table

PROGRESS_STALE = 120.0  # seconds without a report after which a step counts as dead


class ProgressRecords(Database):
    """Reads and writes the table `progress`."""

    def report(self, project: int, step: str, done: int, total: int, spent: float | None = None) -> None:
        """Record the progress of a step; status computes the remaining time from it.

        spent  seconds of work in which `done` were done; None: those since the first report
        """
        now = time.time()
        with self.write() as connection:
            here = progress_table.c.project == project
            old = connection.execute(select(progress_table).where(here)).mappings().first()
            fresh = old is None or old["step"] != step or old["done"] > done
            started = now if fresh or old is None else old["started_at"]
            if not fresh and old is not None and not 0 <= now - old["at"] <= PROGRESS_STALE:
                started += now - old["at"]  # the clock jumped
            if spent is not None:
                started = now - spent
            row = {"project": project, "step": step, "done": done, "total": total}
            self._upsert(connection, progress_table, [row | {"started_at": started, "at": now}])

    def finish(self, project: int) -> None:
        with self.write() as connection:
            connection.execute(delete(progress_table).where(progress_table.c.project == project))

    def progress(self, project: int) -> dict[str, Any] | None:
        """{step, done, total, seconds_left or None}; None when nothing runs."""
        rows = self.rows(select(progress_table).where(progress_table.c.project == project))
        if not rows or time.time() - rows[0]["at"] > PROGRESS_STALE:
            return None
        row = rows[0]
        spent, left = row["at"] - row["started_at"], None
        if row["done"] > 0 and spent > 0:
            left = round(spent * (row["total"] - row["done"]) / row["done"], 1)
        return {"step": row["step"], "done": row["done"], "total": row["total"], "seconds_left": left}
