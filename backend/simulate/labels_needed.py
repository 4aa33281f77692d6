"""Number of labels each strategy needs to reach a fraction of the Dice obtained with all labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backend.simulate.results import (
    ALL_LABELS,
    RANDOM,
    Arm,
    Repeat,
    Row,
    arm_names,
    arms,
    by_repeat,
    data_sets,
    of_data,
)

FRACTIONS = (0.90, 0.95, 0.98)  # target Dice relative to a model trained on all labels


@dataclass(frozen=True)
class Needed:
    """Number of labels one arm needed in one repeat; None when no budget was enough.

    at_first  the smallest budget was enough, so fewer labels might have been
    """

    labels: float | None
    at_first: bool = False


def labels_to_reach(labels: Sequence[float], dice: Sequence[float], target: float) -> Needed:
    """Where a learning curve first reaches the target Dice, by linear interpolation.

    >>> labels_to_reach([10, 20, 40], [0.5, 0.7, 0.8], 0.75)
    Needed(labels=30.0, at_first=False)
    """
    points = sorted(zip(labels, dice, strict=True), key=lambda point: point[0])
    before: tuple[float, float] | None = None
    for here in points:
        if here[1] >= target - 1e-9:  # 0.9 of 0.8 is a little more than 0.72 in floating point
            if before is None:
                return Needed(float(here[0]), at_first=True)
            share = min(1.0, (target - before[1]) / (here[1] - before[1]))
            return Needed(float(before[0] + share * (here[0] - before[0])))
        before = here
    return Needed(None)


@dataclass(frozen=True)
class LabelsNeeded:
    """Labels one arm needed to reach a fraction of the all-labels Dice, over the repeats of one data set.

    repeats      number of repeats with this arm and a model trained on all labels; if 0, there are no values
    reached      number of repeats that reached the target within the budgets
    median       over all repeats, where those that missed the target count as infinite; None when infinite
    at_most      the median is the smallest budget, so fewer labels might have been enough
    each         value of each repeat
    saved        median over pairs of (labels of random choice - labels of the arm), positive when the arm needed
                 fewer; infinite when mostly only one reached the target; None for random choice and without pairs
    saved_pairs  number of these pairs: those in which at least one reached the target
    """

    data: str
    arm: Arm
    name: str
    fraction: float
    repeats: int
    reached: int
    median: float | None
    at_most: bool
    each: tuple[Needed, ...]
    saved: float | None
    saved_pairs: int


def labels_needed(rows: Sequence[Row], fractions: Sequence[float] = FRACTIONS) -> list[LabelsNeeded]:
    """For each data set, arm and fraction, in this order. [] when no model was trained on all labels.

    Each repeat has its own target: a fraction of the Dice of the model trained on all labels of its pool.
    """
    names = arm_names(rows)
    found = []
    for data in data_sets(rows):
        part = of_data(rows, data)
        whole = {row.repeat: row.dice for row in part if row.strategy == ALL_LABELS}
        if not whole:
            continue
        for arm in arms(part):
            others = [other for other in arms(part) if other.strategy == RANDOM and arm.strategy != RANDOM]
            reference = next((o for o in others if o.embedder == arm.embedder), others[0] if others else None)
            for fraction in fractions:
                ours = _needed(part, arm, whole, fraction)
                theirs = _needed(part, reference, whole, fraction) if reference else {}
                saved = [
                    math.inf if a.labels is None else a.labels - (math.inf if b.labels is None else b.labels)
                    for a, b in ((theirs[repeat], ours[repeat]) for repeat in ours if repeat in theirs)
                    if not (a.labels is None and b.labels is None)
                ]
                median = _median([math.inf if one.labels is None else one.labels for one in ours.values()])
                reached = [one for one in ours.values() if one.labels is not None]
                found.append(
                    LabelsNeeded(
                        data=data,
                        arm=arm,
                        name=names[arm],
                        fraction=fraction,
                        repeats=len(ours),
                        reached=len(reached),
                        median=median if median is not None and math.isfinite(median) else None,
                        at_most=any(one.at_first and one.labels == median for one in reached),
                        each=tuple(ours.values()),
                        saved=_median(saved),
                        saved_pairs=len(saved),
                    )
                )
    return found


def _needed(rows: Sequence[Row], arm: Arm, whole: Mapping[Repeat, float], fraction: float) -> dict[Repeat, Needed]:
    return {
        repeat: labels_to_reach(
            [row.labels for row in curve.values()], [row.dice for row in curve.values()], fraction * whole[repeat]
        )
        for repeat, curve in by_repeat(rows, arm).items()
        if repeat in whole
    }


def _median(values: Sequence[float]) -> float | None:
    """Median of values that may be infinite; None without values, or midway between -inf and inf."""
    if not values:
        return None
    ordered = sorted(values)
    pair = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    middle = pair[0] if pair[0] == pair[1] else (pair[0] + pair[1]) / 2
    return None if math.isnan(middle) else middle
