"""The map: scans as points in the plane, with similar scans close together."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray, IntArray, blocks_of, finite_rows, row_numbers, whole_number

DIMENSIONS = 50  # maximum number of principal components for t-SNE
PERPLEXITY = 30.0
SMALLEST_TSNE = 5  # with fewer scans, a perplexity of (N - 1) / 3 means about one neighbour
LARGEST_BARNES_HUT = 5_000  # above it the FFT gradient is faster
LARGEST_FIT = 50_000  # maximum number of scans for t-SNE; the others of a larger pool are placed
LARGEST_EXACT_NEIGHBOURS = 50_000
NEIGHBOURS = 5  # number of fitted scans that a later scan is placed between
SPARE = 8  # extra neighbours searched, because the search is exact only up to rounding
BLOCK = 4_000_000  # 64-bit numbers in memory at once, in addition to the embeddings
PLACED_AT_ONCE = 65_536  # rows


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Positions of N scans in the plane, and the data to place later scans among them.

    xy          (N, 2), row i is the position of row i of the embeddings that `fit_map` was given
    mean        (D,), subtracted from L2-normalised embeddings
    components  (P, D), P <= 50, orthonormal principal axes
    reduced     (F, P), the fitted embeddings on those axes: float64, or float32 where `fitted` is given
    fitted      (F,), reduced[i] belongs to xy[fitted[i]]. These rows were laid out by t-SNE, the others
                placed between them. None if all rows were laid out: F = N, reduced[i] is row i
    """

    xy: NDArray[np.float64]
    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    reduced: FloatArray
    fitted: IntArray | None = None

    def place(self, embeddings: FloatArray) -> NDArray[np.float64]:
        """Positions (M, 2) of later scans on this map; existing positions do not change.

        A scan lands between its 5 nearest fitted scans (fewer on a smaller map), weighted by the
        inverse squared distance; distances are between L2-normalised embeddings on the principal axes. A copy
        of a fitted scan lands on that scan, and no position depends on the other later scans.

        embeddings  (M, D), finite, D as fitted; M may be 0; not modified

        Time O(M F), on all processors for many scans; their number does not change the result.
        Memory O(M) and a few hundred MB.
        Raises ValueError on bad shape, and on NaN with the row number. Source: Shepard 1968.
        """
        d = len(self.mean)
        if np.shape(embeddings) == (0, d):
            return np.empty((0, 2))
        rows = finite_rows("embeddings", embeddings, columns=d)
        return self._placed(rows, np.arange(len(rows)))

    def _placed(self, embeddings: FloatArray, rows: IntArray) -> NDArray[np.float64]:
        there = self.xy if self.fitted is None else self.xy[self.fitted]
        placed = np.empty((len(rows), 2))
        for begin in range(0, len(rows), PLACED_AT_ONCE):
            block = slice(begin, begin + PLACED_AT_ONCE)
            later = _on_axes(embeddings, rows[block], self.mean, self.components).astype(self.reduced.dtype)
            squared, nearest = _nearest(later, self.reduced, min(NEIGHBOURS, len(there)))
            weight = 1.0 / (squared + 1e-20)
            weight /= weight.sum(axis=1, keepdims=True)
            placed[block] = (weight[:, :, None] * there[nearest]).sum(axis=1)
        return placed

    def state(self) -> dict[str, NDArray[Any]]:
        """The map as plain arrays, for `numpy.savez`; `EmbeddingMap.from_state` restores the same map.

        "fitted" is absent if all rows were laid out by t-SNE.
        """
        state: dict[str, NDArray[Any]] = {
            "xy": self.xy,
            "mean": self.mean,
            "components": self.components,
            "reduced": self.reduced,
        }
        return state if self.fitted is None else state | {"fitted": self.fitted}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> EmbeddingMap:
        """The map that `state()` described. Raises ValueError if arrays are missing or do not match."""
        missing = [name for name in ("xy", "mean", "components", "reduced") if name not in state]
        if missing:
            raise ValueError(f"map state: {', '.join(missing)} missing, got {sorted(state)}. Fit the map again")
        xy, mean, components = (np.array(state[name], dtype=np.float64) for name in ("xy", "mean", "components"))
        fitted = row_numbers("map state: fitted", state["fitted"], len(xy)) if "fitted" in state else None
        reduced: FloatArray = np.array(state["reduced"], dtype=np.float64 if fitted is None else np.float32)
        n, p, d = len(np.atleast_1d(xy)), len(np.atleast_2d(components)), mean.size
        f = n if fitted is None else len(fitted)
        if (xy.shape, mean.shape, components.shape, reduced.shape) != ((n, 2), (d,), (p, d), (f, p)):
            raise ValueError(
                f"map state: got shapes xy {xy.shape}, mean {mean.shape}, components {components.shape}, "
                f"reduced {reduced.shape}, wanted (N, 2), (D,), (P, D), ({'N' if fitted is None else f}, P). "
                "Fit the map again"
            )
        return cls(xy, mean, components, reduced, fitted)


