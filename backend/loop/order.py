"""Rank scans from what is stored: for a round, or to preview settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.facts import Scan, control_draw
from backend.loop.new_labels import with_new_labels
from backend.loop.project_settings import extra_signal
from backend.loop.selection_units import Slices, blocks_of, mean_embeddings, places, units
from backend.records.maps import read_map
from backend.records.rounds import Pick
from backend.records.scans import PRIORITY_NEXT
from backend.records.store import Store
from backend.settings import ProjectSettings
from sampling import (
    EMBEDDED,
    Clustering,
    Pool,
    choose_clusters,
    control_places,
    long_ranking,
    whole_order,
    with_controls,
)

STARTED = "begun"  # stored reason for the remaining slices of a started volume, which come before other volumes
RANKED = 2000  # number of places ranked one by one; the rest are ordered by entropy alone


@dataclass(frozen=True)
class RankingInputs:
    """The inputs of an order.

    embedder  name of the embedder whose embeddings and map are used
    model     fingerprint of the model whose uncertainties are used; "" before the first model
    """

    store: Store
    project: int
    embedder: str
    model: str
    settings: ProjectSettings


def order(inputs: RankingInputs, scans: Sequence[Scan], first: Sequence[int] = (), ranked: int = RANKED) -> list[Pick]:
    """The order of all unlabelled `scans` except `first`, which count as chosen already.

    scans   on the map, without problems; excluded ones are left out
    first   tasks
    ranked  number of places that are ranked one by one with a model

    With the unit "scan", volumes are chosen by the means over their slices, and the slices of a volume are consecutive.
    A volume with a slice that is labelled or in `first` is started; started volumes are finished before others begin.

    Scans with priority come first. Skipped scans come last, because another annotator may still label them, followed
    only by blank scans, unless those are slices of a volume that is chosen as a whole. All these are single slices.
    Control places, and those of scans that could show a new label (`new_labels`), are counted from the start of
    `first`, volume by volume.
    """
    settings = inputs.settings
    taken = set(first)
    scans = [s for s in scans if s.priority >= 0 or s.annotated or s.task in taken]
    blank = {s.task for s in scans if _is_last(s, settings.unit) and not s.annotated and s.task not in taken}
    scans = [s for s in scans if s.task not in blank]
    picks = _with_model(inputs, scans, taken, ranked) if inputs.model else _cold(inputs, scans, taken)
    by_task = {s.task: s for s in scans}
    prior = {s.task for s in scans if s.priority == PRIORITY_NEXT}
    put_off = {s.task for s in scans if s.skipped} - prior
    wished = [replace(p, reason="wished", score=None, distance=None) for p in picks if p.task in prior]
    rest = [p for p in picks if p.task not in prior]
    started = [p for p in rest if p.reason == STARTED and p.task not in put_off]
    fresh = [p for p in rest if p.reason != STARTED and p.task not in put_off]
    given = [*first, *(p.task for p in wished), *(p.task for p in started)]
    start = len(blocks_of(given, by_task, settings.unit))
    fresh = with_new_labels(inputs.store, inputs.project, inputs.embedder, fresh, by_task, settings.unit, start)
    fresh = _with_controls(fresh, by_task, settings, start)
    rest = [p for p in rest if p.task in put_off]
    return wished + started + fresh + rest + [Pick(task, "blank") for task in sorted(blank)]


def _is_last(scan: Scan, unit: str) -> bool:
    """Whether a scan is blank and neither has priority nor belongs to a volume that is chosen as a whole."""
    return scan.blank and scan.priority != PRIORITY_NEXT and not (unit == "scan" and scan.volume)


def _cold(inputs: RankingInputs, scans: Sequence[Scan], taken: set[int]) -> list[Pick]:
    settings = inputs.settings
    strategy = settings.moments[0]
    rows = units(scans, settings.unit)
    if not rows:
        return []
    xy = _positions(inputs, rows)
    clusters = choose_clusters(xy, seed=settings.seed)
    strata = np.unique([row[0].stratum for row in rows], return_inverse=True)[1]
    size = min(_in_units(settings.cold_start_size, rows), len(rows))
    drawn = int(control_places(size, settings.control_share).sum())
    chosen = [i for i, row in enumerate(rows) if len(_open(row, taken)) < len(row)]
    found = whole_order(
        strategy,
        Pool(xy, clusters, _vectors(inputs, rows, strategy), strata, groups=_groups(rows, settings)),
        size - drawn,
        chosen=chosen,
        seed=settings.seed,
    )
    picks = [
        Pick(s.task, STARTED, cluster=int(clusters.labels[i]))
        for i in sorted(chosen, key=lambda i: _nearly_done(rows[i], taken))
        for s in _open(rows[i], taken)
    ]
    places = zip(found.rows, found.reasons, found.cluster, strict=True)
    return picks + [Pick(s.task, str(reason), cluster=int(c)) for r, reason, c in places for s in rows[r]]


def _with_model(inputs: RankingInputs, scans: Sequence[Scan], taken: set[int], ranked: int) -> list[Pick]:
    settings = inputs.settings
    known = uncertainties(inputs)
    scans = [s for s in scans if s.annotated or s.task in taken or s.digest in known[settings.uncertainty]]
    skipped = [s for s in scans if s.skipped and not s.annotated and s.task not in taken]
    last = {s.task for s in skipped}
    at_end = [Pick(s.task, "skipped", entropy=_round(known[settings.uncertainty][s.digest])) for s in skipped]
    rows = units([s for s in scans if s.task not in last], settings.unit)
    if not rows:
        return at_end
    xy = _positions(inputs, rows)
    entropy = _column(rows, known[settings.uncertainty])
    columns = {"entropy": entropy}
    if extra := extra_signal(settings):
        columns[extra] = _column(rows, known[extra])
    chosen = [i for i, row in enumerate(rows) if len(_open(row, taken)) < len(row)]
    strategy = settings.moments[1]
    pool = Pool(
        xy,
        Clustering(np.zeros(len(rows), dtype=np.intp), np.zeros(1, dtype=np.intp), {}, 0),  # unused with a model
        _vectors(inputs, rows, strategy),
        signals=columns,
        groups=_groups(rows, settings),
    )
    ranking = long_ranking(
        strategy,
        pool,
        min(ranked, len(rows) - len(chosen)),
        _in_units(settings.depth, rows),
        chosen=chosen,
        alpha=settings.alpha,
        seed=settings.seed,
    )
    picks = [
        Pick(s.task, STARTED, entropy=_round(entropy[i]))
        for i in sorted(chosen, key=lambda i: _nearly_done(rows[i], taken))
        for s in _open(rows[i], taken)
    ]
    picks += [
        Pick(slice_.task, strategy, _round(s), _round(h), _round(d))
        for r, s, h, d in zip(ranking.rows, ranking.score, ranking.entropy, ranking.diversity, strict=True)
        for slice_ in rows[r]
    ]
    placed = {*ranking.rows.tolist(), *chosen}
    behind = sorted((i for i in range(len(rows)) if i not in placed), key=lambda i: (-entropy[i], rows[i][0].task))
    picks += [Pick(s.task, "entropy", entropy=_round(entropy[i])) for i in behind for s in rows[i]]
    return picks + at_end


def uncertainties(inputs: RankingInputs) -> dict[str, dict[str, Any]]:
    """The model's uncertainties that the strategy needs, by name and digest, for scans with all of them."""
    wanted = {inputs.settings.uncertainty, extra_signal(inputs.settings)} - {""}
    if wanted == {"image"}:
        return {"image": inputs.store.image_entropies(inputs.model)}
    found = {d: values for d, values in inputs.store.uncertainty(inputs.model).items() if wanted <= values.keys()}
    return {name: {digest: values[name] for digest, values in found.items()} for name in wanted}


