"""The masks of the quick model that tasks show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import select

from backend.records.database import Database, Row
from backend.records.tables import quick_mask_table

PROJECT_ROW = 0  # task number of the row that says what the newest model is


class QuickMaskRecords(Database):
    """Reads and writes the table `quick_mask`."""

    def put_quick_masks(self, project: int, rows: Iterable[Mapping[str, Any]]) -> None:
        with self.write() as connection:
            self._upsert(connection, quick_mask_table, [{"project": project, **row} for row in rows])

    def quick_masks(self, project: int, version: str) -> dict[int, Row]:
        """By task, what the tasks of this version show; 0: what the newest model is."""
        table = quick_mask_table
        here = (table.c.project == project, table.c.version == version)
        return {row["task"]: row for row in self.rows(select(table).where(*here))}

    def quick_mask(self, project: int, task: int) -> Row | None:
        here = (quick_mask_table.c.project == project, quick_mask_table.c.task == task)
        rows = self.rows(select(quick_mask_table).where(*here))
        return rows[0] if rows else None
