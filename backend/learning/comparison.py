"""Two models compared on the same scans, from which neither has learnt: is the newer one worse?

A scan counts for each label by itself. Where its truth has the label, the merit of a model is its Dice; elsewhere it is
1 if the model draws nothing of the label, else 0. A label's difference is the mean of two: that over the scans with it,
and that over the scans without it. So many empty scans cannot hide what is missed, and good masks do not excuse false
alarms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from backend.learning.evaluation import LabelScore

MIN_SCANS = 5  # with fewer, nothing can be told
LEVEL = 0.95  # of the interval


@dataclass(frozen=True)
class Pair:
    """One scan, drawn by two models.

    new, active  the score of each label by class number, see `Scores.labels`; a label that is unknown there is missing
    group        its patient or volume, whose scans are alike; "": a group of its own
    """

    new: Mapping[int, LabelScore]
    active: Mapping[int, LabelScore]
    group: str = ""


@dataclass(frozen=True)
class Difference:
    """Merit of the new model minus that of the active one: -1..1, above 0 the new one is better.

    mean       mean over the labels of their differences
    low, high  its 95 % interval
    scans      number of scans
    """

    mean: float
    low: float
    high: float
    scans: int

    @property
    def enough(self) -> bool:
        """Whether these are enough scans to tell."""
        return self.scans >= MIN_SCANS

    def worse(self, tolerance: float) -> bool:
        """Whether the new model is worse by more than `tolerance`, beyond chance."""
        return self.enough and self.high < -tolerance


def difference(pairs: Sequence[Pair]) -> Difference:
    """The mean paired difference of two models, with an interval.

    The scans with a label, and those without it, are its strata. All labels have the same weight, and so have the two
    strata of a label; one that does not exist leaves its weight to the other. The interval is Student's, with the
    linearised variance of ratio means over whole groups (Cochran 1977, 6.3 and 11.7) and the degrees of freedom of
    Satterthwaite (1946). It counts one more group in which both models are equal. Without it, three equal differences
    would look like certainty (Agresti & Min 2005 add such pairs to proportions).

    Returns zeros, from -1 to 1, without a scan.
    """
    known = [(pair, sorted(pair.new.keys() & pair.active.keys())) for pair in pairs]
    known = [(pair, labels) for pair, labels in known if labels]
    if not known:
        return Difference(0.0, -1.0, 1.0, 0)
    strata = sorted({(label, pair.new[label].present) for pair, labels in known for label in labels})
    column = {stratum: i for i, stratum in enumerate(strata)}
    row: dict[str | int, int] = {}
    rows = [row.setdefault(pair.group or i, len(row)) for i, (pair, _) in enumerate(known)]
    sums, counts = np.zeros((2, len(row), len(strata)))
    for at, (pair, labels) in zip(rows, known, strict=True):
        for label in labels:
            here = at, column[label, pair.new[label].present]
            sums[here] += _merit(pair.new[label]) - _merit(pair.active[label])
            counts[here] += 1
    of_label = [label for label, _ in strata]
    weights = np.array([1 / of_label.count(label) / len(set(of_label)) for label in of_label])
    mean = float(weights @ (sums.sum(axis=0) / counts.sum(axis=0)))
    low, high = _interval(sums, counts, weights)
    return Difference(mean, min(low, mean), max(high, mean), len(known))


def _merit(score: LabelScore) -> float:
    return (score.dice or 0.0) if score.present else float(not score.drawn)


def _interval(
    sums: NDArray[np.float64], counts: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, float]:
    """The interval from the sum of the differences and the number of scans, each (groups, strata)."""
    groups = (counts > 0).sum(axis=0)
    counts = np.vstack([counts, counts.sum(axis=0) / groups])
    sums = np.vstack([sums, np.zeros(len(weights))])
    means, total = sums.sum(axis=0) / counts.sum(axis=0), counts.sum(axis=0)
    parts = weights * (sums - means * counts) / total * np.sqrt((groups + 1) / groups)
    variances = (parts**2).sum(axis=0)
    if not variances.any():
        return float(weights @ means), float(weights @ means)
    freedom = variances.sum() ** 2 / (variances**2 / groups).sum()
    half = stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt((parts.sum(axis=1) ** 2).sum())
    return max(-1.0, float(weights @ means - half)), min(1.0, float(weights @ means + half))
