"""The map: scans as points in the plane, similar scans close together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray, finite_matrix, whole_number

DIMENSIONS = 50  # t-SNE works on at most this many principal components
PERPLEXITY = 30.0
SMALLEST_TSNE = 5  # with fewer scans a perplexity of (N - 1) / 3 is about one neighbour: nothing to embed
LARGEST_BARNES_HUT = 5_000  # above it the FFT gradient is faster
LARGEST_EXACT_NEIGHBOURS = 5_000
NEIGHBOURS = 5  # a later scan is placed between this many earlier ones
BLOCK = 4_000_000  # numbers held at once by blocked distance computations


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Positions of N scans on the plane, and what is needed to put later scans beside them.

    xy          (N, 2), row i is the position of row i of the embeddings the map was fitted on
    mean        (D,), subtracted from L2-normalised embeddings
    components  (P, D), P <= 50, orthonormal principal axes
    reduced     (N, P), the fitted embeddings on those axes
    """

    xy: NDArray[np.float64]
    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    reduced: NDArray[np.float64]

    def place(self, embeddings: FloatArray) -> NDArray[np.float64]:
        """Positions (M, 2) of later scans on this map; nothing that is on it moves.

        A scan lands between its 5 nearest fitted scans (fewer on a smaller map), each weighing the inverse of
        its squared distance; distances are between L2-normalised embeddings on the principal axes. So a copy
        of a fitted scan lands on that scan, and where a scan lands does not depend on who comes with it.

        embeddings  (M, D), finite, D as fitted; M may be 0; not modified

        Raises ValueError on bad shape, and on NaN with the row number. Source: Shepard 1968.
        """
        d = len(self.mean)
        if np.shape(embeddings) == (0, d):
            return np.empty((0, 2))
        later = (_unit_rows(finite_matrix("embeddings", embeddings, columns=d)) - self.mean) @ self.components.T
        k = min(NEIGHBOURS, len(self.xy))
        placed = np.empty((len(later), 2))
        step = max(1, BLOCK // len(self.xy))
        for begin in range(0, len(later), step):
            block = slice(begin, begin + step)
            squared = _squared_distances(later[block], self.reduced)
            nearest = np.argsort(squared, axis=1, kind="stable")[:, :k]
            weight = 1.0 / (np.take_along_axis(squared, nearest, axis=1) + 1e-20)
            weight /= weight.sum(axis=1, keepdims=True)
            placed[block] = (weight[:, :, None] * self.xy[nearest]).sum(axis=1)
        return placed

    def state(self) -> dict[str, NDArray[np.float64]]:
        """The map as plain arrays, for `numpy.savez`; `EmbeddingMap.from_state` gives the same map back."""
        return {"xy": self.xy, "mean": self.mean, "components": self.components, "reduced": self.reduced}

    @classmethod
    def from_state(cls, state: Mapping[str, FloatArray]) -> EmbeddingMap:
        """The map that `state()` described. Raises ValueError if arrays are missing or misfit."""
        missing = [name for name in ("xy", "mean", "components", "reduced") if name not in state]
        if missing:
            raise ValueError(f"map state: {', '.join(missing)} missing, got {sorted(state)}. Fit the map again")
        xy, mean, components, reduced = (
            np.array(state[name], dtype=np.float64) for name in ("xy", "mean", "components", "reduced")
        )
        n, p, d = len(np.atleast_1d(xy)), len(np.atleast_2d(components)), mean.size
        if (xy.shape, mean.shape, components.shape, reduced.shape) != ((n, 2), (d,), (p, d), (n, p)):
            raise ValueError(
                f"map state: got shapes xy {xy.shape}, mean {mean.shape}, components {components.shape}, "
                f"reduced {reduced.shape}, wanted (N, 2), (D,), (P, D), (N, P). Fit the map again"
            )
        return cls(xy, mean, components, reduced)


def fit_map(embeddings: FloatArray, *, seed: int) -> EmbeddingMap:
    """Lay N scans out on the plane so that neighbours in embedding space are neighbours on it.

    Embeddings are L2-normalised (an all-zero row stays zero), reduced by PCA to at most 50 dimensions, then
    by t-SNE to 2, with perplexity min(30, (N - 1) / 3) and the first two principal components as the start.
    With fewer than 5 scans, or when all are the same, the map is those two components themselves.

    embeddings  (N, D), finite, N >= 1, one row per scan; not modified
    seed        same input and seed, same map

    One thread throughout, so the number of processors does not change the map.
    Raises ValueError on bad shape, and on NaN with the row number.
    Sources: van der Maaten & Hinton 2008; Linderman et al. 2019; Kobak & Berens 2019; openTSNE.

    >>> import numpy as np
    >>> two = fit_map(np.array([[1.0, 0.0], [0.0, 1.0]]), seed=0)
    >>> two.xy.shape, two.place(np.array([[5.0, 0.0]])).shape
    ((2, 2), (1, 2))
    """
    seed = whole_number("seed", seed, low=0)
    unit = _unit_rows(finite_matrix("embeddings", embeddings))
    mean = unit.mean(axis=0)
    components = _principal_axes(unit - mean)
    reduced = (unit - mean) @ components.T
    start = np.zeros((len(unit), 2))
    start[:, : min(2, reduced.shape[1])] = reduced[:, :2]
    if len(unit) < SMALLEST_TSNE or not len(components):
        return EmbeddingMap(start, mean, components, reduced)
    return EmbeddingMap(_tsne(reduced, start, seed), mean, components, reduced)


def _tsne(reduced: NDArray[np.float64], start: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    import openTSNE  # slow to import, and only a fit needs it

    n = len(reduced)
    random = np.random.default_rng(seed)
    # The usual scale for a start; the jitter parts exact copies and lets points on a line leave it.
    start = 1e-4 * (start / start[:, 0].std() + random.normal(0.0, 0.01, start.shape))
    tsne = openTSNE.TSNE(
        perplexity=min(PERPLEXITY, (n - 1) / 3),
        neighbors="exact" if n <= LARGEST_EXACT_NEIGHBOURS else "annoy",
        negative_gradient_method="bh" if n <= LARGEST_BARNES_HUT else "fft",
        n_jobs=1,
        random_state=int(random.integers(2**32)),
    )
    return np.array(tsne.fit(reduced, initialization=start), dtype=np.float64)


def _principal_axes(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, D) orthonormal axes of largest variance, P <= min(50, N - 1, D); axes without variance left out.

    The sign of an axis is arbitrary: its largest entry is made positive.
    """
    n, d = centred.shape
    if n > d:
        variance, vectors = np.linalg.eigh(centred.T @ centred)
        order = np.argsort(-variance, kind="stable")
        axes, spread = vectors[:, order].T, np.sqrt(np.maximum(variance[order], 0.0))
    else:
        _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    # Rows have unit length, so what rounding leaves of "no variance" is about sqrt(n) * 1e-8 after eigh.
    kept = axes[: min(DIMENSIONS, n - 1, d)][spread[: min(DIMENSIONS, n - 1, d)] > 1e-7 * math.sqrt(n)]
    largest = np.abs(kept).argmax(axis=1)
    return np.ascontiguousarray(kept * np.sign(kept[np.arange(len(kept)), largest])[:, None])


def _unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = np.abs(rows).max(axis=1, keepdims=True)  # first to this scale: squares may not overflow
    scaled = rows / np.where(largest > 0, largest, 1.0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: NDArray[np.float64] = scaled / np.where(length > 0, length, 1.0)
    return unit


def _squared_distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(A, B); axis by axis, since the expanded square would blur the distance between near copies."""
    total = np.zeros((len(a), len(b)))
    for axis in range(a.shape[1]):
        total += (a[:, axis, None] - b[:, axis]) ** 2
    return total
