"""Agreement between predicted and annotated label maps: Dice, Hausdorff distance, HD95.

Measured on label maps of the original size. Class 0 is background and is never scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

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

    labels     the score of each known label, by class number
    dice       0..1, high is good: mean over the labels present in either map; 1 when both are empty, a scan that no
               mean may include (see `averages`)
    per_class  Dice of each label present in either map, by class number
    hd, hd95   Hausdorff distance and its 95th percentile, mean over the same labels, low is good; 0 when
               both maps are empty
    unit       unit of both distances: "mm" when the spacing is known, else "px"
    truth_empty, drawn_empty
               whether the true map, or the predicted one, has no foreground
    """

    dice: float
    per_class: Mapping[int, float]
    hd: float
    hd95: float
    unit: str
    truth_empty: bool
    drawn_empty: bool
    labels: Mapping[int, LabelScore] = field(default_factory=dict)


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
    95th percentiles. A label in only one of the maps scores Dice 0 and, as no distance is defined, the image
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
    per_class: dict[int, float] = {}
    distances: list[tuple[float, float]] = []
    labels: dict[int, LabelScore] = {}
    for number in sorted(set(range(1, n_classes)) - unknown):
        ours, theirs = predicted == number, truth == number
        n_ours, n_theirs = int(ours.sum()), int(theirs.sum())
        area = n_ours / truth.size
        labels[number] = LabelScore(False, n_ours > 0, area)
        if n_ours + n_theirs == 0:
            continue
        per_class[number] = 2 * int((ours & theirs).sum()) / (n_ours + n_theirs)
        distances.append(surface_distances(ours, theirs, step) if n_ours and n_theirs else (diagonal, diagonal))
        if n_theirs:
            labels[number] = LabelScore(True, n_ours > 0, area, per_class[number], *distances[-1])
    unit = "px" if spacing is None else "mm"
    truth_empty, drawn_empty = (not any(getattr(one, name) for one in labels.values()) for name in ("present", "drawn"))
    dice = float(np.mean(list(per_class.values()))) if per_class else 1.0
    hd, hd95 = np.mean(distances, axis=0).tolist() if distances else (0.0, 0.0)
    return Scores(dice, per_class, hd, hd95, unit, truth_empty, drawn_empty, labels)


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