def _open(row: Slices, taken: set[int]) -> Slices:
    """The slices that may still be chosen; all of them unless the volume is started."""
    return [s for s in row if not s.annotated and s.task not in taken]


def _nearly_done(row: Slices, taken: set[int]) -> tuple[int, int]:
    """The sort key of started volumes: those with the fewest slices left come first."""
    return len(_open(row, taken)), row[0].task


def _in_units(tasks: int, rows: Sequence[Slices]) -> int:
    """The approximate number of rows with this many slices in total; at least one."""
    return max(1, round(tasks * len(rows) / max(1, sum(map(len, rows)))))


def _positions(inputs: RankingInputs, rows: Sequence[Slices]) -> NDArray[np.float64]:
    found = read_map(inputs.store, inputs.project, inputs.embedder)
    assert found is not None
    return places(found, rows)


def _groups(rows: Sequence[Slices], settings: ProjectSettings) -> NDArray[np.intp] | None:
    """(N,) the patient of each row, with the unit "slice" else its volume; None where each row has its own."""
    if settings.one_per_patient == "off":
        return None
    names = [row[0].patient if settings.unit == "scan" else row[0].group for row in rows]
    if not any(names):
        return None
    known: dict[str | int, int] = {}
    return np.array([known.setdefault(name or at, len(known)) for at, name in enumerate(names)], dtype=np.intp)


def _vectors(inputs: RankingInputs, rows: Sequence[Slices], strategy: str) -> NDArray[np.float32] | None:
    """The embeddings of these rows; None when the strategy does not use them."""
    if strategy not in EMBEDDED:
        return None
    return mean_embeddings(inputs.store, inputs.embedder, rows)


def _with_controls(
    picks: Sequence[Pick], by_task: Mapping[int, Scan], settings: ProjectSettings, start: int
) -> list[Pick]:
    """An order from place `start` on, with randomly drawn scans in the control places."""
    if not settings.control_share:
        return list(picks)
    pick_of = {p.task: p for p in picks}
    blocks = blocks_of(pick_of, by_task, settings.unit)

    def draw(row: int) -> tuple[str, int]:
        return control_draw(by_task[blocks[row][0]], settings.seed, settings.unit)

    drawn = sorted(range(len(blocks)), key=draw)
    rows, control = with_controls(np.arange(len(blocks)), np.array(drawn, np.intp), settings.control_share, start=start)
    return [
        replace(pick_of[task], reason="control", score=None, distance=None) if chance else pick_of[task]
        for row, chance in zip(rows.tolist(), control.tolist(), strict=True)
        for task in blocks[row]
    ]


def _column(rows: Sequence[Slices], known: Mapping[str, Any]) -> NDArray[np.float64]:
    """(N,) or (N, labels): one uncertainty per row, the mean over slices with a known value; NaN without any."""
    given = [(at, known[s.digest]) for at, row in enumerate(rows) for s in row if s.digest in known]
    width = np.shape(given[0][1]) if given else ()
    values = np.array([value for _, value in given], dtype=np.float64).reshape(len(given), *width)
    where = np.array([at for at, _ in given], dtype=np.intp)
    sums = np.zeros((len(rows), *width))
    np.add.at(sums, where, values)
    count = np.bincount(where, minlength=len(rows)).astype(np.float64)
    count[count == 0] = np.nan
    found: NDArray[np.float64] = (sums.T / count).T
    return found


def _round(value: Any) -> float:
    return round(float(value), 6)
