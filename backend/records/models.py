"""Trained models; their checkpoints are artefacts."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.engine import RowMapping

from backend.label_config import Renames
from backend.records.database import Database, to_json
from backend.records.tables import model_table, project_table, round_table

_MODEL_JSON = ("labels", "trained_on", "validation", "details")


def _model(row: RowMapping, renames: Renames) -> dict[str, Any]:
    """A model with the present names of its labels; those that are no longer used keep theirs."""
    found = {k: json.loads(v) if k in _MODEL_JSON else v for k, v in row.items()}
    return found | {"labels": [renames.label(label) or label for label in found["labels"]]}


def _number(version: str) -> int:
    return int(version.rpartition("-r")[2])


class ModelRecords(Database):
    """Reads and writes the table `model`."""

    def put_model(
        self, project: int, row: Mapping[str, Any], *, active: str, instead_of: str = "", training_requests: int
    ) -> None:
        """Write a trained model, subtract the training requests it fulfilled, and activate `active`: all or nothing.

        The active model stays active if `active` is "", or if it is no longer `instead_of`.
        """
        with self.write() as connection:
            values = {
                "project": project,
                "created_at": time.time(),
                **{k: to_json(v) if k in _MODEL_JSON else v for k, v in row.items()},
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

    def add_details(self, project: int, version: str, more: Mapping[str, Any]) -> None:
        """Add to the details of a trained model."""
        with self.write() as connection:
            here = (model_table.c.project == project, model_table.c.version == version)
            found = connection.execute(select(model_table.c.details).where(*here)).scalar_one()
            values = {"details": to_json(json.loads(found) | dict(more))}
            connection.execute(update(model_table).where(*here).values(**values))

    def models(self, project: int) -> list[dict[str, Any]]:
        """All models, oldest first."""
        statement = select(model_table).where(model_table.c.project == project)
        renames = self.renames(project)
        rows = [_model(r, renames) for r in self.rows(statement)]
        return sorted(rows, key=lambda r: _number(r["version"]))

    def model(self, project: int, version: str) -> dict[str, Any] | None:
        """One model, without reading the others."""
        here = (model_table.c.project == project, model_table.c.version == version)
        rows = self.rows(select(model_table).where(*here))
        return _model(rows[0], self.renames(project)) if rows else None

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
