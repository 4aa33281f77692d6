"""Any number of embeddings like a foundation model's, and how well a map or a choice of scans fits them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.records.maps import StoredMap
from sampling.arrays import blocks_of

DIMENSIONS = 512
GROUPS = 12
FACTORS = 16  # directions in which the scans of a group differ
AT_ONCE = 16_384  # rows drawn at a time, so that row i is the same in a pool of any size

Matrix = NDArray[np.floating[Any]]


def made_map(digests: Sequence[str], xy: NDArray[np.float64], dimensions: int) -> StoredMap:
    """A map with these positions (N, 2), as if the first 1,000 scans had been laid out."""
    first = xy[:1000]
    fitted = {"xy": first, "mean": np.zeros(dimensions), "components": np.eye(2, dimensions), "reduced": first}
    return StoredMap(list(digests), xy, fitted, "slice", {})


def embeddings(n: int, *, seed: int, later: bool = False) -> NDArray[np.float32]:
    """(n, 512) float32: groups of unequal size, each stretched along its own 16 directions, plus noise in all.

    The groups share a common direction, as embeddings of one kind of image do, and overlap slightly.
    `later` draws other scans of the same groups.
    """
    random = np.random.default_rng(seed)
    common = random.normal(size=DIMENSIONS) / np.sqrt(DIMENSIONS)
    centres = common + random.normal(size=(GROUPS, DIMENSIONS)) / np.sqrt(DIMENSIONS)
    stretch = 0.5 * 0.8 ** np.arange(FACTORS)[:, None]
    factors = stretch * random.normal(size=(GROUPS, FACTORS, DIMENSIONS)) / np.sqrt(DIMENSIONS)
    share = 0.85 ** np.arange(GROUPS)
    rows = np.empty((n, DIMENSIONS), dtype=np.float32)
    for begin in range(0, n, AT_ONCE):
        draw = np.random.default_rng([seed, int(later), begin])
        group = draw.choice(GROUPS, AT_ONCE, p=share / share.sum())
        within = draw.normal(size=(AT_ONCE, FACTORS))
        block = draw.standard_normal((AT_ONCE, DIMENSIONS), dtype=np.float32)
        block *= 0.4 / np.sqrt(DIMENSIONS)
        for g in range(GROUPS):
            mine = group == g
            block[mine] += (centres[g] + within[mine] @ factors[g]).astype(np.float32)
        rows[begin : begin + AT_ONCE] = block[: n - begin]
    return rows


def unit(rows: Matrix) -> Matrix:
    """The rows scaled to length 1; distances between embeddings are measured between these."""
    lengths: Matrix = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return lengths


def covering_radius(rows: Matrix, picks: Sequence[int]) -> float:
    """The largest distance from any row, scaled to length 1, to the nearest picked row."""
    normal = unit(rows)
    centres = normal[np.asarray(picks)].T
    squared = [(2 - 2 * (normal[block] @ centres)).min(axis=1).max() for block in blocks_of(len(rows), 512, 4_000_000)]
    return float(np.sqrt(max(0.0, float(max(squared)))))


def trustworthiness(rows: Matrix, xy: Matrix, of: Sequence[int], *, k: int = 10) -> tuple[float, float]:
    """How far the k map neighbours of the rows `of` are also neighbours as embeddings: (trustworthiness, kept).

    Trustworthiness is in 0..1, 1 = all of them are among the k nearest embeddings; each one that is not adds a
    penalty that grows with its rank among all rows (Venna & Kaski 2001, here for some rows instead of all). `kept`
    is the share of map neighbours that are among the k nearest embeddings, a finer measure.
    """
    n, normal = len(rows), unit(rows)
    penalty, kept = 0.0, 0
    for row in np.asarray(of):
        apart = 2 - 2 * (normal @ normal[row])
        near = ((xy - xy[row]) ** 2).sum(axis=1)
        apart[row] = near[row] = -np.inf
        place = np.empty(n, dtype=np.intp)
        place[np.argsort(apart, kind="stable")] = np.arange(n)  # the row itself has rank 0
        beyond = place[np.argpartition(near, k)[: k + 1]] - k
        penalty += float(beyond[beyond > 0].sum())
        kept += int((beyond <= 0).sum()) - 1
    return 1 - 2 * penalty / (len(of) * k * (2 * n - 3 * k - 1)), kept / (len(of) * k)


def power_law(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """(exponent, factor) of value = factor * size ** exponent, by least squares of the logarithms."""
    exponent, logarithm = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(exponent), float(np.exp(logarithm))
