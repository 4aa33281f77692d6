"""Farthest-first traversal: each pick is the farthest from all before it."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray, IntArray, finite_matrix, whole_number

LARGEST = 1e150  # squared distances of larger coordinates overflow in a tree
FIRST_PICKS = 64  # in the plane, later picks update only their neighbourhood


def farthest_first(points: FloatArray, n: int, start: int) -> IntArray:
    """Choose `n` rows of `points`, each the farthest from its nearest earlier pick.

    points  (N, D), finite; Euclidean distance between rows; not modified
    n       number of picks, 1 <= n <= N
    start   the row picked first

    Returns n distinct rows of `points` in picking order; ties go to the lower row. Memory O(N). Time O(n N), or
    about O(N log N) for any n in the plane (D = 2), as a million scans need.
    Raises ValueError on bad shape, NaN (with its row), n or start.
    Sources: Gonzalez 1985; Har-Peled & Mendel 2006 (a pick affects only points within the current radius).

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
    nearest[start] = -1.0  # below any distance: never picked again, even among duplicates
    alone = min(n, FIRST_PICKS) if points.shape[1] == 2 and np.abs(points).max() < LARGEST else n
    for i in range(1, alone):
        picks[i] = pick = int(nearest.argmax())
        np.minimum(nearest, distances_to(points, points[pick]), out=nearest)
        nearest[pick] = -1.0
    if alone < n:
        picks[alone:] = _later_picks(points, nearest, n - alone)
    return picks


def distances_to(points: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) Euclidean distance of every row of `points` (N, D) to `other` (D,)."""
    if points.shape[1] == 2:  # a row's result must not depend on the other rows
        across, up = points[:, 0] - other[0], points[:, 1] - other[1]
        across *= across
        up *= up
        across += up
        planar: NDArray[np.float64] = np.sqrt(across, out=across)
        return planar
    difference = points - other
    distances: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    return distances


def _later_picks(points: NDArray[np.float64], nearest: NDArray[np.float64], n: int) -> IntArray:
    """The next `n` picks in the plane; `nearest` (N,), -1 where picked already, is modified.

    No point is farther than `radius` from the picks, so a pick at that distance can only shorten the distances
    of points less than `radius` from it. A tree finds those. The heap holds an earlier distance of each point;
    distances only shrink, so the first up-to-date entry is the farthest point, with the lowest row among ties.
    """
    from scipy.spatial import KDTree  # slow to import, and small pools do not need it

    tree = KDTree(points)
    left = np.flatnonzero(nearest >= 0)
    heap = list(zip((-nearest[left]).tolist(), left.tolist(), strict=True))
    heapq.heapify(heap)
    picks = np.empty(n, dtype=np.intp)
    for i in range(n):
        while -heap[0][0] != nearest[heap[0][1]]:
            row = heap[0][1]
            heapq.heapreplace(heap, (-float(nearest[row]), row))
        radius, pick = -heap[0][0], heap[0][1]
        if radius == 0.0:  # only duplicates of picks remain
            picks[i:] = np.flatnonzero(nearest >= 0)[: n - i]
            break
        heapq.heappop(heap)
        picks[i] = pick
        around = np.array(tree.query_ball_point(points[pick], radius * (1 + 1e-9)), dtype=np.intp)
        nearest[around] = np.minimum(nearest[around], distances_to(points[around], points[pick]))
        nearest[pick] = -1.0
    return picks
