"""Representative scans: methods to cover a pool without labels.

Common arguments:

points  (N, D), finite, Euclidean distances between rows; not modified
count   number of picks, 0..N - len(chosen)
chosen  distinct rows that count as picked already and are never picked again
seed    same input and seed, same picks

Each returns `count` distinct rows in picking order. Memory is O(N) beside the points and at most `SAMPLE` ** 2
distances; all methods but `spread` look at a fixed random sample of at most `SAMPLE` rows, and at the chosen ones.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray, IntArray, blocks_of
from sampling.farthest import distances_to, farthest_after

NEIGHBOURS = 20  # number of neighbours behind typicality
SMALLEST_CLUSTER = 5  # typical members of smaller clusters come last
MOST_CLUSTERS = 500
SAMPLE = 5_000
PURITY = 0.95
BLOCK = 4_000_000  # distances held at once
TIE = 1e-9  # gains this close, relative to the larger, are equal
FEW_DIMENSIONS = 16
NEAR = 0.03  # share of all pairs that are near


def spread(points: FloatArray, count: int, chosen: IntArray) -> IntArray:
    """k-center, greedily: each pick is the row farthest from everything picked before, ties to the lower row.

    With nothing chosen the first pick is the row nearest to the mean of all.
    Source: Gonzalez 1985; Sener & Savarese 2018 for the use in active learning.
    """
    if count == 0:
        return np.empty(0, dtype=np.intp)
    if len(chosen):
        return farthest_after(points, chosen, count)
    first = np.array([_from(points, points.mean(axis=0, dtype=np.float64)).argmin()], dtype=np.intp)
    return np.concatenate([first, farthest_after(points, first, count - 1)])


def typical(points: FloatArray, count: int, chosen: IntArray, *, seed: int) -> IntArray:
    """TypiClust: the most typical member of every cluster, clusters without a pick first, large ones before small.

    k-means with as many clusters as scans picked in total (at most 500). Typicality is the inverse of the mean
    distance to the 20 nearest members of the same cluster (all of a smaller one). Clusters of fewer than 5 come
    last.
    Source: Hacohen et al. 2022.
    """
    rows, here, taken = _sampled(points, chosen, seed)
    labels = _clusters(here, len(chosen) + count, seed)[0]
    order = np.zeros(len(rows))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order[members] = _mean_neighbour_distance(here[members])
    found = rows[_cluster_by_cluster(labels, order, count, taken, SMALLEST_CLUSTER)]
    return _then_farthest(points, found, count, chosen)


def central(points: FloatArray, count: int, chosen: IntArray, *, seed: int) -> IntArray:
    """ALPS as cold-start benchmarks use it: the row nearest to each k-means centre, large clusters first.

    Sources: Yuan et al. 2020; MedCAL-Bench 2025, which replaces language-model surprisal by image embeddings.
    """
    rows, here, taken = _sampled(points, chosen, seed)
    labels, centres = _clusters(here, len(chosen) + count, seed)
    order = np.empty(len(rows))
    for label, centre in enumerate(centres):
        members = np.flatnonzero(labels == label)
        order[members] = _from(here[members], centre)
    found = rows[_cluster_by_cluster(labels, order, count, taken, 1)]
    return _then_farthest(points, found, count, chosen)


def covering(points: FloatArray, count: int, chosen: IntArray, *, classes: IntArray, seed: int) -> IntArray:
    """ProbCover: each pick covers the most uncovered rows within delta, ties to the lower row.

    delta is the largest radius at which 95 % of the balls contain only one of the `classes` (N,), here the
    clusters of the map, as there are no labels yet; with one class, the median distance to the 20th neighbour.
    Once everything is covered, the farthest rows follow.
    Source: Yehuda et al. 2022.
    """
    rows, here, taken = _sampled(points, chosen, seed)
    distances = _pairwise(here.astype(np.float64))
    near = distances <= _pure_radius(distances, classes[rows])
    uncovered = np.ones(len(rows), dtype=bool)
    degree = near.sum(axis=1)

    def cover(pick: int) -> None:
        fresh = np.flatnonzero(uncovered & near[pick])
        uncovered[fresh] = False
        degree[:] -= near[fresh].sum(axis=0)

    for row in taken:
        cover(int(row))
    left = np.ones(len(rows), dtype=bool)
    left[taken] = False
    picks: list[int] = []
    while len(picks) < count and (degree[left] > 0).any():
        pick = int(np.where(left, degree, -1).argmax())
        picks.append(pick)
        left[pick] = False
        cover(pick)
    return _then_farthest(points, rows[np.array(picks, dtype=np.intp)], count, chosen)


def facility(
    points: FloatArray, count: int, chosen: IntArray, *, seed: int, groups: IntArray | None = None
) -> IntArray:
    """Facility location, greedily: each pick most reduces the mean distance of all rows to their nearest pick.

    These are medoids at every resolution: every prefix of the order is close to optimal k-medoids (at least 1 - 1/e of
    the gain), outliers come late, near-duplicates count once, and the number of picks need not be known in advance.
    Ties, up to rounding, go to the lower row.

    groups  (N,) equal for scans of one patient or volume: no group gets a second pick before each has one

    Sources: Nemhauser et al. 1978; Wei, Iyer & Bilmes 2015 for the use in active learning.
    """
    return _located(points, count, chosen, groups, seed, even=False)


def medoids(points: FloatArray, count: int, chosen: IntArray, *, seed: int, groups: IntArray | None = None) -> IntArray:
    """Medoids at every resolution: facility location in which scans in dense places count less.

    Each row counts 1 / sqrt(n), n rows being nearer to it than `NEAR` of all pairs are, itself included. Frames of a
    clip and slices of a volume together count more than one scan, but not as much as equally many different ones.
    Otherwise as `facility`, which weighs all rows alike; see benchmarks/screening.md for what that changes.
    """
    return _located(points, count, chosen, groups, seed, even=True)


def _located(
    points: FloatArray, count: int, chosen: IntArray, groups: IntArray | None, seed: int, *, even: bool
) -> IntArray:
    rows, sample, taken = _sampled(points, chosen, seed)
    here = sample.astype(np.float64)
    distances = _pairwise(here)
    weights = 1 / np.sqrt((distances <= _near(distances)).sum(axis=1)) if even else np.ones(len(rows))
    far = 2 * float(distances_to(here, here.mean(axis=0)).max())  # distance of a row that no pick represents yet
    nearest = np.minimum(distances[taken].min(axis=0, initial=far), far)
    left = np.ones(len(rows), dtype=bool)
    left[taken] = False
    group = np.arange(len(rows)) if groups is None else groups[rows]
    fresh = ~np.isin(group, np.unique(group[taken]))
    gain = np.full(len(rows), np.inf)  # last known gain of each row, an upper bound (submodular)
    picks: list[int] = []
    while len(picks) < count and left.any():
        allowed = left & fresh if (left & fresh).any() else left
        pick = _most_gain(distances, weights, nearest, gain, np.flatnonzero(allowed))
        picks.append(pick)
        left[pick] = False
        fresh &= group != group[pick]
        np.minimum(nearest, distances[pick], out=nearest)
    return _then_farthest(points, rows[np.array(picks, dtype=np.intp)], count, chosen)


def _near(distances: NDArray[np.float64]) -> float:
    """The distance that `NEAR` of all pairs do not exceed; of at most a few million pairs."""
    if len(distances) < 3:
        return 0.0
    if len(distances) <= 1_000:
        return float(np.quantile(distances[np.triu_indices(len(distances), 1)], NEAR))
    return float(np.quantile(distances[:: -(-(len(distances) ** 2) // BLOCK)], NEAR))


def _most_gain(
    distances: NDArray[np.float64],
    weights: NDArray[np.float64],
    nearest: NDArray[np.float64],
    gain: NDArray[np.float64],
    rows: IntArray,
) -> int:
    """The row whose pick reduces the weighted sum of `nearest` most; `gain` is brought up to date where needed."""
    best, pick = -1.0, -1
    order = rows[np.argsort(-gain[rows], kind="stable")]
    step = max(1, min(64, BLOCK // len(nearest)))
    for begin in range(0, len(order), step):
        block = order[begin : begin + step]
        if gain[block[0]] < best * (1 - TIE):
            break  # lazy evaluation: the rest have lower upper bounds
        gain[block] = (np.maximum(nearest - distances[block], 0) * weights).sum(axis=1)
        high = float(gain[block].max())
        low = int(block[gain[block] >= high * (1 - TIE)].min())
        if high > best * (1 + TIE) or (high >= best * (1 - TIE) and low < pick):
            best, pick = max(high, best), low
    return pick


def _from(points: FloatArray, place: FloatArray) -> NDArray[np.float64]:
    """(N,) distance of every row to `place` (D,), a few million numbers at a time."""
    found = np.empty(len(points))
    step = max(1, BLOCK // points.shape[1])
    for begin in range(0, len(points), step):
        part = points[begin : begin + step].astype(np.float64, copy=False)
        found[begin : begin + step] = distances_to(part, np.asarray(place, dtype=np.float64))
    return found


def _clusters(points: FloatArray, k: int, seed: int) -> tuple[IntArray, NDArray[np.float64]]:
    """(labels, centres) of k-means; fewer than k clusters if rows coincide."""
    from sklearn.cluster import KMeans  # slow to import
    from threadpoolctl import threadpool_limits

    k = max(1, min(k, MOST_CLUSTERS, len(points)))
    with threadpool_limits(limits=1), warnings.catch_warnings():  # one thread for a fixed summation order
        warnings.simplefilter("ignore")
        found = KMeans(k, n_init=1, random_state=seed).fit(points)
    return found.labels_.astype(np.intp), np.asarray(found.cluster_centers_, dtype=np.float64)


def _mean_neighbour_distance(points: FloatArray) -> NDArray[np.float64]:
    """(N,) mean distance to the nearest other rows, low = typical; 0 for a single row."""
    from sklearn.neighbors import NearestNeighbors  # slow to import

    k = min(NEIGHBOURS, len(points) - 1)
    if k < 1:
        return np.zeros(len(points))
    distances = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()[0]
    mean: NDArray[np.float64] = np.asarray(distances, dtype=np.float64).mean(axis=1)
    return mean


def _cluster_by_cluster(
    labels: IntArray, order: NDArray[np.float64], count: int, chosen: IntArray, smallest: int
) -> IntArray:
    """Each pick: the lowest row in `order` of the cluster with the fewest picks (small ones last, large ones first).

    Fewer than `count` picks if fewer rows are free.
    """
    from heapq import heapify, heappop, heappush

    free = np.ones(len(labels), dtype=bool)
    free[chosen] = False
    queues = {}
    heap = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        queue = members[free[members]]
        if len(queue):
            queues[label] = iter(queue[np.argsort(order[queue], kind="stable")].tolist())
            heap.append((len(members) < smallest, len(members) - len(queue), -len(members), int(members[0]), label))
    heapify(heap)
    picks = np.empty(min(count, int(free.sum())), dtype=np.intp)
    at = 0
    while at < len(picks):
        small, taken, size, first, label = heappop(heap)
        row = next(queues[label], None)
        if row is None:
            continue
        picks[at] = row
        at += 1
        heappush(heap, (small, taken + 1, size, first, label))
    return picks


def _pure_radius(distances: NDArray[np.float64], classes: IntArray) -> float:
    """The largest radius at which `PURITY` of the balls around rows contain one class only, clear of rounding."""
    n = len(distances)
    several = len(np.unique(classes)) > 1
    found = np.empty(n)
    for block in blocks_of(n, n, BLOCK):
        if several:
            found[block] = np.where(classes[block][:, None] != classes, distances[block], np.inf).min(axis=1)
        else:
            k = min(NEIGHBOURS, n - 1)
            found[block] = np.partition(distances[block], k, axis=1)[:, k]
    if not several:
        return float(np.median(found)) * (1 + TIE)
    return float(np.quantile(found, 1 - PURITY, method="lower")) * (1 - TIE)


def _sampled(points: FloatArray, chosen: IntArray, seed: int) -> tuple[IntArray, FloatArray, IntArray]:
    """(rows, their points, which of them are chosen): all rows, or a fixed random sample with the chosen; ascending."""
    rows: IntArray = np.arange(len(points))
    if len(points) > SAMPLE:
        rows = np.union1d(np.random.default_rng(seed).choice(len(points), SAMPLE, replace=False), chosen)
    return rows, points[rows], np.flatnonzero(np.isin(rows, chosen))


def _then_farthest(points: FloatArray, found: IntArray, count: int, chosen: IntArray) -> IntArray:
    """The picks `found`, and the farthest rows behind them where the sample has fewer than `count`."""
    return np.concatenate([found, spread(points, count - len(found), np.concatenate([chosen, found]))])


def _pairwise(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, N) distances between all rows. Those of nearly equal rows are 0, so that duplicates tie."""
    from scipy.spatial.distance import cdist
    from threadpoolctl import threadpool_limits

    if points.shape[1] <= FEW_DIMENSIONS:
        return np.asarray(cdist(points, points), dtype=np.float64)
    centred = points - points.mean(axis=0)
    squares = np.einsum("nd,nd->n", centred, centred)
    with threadpool_limits(limits=1):  # a fixed summation order
        squared = centred @ (-2 * centred.T)
    squared += squares[:, None]
    squared += squares
    squared[squared < 1e-12 * max(1e-300, float(squares.max(initial=0.0)))] = 0.0
    distances: NDArray[np.float64] = np.sqrt(squared, out=squared)
    return distances
