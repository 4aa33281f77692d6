"""Two models on the same scans: the paired difference, its interval, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from backend.learning.comparison import Difference, Pair, difference
from backend.learning.evaluation import LabelScore

TOLERANCE = 0.01


def found(new: float, active: float, group: str = "", label: int = 1) -> Pair:
    """A scan with the label, and the Dice of both models."""
    one, other = (LabelScore(True, dice > 0, 0.1, dice) for dice in (new, active))
    return Pair({label: one}, {label: other}, group)


def without(alarm: bool = False, before: bool = False) -> Pair:
    """A scan without the label, and whether the new model draws it there, and the active one."""
    return Pair({1: LabelScore(False, alarm, 0.0)}, {1: LabelScore(False, before, 0.0)})


def test_a_model_that_finds_nothing_is_refused_however_many_scans_are_empty() -> None:
    missed = [found(0.0, dice) for dice in (0.7, 0.8, 0.75, 0.7, 0.8)]
    for empty in (0, 1, 1000):
        got = difference([*missed, *[without()] * empty])
        assert got.mean == pytest.approx(-0.75 if not empty else -0.375)  # half: the other stratum is equal
        assert got.worse(TOLERANCE)


def test_false_alarms_are_not_bought_with_better_masks_of_the_few_findings() -> None:
    better = [found(0.75, 0.7) for _ in range(5)]
    alarms = [without(bool(i % 2)) for i in range(40)]
    got = difference([*better, *alarms])
    assert got.mean == pytest.approx((0.05 - 0.5) / 2)
    assert got.worse(TOLERANCE)


def test_a_single_miss_or_few_scans_tell_nothing() -> None:
    assert not difference([found(0.0, 0.9), *[without()] * 19]).worse(TOLERANCE)
    assert difference([found(0.0, 0.9)] * 5).worse(TOLERANCE)
    few = difference([found(0.0, 0.9)] * 4)
    assert (few.enough, few.worse(TOLERANCE)) == (False, False)
    assert difference([]) == Difference(0.0, -1.0, 1.0, 0)


def test_slices_of_one_patient_are_one_observation() -> None:
    slices = [found(0.5, 0.8, "P1")] * 30
    assert not difference(slices).worse(TOLERANCE)
    assert difference([found(0.5, 0.8, f"P{i}") for i in range(30)]).worse(TOLERANCE)
    two, eight = (difference([found(0.6 + g % 2 / 5, 0.8, f"P{g % n}") for g in range(40)]) for n in (2, 8))
    assert two.high - two.low > eight.high - eight.low


def test_every_label_has_the_same_weight_and_an_unknown_one_has_none() -> None:
    common = [found(0.8, 0.8) for _ in range(95)]
    rare = [found(0.2, 0.8, label=2) for _ in range(5)]
    assert difference([*common, *rare]).mean == pytest.approx(-0.3)
    same = LabelScore(True, True, 0.1, 0.8)
    one_sided = Pair({1: same, 2: LabelScore(True, False, 0.0, 0.0)}, {1: same})
    assert difference([*common, one_sided]).mean == pytest.approx(0.0)
    assert difference([Pair({}, {})] * 9).scans == 0


def test_a_difference_within_the_tolerance_is_accepted_and_a_small_certain_one_beyond_it_is_not() -> None:
    pairs = [found(0.7 + i % 2 / 50, 0.73) for i in range(40)]  # 0.01 to 0.03 worse
    got = difference(pairs)
    assert got.mean == pytest.approx(-0.02)
    assert got.worse(0.01)
    assert not got.worse(0.02)
    assert difference([found(0.7, 0.7)] * 9) == Difference(0.0, 0.0, 0.0, 9)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.2])
def test_the_interval_contains_the_true_difference_in_95_of_100_projects(share: float) -> None:
    """20 scans each; the models differ by 0.1 in Dice, in 10 % against 20 % false alarms."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(300):
        pairs: list[Pair] = []
        has = rng.permutation(20) < 20 * share
        for one in has:
            dice = rng.beta(8, 2)
            pairs.append(
                found(dice - 0.1 + rng.normal(0, 0.08), dice)
                if one
                else without(rng.random() < 0.1, rng.random() < 0.2)
            )
        true = -0.1 if share == 1 else (-0.1 + 0.1) / 2
        got = difference(pairs)
        hits.append(got.low <= true <= got.high)
    assert 0.91 <= np.mean(hits) <= 0.99
