"""All stored data: records in a database, arrays and checkpoints as files.

Records are small and authoritative (SQLAlchemy: SQLite by default, PostgreSQL by URL). Artefacts are large and
named by a fingerprint of their inputs. Losing artefacts costs time, but no labels, which are in Label Studio.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import case, func, select, update

from backend.errors import BadSetting
from backend.records.attempts import AttemptRecords
from backend.records.audit import AuditRecords, Change
from backend.records.corrections import CorrectionRecords
from backend.records.embeddings import EmbeddingRecords
from backend.records.labels import LabelRecords
from backend.records.locks import LockHandle
from backend.records.maps import map_name
from backend.records.models import ModelRecords
from backend.records.progress import ProgressRecords
from backend.records.projects import ProjectRecords
from backend.records.quick_masks import QuickMaskRecords
from backend.records.rounds import RoundRecords
from backend.records.scans import ScanRecords
from backend.records.tables import change_table, label_table, project_table, round_table, scan_table, uncertainty_table
from backend.records.uncertainty import UncertaintyRecords
from backend.records.workers import WorkerRecords


class Store(
    ProjectRecords,
    AuditRecords,
    ScanRecords,
    LabelRecords,
    EmbeddingRecords,
    UncertaintyRecords,
    ModelRecords,
    RoundRecords,
    QuickMaskRecords,
    CorrectionRecords,
    ProgressRecords,
    WorkerRecords,
    AttemptRecords,
):
    """Records in `database_url` (default: SQLite in `folder`), artefacts in `folder`."""

    def stamp(self, project: int) -> tuple[Any, ...]:
        """A value that changes whenever the page's data about scans changes; cheap for any number of scans."""
        row = self.project(project)
        scan, rounds, change = scan_table.c, round_table.c, change_table.c
        sums = (scan.annotated, scan.skipped, scan.problem_at, case((scan.digest != "", 1), else_=0))
        seen = select(func.count(), *(func.sum(one) for one in sums))
        order = select(func.max(rounds.n), func.max(rounds.created_at), func.max(rounds.published_at))
        found = [
            *self._tuples(seen.where(scan.project == project)),
            *self._tuples(order.where(rounds.project == project)),
            *self._tuples(select(func.max(change.n)).where(change.project == project)),
            *self._tuples(
                select(func.count(), func.max(label_table.c.read_at)).where(label_table.c.project == project)
            ),
        ]
        latest = select(func.length(rounds.picks)).where(rounds.project == project).order_by(rounds.n.desc()).limit(1)
        found += self._tuples(latest)
        if row is None:
            return tuple(found)
        active = self.fingerprint_of(project, row["active"])
        scored = select(func.count()).where(uncertainty_table.c.model == active)
        with suppress(OSError):
            found.append((self.path("maps", map_name(project, row["embedder"])).stat().st_mtime_ns,))
        settings = (row[name] for name in ("cursor", "active", "extra_params", "overrides", "embedder", "phase"))
        return (*settings, *found, *self._tuples(scored))

    @contextmanager
    def lock(self, project: int) -> Iterator[LockHandle]:
        """Yields a true handle when this process may work on the project; released if the process dies."""
        with self._locks.held(f"project-{project}") as hold:
            yield hold

    @contextmanager
    def training_slot(self) -> Iterator[LockHandle]:
        """Yields a true handle if no other process trains on this data folder; released if the process dies."""
        with self._locks.held("training") as hold:
            yield hold

    @contextmanager
    def cache_slot(self) -> Iterator[LockHandle]:
        """Yields a true handle if no other process cleans the caches."""
        with self._locks.held("caches") as hold:
            yield hold


def activate_model(store: Store, project: int, version: str, change: Change | None = None) -> int:
    """Activate a trained model and record the change; returns the number of the change, or 0 without `change`.

    Raises BadSetting, with the available versions, when the version is unknown or its checkpoint was removed.
    """
    with store.settled() as connection:  # otherwise the checkpoint might be removed now
        models = store.model_summaries(project)
        found = next((m for m in models if m["version"] == version), None)
        if found is None:
            there = ", ".join(m["version"] for m in models) or "none yet"
            raise BadSetting(f"project {project} has no model {version!r}; available: {there}.")
        if not store.has("models", found["fingerprint"]):
            kept = ", ".join(m["version"] for m in models if store.has("models", m["fingerprint"])) or "none"
            raise BadSetting(
                f"project {project}: the checkpoint of {version} was removed, so it cannot be activated. "
                f"SCANQUEUE_KEEP_MODELS sets how many of the newest are kept (0: all). Available: {kept}."
            )
        here = project_table.c.id == project
        connection.execute(update(project_table).where(here).values(active=version))
        return store._record(connection, project, change) if change else 0
