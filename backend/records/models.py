"""Trained models; their checkpoints are artefacts."""

from __future__ import annotations

import lzma
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, select, update

from backend.facts import Lesson
from backend.label_config import Renames
from backend.records.database import Database, Row, from_json, to_json
from backend.records.tables import lesson_table, model_table, project_table, round_table

_MODEL_JSON = ("labels", "validation", "details")
_LARGE = ("trained_on", "held_out")  # these grow with the number of labels


def _model(row: Row, renames: Renames) -> dict[str, Any]:
    """A model with the present names of its labels; those that are no longer used keep theirs."""
    found = {k: from_json(v) if k in _MODEL_JSON else v for k, v in row.items()}
    return found | {"labels": list(_present(found["labels"], renames))}


def _present(labels: Iterable[str], renames: Renames) -> tuple[str, ...]:
    return tuple(renames.label(label) or label for label in labels)


def _number(version: str) -> int:
    return int(version.rpartition("-r")[2])


def numbers_text(numbers: Iterable[int]) -> str:
    """Numbers as ascending ranges, such as "1-3 7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def ranges(text: str) -> list[range]:
    """The inverse of `numbers_text`."""
    ends = (part.partition("-") for part in text.split())
    return [range(int(first), int(last or first) + 1) for first, _, last in ends]


def _count(trained_on: str) -> int:
    return len(from_json(trained_on)) if trained_on.startswith("[") else sum(map(len, ranges(trained_on)))


class ModelRecords(Database):
    """Reads and writes the tables `model` and `lesson`."""

    def put_model(
        self, project: int, row: Mapping[str, Any], *, active: str, instead_of: str = "", training_requests: int
    ) -> None:
        """Write a trained model, subtract the training requests it fulfilled, and activate `active`: all or nothing.

        The active model stays active if `active` is "", or if it is no longer `instead_of`.
        """
        with self.write() as connection:
            details = dict(row["details"])
            held_out = lzma.compress(to_json(details.pop("held_out", [])).encode())
            trained_on = numbers_text(self._lesson_numbers(connection, project, row["trained_on"]))
            values = {
                "project": project,
                "created_at": time.time(),
                **{k: to_json(v) if k in _MODEL_JSON else v for k, v in row.items()},
                "details": to_json(details),
                "held_out": held_out,
                "trained_on": trained_on,
            }
            self._upsert(connection, model_table, [values])
            connection.execute(
                update(project_table)
                .where(project_table.c.id == project)
                .values(training_requests=project_table.c.training_requests - training_requests)
            )
            if active:
                here = (project_table.c.id == project, project_table.c.active == instead_of)
                connection.execute(update(project_table).where(*here).values(active=active))

    def _lesson_numbers(self, connection: Connection, project: int, lessons: Sequence[Lesson]) -> list[int]:
        """The numbers of these lessons, in order; those that no model was given before are recorded."""
        here = lesson_table.c.project == project
        known = {_lesson(row): row["n"] for row in connection.execute(select(lesson_table).where(here)).mappings()}
        last = connection.execute(select(func.max(lesson_table.c.n)).where(here)).scalar() or 0
        new = [lesson for lesson in dict.fromkeys(lessons) if lesson not in known]
        known |= {lesson: last + place for place, lesson in enumerate(new, start=1)}
        if new:
            rows = [
                {
                    "project": project,
                    "n": known[lesson],
                    "task": lesson.task,
                    "digest": lesson.digest,
                    "mask": lesson.mask,
                    "belongs_to": lesson.group,
                    "unknown": to_json(lesson.unknown) if lesson.unknown else "",
                }
                for lesson in new
            ]
            connection.execute(lesson_table.insert(), rows)
        return [known[lesson] for lesson in lessons]

    def add_details(self, project: int, version: str, more: Mapping[str, Any]) -> None:
        """Add to the details of a trained model."""
        with self.write() as connection:
            here = (model_table.c.project == project, model_table.c.version == version)
            found = connection.execute(select(model_table.c.details).where(*here)).scalar_one()
            values = {"details": to_json(from_json(found) | dict(more))}
            connection.execute(update(model_table).where(*here).values(**values))

    def model_summaries(self, project: int, newest: int = 0) -> list[dict[str, Any]]:
        """The `newest` models and the active one (0: all), oldest first, without what grows with the number of labels.

        `learnt` counts the labelled scans that a model was given. The details of models of older versions may have
        their `held_out` scans.
        """
        columns = [column for column in model_table.c if column.name != "held_out"]
        where = [model_table.c.project == project]
        if newest:
            versions = [version for version, _ in self.model_versions(project)[-newest:]]
            active = select(project_table.c.active).where(project_table.c.id == project).scalar_subquery()
            where.append(model_table.c.version.in_(versions) | (model_table.c.version == active))
        rows = self.rows(select(*columns).where(*where))
        renames = self.renames(project)
        found = [_model(row, renames) for row in rows]
        for model in found:
            model["learnt"] = _count(model.pop("trained_on"))
        return sorted(found, key=lambda model: _number(model["version"]))

    def model_qualities(self, project: int) -> list[dict[str, Any]]:
        """What the quality of all models is told from, oldest first: `model_summaries` without the course of trainings.

        The details are those of the newest model, of models with a control trial, and of older models whose validation
        does not tell single labels; the others have {}. So a thousand models take milliseconds.
        """
        names = ("version", "labels", "trained_on", "accepted", "validation", "details")
        columns = [model_table.c[name] for name in names]
        rows = self._tuples(select(*columns).where(model_table.c.project == project))
        rows = sorted(rows, key=lambda row: _number(row[0]))
        renames, found = self.renames(project), []
        present = {text: _present(from_json(text), renames) for text in {row[1] for row in rows}}
        for place, (version, labels, trained_on, accepted, validation, details) in enumerate(rows, start=1):
            needed = place == len(rows) or '"arms":' in details or '"per_label":' not in validation
            one = {"version": version, "labels": list(present[labels]), "accepted": accepted}
            one |= {"learnt": _count(trained_on), "validation": from_json(validation)}
            found.append(one | {"details": from_json(details) if needed else {}})
        return found

    def model_summary(self, project: int, version: str) -> dict[str, Any] | None:
        """One model, without what grows with the number of labels."""
        columns = [column for column in model_table.c if column.name not in _LARGE]
        here = (model_table.c.project == project, model_table.c.version == version)
        rows = self.rows(select(*columns).where(*here))
        return _model(rows[0], self.renames(project)) if rows else None

    def model(self, project: int, version: str) -> dict[str, Any] | None:
        """All of one model: `trained_on` are its lessons, and its details have the scores of its `held_out` scans."""
        here = (model_table.c.project == project, model_table.c.version == version)
        rows = self.rows(select(model_table).where(*here))
        if not rows:
            return None
        found = _model(rows[0], self.renames(project))
        if (packed := found.pop("held_out")) is not None:
            found["details"]["held_out"] = from_json(lzma.decompress(packed))
        found["trained_on"] = self._lessons(project, found["trained_on"])
        return found

    def models(self, project: int) -> list[dict[str, Any]]:
        """All of all models, oldest first: large and slow, see `model_summaries`."""
        found = (self.model(project, version) for version, _ in self.model_versions(project))
        return [model for model in found if model is not None]

    def _lessons(self, project: int, trained_on: str) -> list[Lesson | str]:
        if trained_on.startswith("["):  # written by an older version
            return list(map(Lesson.recorded, from_json(trained_on)))
        wanted = {n for numbers in ranges(trained_on) for n in numbers}
        statement = select(lesson_table).where(lesson_table.c.project == project).order_by(lesson_table.c.n)
        return [_lesson(row) for row in self.rows(statement) if row["n"] in wanted]

    def model_labels(self, project: int) -> list[tuple[str, ...]]:
        """The different lists of labels that models have, with their present names, in the order of their models."""
        columns = (model_table.c.version, model_table.c.labels)
        found = self._tuples(select(*columns).where(model_table.c.project == project))
        lists = dict.fromkeys(labels for _, labels in sorted(found, key=lambda row: _number(row[0])))
        renames = self.renames(project)
        return [_present(from_json(labels), renames) for labels in lists]

    def model_versions(self, project: int) -> list[tuple[str, str]]:
        """(version, fingerprint) of all models, oldest first."""
        found = self._tuples(
            select(model_table.c.version, model_table.c.fingerprint).where(model_table.c.project == project)
        )
        return sorted(found, key=lambda row: _number(row[0]))

    def fingerprint_of(self, project: int, version: str) -> str:
        """The fingerprint of a model; "" if there is no such version."""
        here = (model_table.c.project == project, model_table.c.version == version)
        found = self._tuples(select(model_table.c.fingerprint).where(*here))
        return str(found[0][0]) if found else ""

    def renames(self, project: int) -> Renames:
        """What people said about labels that the label config no longer has."""
        rows = self._tuples(select(project_table.c.label_renames).where(project_table.c.id == project))
        return Renames.from_json(rows[0][0] if rows else "")

    def put_renames(self, project: int, renames: Renames, *, instead_of: str) -> None:
        """Write what is known of labels, unless somebody has changed `instead_of` meanwhile."""
        if renames.to_json() != instead_of:
            with self.write() as connection:
                here = (project_table.c.id == project, project_table.c.label_renames == instead_of)
                connection.execute(update(project_table).where(*here).values(label_renames=renames.to_json()))

    def checkpoints(self) -> dict[int, list[tuple[str, str]]]:
        """(version, fingerprint) of the models of every project, oldest first."""
        columns = (model_table.c.project, model_table.c.version, model_table.c.fingerprint)
        found: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for row in sorted(self.rows(select(*columns)), key=lambda r: _number(r["version"])):
            found[row["project"]].append((row["version"], row["fingerprint"]))
        return dict(found)

    def drawing(self) -> dict[int, set[str]]:
        """Model versions that draw masks now, by project: the active one and that of the latest round."""
        found = {r["id"]: {r["active"]} - {""} for r in self.rows(select(project_table.c.id, project_table.c.active))}
        columns = (round_table.c.project, round_table.c.model)
        latest = {r["project"]: r["model"] for r in self.rows(select(*columns).order_by(round_table.c.n))}
        for project, version in latest.items():
            found.setdefault(project, set()).update({version} - {""})
        return found


def _lesson(row: Mapping[Any, Any]) -> Lesson:
    unknown = tuple(from_json(row["unknown"] or "[]"))
    return Lesson(row["task"], row["digest"], row["mask"], row["belongs_to"], unknown)
