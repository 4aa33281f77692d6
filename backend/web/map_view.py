"""The map of a project as columns, compact enough to send 100,000 scans to a browser in a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from backend.facts import round_of
from backend.records.maps import read_map
from backend.records.rounds import Pick
from backend.records.store import Store
from backend.web.status import sentence, served, settings_of

OPEN, LABELLED, PROBLEM, SKIPPED = range(4)


def atlas(store: Store, project: int) -> dict[str, Any]:
    """Every scan on the map, in lists of equal length.

    task, x, y  task number in Label Studio, and position on the map
    cluster     cold-start cluster, from 0; later scans belong to that of the nearest scan; -1 without clusters
    state       OPEN, LABELLED, PROBLEM or SKIPPED
    round       round in which the scan was labelled, -1 if unknown or not labelled
    entropy     uncertainty of the active model, 0..1, high is uncertain; None if it is unknown
    score, distance, rank, kind
                S(i), distance term, place and reason in the current order; None, None, 0 and -1 without a place;
                only the strategy "paper" has S(i)
    served      1 if the scan is in the queue
    wish        1: label next, -1: left out of the order, else 0

    Also `kinds` (names of the reasons), `why` (a sentence for each), `clusters` (their number) and `alpha`.
    """
    row = store.project(project)
    found = read_map(store, project, row["embedder"]) if row else None
    names = ("task", "digest", "annotated", "skipped", "problem", "priority")
    scans = store.columns(project, *names) if found is not None else []
    where = {digest: i for i, digest in enumerate(found[0])} if found is not None else {}
    scans = [s for s in scans if s[1] in where]
    rows = np.array([where[s[1]] for s in scans], dtype=np.intp)
    xy = found[1][rows] if found is not None else np.zeros((0, 2))
    tasks = [s[0] for s in scans]
    model = store.model_summary(project, row["active"]) if row and row["active"] else None
    entropies = store.image_entropies(model["fingerprint"]) if model else {}
    latest = store.latest_round(project, served=True)
    order: Sequence[Pick] = latest["picks"] if latest else ()
    kinds = sorted({p.reason for p in order})
    number = {kind: i for i, kind in enumerate(kinds)}
    now = {pick.task for pick, _ in served(store, project)}
    turn = {r["task"]: round_of(r["shown_version"]) for r in store.labels(project)}
    clusters = _clusters(store.clusters(project), tasks, xy)
    ranks = _ranks(tasks, [p.task for p in order])
    placed = [order[rank - 1] if rank else None for rank in ranks]
    return {
        "task": tasks,
        "x": np.round(xy[:, 0], 3).tolist(),
        "y": np.round(xy[:, 1], 3).tolist(),
        "cluster": clusters.tolist(),
        "state": [LABELLED if s[2] else PROBLEM if s[4] else SKIPPED if s[3] else OPEN for s in scans],
        "round": [n if s[2] and (n := turn.get(s[0])) is not None else -1 for s in scans],
        "entropy": [None if (e := entropies.get(s[1])) is None else round(e, 4) for s in scans],
        "score": [_short(p.score) if p and p.reason == "paper" else None for p in placed],
        "distance": [_short(p.distance) if p else None for p in placed],
        "rank": ranks,
        "served": [int(t in now) for t in tasks],
        "kind": [number[p.reason] if p else -1 for p in placed],
        "kinds": kinds,
        "why": {kind: sentence(Pick(0, kind)) for kind in kinds},
        "wish": [s[5] for s in scans],
        "clusters": int(clusters.max(initial=-1)) + 1,
        "alpha": settings_of(store, project).alpha,
    }


def _ranks(tasks: Sequence[int], order: Sequence[int]) -> list[int]:
    """The place of each task in an order, from 1; 0 without one. Arrays, as a dictionary of 100,000 places is large."""
    if not order:
        return [0] * len(tasks)
    wanted, there = np.array(tasks, dtype=np.int64), np.array(order, dtype=np.int64)
    by_task = np.argsort(there)
    at = by_task[np.minimum(np.searchsorted(there, wanted, sorter=by_task), len(there) - 1)]
    ranks: list[int] = np.where(there[at] == wanted, at + 1, 0).tolist()
    return ranks


def _clusters(known: dict[int, int], tasks: list[int], xy: NDArray[np.float64]) -> NDArray[np.intp]:
    """(N,) cluster of each scan: its own, else that of the nearest scan with a cluster, else -1."""
    found = np.array([known.get(t, -1) for t in tasks], dtype=np.intp)
    lacking = found < 0
    if lacking.any() and not lacking.all():
        _, rows = KDTree(xy[~lacking]).query(xy[lacking])
        found[lacking] = found[~lacking][rows]
    return found


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
