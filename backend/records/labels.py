"""The contents of annotations, and the comparison of each with the mask that the annotator was shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Update, delete, func, select, update

from backend.label_config import Renames
from backend.records.database import Database, Row, from_json
from backend.records.tables import label_table, scan_table, shown_table


def forgotten(*where: Any) -> Update:
    """The statement that forgets what annotations contain. What their annotators could draw stays recorded."""
    return update(label_table).where(*where).values(config="", problem="", remark="", unknown="")


class LabelRecords(Database):
    """Reads and writes the tables `label` and `shown`."""

    def put_label(self, project: int, row: Mapping[str, Any]) -> None:
        with self.write() as connection:
            self._upsert(connection, label_table, [{"project": project, **row}])

    def drop_label(self, project: int, task: int, updated_at: str) -> None:
        """Record that the task no longer has an annotation, whatever the listing reported."""
        with self.write() as connection:
            connection.execute(delete(label_table).where(label_table.c.project == project, label_table.c.task == task))
            connection.execute(
                update(scan_table)
                .where(
                    scan_table.c.project == project, scan_table.c.task == task, scan_table.c.updated_at == updated_at
                )
                .values(annotated=0)
            )

    def forget_label(self, project: int, task: int) -> None:
        """Let the next run of the loop read the task's annotation again."""
        with self.write() as connection:
            connection.execute(forgotten(label_table.c.project == project, label_table.c.task == task))

    def labels(self, project: int) -> list[Row]:
        """What the annotations contain, without those that must be read again."""
        where = (label_table.c.project == project, label_table.c.config != "")
        return self.rows(select(label_table).where(*where).order_by(label_table.c.task))

    def label_columns(self, project: int, *names: str) -> list[tuple[Any, ...]]:
        """Some columns of `labels`."""
        columns = [label_table.c[name] for name in names]
        where = (label_table.c.project == project, label_table.c.config != "")
        return self._tuples(select(*columns).where(*where).order_by(label_table.c.task))

    def mask_of(self, project: int, task: int) -> tuple[str, str]:
        """(name of the mask, key of the label config it was read with) of a task's annotation; ("", "") without one."""
        here = (label_table.c.project == project, label_table.c.task == task)
        found = self._tuples(select(label_table.c.mask, label_table.c.config).where(*here))
        return (str(found[0][0]), str(found[0][1])) if found else ("", "")

    def authors(self, project: int, limit: int) -> list[tuple[int, int | None]]:
        """(number, author) of the newest annotations, newest first."""
        columns = (label_table.c.annotation, label_table.c.completed_by)
        where = (label_table.c.project == project, label_table.c.config != "")
        newest = select(*columns).where(*where).order_by(label_table.c.annotation.desc()).limit(limit)
        return [(number, author) for number, author in self._tuples(newest)]

    def remarks(self, project: int) -> list[tuple[int, str, str]]:
        """(task, problem, remark) of the annotations that have either."""
        columns = (label_table.c.task, label_table.c.problem, label_table.c.remark)
        where = (label_table.c.project == project, label_table.c.config != "")
        any_of = (label_table.c.problem != "") | (label_table.c.remark != "")
        return [(t, p, r) for t, p, r in self._tuples(select(*columns).where(*where, any_of))]

    def count_empty(self, project: int) -> int:
        """The number of masks without foreground."""
        where = (label_table.c.project == project, label_table.c.config != "", label_table.c.empty == 1)
        ((count,),) = self._tuples(select(func.count()).where(*where))
        return int(count)

    def could_draw(self, project: int) -> dict[tuple[int, str], str]:
        """By task and key of an annotation, what its annotator could draw; also of those that must be read again."""
        columns = (label_table.c.task, label_table.c.key, label_table.c.known)
        return {
            (task, key): known
            for task, key, known in self._tuples(select(*columns).where(label_table.c.project == project))
        }

    def lost_labels(self, project: int, renames: Renames) -> dict[str, int]:
        """The number of annotations of every label that the config had and lost, and nobody has said why."""
        here = (label_table.c.project == project, label_table.c.unknown != "")
        lists = self._tuples(select(label_table.c.unknown).where(*here))
        found = Counter(name for (text,) in lists for name in from_json(text))
        return {name: found[name] for name in renames.seen if name in found and name not in renames.now}

    def put_shown(self, project: int, row: Mapping[str, Any]) -> None:
        with self.write() as connection:
            self._upsert(connection, shown_table, [{"project": project, **row}])

    def shown(self, project: int, *versions: str) -> list[Row]:
        """The comparisons of the masks of these versions; by default of all."""
        where = (shown_table.c.project == project, *((shown_table.c.version.in_(versions),) if versions else ()))
        return self.rows(select(shown_table).where(*where).order_by(shown_table.c.task))

    def shown_columns(self, project: int, names: Sequence[str], versions: Sequence[str] = ()) -> list[tuple[Any, ...]]:
        """Some columns of `shown`."""
        columns = [shown_table.c[name] for name in names]
        where = (shown_table.c.project == project, *((shown_table.c.version.in_(versions),) if versions else ()))
        return self._tuples(select(*columns).where(*where).order_by(shown_table.c.task))
