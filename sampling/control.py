"""Randomly drawn controls in every order, so that a lab can test on its own scans whether a strategy helps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sampling.arrays import IntArray, row_numbers, whole_number


def control_places(count: int, share: float, *, start: int = 0) -> NDArray[np.bool_]:
    """(count,), True where a place is a control: `share` of all places, evenly spread.

    share  0..0.5; for every n, round(n * share) of the first n places are controls
    start  the first of the `count` places; continuing an order does not change which places are controls

    >>> control_places(10, 0.2).nonzero()[0], control_places(5, 0.2, start=5).nonzero()[0]
    (array([2, 7]), array([2]))
    """
    if not 0 <= share <= 0.5:
        raise ValueError(f"share: got {share}, wanted 0 (none) to 0.5 (every other place)")
    start, count = whole_number("start", start, low=0), whole_number("count", count, low=0)
    upto = [math.floor(n * share + 0.5) for n in range(start, start + count + 1)]
    return np.diff(upto) > 0


def evenly_spread(count: int, wanted: int) -> list[int]:
    """`wanted` of the rows 0..count - 1, evenly spread: the middle one of each of so many equal parts.

    >>> evenly_spread(10, 5), evenly_spread(3, 3)
    ([1, 3, 5, 7, 9], [0, 1, 2])
    """
    if not 0 <= wanted <= count:
        raise ValueError(f"wanted: got {wanted}, wanted 0 to {count}")
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def with_controls(
    ours: IntArray, drawn: IntArray, share: float, *, start: int = 0
) -> tuple[IntArray, NDArray[np.bool_]]:
    """Merge two orders of the same scans: (rows, whether each is a control).

    ours   (K,) rows in the order of a strategy, which ignores the controls
    drawn  (K,) the same rows in a random order
    start  number of earlier places; the K rows follow them

    Each control is the first row of `drawn` not placed yet, so it is drawn uniformly from the remaining rows.
    Returns every row once. Raises ValueError when the two do not contain the same rows.

    >>> with_controls(np.array([4, 2, 0, 1, 3]), np.array([2, 3, 1, 0, 4]), 0.4)
    (array([4, 2, 0, 3, 1]), array([False,  True, False,  True, False]))
    """
    size = int(max(ours.max(), drawn.max())) + 1 if len(ours) and len(drawn) else 0
    for name, rows in (("ours", ours), ("drawn", drawn)):
        row_numbers(name, rows, size)
    if len(np.unique(ours)) != len(ours) or not np.array_equal(np.sort(ours), np.sort(drawn)):
        raise ValueError("drawn: wanted a permutation of the rows of ours")
    control = control_places(len(ours), share, start=start)
    placed = np.zeros(size, dtype=bool)
    queues = {True: iter(drawn.tolist()), False: iter(ours.tolist())}
    rows = np.empty(len(ours), dtype=np.intp)
    for i, kind in enumerate(control.tolist()):
        rows[i] = next(row for row in queues[kind] if not placed[row])
        placed[rows[i]] = True
    return rows, control
