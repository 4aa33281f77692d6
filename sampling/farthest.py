"""Spread picks out: each the farthest from all before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray, IntArray, finite_matrix, whole_number


def farthest_first(points: FloatArray, n: int, start: int) -> IntArray:
    """Choose `n` rows of `points`, each the farthest from its nearest earlier pick.

    points  (N, D), finite; Euclidean distance between rows; not modified
    n       how many to choose, 1 <= n <= N
    start   the row picked first

    Returns n distinct rows of `points` in picking order; ties go to the lower row, so of points that coincide
    the lowest row comes first. Time O(n N), memory O(N).
    Raises ValueError on bad shape, NaN (with its row), n or start. Source: Gonzalez 1985.

    >>> import numpy as np
    >>> farthest_first(np.array([[0.0], [1.0], [9.0], [4.0]]), 4, start=1)
    array([1, 2, 3, 0])
    """
    points = finite_matrix("points", points)
    n = whole_number("n", n, low=1, high=len(points))
    start = whole_number("start", start, low=0, high=len(points) - 1)
    picks = np.empty(n, dtype=np.intp)
    picks[0] = start
    nearest = distances_to(points, points[start])
    nearest[start] = -1.0  # below any distance: never picked again, even among copies
    for i in range(1, n):
        picks[i] = pick = int(nearest.argmax())
        np.minimum(nearest, distances_to(points, points[pick]), out=nearest)
        nearest[pick] = -1.0
    return picks


def distances_to(points: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) Euclidean distance of every row of `points` (N, D) to `other` (D,)."""
    difference = points - other
    distances: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    return distances
