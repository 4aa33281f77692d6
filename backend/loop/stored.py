"""Our side of a project: what is computed and stored, as `decide` needs it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from backend.facts import Model, Round
from backend.loop.context import LoopContext, Replan
from backend.loop.order import STARTED
from backend.loop.project_settings import row_settings
from backend.loop.steps import COMPARE, MAP, QUICK, TRAIN, CutOff, Done, Seen, map_key
from backend.records.quick_masks import PROJECT_ROW
from backend.records.store import Store
from backend.settings import ProjectSettings

KEPT_MODELS = 8  # in memory; a look needs two of its project
NOT_CHOSEN = ("wished", STARTED)  # reasons of picks that no strategy chose


def stored(context: LoopContext, project: int, seen: Seen) -> Done:
    """What is computed and stored for this project."""
    store = context.store
    row = context.row(project)
    settings = ProjectSettings() if seen.blocked else row_settings(row)
    if seen.blocked or not seen.counts.scans:
        return Done(settings, "")
    embedder = context.learner.embedder()
    if row["embedder"] != embedder.name or row["embedder_why"] != embedder.why:
        store.set_project(project, embedder=embedder.name, embedder_why=embedder.why)
    records = _needed_models(store, project, row["active"])
    compared = frozenset(m["version"] for m in records if "arms" in m["details"])
    models = tuple(_model(context, project, record) for record in records)
    active = next((m for m in models if m.version == row["active"]), None)
    rounds = _latest(store, project)
    due = settings.control_share and models and models[-1].version not in compared
    begun = {each: CutOff(*found) for each, found in store.attempts(project).items()}
    key = map_key(embedder.name, settings.unit)
    return Done(
        settings=settings,
        embedder=embedder.name,
        fitted=store.basis(project).fitted,
        models=models,
        active=active.version if active else "",
        rounds=rounds,
        compared=compared,
        served=served(store, project) if due else {},
        training_requests=row["training_requests"],
        recipe=context.learner.recipe(settings.seed) if row["training_requests"] else "",
        first_round=row["first_round"],
        quick=_quick(store, project, rounds) if rounds and not rounds[-1].model else {},
        cut_off=begun.get((TRAIN, context.learner.recipe(settings.seed))) if begun else None,
        trials_cut_off=begun.get((COMPARE, models[-1].version)) if begun and models else None,
        quick_cut_off=begun.get((QUICK, QUICK)),
        map_cut_off=begun.get((MAP, key)),
    )


def _needed_models(store: Store, project: int, active: str) -> list[dict[str, Any]]:
    """The active and the newest model whose files exist, oldest first: a lost one counts as never trained."""
    there = store.model_versions(project)
    newest = next((version for version, name in reversed(there) if store.has("models", name)), "")
    wanted = [version for version, name in there if version in (active, newest) and store.has("models", name)]
    found = (store.model_summary(project, version) for version in wanted)
    return [model for model in found if model is not None]


def _model(context: LoopContext, project: int, summary: Mapping[str, Any]) -> Model:
    """What a model has learnt from never changes, so it is read once; its labels may have new names."""
    key = (project, summary["version"], summary["created_at"])
    if (known := context.models.get(key)) is None:
        record = context.store.model(project, summary["version"])
        if record is None:
            raise Replan
        known = Model(
            record["version"],
            (),
            frozenset(record["trained_on"]),
            record["fingerprint"],
            bool(record["accepted"]),
            frozenset(one["task"] for one in record["details"].get("held_out", ())),
            record["details"].get("recipe", ""),
        )
        context.models = {**dict(list(context.models.items())[1 - KEPT_MODELS :]), key: known}
    return replace(known, labels=tuple(summary["labels"]))


def _latest(store: Store, project: int) -> tuple[Round, ...]:
    """The latest round; () before the first."""
    r = store.latest_round(project)
    if r is None:
        return ()
    embedder = json.loads(r["settings"] or "{}").get("embedder", "")
    return (Round(r["n"], r["key"], r["model"], r["picks"].tasks, tuple(r["carried"]), embedder, r["reach"]),)


def _quick(store: Store, project: int, rounds: Sequence[Round]) -> dict[int, str]:
    found = store.quick_masks(project, rounds[-1].version) if rounds else {}
    return {task: row["key"] for task, row in found.items() if task != PROJECT_ROW}


def served(store: Store, project: int) -> dict[int, bool]:
    """Tasks that an order chose, and whether as a control in the last order that contained them.

    The rest of a started volume counts as chosen together with its first slice.
    """
    reasons: dict[int, str] = {}
    for picks in store.orders(project):
        for p in picks:
            reasons[p.task] = reasons.get(p.task, STARTED) if p.reason == STARTED else p.reason
    return {task: reason == "control" for task, reason in reasons.items() if reason not in NOT_CHOSEN}
