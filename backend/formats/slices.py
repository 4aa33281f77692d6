"""Which slices of a volume are worth looking at."""

from __future__ import annotations

import math

import numpy as np

from backend.formats.geometry import Cut
from backend.formats.volume import Volume, choose_window
from backend.formats.window import to_uint8

BINS = 64
SIDE = 256  # a slice is looked at in about this many rows and columns


def informative(volume: Volume, cut: Cut, k: int) -> list[int]:
    """The k most informative slices of a cut, spread over the volume, in slice order.

    A slice's information is the entropy of its histogram (64 bins over the window that the volume is shown with), less
    that of the emptiest slice. The volume is divided into k stretches of equal information, and from the middle half of
    each the slice with the most is taken: air around the head is passed over, and neighbours that say the same are not
    taken together. A stretch without a slice of its own gives its place to the best one left.

    k  how many; all slices when there are fewer

    Returns distinct slice numbers, ascending. Raises ValueError when k < 1.
    """
    if k < 1:
        raise ValueError(f"at least one slice must be wanted, got {k}")
    if k >= cut.count:
        return list(range(cut.count))
    window = choose_window(volume, None)
    entropy = np.empty(cut.count)
    for n in range(cut.count):
        picture = cut.take(volume.values, n)
        step_down, step_across = (max(1, math.ceil(size / SIDE)) for size in cut.shape)
        pixels = to_uint8(picture[::step_down, ::step_across], window, inverted=False)
        counts = np.bincount(pixels.ravel() // (256 // BINS), minlength=BINS)
        shares = counts[counts > 0] / pixels.size
        entropy[n] = -(shares * np.log2(shares)).sum()
    information = entropy - entropy.min() + 1e-9  # all alike: evenly spread
    ends = np.cumsum(information)
    place = (ends - information / 2) / ends[-1] * k  # 0..k
    stretch = np.minimum(place.astype(int), k - 1)
    outer = np.abs(place - stretch - 0.5) > 0.25
    best_first = np.argsort(-information, kind="stable")
    preferred = np.concatenate([best_first[~outer[best_first]], best_first[outer[best_first]]])
    picked = set({int(stretch[n]): int(n) for n in preferred[::-1]}.values())  # of each, the last one written
    for n in best_first:
        if len(picked) == k:
            break
        picked.add(int(n))
    return sorted(picked)
