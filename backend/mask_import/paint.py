"""Structures painted into one label map: one label per voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class LabelMap:
    """Label numbers, 0 background. Where structures overlap, the smaller one stays visible.

    labels  the label of number n is labels[n - 1]
    """

    def __init__(self, shape: tuple[int, ...], labels: Sequence[str]) -> None:
        self.values: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self._labels = tuple(labels)
        self._sizes = np.zeros(len(self._labels) + 1, np.int64)

    def paint(self, label: str, drawn: NDArray[np.bool_]) -> None:
        """Add a structure to a label."""
        number = self._labels.index(label) + 1
        self._sizes[number] = np.count_nonzero(drawn | (self.values == number))
        free = (self.values == 0) | (self._sizes[self.values] > self._sizes[number])
        self.values[drawn & free] = number

    def hidden(self) -> list[str]:
        """The labels of which more than half lies below others."""
        left = np.bincount(self.values.ravel(), minlength=len(self._sizes))
        return [label for n, label in enumerate(self._labels, start=1) if 2 * left[n] < self._sizes[n]]
