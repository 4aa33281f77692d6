"""What the rows of a simulation say: curves, areas, labels needed, and paired comparison with random choice.

Pairs: all arms of a repeat share its split into pool and test, the initial weights and the training, so
differences within a repeat are free of what they have in common. Only what both sides have is compared.

Several data sets count equally, whatever their number of repeats: a mean is the mean of their means, and
resampling draws repeats within each.

Sign of every difference: arm minus random choice. So for Dice above zero is better than random, for Hausdorff
distances below zero is.
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
ENOUGH = 5  # pairs; with fewer, not even the span from the least to the greatest would be a 90 % interval

Measure = Literal["dice", "hd", "hd95"]
K = TypeVar("K")


@dataclass(frozen=True)
class Interval:
    """A mean over n repeats with its interval; `low` and `high` are None where nothing can be said of it."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: Mapping[str, Sequence[float]], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean over data sets with its 95 % bootstrap interval.

    The interval is the percentile interval, widened as Hesterberg proposes: plain percentiles of a few repeats
    are too narrow (about 83 % instead of 95 % with five). It cannot reach beyond the least and greatest value,
    so below `ENOUGH` repeats it remains too narrow.

    values  data set to one finite value for each repeat, at least one; data sets without any are left out
    seed    same input and seed, same answer

    No interval when a data set has a single repeat. Raises ValueError when there is no value.
    Sources: Efron & Tibshirani 1993, chapters 13 and 16; Hesterberg 2015, section 5.3.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in values.values() if len(group)]
    if not groups:
        raise ValueError("mean_interval wants at least one value, got none")

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
        paired=False,  # data sets are drawn from independently; the pairs are already differences
        confidence_level=_widened(sizes),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(centre, float(found.low), float(found.high), sum(sizes))


def _widened(sizes: Sequence[int]) -> float:
    """The nominal level at which percentiles of resampled means cover as a t interval of `LEVEL` does."""
    least = min(sizes)
    reach = stats.t.ppf((1 + LEVEL) / 2, sum(sizes) - len(sizes)) * math.sqrt(least / (least - 1))
    return float(min(1 - 2 * stats.norm.sf(reach), 1 - 1e-9))


@dataclass(frozen=True)
class CurvePoint:
    """One arm at one budget of one data set. `hd` and `hd95` are in `unit`, None when distances have no mean."""

    data: str
    arm: Arm
    budget: int
    labels: float
    dice: Interval
    hd: Interval | None
    hd95: Interval | None
    unit: str | None


def learning_curves(rows: Sequence[Row], *, seed: int = 0, resamples: int = RESAMPLES) -> list[CurvePoint]:
    """Mean and interval over the repeats of each data set, arm and budget that there is.

    `labels` is the mean number of labels used. The intervals hold the differences between splits too, which
    arms share; so overlapping intervals of two arms do not mean that they do not differ.
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
    """Mean height of the learning curve, 0..1, high is good.

    Trapezoids over the number of labels, divided by its range. The abscissa is linear, as a radiologist's time is.
    All at one number of labels, or one budget only: their mean.

    >>> round(area_under_curve([10, 20, 40], [0.5, 0.7, 0.8]), 4)
    0.7
    """
    if len(labels) != len(dice) or not len(dice):
        raise ValueError(f"area_under_curve wants as many labels as Dice, at least one, got {labels} and {dice}")
    order = np.argsort(labels, kind="stable")
    x, y = np.asarray(labels, dtype=np.float64)[order], np.asarray(dice, dtype=np.float64)[order]
    width = x[-1] - x[0]
    return float(np.trapezoid(y, x) / width) if width else float(y.mean())


def area(curve: Mapping[int, Row], over: Iterable[int] | None = None) -> float:
    """Area under the curve of one arm in one repeat, over some budgets or all."""
    picked = [curve[budget] for budget in (curve if over is None else over)]
    return area_under_curve([row.labels for row in picked], [row.dice for row in picked])


@dataclass(frozen=True)
class Comparison:
    """One arm against random choice, over the repeats that have both. Differences are arm minus random.

    area          of the areas under the learning curves, in Dice; None without any pair
    by_pair       the difference of areas in each of its pairs
    over          data set to the budgets that its areas span
    left_out      pairs that lack some of these budgets and so do not count for the area
    dice, hd95    at each budget, over all pairs that have it; hd95 is in `unit`, {} when there is no one unit
    p             two-sided, Wilcoxon signed-rank, of the differences of areas; None without any pair
    p_holm        the same after Holm's correction over all arms compared
    n_test        pairs that the test could use: those with a difference other than zero
    least_p       the smallest p that so many pairs can give
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
    """Every arm but random choice against random choice, best mean area first, those without any pair last.

    Random choice through the same embedder is taken where there is one, else through whichever comes first. An
    area spans the budgets of the most complete pair of its data set; pairs that lack any of them are left out.

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


Pairs = dict[Repeat, dict[int, tuple[Row, Row]]]  # budget to (arm, random), for each repeat that has both


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
    """Two-sided p of Wilcoxon's signed-rank test, and how many differences are not zero.

    Exact up to 50 differences, with ties or zeros up to 13; p is None without any difference and 1 when all are
    zero. Source: Wilcoxon 1945.
    """
    rounded = np.round(np.asarray(differences, dtype=np.float64), 12)  # so that equal ones are ties
    used = rounded[rounded != 0]
    if not len(used):
        return (1.0 if len(rounded) else None), 0
    return float(stats.wilcoxon(used).pvalue), len(used)


def smallest_p(n: int) -> float:
    """The smallest two-sided p that the signed-rank test of n pairs can give: all of one sign.

    >>> smallest_p(5)
    0.0625
    """
    return min(1.0, 2.0 ** (1 - n))


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """p values corrected for their number, never below the ones given. Source: Holm 1979.

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
    """What a comparison means, for a physician. `kind` is the same in one word."""

    kind: Literal["better", "worse", "open", "too few"]
    sentence: str


def verdict(comparison: Comparison) -> Verdict:
    """One honest sentence: how large the difference is, how sure, and over how many repeats.

    Better or worse when the 95 % interval excludes zero, over at least `ENOUGH` pairs; it says so when the
    signed-rank test, corrected for the number of strategies, does not confirm it, or cannot with so few pairs.
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
    digits = 3 if min(abs(gap.low), abs(gap.high)) >= 0.0005 else 4  # an end that is not zero shall not look so
    figures = f"{size} (95 % interval {signed(gap.low, digits)} to {signed(gap.high, digits)}) {over}"
    if gap.low <= 0 <= gap.high:
        return Verdict("open", f"no difference to random could be shown: {figures}; it may still lie in this interval")
    kind: Literal["better", "worse"] = "better" if gap.mean > 0 else "worse"
    return Verdict(kind, f"{kind} than random: {figures}{_confirmation(comparison)}")


def _confirmation(comparison: Comparison) -> str:
    p = comparison.p_holm
    if p is None or p <= 1 - LEVEL:
        return ""
    if comparison.least_p > 1 - LEVEL:
        return (
            f"; a signed-rank test cannot confirm it, as the smallest p that {comparison.n_test} pairs can give "
            f"is {comparison.least_p:.4g}"
        )
    return f"; not confirmed by the signed-rank test once all strategies compared are allowed for (p = {p:.2g})"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign: +0.021, a true minus, 0.000."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"
