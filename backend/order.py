"""The order in which scans are offered, made from what is stored: for a round, or to try settings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.choices import extra_signal
from backend.project import Scan, control_draw
from backend.settings import ProjectSettings
from backend.store import NEXT, Pick, Store, read_map
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

RANKED = 2000  # places ranked one by one; what lies behind them is ordered by entropy alone


@dataclass(frozen=True)
class Ground:
    """What an order is made on.

    embedder  whose embeddings, and whose map
    model     fingerprint of the model that is unsure of scans; "" before there is one
    """

    store: Store
    project: int
    embedder: str
    model: str
    settings: ProjectSettings


def order(ground: Ground, scans: Sequence[Scan], first: Sequence[int] = (), ranked: int = RANKED) -> list[Pick]:
    """The order of all unlabelled `scans` but those in `first`, which count as chosen already.

    scans   on the map, without problems; those that somebody left out of the order are not in it
    first   tasks
    ranked  places that are ranked one by one with a model

    What somebody wished for comes first, scans that somebody skipped come last: whoever is left may still want them.
    The places of the controls are counted from the first of `first`.
    """
    settings = ground.settings
    taken = set(first)
    scans = [s for s in scans if s.wish >= 0 or s.annotated or s.task in taken]
    picks = _with_model(ground, scans, taken, ranked) if ground.model else _cold(ground, scans, taken)
    wishes = {s.task for s in scans if s.wish == NEXT}
    put_off = {s.task for s in scans if s.skipped} - wishes
    wished = [replace(p, reason="wished", score=None, distance=None) for p in picks if p.task in wishes]
    rest = [p for p in picks if p.task not in wishes]
    start = len(first) + len(wished)
    fresh = _with_controls([p for p in rest if p.task not in put_off], scans, settings, start)
    return wished + fresh + [p for p in rest if p.task in put_off]


def _cold(ground: Ground, scans: Sequence[Scan], taken: set[int]) -> list[Pick]:
    settings = ground.settings
    strategy = settings.moments[0]
    xy = _positions(ground, scans)
    clusters = choose_clusters(xy, seed=settings.seed)
    strata = np.unique([s.stratum for s in scans], return_inverse=True)[1]
    size = min(settings.cold_start_size, len(scans))
    drawn = int(control_places(size, settings.control_share).sum())
    found = whole_order(
        strategy,
        Pool(xy, clusters, _vectors(ground, scans, strategy), strata),
        size - drawn,
        chosen=[i for i, s in enumerate(scans) if s.annotated or s.task in taken],
        seed=settings.seed,
    )
    rows = zip(found.rows, found.reasons, found.cluster, strict=True)
    return [Pick(scans[r].task, str(reason), cluster=int(c)) for r, reason, c in rows]


def _with_model(ground: Ground, scans: Sequence[Scan], taken: set[int], ranked: int) -> list[Pick]:
    settings = ground.settings
    known = signals(ground)
    scans = [s for s in scans if s.annotated or s.task in taken or s.digest in known]
    xy = _positions(ground, scans)
    said = [known.get(s.digest, {}) for s in scans]
    entropy = _column(said, settings.uncertainty)
    columns = {"entropy": entropy}
    if extra := extra_signal(settings):
        columns[extra] = _column(said, extra)
    skipped = [i for i, s in enumerate(scans) if s.skipped and not s.annotated and s.task not in taken]
    chosen = [i for i, s in enumerate(scans) if s.annotated or s.task in taken]
    last = set(skipped)
    rest = [i for i in range(len(scans)) if i not in last]
    position = {row: i for i, row in enumerate(rest)}
    strategy = settings.moments[1]
    pool = Pool(
        xy[rest],
        Clustering(np.zeros(len(rest), dtype=np.intp), np.zeros(1, dtype=np.intp), {}, 0),  # not looked at
        _vectors(ground, [scans[i] for i in rest], strategy),
        signals={name: values[rest] for name, values in columns.items()},
    )
    ranking = long_ranking(
        strategy,
        pool,
        min(ranked, len(rest) - len(chosen)),
        settings.depth,
        chosen=[position[i] for i in chosen],
        alpha=settings.alpha,
        seed=settings.seed,
    )
    picks = [
        Pick(scans[rest[r]].task, strategy, _round(s), _round(h), _round(d))
        for r, s, h, d in zip(ranking.rows, ranking.score, ranking.entropy, ranking.diversity, strict=True)
    ]
    placed = {p.task for p in picks} | {scans[i].task for i in chosen + skipped}
    behind = sorted((i for i in rest if scans[i].task not in placed), key=lambda i: (-entropy[i], scans[i].task))
    picks += [Pick(scans[i].task, "entropy", entropy=_round(entropy[i])) for i in behind]
    return picks + [Pick(scans[i].task, "skipped", entropy=_round(entropy[i])) for i in skipped]


def signals(ground: Ground) -> dict[str, dict[str, Any]]:
    """What the model said of scans, by digest: of those of which it said all that the strategy wants to know."""
    wanted = {ground.settings.uncertainty, extra_signal(ground.settings)} - {""}
    if wanted == {"image"}:
        return {digest: {"image": value} for digest, value in ground.store.entropies(ground.model).items()}
    return {digest: said for digest, said in ground.store.signals(ground.model).items() if wanted <= said.keys()}


def _positions(ground: Ground, scans: Sequence[Scan]) -> NDArray[np.float64]:
    found = read_map(ground.store, ground.project, ground.embedder)
    assert found is not None
    where = {d: i for i, d in enumerate(found[0])}
    return np.asarray(found[1][[where[s.digest] for s in scans]], dtype=np.float64).reshape(-1, 2)


def _vectors(ground: Ground, scans: Sequence[Scan], strategy: str) -> NDArray[np.float32] | None:
    """The embeddings of these scans, if the strategy looks at them."""
    if strategy not in EMBEDDED:
        return None
    return ground.store.embeddings(ground.embedder, [s.digest for s in scans])


def _with_controls(picks: Sequence[Pick], scans: Sequence[Scan], settings: ProjectSettings, start: int) -> list[Pick]:
    """An order from its place `start` on, with scans drawn at random in the places of the controls."""
    if not settings.control_share:
        return list(picks)
    by_task = {s.task: s for s in scans}
    drawn = sorted(range(len(picks)), key=lambda i: control_draw(by_task[picks[i].task], settings.seed))
    rows, control = with_controls(np.arange(len(picks)), np.array(drawn, np.intp), settings.control_share, start=start)
    return [
        replace(picks[row], reason="control", score=None, distance=None) if chance else picks[row]
        for row, chance in zip(rows.tolist(), control.tolist(), strict=True)
    ]


def _column(said: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """(N,), or (N, labels), one signal of all scans; NaN where nothing is known."""
    width = next((np.shape(one[name]) for one in said if name in one), ())
    return np.array([one.get(name, np.full(width, np.nan)) for one in said], dtype=np.float64)


def _round(value: Any) -> float:
    return round(float(value), 6)
