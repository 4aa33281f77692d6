"""Groups of similar scans on the map, and the most central scan of each."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray, IntArray, finite_matrix, whole_number
from sampling.farthest import distances_to

LARGEST_K = 20
SILHOUETTE_ROWS = 10_000  # maximum number of rows for choosing k and for silhouettes
STARTS = 10  # k-means runs for each k; the tightest is kept
FEW = 2_000  # up to this number of members, all summed distances are computed
STRIPS = 24  # strips of a larger cluster, and cells per strip
TIE = 1 + 1e-12  # summed distances this close are equal
BLOCK = 4_000_000  # distances held at once


@dataclass(frozen=True, eq=False)
class Clustering:
    """Which cluster each scan belongs to.

    labels           (N,), cluster numbers 0..k-1, the largest cluster first (ties: the lower medoid row)
    medoids          (k,), medoids[c] is the row of the member of cluster c with the least summed distance
                     to the others
    silhouette       mean silhouette in -1..1 (high = well apart) of every k that was tried; empty if none
    silhouette_rows  number of rows behind these means: N, or a sample if N is too large (0 if none)
    """

    labels: IntArray
    medoids: IntArray
    silhouette: dict[int, float]
    silhouette_rows: int

    @property
    def k(self) -> int:
        return len(self.medoids)

    @property
    def silhouette_sampled(self) -> bool:
        """The silhouettes come from a random sample of the rows."""
        return 0 < self.silhouette_rows < len(self.labels)


def choose_clusters(xy: FloatArray, *, k_min: int = 2, k_max: int | None = None, seed: int) -> Clustering:
    """Cluster the map by k-means, with the k whose mean silhouette is the highest (ties: the smaller k).

    xy     (N, 2), finite; distances are Euclidean on the map; not modified
    k_min  smallest k to try, >= 2
    k_max  largest k to try; default min(20, N - 1)
    seed   same input and seed, same clusters

    There are at most N - 1 clusters and at most as many as distinct positions, even below k_min; if this
    leaves no k >= 2 (N < 3, or all scans in one place), there is one cluster. Above 10,000 rows k is chosen
    on a random sample of 10,000 rows, drawn by `seed` and the same for every k; then k-means continues with
    all rows from the centres of the sample. Time about O(N) above that, memory O(N), one thread.
    Raises ValueError on bad shape, NaN (with its row), k_min or k_max.
    Sources: Lloyd 1982; Arthur & Vassilvitskii 2007; Rousseeuw 1987.

    >>> import numpy as np
    >>> found = choose_clusters(np.array([[0.0, 0], [0, 1], [0, 2], [9, 0], [9, 1]]), seed=0)
    >>> found.k, found.labels, found.medoids
    (2, array([0, 0, 0, 1, 1]), array([1, 3]))
    """
    xy = finite_matrix("xy", xy, columns=2)
    k_min = whole_number("k_min", k_min, low=2)
    k_max = max(LARGEST_K, k_min) if k_max is None else whole_number("k_max", k_max, low=k_min)
    random = np.random.default_rng(whole_number("seed", seed, low=0))
    start = int(random.integers(2**32))
    sample = xy
    if len(xy) > SILHOUETTE_ROWS:
        sample = xy[np.sort(random.choice(len(xy), SILHOUETTE_ROWS, replace=False))]
    highest = min(k_max, len(sample) - 1, len(np.unique(sample, axis=0)))
    with _one_thread():
        candidates = _kmeans(sample, range(min(k_min, highest), highest + 1), seed=start)
        if not candidates:
            return _numbered(xy, np.zeros(len(xy), dtype=np.intp), {}, 0)
        means = mean_silhouettes(sample, list(candidates.values()))
        silhouette = dict(zip(candidates, means, strict=True))
        best = max(silhouette, key=lambda k: (silhouette[k], -k))
        labels = candidates[best] if sample is xy else _extended(xy, sample, candidates[best])
    return _numbered(xy, labels, silhouette, len(sample))


def mean_silhouettes(xy: NDArray[np.float64], labelings: Sequence[IntArray]) -> list[float]:
    """Mean silhouette of the same N points under several labelings, each (N,) of numbers >= 0.

    Between -1 and 1, high = well apart; a cluster of one counts 0, and so does a labeling
    with one cluster. Distances are computed once for all labelings, a block of rows at a time.
    """
    n = len(xy)
    masks = [labels[:, None] == np.unique(labels) for labels in labelings]
    columns = np.hstack(masks).astype(np.float64)
    bounds = np.cumsum([0] + [mask.shape[1] for mask in masks])
    totals = [0.0] * len(masks)
    for begin, distances in _distance_blocks(xy):
        sums = distances @ columns  # (rows, all clusters of all labelings)
        for i, mask in enumerate(masks):
            own = mask[begin : begin + len(distances)]
            sizes = mask.sum(axis=0)
            to = sums[:, bounds[i] : bounds[i + 1]]
            size = (own * sizes).sum(axis=1)
            inner = (own * to).sum(axis=1) / np.maximum(size - 1, 1)
            outer = np.where(own, np.inf, to / sizes).min(axis=1)
            wider = np.maximum(inner, outer)
            known = (size > 1) & (wider > 0) & np.isfinite(outer)
            totals[i] += float(((outer - inner)[known] / wider[known]).sum())
    return [total / n for total in totals]


def medoid(xy: NDArray[np.float64]) -> int:
    """Row of the point with the least summed distance to all others; ties, up to rounding: lowest row.

    Exact for any N, in about O(N) for points that spread. Points of a large cluster are grouped into cells and moved to
    their cell's mean. As distance is convex, this never increases a sum, so it gives cheap, tight lower bounds.
    The true sums are computed in order of the bounds, until the next bound exceeds the least true sum.
    """
    if len(xy) <= FEW:
        sums = np.concatenate([distances.sum(axis=1) for _, distances in _distance_blocks(xy)])
        return int(np.flatnonzero(sums <= sums.min() * TIE)[0])
    places, rows, copies = np.unique(xy, axis=0, return_index=True, return_counts=True)
    bounds = _lower_bounds(places, copies)
    order = np.argsort(bounds, kind="stable")
    true: list[float] = []
    least = np.inf
    for i in order:
        if bounds[i] > least * (1 + 1e-9):
            break
        true.append(float(distances_to(places, places[i]) @ copies))
        least = min(least, true[-1])
    best = order[: len(true)][np.array(true) <= least * TIE]
    return int(rows[best].min())


def _lower_bounds(places: NDArray[np.float64], copies: IntArray) -> NDArray[np.float64]:
    """(P,) lower bounds for the summed distance of each place to all, copies counted."""
    n = len(places)
    strip = np.empty(n, dtype=np.intp)
    strip[np.argsort(places[:, 0], kind="stable")] = np.arange(n) * STRIPS // n
    cell = np.empty(n, dtype=np.intp)
    cell[np.lexsort((places[:, 1], strip))] = np.arange(n) * STRIPS**2 // n
    sizes = np.bincount(cell, weights=copies)
    sums = np.stack([np.bincount(cell, weights=copies * places[:, axis]) for axis in (0, 1)])
    bounds = np.zeros(n)
    for c in np.flatnonzero(sizes):
        bounds += sizes[c] * distances_to(places, sums[:, c] / sizes[c])
    return bounds


def _kmeans(xy: NDArray[np.float64], ks: Iterable[int], seed: int) -> dict[int, IntArray]:
    """Labels for each k >= 2 without an empty cluster, which near-duplicate points can cause."""
    from sklearn.cluster import KMeans  # slow to import, and only a fit needs it

    found = {}
    for k in ks:
        if k < 2:
            continue
        labels = KMeans(k, n_init=STARTS, random_state=seed).fit_predict(xy).astype(np.intp)
        if len(np.unique(labels)) == k:
            found[k] = labels
    return found


def _extended(xy: NDArray[np.float64], sample: NDArray[np.float64], labels: IntArray) -> IntArray:
    """Labels of all rows by k-means that starts from the cluster centres of a sample."""
    from sklearn.cluster import KMeans

    centres = np.stack([sample[labels == label].mean(axis=0) for label in np.unique(labels)])
    extended: IntArray = KMeans(len(centres), init=centres, n_init=1).fit_predict(xy).astype(np.intp)
    return extended


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for a fixed summation order, without warnings about near-duplicate points."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _numbered(
    xy: NDArray[np.float64], labels: IntArray, silhouette: dict[int, float], silhouette_rows: int
) -> Clustering:
    """The clusters, renumbered from the largest down."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    medoids = [int(rows[medoid(xy[rows])]) for rows in members]
    order = sorted(range(len(members)), key=lambda c: (-len(members[c]), medoids[c]))
    numbered = np.empty(len(xy), dtype=np.intp)
    for number, c in enumerate(order):
        numbered[members[c]] = number
    return Clustering(numbered, np.array([medoids[c] for c in order]), silhouette, silhouette_rows)


def _distance_blocks(xy: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(first row, distances) for blocks of rows: distances to all rows, a few million at a time."""
    step = max(1, BLOCK // len(xy))
    for begin in range(0, len(xy), step):
        across, up = (xy[begin : begin + step, None, axis] - xy[:, axis] for axis in (0, 1))
        yield begin, np.sqrt(across**2 + up**2)
