"""Selecting the most informative slices of a volume."""

from __future__ import annotations

import math

import numpy as np

from backend.formats.geometry import Cut
from backend.formats.volume import Volume, choose_window
from backend.formats.window import to_uint8

BINS = 64
SIDE = 256  # slices are subsampled to about this many rows and columns


def informative(volume: Volume, cut: Cut, k: int) -> list[int]:
    """The k most informative slices of a cut, spread over the volume, in slice order.

    A slice's information is the entropy of its histogram (64 bins over the volume's window), minus that of the emptiest
    slice. The volume is divided into k sections of equal information, and from the middle half of each the slice with
    the most information is selected: this skips air around the head, and avoids redundant neighbours. A section without
    a slice is replaced by the best remaining slice.

    k  number of slices; all slices if there are fewer

    Returns distinct slice numbers, ascending. Raises ValueError if k < 1.
    """
    if k < 1:
        raise ValueError(f"expected at least one slice, got {k}")
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
    information = entropy - entropy.min() + 1e-9  # identical slices: evenly spaced
    ends = np.cumsum(information)
    place = (ends - information / 2) / ends[-1] * k  # 0..k
    stretch = np.minimum(place.astype(int), k - 1)
    outer = np.abs(place - stretch - 0.5) > 0.25
    best_first = np.argsort(-information, kind="stable")
    preferred = np.concatenate([best_first[~outer[best_first]], best_first[outer[best_first]]])
    picked = set({int(stretch[n]): int(n) for n in preferred[::-1]}.values())  # the last one written wins
    for n in best_first:
        if len(picked) == k:
            break
        picked.add(int(n))
    return sorted(picked)
