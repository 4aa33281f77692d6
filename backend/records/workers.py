"""The live workers and their current work."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import delete, select

from backend.records.database import Database
from backend.records.tables import worker_table


class WorkerRecords(Database):
    """Reads and writes the table `worker`."""

    def present(self, name: str, doing: str) -> None:
        """Record a worker's heartbeat."""
        with self.write() as connection:
            self._upsert(connection, worker_table, [{"name": name, "at": time.time(), "doing": doing}])

    def absent(self, name: str, older_than: float = 86400.0) -> None:
        """Remove a worker that exits, and workers without a heartbeat for `older_than` seconds."""
        with self.write() as connection:
            gone = (worker_table.c.name == name) | (worker_table.c.at < time.time() - older_than)
            connection.execute(delete(worker_table).where(gone))

    def workers(self) -> list[dict[str, Any]]:
        """{name, seconds since its last heartbeat, doing}, by name."""
        now = time.time()
        rows = self.rows(select(worker_table).order_by(worker_table.c.name))
        return [{"name": r["name"], "seconds": max(0.0, now - r["at"]), "doing": r["doing"]} for r in rows]
