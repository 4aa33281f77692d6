"""Counts and sums over all processes, for `GET /metrics`."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select

from backend.records.database import Database
from backend.records.tables import counter_table


class CounterRecords(Database):
    """Reads and writes the table `counter`."""

    def add_counters(self, amounts: Mapping[tuple[str, str], tuple[int, float]]) -> None:
        """Add counts and sums, by (name, label), to the totals of all processes."""
        with self.write() as connection:
            for (name, label), (count, total) in sorted(amounts.items()):
                row = {"name": name, "label": label, "count": count, "total": total}
                insert = self._insert(counter_table).values(row)
                more = {c: counter_table.c[c] + insert.excluded[c] for c in ("count", "total")}
                connection.execute(insert.on_conflict_do_update(index_elements=["name", "label"], set_=more))

    def counters(self, name: str) -> dict[str, tuple[int, float]]:
        """(count, sum) under `name`, by label."""
        rows = self.rows(select(counter_table).where(counter_table.c.name == name))
        return {r["label"]: (r["count"], r["total"]) for r in rows}
