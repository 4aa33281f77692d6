"""Agreement between predicted and annotated label maps: Dice, Hausdorff distance, HD95.

Measured on label maps of the original size. Class 0 is background and is never scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree


@dataclass(frozen=True)
class LabelScore:
    """One label on one scan.

    present   whether the truth has the label
    drawn     whether the prediction has it
    area      predicted share of the picture, 0..1
    dice      0..1, high is good; None unless present
    hd, hd95  Hausdorff distance and its 95th percentile, low is good; the image diagonal when present but not drawn;
              None unless present
    """

    present: bool
    drawn: bool
    area: float
    dice: float | None = None
    hd: float | None = None
    hd95: float | None = None


@dataclass(frozen=True)
class Scores:
    """Agreement between two label maps of one scan.

    labels  the score of each known label, by class number
    unit    unit of the distances: "mm" when the spacing is known, else "px"
    """

    labels: Mapping[int, LabelScore]
    unit: str

    @property
    def dice(self) -> float | None:
        """Mean over the labels of the truth; None without any."""
        return self._mean("dice")

    @property
    def hd(self) -> float | None:
        return self._mean("hd")

    @property
    def hd95(self) -> float | None:
        return self._mean("hd95")

    @property
    def truth_empty(self) -> bool:
        """Whether the truth has no known label."""
        return not any(one.present for one in self.labels.values())

    @property
    def drawn_empty(self) -> bool:
        """Whether no known label is drawn."""
        return not any(one.drawn for one in self.labels.values())

    def _mean(self, name: str) -> float | None:
        values = [getattr(one, name) for one in self.labels.values() if one.present]
        return float(np.mean(values)) if values else None


def score(
    predicted: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    n_classes: int,
    *,
    spacing: tuple[float, float] | None = None,
    unknown: frozenset[int] = frozenset(),
) -> Scores:
    """Compare two label maps of one scan at its original size.

    The distances are between surfaces: pixels of a label with a 4-neighbour outside it (or outside the
    image), centre to centre. HD is the larger of the two directed maxima, HD95 the larger of the two directed
    95th percentiles. A label of the truth that is not predicted scores Dice 0 and, as no distance is defined, the image
    diagonal.

    predicted, truth  (H, W) class numbers; not modified
    n_classes         number of classes including background; labels are 1..n_classes - 1
    spacing           (row, column) size of a pixel in mm; None: distances in pixels
    unknown           classes that the annotator of this truth could not draw. They are not scored; a pixel predicted
                      as one of them counts as background for the other classes

    Raises ValueError when the shapes differ or a spacing is not positive.
    Sources: Dice 1945; Huttenlocher et al. 1993; Reinke et al. 2024 (both percentiles, larger one).
    """
    if predicted.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"score needs two label maps of one shape (H, W), got {predicted.shape} and {truth.shape}")
    if spacing is not None and not (spacing[0] > 0 and spacing[1] > 0 and all(map(math.isfinite, spacing))):
        raise ValueError(f"spacing must be two positive sizes in mm (row, column), got {spacing}")
    step = spacing or (1.0, 1.0)
    diagonal = math.hypot(truth.shape[0] * step[0], truth.shape[1] * step[1])
    labels: dict[int, LabelScore] = {}
    for number in sorted(set(range(1, n_classes)) - unknown):
        ours, theirs = predicted == number, truth == number
        n_ours, n_theirs = int(ours.sum()), int(theirs.sum())
        one = LabelScore(n_theirs > 0, n_ours > 0, n_ours / truth.size)
        if one.present:
            dice = 2 * int((ours & theirs).sum()) / (n_ours + n_theirs)
            hd, hd95 = surface_distances(ours, theirs, step) if one.drawn else (diagonal, diagonal)
            one = replace(one, dice=dice, hd=hd, hd95=hd95)
        labels[number] = one
    return Scores(labels, "px" if spacing is None else "mm")


def surface_distances(
    first: NDArray[np.bool_], second: NDArray[np.bool_], spacing: tuple[float, float]
) -> tuple[float, float]:
    """HD and HD95 between two non-empty masks. See `score`."""
    here, there = _surface(first) * spacing, _surface(second) * spacing
    forth = cKDTree(there).query(here)[0]
    back = cKDTree(here).query(there)[0]
    hd = max(forth.max(), back.max())
    hd95 = max(np.percentile(forth, 95), np.percentile(back, 95))
    return float(hd), float(hd95)


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, 2) rows and columns of the boundary pixels of a mask."""
    around = np.pad(mask, 1)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return np.argwhere(mask & ~inner).astype(np.float64)
