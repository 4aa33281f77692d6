"""Which labelled scans a training step sees, and which part of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from backend.formats.pixels import IGNORE, classes_in

FOREGROUND = 1 / 3  # share of each batch that shows a label, as in nnU-Net (Isensee et al. 2021)


class Batches:
    """Endless batches of (row of a scan, class it is to show), the same for the same masks and seed.

    Most rows come from successive permutations, so every scan is used equally often, and their class is 0: any part
    of the scan. FOREGROUND of each batch, at least one, show a class that is drawn by its rarity: with a
    probability proportional to 1 / the number of scans that have it.
    """

    def __init__(self, masks: Sequence[NDArray[np.uint8]], batch_size: int, seed: int) -> None:
        self._generator = np.random.default_rng([seed, len(masks)])
        having: dict[int, list[int]] = {}
        for row, mask in enumerate(masks):
            for number in classes_in(mask):
                having.setdefault(number, []).append(row)
        self._classes = sorted(having)
        rarity = np.array([1 / len(having[number]) for number in self._classes])
        self._rarity = rarity / rarity.sum()
        self._of = {number: self._endless(rows) for number, rows in having.items()}
        self._all = self._endless(range(len(masks)))
        self._shown = max(1, round(batch_size * FOREGROUND)) if having else 0
        self._plain = batch_size - self._shown

    def __next__(self) -> list[tuple[int, int]]:
        plain = [(next(self._all), 0) for _ in range(self._plain)]
        shown = self._generator.choice(self._classes, self._shown, p=self._rarity) if self._shown else ()
        return plain + [(next(self._of[int(number)]), int(number)) for number in shown]

    def window(self, target: NDArray[np.uint8], number: int, side: int) -> tuple[slice, slice]:
        """Rows and columns of a random window of side x side pixels that shows a class, if it is in `target`.

        A random pixel of the class, or else of the picture without its padding, lies in the middle half of the
        window, unless an edge of the picture is near.
        """
        rows, columns = np.nonzero(target == number if number else target != IGNORE)
        if not len(rows):  # augmentation moved it out of the picture
            rows, columns = np.nonzero(target != IGNORE)
        at = self._generator.integers(len(rows)) if len(rows) else 0
        middle = (rows[at], columns[at]) if len(rows) else (0, 0)
        before = self._generator.integers(side // 4, side - side // 4, 2)
        top, left = (int(np.clip(c - b, 0, s - side)) for c, b, s in zip(middle, before, target.shape, strict=True))
        return slice(top, top + side), slice(left, left + side)

    def _endless(self, rows: Sequence[int]) -> Iterator[int]:
        while True:
            yield from (rows[i] for i in self._generator.permutation(len(rows)))
