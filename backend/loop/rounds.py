"""Map the pool, and open and extend rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict

from backend.facts import Scan, Stage
from backend.loop.attempts import attempt
from backend.loop.context import LoopContext, Replan
from backend.loop.order import RankingInputs, order
from backend.loop.publication import part_of_round
from backend.loop.selection_units import add, lay_out, stored_map
from backend.loop.steps import FEW_ON_MAP, POOL_GROWTH, Done, FitMap, MapScans, OpenRound, Seen
from backend.records.maps import put_map, read_map
from backend.records.rounds import Pick

TEND_EVERY = 0.5  # seconds


def map_pool(
    context: LoopContext, project: int, done: Done, step: FitMap | MapScans, tend: Callable[[int], None]
) -> None:
    """Fit a new map, or add scans to the existing one.

    tend  called with the project now and then while a map is fitted
    """
    context.report(project, "laying out the map", 0, 1)
    unit, store = done.settings.unit, context.store
    found = None if isinstance(step, FitMap) else stored_map(store, project, done.embedder, unit)
    if found is None:
        scans = store.scans_from(project, Stage.EMBEDDED)
        begun = done.map_cut_off
        small = begun is not None and begun.too_often and len(scans) < POOL_GROWTH * begun.size
        counted = nullcontext() if small else attempt(context, project, done, FitMap(), len(scans))
        most = FEW_ON_MAP if small else None
        with counted, ThreadPoolExecutor(1) as aside:
            fit = aside.submit(lay_out, store, done.embedder, scans, unit, done.settings.seed, most)
            while not wait([fit], TEND_EVERY).done:
                context.alive()
                tend(project)
            found = fit.result()
    else:
        scans = store.scans_from(project, Stage.EMBEDDED, Stage.EMBEDDED)
        found = add(found, store, done.embedder, scans)
    put_map(store, project, done.embedder, found)
    store.set_basis(project, store.basis(project)._replace(map=unit, fitted=len(found.state["xy"])))
    store.set_stage(project, [s.task for s in scans], Stage.MAPPED)


def open_round(context: LoopContext, project: int, seen: Seen, done: Done, step: OpenRound) -> None:
    """Rank the pool and store the order."""
    context.report(project, "ranking", 0, 1)
    scans = _mapped(context, project, done)
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
    latest = context.store.latest_round(project)
    assert latest is not None
    kept = latest["picks"][: part_of_round(done.rounds[-1], seen, done.settings)[0]]
    ranked = _rank(context, project, done, _mapped(context, project, done), latest["model"], [p.task for p in kept])
    context.store.extend_round(project, latest["n"], [*kept, *ranked], model=latest["model"])


def _mapped(context: LoopContext, project: int, done: Done) -> list[Scan]:
    """All scans on the map. Raises Replan if its file lacks some, as after older files were put back."""
    store = context.store
    scans = store.scans_from(project, Stage.MAPPED)
    found = read_map(store, project, done.embedder)
    there = set(found.digests) if found else set()
    if missing := [s.task for s in scans if s.digest not in there]:
        store.set_stage(project, missing, Stage.EMBEDDED, lower=True)
        raise Replan
    return scans


def _rank(
    context: LoopContext, project: int, done: Done, scans: Sequence[Scan], version: str, first: Sequence[int] = ()
) -> list[Pick]:
    """`order` with the model of that version; "" for none."""
    model = context.store.fingerprint_of(project, version) if version else ""
    inputs = RankingInputs(context.store, project, done.embedder, model, done.settings)
    return order(inputs, scans, first)
