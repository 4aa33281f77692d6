"""Work that was begun and has not ended: what kills its process again and again is recognized by its attempts.

Attempts are rows of the table `counter`, which a killed process leaves behind: `count` of them, and as `total` the
size of the work at the first one, such as the number of labels.

The work on scans is begun in parts. What a killed process leaves of a part makes its scans suspects, which are then
done one at a time, so that the one that kills is found.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Delete, delete, not_, or_, update

from backend.records.counters import CounterRecords
from backend.records.tables import counter_table

ATTEMPT = "attempt"  # `counter.name` of these rows; the label is PROJECT WORK KEY
ON_SCANS = ("read", "score", "draw")  # works whose keys are of scans: TASK:INPUTS
PART = "-part"  # after the name of such a work: it was begun on several scans at once


def forgotten(project: int, work: str = "") -> Delete:
    """Deletes the attempts at some work of a project; "": at all of it."""
    here = counter_table.c.label.startswith(f"{project} {work} " if work else f"{project} ", autoescape=True)
    return delete(counter_table).where(counter_table.c.name == ATTEMPT, here)


def forgotten_scans(project: int, task: int | None) -> Delete:
    """Deletes the attempts at all work on a scan of a project; None: on all its scans."""
    of = "" if task is None else f"{task}:"
    label = counter_table.c.label
    here = or_(*(label.startswith(f"{project} {work} {of}", autoescape=True) for work in ON_SCANS))
    return delete(counter_table).where(counter_table.c.name == ATTEMPT, here)


def forgotten_steps(project: int) -> Delete:
    """Deletes the attempts at all work that is not on single scans."""
    label = counter_table.c.label
    on_scans = (label.startswith(f"{project} {work}", autoescape=True) for work in ON_SCANS)
    return forgotten(project).where(not_(or_(*on_scans)))


def _labels(project: int, work: str, keys: Sequence[str]) -> list[str]:
    return [f"{project} {work} {key}" for key in keys]


class AttemptRecords(CounterRecords):
    """Reads and writes attempts at the work of projects."""

    def attempts(self, project: int) -> dict[tuple[str, str], tuple[int, int]]:
        """(attempts, size at the first one) at the unfinished work of a project, by (work, key)."""
        found = {}
        for label, (count, size) in self.counters(ATTEMPT).items():
            of, work, key = label.split(" ")
            if of == str(project):
                found[work, key] = (count, int(size))
        return found

    def begin_attempt(self, project: int, work: str, keys: Sequence[str], size: int, *, first: bool) -> None:
        """Count an attempt at `work` with the inputs `keys`; attempts with others are forgotten, with `first` all."""
        others = forgotten(project, work)
        if not first:
            others = others.where(counter_table.c.label.not_in(_labels(project, work, keys)))
        self._count(project, work, keys, size, others)

    def suspect(self, project: int, work: str, keys: Sequence[str], times: int = 1) -> None:
        """Count attempts at `work` with each of the inputs `keys`, instead of the one at a part of it."""
        self._count(project, work, keys, 0, forgotten(project, work + PART), times)

    def _count(self, project: int, work: str, keys: Sequence[str], size: int, first: Delete, times: int = 1) -> None:
        rows = [
            {"name": ATTEMPT, "label": label, "count": times, "total": size}
            for label in _labels(project, work, sorted(keys))
        ]
        more = {"count": counter_table.c.count + times}
        with self.write() as connection:
            connection.execute(first)
            insert = self._insert(counter_table).on_conflict_do_update(index_elements=["name", "label"], set_=more)
            connection.execute(insert, rows)

    def cancel_attempt(self, project: int, work: str, keys: Sequence[str]) -> None:
        """The last attempt was interrupted on purpose, so it does not count."""
        here = (counter_table.c.name == ATTEMPT, counter_table.c.label.in_(_labels(project, work, keys)))
        with self.write() as connection:
            less = {"count": counter_table.c.count - 1}
            connection.execute(update(counter_table).where(*here, counter_table.c.count > 0).values(less))

    def end_attempts(self, project: int, work: str, key: str = "") -> None:
        """The work is done; `key`: with these inputs."""
        done = forgotten(project, work)
        with self.write() as connection:
            connection.execute(done.where(counter_table.c.label == f"{project} {work} {key}") if key else done)
