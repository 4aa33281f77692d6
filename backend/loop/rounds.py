"""Map the pool, and open and extend rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from backend.facts import Scan
from backend.loop.context import LoopContext
from backend.loop.order import RankingInputs, order
from backend.loop.publication import part_of_round
from backend.loop.selection_units import add, lay_out, stored_map
from backend.loop.steps import Done, FitMap, MapScans, OpenRound, Seen
from backend.records.maps import put_map
from backend.records.rounds import Pick


def map_pool(context: LoopContext, project: int, seen: Seen, done: Done, step: FitMap | MapScans) -> None:
    """Fit a new map, or add scans to the existing one."""
    context.report(project, "laying out the map", 0, 1)
    unit, store = done.settings.unit, context.store
    found = None if isinstance(step, FitMap) else stored_map(store, project, done.embedder, unit)
    scans = [s for s in seen.scans if s.digest in done.embedded and not s.problem]
    if found is None:
        found = lay_out(store, done.embedder, scans, unit, done.settings.seed)
    else:
        found = add(found, store, done.embedder, scans)
    put_map(store, project, done.embedder, found)


def open_round(context: LoopContext, project: int, seen: Seen, done: Done, step: OpenRound) -> None:
    """Rank the pool and store the order."""
    context.report(project, "ranking", 0, 1)
    scans = _mapped(seen, done)
    picks = _rank(context, project, done, scans, step.model)
    context.store.put_round(
        project,
        n=step.n,
        key=step.key,
        model=step.model,
        picks=picks,
        carried=step.carried,
        size=len(picks),
        labels=sum(1 for s in scans if s.annotated),
        settings=asdict(done.settings) | {"embedder": done.embedder},
    )


def extend_round(context: LoopContext, project: int, seen: Seen, done: Done) -> None:
    """Rank the late scans together with the unpublished part of the order.

    The published part keeps its places, even those of deleted tasks: a place is a score in Label Studio.
    """
    latest = context.store.rounds(project, picks=False)[-1]
    kept = latest["picks"][: part_of_round(done.rounds[-1], seen, done.settings)[0]]
    ranked = _rank(context, project, done, _mapped(seen, done), latest["model"], [p.task for p in kept])
    context.store.extend_round(project, latest["n"], [*kept, *ranked])


def _mapped(seen: Seen, done: Done) -> list[Scan]:
    return [s for s in seen.scans if s.digest in done.mapped and not s.problem]


def _rank(
    context: LoopContext, project: int, done: Done, scans: Sequence[Scan], version: str, first: Sequence[int] = ()
) -> list[Pick]:
    """`order` with the model of that version; "" for none."""
    model = next((m.fingerprint for m in done.models if m.version == version), "")
    inputs = RankingInputs(context.store, project, done.embedder, model, done.settings)
    return order(inputs, scans, first)
