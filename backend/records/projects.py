"""One row per project: its settings, phase, problem and training requests."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from backend.errors import BadSetting, StorageFull, StoreUnavailable
from backend.records.attempts import forgotten_steps
from backend.records.database import Database, Row
from backend.records.tables import project_table

CONNECTED, CALL_EXPECTED = 1, 2  # values of project.connected: listed by Label Studio; set back to 1 when it calls us


class ProjectRecords(Database):
    """Reads and writes the table `project`."""

    def add_project(self, project: int) -> bool:
        """Add a project; True if it is new."""
        with self.write() as connection:
            row = {"id": project, "secret": secrets.token_urlsafe(32)}
            insert = self._insert(project_table).values(row).on_conflict_do_nothing()
            return connection.execute(insert.returning(project_table.c.id)).first() is not None

    def projects(self) -> list[int]:
        return [r["id"] for r in self.rows(select(project_table.c.id).order_by(project_table.c.id))]

    def project(self, project: int) -> Row | None:
        rows = self.rows(select(project_table).where(project_table.c.id == project))
        return rows[0] if rows else None

    def known_project(self, project: int) -> Row:
        """The record of a project. Raises BadSetting, with the projects that there are."""
        row = self.project(project)
        if row is None:
            there = ", ".join(map(str, self.projects())) or "none"
            raise BadSetting(f"Project {project} is not known here; available: {there}.")
        return row

    def secrets(self) -> dict[int, str]:
        """The webhook secrets of all projects."""
        return {r["id"]: r["secret"] for r in self.rows(select(project_table.c.id, project_table.c.secret))}

    def set_project(self, project: int, **values: Any) -> None:
        with self.write() as connection:
            connection.execute(update(project_table).where(project_table.c.id == project).values(**values))

    def request_training(self, project: int) -> None:
        """Record that somebody wants training now, however often it was cut off."""
        with self.write() as connection:
            connection.execute(forgotten_steps(project))
            values = {"training_requests": project_table.c.training_requests + 1}
            connection.execute(update(project_table).where(project_table.c.id == project).values(values))

    def clear_training_requests(self, project: int, count: int) -> None:
        """Remove `count` fulfilled requests; requests made in the meantime stay."""
        with self.write() as connection:
            values = {"training_requests": project_table.c.training_requests - count}
            connection.execute(update(project_table).where(project_table.c.id == project).values(values))

    def set_trouble(self, project: int, text: str, **values: Any) -> None:
        """Record what went wrong in the last run of the loop ("" for nothing), and `values` of the project.

        If the database cannot be written, the text goes to a file next to it, and StorageFull or StoreUnavailable
        is raised.
        """
        note = self._note(project)
        try:
            self.set_project(project, trouble=text, **values)
        except (StorageFull, StoreUnavailable):
            with suppress(OSError):
                note.parent.mkdir(exist_ok=True)
                note.write_text(text, encoding="utf-8")
            raise
        note.unlink(missing_ok=True)

    def trouble(self, project: int) -> str:
        """The current problem, else the problem in the last run of the loop; "" for none."""
        if self._short():
            return (
                f"The disk that holds {self.folder} is full: only {self._free() >> 20} MiB are free. Free disk space; "
                "nothing was lost, and work continues within a minute."
            )
        with suppress(OSError):
            if text := self._note(project).read_text(encoding="utf-8"):
                return text
        row = self.project(project)
        return row["trouble"] if row else ""

    def forget_trouble(self, project: int) -> None:
        """Remove the file in which `set_trouble` may have left a text."""
        self._note(project).unlink(missing_ok=True)

    def _note(self, project: int) -> Path:
        return self.folder / "trouble" / str(project)