def fit_map(embeddings: FloatArray, *, seed: int, most: int | None = None) -> EmbeddingMap:
    """Lay N scans out in the plane so that neighbours in embedding space are neighbours on the map.

    Embeddings are L2-normalised (an all-zero row stays zero), reduced by PCA to at most 50 dimensions, then
    by t-SNE to 2, with perplexity min(30, (N - 1) / 3) and the first two principal components as the start.
    With fewer than 5 scans, or if all are the same, the map is these two components.
    Above `most` scans the principal axes still use all scans, but t-SNE lays out a random sample of so many,
    drawn by `seed`, and `EmbeddingMap.place` places the others.

    embeddings  (N, D), finite, N >= 1, one row per scan; not modified, and not copied if of float32
    seed        same input and seed, same map
    most        number of scans for t-SNE, at least 1; None: 50,000

    The number of processors does not change the map. Time O(N) above `most` scans; memory beside the
    embeddings O(N), with 2 numbers per scan and a few hundred MB.
    Raises ValueError on bad shape, and on NaN with the row number.
    Sources: van der Maaten & Hinton 2008; Linderman et al. 2019; Kobak & Berens 2019; openTSNE.

    >>> import numpy as np
    >>> two = fit_map(np.array([[1.0, 0.0], [0.0, 1.0]]), seed=0)
    >>> two.xy.shape, two.place(np.array([[5.0, 0.0]])).shape
    ((2, 2), (1, 2))
    """
    from threadpoolctl import threadpool_limits  # slow to import

    seed = whole_number("seed", seed, low=0)
    rows = finite_rows("embeddings", embeddings)
    n = len(rows)
    fitted: IntArray = np.arange(n)
    most = whole_number("most", LARGEST_FIT if most is None else most, low=1)
    if n > most:
        fitted = np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
    with threadpool_limits(limits=1, user_api="blas"):  # sums in one order
        mean = _mean(rows)
        components = _principal_axes(rows, mean)
        reduced = _on_axes(rows, fitted, mean, components)
    start = np.zeros((len(fitted), 2))
    start[:, : min(2, reduced.shape[1])] = reduced[:, :2]
    xy = start if len(fitted) < SMALLEST_TSNE or not len(components) else _tsne(reduced, start, seed)
    if len(fitted) == n:
        return EmbeddingMap(xy, mean, components, reduced)
    whole = np.zeros((n, 2))
    whole[fitted] = xy
    found = EmbeddingMap(whole, mean, components, reduced.astype(np.float32), fitted)
    others = np.setdiff1d(np.arange(n), fitted, assume_unique=True)
    whole[others] = found._placed(rows, others)
    return found


