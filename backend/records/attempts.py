"""Work that was begun and has not ended: what kills its process again and again is recognized by its attempts.

Attempts are rows of the table `counter`, which a killed process leaves behind: `count` of them, and as `total` the
number of labels at the first one.
"""

from __future__ import annotations

from sqlalchemy import Delete, delete, update

from backend.records.counters import CounterRecords
from backend.records.tables import counter_table

ATTEMPT = "attempt"  # `counter.name` of these rows; the label is PROJECT WORK KEY


def forgotten(project: int, work: str = "") -> Delete:
    """Deletes the attempts at some work of a project; "": at all of it."""
    here = counter_table.c.label.startswith(f"{project} {work} " if work else f"{project} ", autoescape=True)
    return delete(counter_table).where(counter_table.c.name == ATTEMPT, here)


class AttemptRecords(CounterRecords):
    """Reads and writes attempts at the work of projects."""

    def attempts(self, project: int) -> dict[tuple[str, str], tuple[int, int]]:
        """(attempts, labels at the first one) at the unfinished work of a project, by (work, key)."""
        found = {}
        for label, (count, labels) in self.counters(ATTEMPT).items():
            of, work, key = label.split(" ")
            if of == str(project):
                found[work, key] = (count, int(labels))
        return found

    def begin_attempt(self, project: int, work: str, key: str, labels: int, *, first: bool) -> None:
        """Count an attempt at `work` with the inputs `key`; attempts with others are forgotten, with `first` all."""
        label = f"{project} {work} {key}"
        insert = self._insert(counter_table).values(name=ATTEMPT, label=label, count=1, total=labels)
        more = {"count": counter_table.c.count + 1}
        with self.write() as connection:
            others = forgotten(project, work)
            connection.execute(others if first else others.where(counter_table.c.label != label))
            connection.execute(insert.on_conflict_do_update(index_elements=["name", "label"], set_=more))

    def cancel_attempt(self, project: int, work: str, key: str) -> None:
        """The last attempt was interrupted on purpose, so it does not count."""
        here = (counter_table.c.name == ATTEMPT, counter_table.c.label == f"{project} {work} {key}")
        with self.write() as connection:
            less = {"count": counter_table.c.count - 1}
            connection.execute(update(counter_table).where(*here, counter_table.c.count > 0).values(less))

    def end_attempts(self, project: int, work: str) -> None:
        """The work is done."""
        with self.write() as connection:
            connection.execute(forgotten(project, work))
