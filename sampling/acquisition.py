"""S(i): the next scans to label once a model exists, uncertain ones far from those labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import FloatArray, IntArray, finite_matrix, refuse_rows, row_numbers, whole_number
from sampling.farthest import distances_to, nearest_distances

ALPHA = 0.5
TIE = 1e-12  # scores closer than this differ by rounding only and count as equal

Number = TypeVar("Number", bound=np.generic)
Score = Callable[[NDArray[np.float64], NDArray[np.float64], IntArray], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Scans to label next, in picking order, with the terms at the time of each pick.

    rows       (K,), distinct rows, none of them labelled
    score      (K,), S at the time of the pick, 0..1, high = label first. The terms change with every pick, so
               scores need not descend
    entropy    (K,), uncertainty of the model: H, 0..1 among the unlabelled scans
    diversity  (K,), distance to the nearest scan labelled or picked: D, 0..1 among the remaining candidates
    """

    rows: IntArray
    score: NDArray[np.float64]
    entropy: NDArray[np.float64]
    diversity: NDArray[np.float64]


def rank(
    entropy: FloatArray,
    xy: FloatArray,
    chosen: Sequence[int] | IntArray,
    *,
    alpha: float = ALPHA,
    count: int,
) -> Ranking:
    """Pick up to `count` unlabelled scans, one at a time, each with the highest S(i) = alpha H + (1 - alpha) D.

    H is the entropy, min-max normalised once over the unlabelled scans. D is the distance on the map to the
    nearest scan that is labelled or already picked here, min-max normalised over the remaining candidates at
    every pick. A term equal for all candidates counts 0, and so does D while nothing is labelled or picked
    (an empty `chosen` makes the first pick by H alone). Ties, up to rounding, go to the lower row.

    entropy  (N,), finite for unlabelled rows, any value (even NaN) for labelled ones; not modified
    xy       (N, 2), finite, the whole map, labelled scans included; not modified
    chosen   labelled rows, never picked; may be empty
    alpha    0 = spread only, 1 = uncertainty only
    count    number of picks, >= 0; fewer are returned when fewer are unlabelled

    Row numbers index `entropy` and `xy`. Time O(N) per pick and O(N log L) for L labelled scans, memory O(N).
    Raises ValueError on bad shapes, NaN (with its row), chosen, alpha or count.
    The sum and the greedy picks follow the paper; alpha and both normalisations are our additions.

    >>> import numpy as np
    >>> line = np.array([[0.0, 0], [1, 0], [2, 0], [9, 0]])
    >>> found = rank(np.array([np.nan, 0.9, 0.5, 0.1]), line, [0], alpha=0.4, count=2)
    >>> found.rows, found.score.round(4)
    (array([3, 2]), array([0.6, 0.8]))
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: got {alpha}, wanted 0 (spread only) to 1 (uncertainty only)")
    return greedy(entropy, xy, chosen, count=count, score=lambda h, d, _: alpha * h + (1.0 - alpha) * d)


def greedy(
    entropy: FloatArray, xy: FloatArray, chosen: Sequence[int] | IntArray, *, count: int, score: Score
) -> Ranking:
    """Like `rank`, with any `score(H, D, rows)` over the candidates of a pick; each argument is (candidates,)."""
    xy = finite_matrix("xy", xy, columns=2)
    values = np.asarray(entropy, dtype=np.float64)
    if values.shape != (len(xy),):
        raise ValueError(f"entropy: got shape {values.shape}, wanted ({len(xy)},), one number for each row of xy")
    labelled = row_numbers("chosen", chosen, len(xy))
    candidates = np.setdiff1d(np.arange(len(xy)), labelled)
    refuse_rows("entropy", ~np.isfinite(values[candidates]), candidates)
    count = min(whole_number("count", count, low=0), len(candidates))

    h = min_max(values[candidates])
    points = np.asfortranarray(xy[candidates])  # each coordinate contiguous
    nearest = nearest_distances(points, xy[np.unique(labelled)])
    terms = np.empty((3, count))
    picks = np.empty(count, dtype=np.intp)
    for i in range(count):
        d = min_max(nearest)
        s = score(h, d, candidates)
        best = int((s >= s.max() - TIE).argmax())
        picks[i] = candidates[best]
        terms[:, i] = s[best], h[best], d[best]
        pick = points[best].copy()
        candidates, h = _without(best, candidates), _without(best, h)
        nearest, points = _without(best, nearest), _without(best, points)
        np.minimum(nearest, distances_to(points, pick), out=nearest)
    return Ranking(picks, *terms)


def min_max(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values` shifted and scaled to 0..1; all 0 if they are equal, infinity included."""
    if len(values) == 0 or values.min() == values.max():
        return np.zeros(len(values))
    scaled: NDArray[np.float64] = (values - values.min()) / (values.max() - values.min())
    return scaled


def _without(row: int, array: NDArray[Number]) -> NDArray[Number]:
    """The array without `row`: later rows move up by one, in place."""
    array[row:-1] = array[row + 1 :]
    return array[:-1]
