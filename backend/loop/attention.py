"""The scans of a project that a look must consider, and the numbers of all scans.

Of a hundred thousand scans, nothing is to be done for most: they are read, embedded, on the map and in the latest order
behind its published part. These are only counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from backend.facts import Counts, Scan, Stage
from backend.loop.context import LoopContext
from backend.loop.project_settings import extra_signal
from backend.loop.publication import beginnings, prefix_length
from backend.loop.steps import AT_ONCE
from backend.records.maps import map_name, read_map
from backend.records.scans import PROBLEM_RETRY, scan_of
from backend.records.stages import Basis, Recent
from backend.settings import ProjectSettings


class Attention:
    """Finds the scans that a look must consider."""

    def __init__(self, context: LoopContext) -> None:
        self._context = context
        self._checked: set[int] = set()

    def look(self, project: int, row: Any, settings: ProjectSettings, people: int) -> tuple[tuple[Scan, ...], Counts]:
        """(scans, counts) as `Seen` describes them. Brings their stages up to date first."""
        store = self._context.store
        now = time.time()
        recent = Recent(now - PROBLEM_RETRY, now)
        asks = {
            "volumes": settings.unit != "slice",
            "groups": settings.one_per_patient == "off",
            "strata": settings.moments[0] == "stratified",
        }
        if not store.any_scan(project):
            return (), Counts()
        latest = store.latest_round(project)
        known = store.basis(project)
        basis = self._basis(project, row, settings, known)
        thorough = project not in self._checked or basis != known
        if thorough:
            store.check_embeddings(project, basis.embedder)
            store.set_basis(project, basis)
            self._checked.add(project)
        least = Stage.SCORED if basis.model else Stage.MAPPED
        store.raise_stages(project, basis, least, latest["picks"].members if latest else (), thorough=thorough)
        rows = {r["task"]: r for r in store.scans_in_need(project, recent, AT_ONCE)}
        if latest is not None:
            self._add_beginning(project, latest, settings, people, rows)
        scans = tuple(_retried(rows[task], recent) for task in sorted(rows))
        asked = [name for name, wanted in asks.items() if wanted]
        return scans, store.count_scans(project, recent, settings.unit, asked)

    def _basis(self, project: int, row: Any, settings: ProjectSettings, known: Basis) -> Basis:
        """What the stages of the scans must refer to now. `known` is what they refer to."""
        store = self._context.store
        embedder = self._context.learner.embedder().name
        unit, fitted = known.map, known.fitted
        if not store.has("maps", map_name(project, embedder)):
            unit, fitted = "", 0
        elif known.embedder != embedder or not known.map:
            found = read_map(store, project, embedder)
            unit, fitted = (found.unit, len(found.state["xy"])) if found else ("", 0)
        if unit != settings.unit:
            unit, fitted = "", 0
        model = store.fingerprint_of(project, row["active"]) if row["active"] else ""
        if model and store.has("models", model):
            wanted = {settings.uncertainty, extra_signal(settings)} - {"image", ""}
            return Basis(embedder, unit, f"{model}|{','.join(sorted(wanted))}", fitted)
        return Basis(embedder, unit, "", fitted)

    def _add_beginning(
        self,
        project: int,
        latest: Mapping[str, Any],
        settings: ProjectSettings,
        people: int,
        rows: dict[int, Any],
    ) -> None:
        """Add the part of the order that may be published, and a little more."""
        order: Sequence[int] = latest["picks"].tasks
        store = self._context.store
        for beginning in beginnings(order, settings, latest["reach"]):
            size = len(beginning)
            missing = [t for t in (*beginning, *latest["carried"]) if t not in rows]
            rows |= {r["task"]: r for r in store.scans_of(project, missing)}
            open_ = {t for t in beginning if t in rows and _is_open(rows[t])}
            length = prefix_length(beginning, open_, settings, people)
            whole = settings.unit == "scan" and 0 < length < size and _same(rows, order, length, size)
            if length < size and not whole:
                return


def _is_open(row: Any) -> bool:
    return bool(row["digest"]) and not (row["annotated"] or row["problem"] or row["skipped"]) and row["priority"] >= 0


def _same(rows: Mapping[int, Any], order: Sequence[int], length: int, size: int) -> bool:
    """Whether the last tasks of both parts of the order are slices of one volume."""
    one, other = (rows.get(order[at - 1]) for at in (length, size))
    return one is not None and other is not None and bool(one["volume"]) and one["volume"] == other["volume"]


def _retried(row: Any, recent: Recent) -> Scan:
    """A recorded scan; one whose problem is old is read again from the start, as its file may have been replaced."""
    scan = scan_of(row)
    old = not recent.after < row["problem_at"] <= recent.until
    return replace(scan, problem="", digest="", stage=Stage.UNREAD) if scan.problem and old else scan
