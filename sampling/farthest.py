"""Farthest-first traversal: each pick is the farthest from all before it."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import BLOCK, FloatArray, IntArray, blocks_of, finite_matrix, whole_number

LARGEST = 1e150  # squared distances of larger coordinates overflow in a tree
FIRST_PICKS = 64  # in the plane, later picks update only their neighbourhood
BATCH = 64  # picks after which all distances are bounded again
FEW = 1024  # rows with the highest bounds, of which the farthest is sought
FEW_PLACES = 32  # above this number of places in the plane, a tree finds the nearest one


def farthest_first(points: FloatArray, n: int, start: int) -> IntArray:
    """Choose `n` rows of `points`, each the farthest from its nearest earlier pick.

    points  (N, D), finite; Euclidean distance between rows; not modified
    n       number of picks, 1 <= n <= N
    start   the row picked first

    Returns n distinct rows of `points` in picking order; ties go to the lower row. Memory O(N). Time O(n N), or
    about O(N log N) for any n in the plane (D = 2), as a million scans need; see `farthest_after`.
    Raises ValueError on bad shape, NaN (with its row), n or start.
    Sources: Gonzalez 1985; Har-Peled & Mendel 2006 (a pick affects only points within the current radius).

    >>> import numpy as np
    >>> farthest_first(np.array([[0.0], [1.0], [9.0], [4.0]]), 4, start=1)
    array([1, 2, 3, 0])
    """
    points = finite_matrix("points", points)
    n = whole_number("n", n, low=1, high=len(points))
    start = whole_number("start", start, low=0, high=len(points) - 1)
    first = np.array([start], dtype=np.intp)
    return np.concatenate([first, farthest_after(points, first, n - 1)])


def farthest_after(points: FloatArray, before: IntArray, n: int) -> IntArray:
    """The next `n` picks after the rows `before`, each the farthest from its nearest earlier pick.

    points  (N, D), finite; not modified
    before  distinct rows, at least one; n <= N - len(before)

    Returns n distinct rows in picking order, none of `before`; ties go to the lower row. The same as computing the
    distances of all rows to every pick, but at many dimensions most of them are only bounded, by a product of matrices
    for `BATCH` picks at a time, and measured for the few rows that may be the farthest.
    Memory O(N) and a copy of the picked rows.
    Sources: Gonzalez 1985; Minoux 1978 (lazy evaluation).
    """
    if points.shape[1] == 2:
        return _after_in_plane(np.asarray(points, dtype=np.float64), before, n)
    picks = np.concatenate([before, np.zeros(n, dtype=np.intp)])
    places = np.empty((len(picks), points.shape[1]))
    places[: len(before)] = points[before]
    nearest = _Nearest(points, places)
    nearest.bound[before] = -1.0
    for i in range(len(before), len(picks)):
        picks[i] = pick = nearest.farthest(i)
        places[i] = points[pick]
        nearest.bound[pick] = -1.0
    return picks[len(before) :]


class _Nearest:
    """Distance of each row to the nearest of the first places: an upper bound, exact where it matters.

    bound  (N,), -1 for rows that are never picked
    """

    def __init__(self, points: FloatArray, places: NDArray[np.float64]) -> None:
        self.points, self.places = points, places
        self.bound = np.full(len(points), np.inf)
        self._measured = np.zeros(len(points), dtype=np.intp)  # the row was measured to so many places ...
        self._exact = np.full(len(points), np.inf)  # ... with this result
        self._bounded = 0  # all rows are bounded by so many places
        self._few: IntArray = np.empty(0, dtype=np.intp)  # ascending; the bounds of all other rows are <= rest
        self._few_points = points[:0]
        self._few_bounded = 0  # these are bounded by so many places
        self._rest = np.inf
        self._kind = np.result_type(points.dtype, np.float32)
        blocks = blocks_of(len(points), points.shape[1], BLOCK)
        with np.errstate(over="ignore"):
            parts = (points[rows].astype(self._kind, copy=False) for rows in blocks)
            self._squares = np.concatenate([np.einsum("nd,nd->n", part, part) for part in parts])

    def farthest(self, n: int) -> int:
        """The row farthest from the nearest of the first `n` places, the lowest one of several."""
        if not self._bounded or n - self._bounded >= BATCH:
            self._tighten(n)
        self._tighten_few(n)
        while True:
            top = int(self._few[self.bound[self._few].argmax()]) if len(self._few) else -1
            if top < 0 or self.bound[top] <= self._rest:
                self._select()
                self._tighten_few(n)
            elif self._measured[top] == n or self.bound[top] == 0.0:
                return top
            else:
                new = distances_to(self.places[self._measured[top] : n], self.points[top].astype(np.float64)).min()
                self.bound[top] = self._exact[top] = min(self._exact[top], new)
                self._measured[top] = n

    def _select(self) -> None:
        """The rows with the highest bounds, about `FEW`."""
        least = -np.partition(-self.bound, FEW)[FEW] if len(self.bound) > FEW else -np.inf
        high = self.bound >= least
        self._few = np.flatnonzero(high)
        self._few_points = self.points[self._few].astype(self._kind, copy=False)
        self._few_bounded = self._bounded
        self._rest = float(self.bound[~high].max(initial=-np.inf))

    def _tighten(self, n: int) -> None:
        """Bound all rows by the places that were added, `BATCH` of them at a time."""
        for begin in range(self._bounded, n, BATCH):
            places = self.places[begin : min(begin + BATCH, n)]
            for rows in blocks_of(len(self.points), max(BATCH, self.points.shape[1]), BLOCK):
                points = self.points[rows].astype(self._kind, copy=False)
                self.bound[rows] = np.fmin(self.bound[rows], self._bounds(points, self._squares[rows], places))
        self._bounded, self._few = n, self._few[:0]

    def _tighten_few(self, n: int) -> None:
        if len(self._few) and self._few_bounded < n:
            places = self.places[self._few_bounded : n]
            bounds = self._bounds(self._few_points, self._squares[self._few], places)
            self.bound[self._few] = np.fmin(self.bound[self._few], bounds)
            self._few_bounded = n

    def _bounds(
        self, points: FloatArray, squares: NDArray[np.floating], places: NDArray[np.float64]
    ) -> NDArray[np.floating]:
        """At least the distance of these rows to the nearest of the places; rounding is added."""
        error = 4 * (points.shape[1] + 4) * float(np.finfo(self._kind).eps)
        lengths = np.einsum("nd,nd->n", places, places)
        with np.errstate(over="ignore", invalid="ignore"):  # NaN bounds nothing
            low = (points @ (-2 * places.T).astype(self._kind) + lengths.astype(self._kind)).min(axis=1)
            low += squares + error * (squares + lengths.max())
        bounds: NDArray[np.floating] = np.sqrt(np.maximum(low, 0))
        return bounds


def _after_in_plane(points: NDArray[np.float64], before: IntArray, n: int) -> IntArray:
    nearest = nearest_distances(points, points[before])
    nearest[before] = -1.0  # below any distance: never picked again, even among duplicates
    picks = np.empty(n, dtype=np.intp)
    alone = min(n, FIRST_PICKS) if np.abs(points).max() < LARGEST else n
    for i in range(alone):
        picks[i] = pick = int(nearest.argmax())
        np.minimum(nearest, distances_to(points, points[pick]), out=nearest)
        nearest[pick] = -1.0
    if alone < n:
        picks[alone:] = _later_picks(points, nearest, n - alone)
    return picks


def nearest_distances(points: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) distance of each point in the plane to the nearest place; infinity without any."""
    if len(places) > FEW_PLACES and max(np.abs(points).max(initial=0), np.abs(places).max()) < LARGEST:
        from scipy.spatial import KDTree  # slow to import

        # Each point is searched independently, so the number of threads changes nothing.
        _, rows = KDTree(places).query(points, workers=-1)
        found: NDArray[np.float64] = np.sqrt(((points - places[rows]) ** 2).sum(axis=1))
        return found
    nearest = np.full(len(points), np.inf)
    for place in places:
        np.minimum(nearest, distances_to(points, place), out=nearest)
    return nearest


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