def _tsne(reduced: NDArray[np.float64], start: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    import openTSNE  # slow to import, and only a fit needs it

    n = len(reduced)
    random = np.random.default_rng(seed)
    # Usual initial scale; the jitter separates duplicates and lets points on a line leave it.
    start = 1e-4 * (start / start[:, 0].std() + random.normal(0.0, 0.01, start.shape))
    tsne = openTSNE.TSNE(
        perplexity=min(PERPLEXITY, (n - 1) / 3),
        neighbors="exact" if n <= LARGEST_EXACT_NEIGHBOURS else "annoy",
        negative_gradient_method="bh" if n <= LARGEST_BARNES_HUT else "fft",
        n_jobs=1,
        random_state=int(random.integers(2**32)),
    )
    with _threads_for(n):
        return np.array(tsne.fit(reduced, initialization=start), dtype=np.float64)


def _mean(rows: FloatArray) -> NDArray[np.float64]:
    """(D,) mean of the L2-normalised rows."""
    total = np.zeros(rows.shape[1])
    for block in blocks_of(len(rows), rows.shape[1], BLOCK):
        total += _unit_rows(rows[block]).sum(axis=0)
    return total / len(rows)


def _principal_axes(rows: FloatArray, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, D) orthonormal axes of largest variance of the L2-normalised rows, P <= min(50, N - 1, D).

    Axes without variance are left out. The sign of an axis is arbitrary: its largest entry is made positive.
    """
    n, d = rows.shape
    if n > d:
        gram = np.zeros((d, d))
        for block in blocks_of(n, d, BLOCK):
            centred = _unit_rows(rows[block]) - mean
            gram += centred.T @ centred
        variance, vectors = np.linalg.eigh(gram)
        order = np.argsort(-variance, kind="stable")
        axes, spread = vectors[:, order].T, np.sqrt(np.maximum(variance[order], 0.0))
    else:
        _, spread, axes = np.linalg.svd(_unit_rows(rows) - mean, full_matrices=False)
    # Rows have unit length, so axes without variance come out of eigh at about sqrt(n) * 1e-8.
    kept = axes[: min(DIMENSIONS, n - 1, d)][spread[: min(DIMENSIONS, n - 1, d)] > 1e-7 * math.sqrt(n)]
    largest = np.abs(kept).argmax(axis=1)
    return np.ascontiguousarray(kept * np.sign(kept[np.arange(len(kept)), largest])[:, None])


def _on_axes(
    embeddings: FloatArray, rows: IntArray, mean: NDArray[np.float64], components: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(R, P): the given rows, L2-normalised, on the principal axes."""
    reduced = np.empty((len(rows), len(components)))
    for block in blocks_of(len(rows), embeddings.shape[1], BLOCK):
        reduced[block] = (_unit_rows(embeddings[rows[block]]) - mean) @ components.T
    return reduced


def _nearest(later: FloatArray, there: FloatArray, k: int) -> tuple[NDArray[np.float64], IntArray]:
    """(squared distances, rows), both (M, k): the k rows of `there` (F, P) nearest to each later scan (M, P).

    Nearest first, ties to the lower row. The search expands the squared distance, which is inexact
    between near-duplicates, so the candidates and a few spare ones are measured again directly.
    """
    from sklearn.neighbors import NearestNeighbors  # slow to import

    if not there.shape[1]:  # all scans are the same
        return np.zeros((len(later), k)), np.tile(np.arange(k), (len(later), 1))
    asked = min(k + SPARE, len(there))
    index = NearestNeighbors(n_neighbors=asked, algorithm="brute").fit(there)
    with _threads_for(len(later)):
        candidates: IntArray = np.sort(index.kneighbors(later, return_distance=False), axis=1)
    squared = np.empty((len(later), asked))
    for block in blocks_of(len(later), asked * there.shape[1], BLOCK):
        difference = later[block, None, :].astype(np.float64) - there[candidates[block]]
        squared[block] = np.einsum("mkp,mkp->mk", difference, difference)
    first = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(squared, first, axis=1), np.take_along_axis(candidates, first, axis=1)


def _threads_for(n: int) -> AbstractContextManager[object]:
    """All threads for the neighbours of `n` scans if threads can split by scan, else one.

    Below 1,024 scans per thread, scikit-learn splits the work in a way in which the result may depend on the
    number of threads.
    """
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(None if n > 1024 * (os.cpu_count() or 1) else 1)
    return limits


def _unit_rows(rows: FloatArray) -> NDArray[np.float64]:
    rows = rows.astype(np.float64, copy=False)
    largest = np.abs(rows).max(axis=1, keepdims=True)  # scaling first keeps squares from overflowing
    scaled = rows / np.where(largest > 0, largest, 1.0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: NDArray[np.float64] = scaled / np.where(length > 0, length, 1.0)
    return unit
