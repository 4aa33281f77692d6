"""Labelled scans as networks learn from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.formats.pixels import Letterboxed, classes_in


@dataclass(frozen=True)
class Case:
    """One labelled scan, letterboxed into the working square, with its label map (H, W) at original size.

    unknown  classes that its annotator could not draw, as the label config did not have them: where the map has
             background, such a class may be there
    """

    scan: Letterboxed
    mask: NDArray[np.uint8]
    unknown: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        """Side of the working square."""
        return self.scan.pixels.shape[0]

    @property
    def classes(self) -> list[int]:
        """The labels that it shows, and that its annotator could draw."""
        return [number for number in classes_in(self.mask) if number not in self.unknown]
