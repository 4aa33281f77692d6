"""Statistics of a simulation: learning curves, areas, and paired comparison with random choice.

Pairs: all arms of a repeat share its split, initial weights and training, so differences within a repeat exclude this
variation. Only repeats and budgets that both sides have are compared.

All data sets have the same weight, whatever their number of repeats: a mean is the mean of their means, and resampling
draws repeats within each.

Every difference is arm minus random choice: better above zero for Dice, below zero for Hausdorff distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from backend.simulate.results import (
    RANDOM,
    Arm,
    Repeat,
    Row,
    arm_names,
    arms,
    budgets,
    by_repeat,
    data_sets,
    distance_unit,
    of_data,
)

RESAMPLES = 10_000
LEVEL = 0.95
MINUS = "\N{MINUS SIGN}"
ENOUGH = 5  # minimum number of pairs; with fewer, even their full range covers less than 90 %

Measure = Literal["dice", "hd", "hd95"]
K = TypeVar("K")


@dataclass(frozen=True)
class Interval:
    """A mean over n repeats with its interval; `low` and `high` are None where undefined."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Mapping[str, Sequence[float]], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean over data sets with its 95 % bootstrap interval.

    The percentile interval is widened as Hesterberg proposes: plain percentiles of few repeats are too narrow (about
    83 % coverage instead of 95 % with five). It cannot exceed the range of the values, so below `ENOUGH` repeats it
    remains too narrow.

    values  data set to one finite value for each repeat; empty data sets are left out
    seed    the same input and seed give the same result

    No interval when a data set has a single repeat. Raises ValueError when there are no values.
    Sources: Efron & Tibshirani 1993, chapters 13 and 16; Hesterberg 2015, section 5.3.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in values.values() if len(group)]
    if not groups:
        raise ValueError("mean_interval: got no values, wanted at least one value")

    def mean(*samples: NDArray[np.float64], axis: int = -1) -> Any:
        return np.mean([np.mean(sample, axis=axis) for sample in samples], axis=0)

    sizes = [len(group) for group in groups]
    centre = float(np.mean([group.mean() for group in groups]))
    if min(sizes) < 2:
        return Interval(centre, None, None, sum(sizes))
    found = stats.bootstrap(
        groups,
        mean,
        n_resamples=resamples,
        vectorized=True,
        paired=False,  # data sets are resampled independently; pairs are already differences
        confidence_level=_widened(sizes),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(centre, float(found.low), float(found.high), sum(sizes))


def _widened(sizes: Sequence[int]) -> float:
    """Nominal level at which the percentile bootstrap has the width of a t interval of `LEVEL`."""
    least = min(sizes)
    reach = stats.t.ppf((1 + LEVEL) / 2, sum(sizes) - len(sizes)) * math.sqrt(least / (least - 1))
    return float(min(1 - 2 * stats.norm.sf(reach), 1 - 1e-9))


@dataclass(frozen=True)
class CurvePoint:
    """One arm at one budget of one data set. `hd` and `hd95` are in `unit`; None without a common unit."""

    data: str
    arm: Arm
    budget: int
    labels: float
    dice: Interval
    hd: Interval | None
    hd95: Interval | None
    unit: str | None


def learning_curves(rows: Sequence[Row], *, seed: int = 0, resamples: int = RESAMPLES) -> list[CurvePoint]:
    """Mean and interval over the repeats of each existing data set, arm and budget.

    `labels` is the mean number of labels used. The intervals include the variation between splits, which arms share, so
    overlapping intervals do not mean that two arms are equal.
    """
    points = []
    for data in data_sets(rows):
        part = of_data(rows, data)
        unit = distance_unit(part)
        for arm in arms(part):
            for budget in budgets(part):
                here = [row for row in part if row.arm == arm and row.budget == budget]
                if here:
                    of = {
                        name: mean_interval({data: [value(row) for row in here]}, seed=seed, resamples=resamples)
                        for name, value in MEASURES.items()
                        if unit is not None or name == "dice"
                    }
                    labels = float(np.mean([row.labels for row in here]))
                    points.append(CurvePoint(data, arm, budget, labels, of["dice"], of.get("hd"), of.get("hd95"), unit))
    return points


MEASURES: dict[Measure, Callable[[Row], float]] = {
    "dice": lambda row: row.dice,
    "hd": lambda row: row.hd,
    "hd95": lambda row: row.hd95,
}


def area_under_curve(labels: Sequence[float], dice: Sequence[float]) -> float:
    """Mean height of the learning curve, 0..1, higher is better.

    Trapezoidal rule over the number of labels, divided by its range. The x axis is linear, like annotation time.
    If all points have the same number of labels: their mean.

    >>> round(area_under_curve([10, 20, 40], [0.5, 0.7, 0.8]), 4)
    0.7
    """
    if len(labels) != len(dice) or not len(dice):
        raise ValueError(f"area_under_curve: got {labels} and {dice}, wanted as many labels as Dice, at least one")
    order = np.argsort(labels, kind="stable")
    x, y = np.asarray(labels, dtype=np.float64)[order], np.asarray(dice, dtype=np.float64)[order]
    width = x[-1] - x[0]
    return float(np.trapezoid(y, x) / width) if width else float(y.mean())


def area(curve: Mapping[int, Row], over: Iterable[int] | None = None) -> float:
    """Mean curve height of one arm in one repeat, over the given budgets or all."""
    picked = [curve[budget] for budget in (curve if over is None else over)]
    return area_under_curve([row.labels for row in picked], [row.dice for row in picked])


@dataclass(frozen=True)
class Comparison:
    """One arm against random choice, over the repeats that have both. Differences are arm minus random.

    area          difference of mean curve heights, in Dice; None without pairs
    by_pair       this difference in each pair
    over          data set to the budgets that its areas span
    left_out      number of pairs without all of these budgets, which the area excludes
    dice, hd95    difference at each budget, over all pairs that have it; hd95 in `unit`, {} without a common unit
    p             two-sided Wilcoxon signed-rank test of the area differences; None without pairs
    p_holm        p after Holm's correction over all arms
    n_test        number of pairs in the test: those with a nonzero difference
    least_p       smallest possible p with this number of pairs
    """

    arm: Arm
    name: str
    area: Interval | None
    by_pair: Mapping[Repeat, float]
    over: Mapping[str, tuple[int, ...]]
    left_out: int
    dice: Mapping[int, Interval]
    hd95: Mapping[int, Interval]
    unit: str | None
    p: float | None
    p_holm: float | None
    n_test: int
    least_p: float


def compare_with_random(rows: Sequence[Row], *, seed: int = 0, resamples: int = RESAMPLES) -> list[Comparison]:
    """Compare every other arm with random choice; best mean area first, arms without pairs last.

    The reference is random choice with the same embedder, else the first random arm. An area spans the budgets of the
    most complete pair of its data set; pairs without all of them are left out.

    Sources: Wilcoxon 1945; Holm 1979; for the intervals see `mean_interval`.
    """
    names = arm_names(rows)
    unit = distance_unit(rows)
    raw = []
    for arm in arms(rows):
        if arm.strategy == RANDOM:
            continue
        pairs = _pairs(rows, arm)
        over, differences, left_out = _area_differences(pairs)
        p, n_test = signed_rank(list(differences.values()))
        raw.append((arm, pairs, over, differences, left_out, p, n_test))
    corrected = holm({arm: p for arm, *_, p, _ in raw if p is not None})
    found = [
        Comparison(
            arm=arm,
            name=names[arm],
            area=_interval(differences, seed, resamples) if differences else None,
            by_pair=differences,
            over=over,
            left_out=left_out,
            dice=_by_budget(pairs, "dice", seed, resamples),
            hd95=_by_budget(pairs, "hd95", seed, resamples) if unit else {},
            unit=unit,
            p=p,
            p_holm=corrected.get(arm),
            n_test=n_test,
            least_p=smallest_p(n_test),
        )
        for arm, pairs, over, differences, left_out, p, n_test in raw
    ]
    return sorted(found, key=lambda one: -one.area.mean if one.area else math.inf)


Pairs = dict[Repeat, dict[int, tuple[Row, Row]]]  # repeat to budget to (arm, random), where both exist


def _pairs(rows: Sequence[Row], arm: Arm) -> Pairs:
    paired: Pairs = {}
    for data in data_sets(rows):
        part = of_data(rows, data)
        others = [other for other in arms(part) if other.strategy == RANDOM]
        if not others:
            continue
        reference = by_repeat(part, next((o for o in others if o.embedder == arm.embedder), others[0]))
        for repeat, curve in by_repeat(part, arm).items():
            both = {b: (row, reference[repeat][b]) for b, row in curve.items() if b in reference.get(repeat, {})}
            if both:
                paired[repeat] = both
    return paired


def _area_differences(pairs: Pairs) -> tuple[dict[str, tuple[int, ...]], dict[Repeat, float], int]:
    over: dict[str, tuple[int, ...]] = {}
    for repeat, both in pairs.items():
        if len(both) > len(over.get(repeat.data, ())):
            over[repeat.data] = tuple(sorted(both))
    differences = {}
    for repeat, both in pairs.items():
        span = over[repeat.data]
        if set(span) <= set(both):
            ours = area({budget: both[budget][0] for budget in span})
            differences[repeat] = ours - area({budget: both[budget][1] for budget in span})
    return over, differences, len(pairs) - len(differences)


def _interval(differences: Mapping[Repeat, float], seed: int, resamples: int) -> Interval:
    groups: dict[str, list[float]] = {}
    for repeat, value in differences.items():
        groups.setdefault(repeat.data, []).append(value)
    return mean_interval(groups, seed=seed, resamples=resamples)


def _by_budget(pairs: Pairs, measure: Measure, seed: int, resamples: int) -> dict[int, Interval]:
    value = MEASURES[measure]
    found = {}
    for budget in sorted({budget for both in pairs.values() for budget in both}):
        here = {repeat: both[budget] for repeat, both in pairs.items() if budget in both}
        differences = {repeat: value(ours) - value(theirs) for repeat, (ours, theirs) in here.items()}
        found[budget] = _interval(differences, seed, resamples)
    return found


def signed_rank(differences: Sequence[float]) -> tuple[float | None, int]:
    """Two-sided p of Wilcoxon's signed-rank test, and the number of nonzero differences.

    Exact up to 50 differences, with ties or zeros up to 13; p is None without differences and 1 when all are zero.
    Source: Wilcoxon 1945.
    """
    rounded = np.round(np.asarray(differences, dtype=np.float64), 12)  # makes equal differences ties
    used = rounded[rounded != 0]
    if not len(used):
        return (1.0 if len(rounded) else None), 0
    return float(stats.wilcoxon(used).pvalue), len(used)


def smallest_p(n: int) -> float:
    """Smallest possible two-sided p of the signed-rank test with n pairs: all of the same sign.

    >>> smallest_p(5)
    0.0625
    """
    return min(1.0, 2.0 ** (1 - n))


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """p values corrected for multiple testing. Source: Holm 1979.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected: dict[K, float] = {}
    so_far = 0.0
    for place, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        so_far = max(so_far, min(1.0, p * (len(p_values) - place)))
        corrected[key] = so_far
    return corrected


@dataclass(frozen=True)
class Verdict:
    """Interpretation of a comparison for physicians; `kind` is its category."""

    kind: Literal["better", "worse", "open", "too few"]
    sentence: str


def verdict(comparison: Comparison) -> Verdict:
    """One sentence with the size of the difference, its uncertainty and the number of repeats.

    Better or worse when the 95 % interval over at least `ENOUGH` pairs excludes zero. The sentence mentions when the
    Holm-corrected signed-rank test does not confirm this, or cannot with so few pairs.
    """
    gap = comparison.area
    if gap is None:
        return Verdict("too few", "cannot be compared: no repeat has both this strategy and random choice")
    if gap.n == 1:
        return Verdict(
            "too few", f"one paired repeat is too few to judge: {signed(gap.mean)} Dice; {ENOUGH} are needed"
        )
    over = f"over {gap.n} paired repeats"
    size = f"{signed(gap.mean)} Dice on average"
    if gap.low is None or gap.high is None or gap.n < ENOUGH:
        seen = sorted(comparison.by_pair.values())
        span = f"(from {signed(seen[0])} to {signed(seen[-1])})"
        why = f"at least {ENOUGH} are needed" if gap.n < ENOUGH else "every data set needs at least two"
        return Verdict("too few", f"too few repeats to judge: {size} {span} {over}; {why}")
    digits = 3 if min(abs(gap.low), abs(gap.high)) >= 0.0005 else 4  # a nonzero end must not look like zero
    figures = f"{size} (95 % interval {signed(gap.low, digits)} to {signed(gap.high, digits)}) {over}"
    if gap.low <= 0 <= gap.high:
        return Verdict("open", f"no difference from random could be shown: {figures}")
    kind: Literal["better", "worse"] = "better" if gap.mean > 0 else "worse"
    return Verdict(kind, f"{kind} than random: {figures}{_confirmation(comparison)}")


def _confirmation(comparison: Comparison) -> str:
    p = comparison.p_holm
    if p is None or p <= 1 - LEVEL:
        return ""
    if comparison.least_p > 1 - LEVEL:
        return (
            f"; a signed-rank test cannot confirm it: the smallest possible p with {comparison.n_test} pairs "
            f"is {comparison.least_p:.4g}"
        )
    return f"; not confirmed by the signed-rank test after correction for all strategies (p = {p:.2g})"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign: +0.021, with a true minus, or 0.000."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"
