"""Statistics of simulations: areas, interpolations, intervals and tests, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from backend.errors import BadResults
from backend.simulate.labels_needed import Needed, labels_needed, labels_to_reach
from backend.simulate.results import (
    ALL_LABELS,
    COLUMNS,
    RANDOM,
    Arm,
    Repeat,
    Row,
    arm_names,
    check_rows,
    distance_unit,
    missing_models,
    read_rows,
)
from backend.simulate.statistics import (
    area_under_curve,
    compare_with_random,
    holm,
    learning_curves,
    mean_interval,
    signed_rank,
    smallest_p,
    verdict,
)

QUICK = 500  # resamples


def row(
    strategy: str, seed: int, budget: int, dice: float, *, hd95: float = 5.0, data: str = "", embedder: str = "e"
) -> Row:
    return Row(strategy, embedder, seed, budget, budget, dice, 2 * hd95, hd95, "px", 30, data)


def pairs(
    gains: list[float], *, strategy: str = "default", data: str = "", budgets: tuple[int, ...] = (10, 20)
) -> list[Row]:
    """Random choice at 0.6 and a strategy that is better by one gain per seed, the same at every budget."""
    made = []
    for seed, gain in enumerate(gains):
        for budget in budgets:
            made.append(row(RANDOM, seed, budget, 0.6, data=data))
            made.append(row(strategy, seed, budget, 0.6 + gain, data=data))
    return made


def write(path: Path, *lines: str, header: str = ",".join(COLUMNS)) -> Path:
    path.write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
    return path


# Reading


def test_rows_are_read_back_as_written(tmp_path: Path) -> None:
    path = write(
        tmp_path / "results.csv",
        "paper+entropy,pixels,3,20,18,0.75,4.5,2.25,mm,30,12.5",
        '"a, ""b""",,0,1,1,1,0,0,px,1,0',
    )
    assert read_rows(path) == [
        Row("paper+entropy", "pixels", 3, 20, 18, 0.75, 4.5, 2.25, "mm", 30),
        Row('a, "b"', "", 0, 1, 1, 1.0, 0.0, 0.0, "px", 1),
    ]


def test_a_data_set_column_is_read_if_present_and_other_columns_are_ignored(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.csv", "chest,random,e,0,10,10,0.5,1,1,px,3,1,x", header=",".join(("data", *COLUMNS, "more"))
    )
    assert read_rows(path)[0].data == "chest"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("random,e,0,10,10,many,1,1,px,3,1", "line 3, column dice: got 'many', wanted a number from 0 to 1"),
        ("random,e,0,10,10,1.01,1,1,px,3,1", "line 3, column dice: got '1.01', wanted a number from 0 to 1"),
        ("random,e,0,10,10,nan,1,1,px,3,1", "line 3, column dice: got 'nan', wanted a number from 0 to 1"),
        ("random,e,0,10,10,0.5,-1,1,px,3,1", "line 3, column hd: got '-1', wanted a number from 0"),
        ("random,e,0,10,10,0.5,1,inf,px,3,1", "line 3, column hd95: got 'inf', wanted a number from 0"),
        ("random,e,0,1.5,10,0.5,1,1,px,3,1", "line 3, column budget: got '1.5', wanted a whole number from 1"),
        ("random,e,0,10,10,0.5,1,1,cm,3,1", "line 3, column unit: got 'cm', wanted one of px, mm, mixed"),
        (",e,0,10,10,0.5,1,1,px,3,1", "line 3, column strategy: empty, wanted a name"),
        ("random,e,0,10,10,0.5", "line 3, column unit: missing; the line ends too early"),
        ("default,e,0,10,10,0.5,1,1,px,3,1", "line 3: the same model as in line 2"),
    ],
)
def test_a_bad_line_is_named_with_its_column(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "r.csv", "default,e,0,10,10,0.5,1,1,px,3,1", line)
    with pytest.raises(BadResults) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}, {message}")


def test_a_missing_column_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", header="strategy;seed")
    with pytest.raises(BadResults, match=r"line 1: no column strategy, embedder, .*; found strategy;seed\. Give"):
        read_rows(path)
    with pytest.raises(BadResults, match=r"nothing\.csv: cannot be read \(No such file or directory\)"):
        read_rows(tmp_path / "nothing.csv")


def test_distances_of_mixed_units_may_be_empty(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "r.csv", "random,e,0,10,10,0.5,,,mixed,3,1"))
    assert math.isnan(rows[0].hd95)
    assert distance_unit(rows) is None


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(BadResults, match="no strategy has a trained model"):
        check_rows([row(ALL_LABELS, 0, 100, 0.9)])
    with pytest.raises(BadResults, match="The same model appears twice: random, embedder e, seed 0, budget 10"):
        check_rows([row(RANDOM, 0, 10, 0.5), row(RANDOM, 0, 10, 0.6)])


def test_an_arm_name_has_the_embedder_only_if_there_are_several() -> None:
    one = [row("default", 0, 10, 0.5, embedder="a"), row(RANDOM, 0, 10, 0.5, embedder="")]
    assert set(arm_names(one).values()) == {"default", "random"}
    two = [*one, row("default", 0, 10, 0.5, embedder="b")]
    assert set(arm_names(two).values()) == {"default (a)", "default (b)", "random"}


def test_the_missing_rows_of_an_interrupted_run_are_reported() -> None:
    rows = [*pairs([0.1, 0.1]), row(ALL_LABELS, 0, 100, 0.9)]
    del rows[-2]  # default, seed 1, budget 20
    assert missing_models(rows) == [
        "default lacks seed 1 (budget 20).",
        "the model trained on all labels lacks seed 1.",
    ]
    assert missing_models(pairs([0.1, 0.1])) == []


# Areas and curves


def test_the_area_uses_trapezoids_over_the_range_of_labels() -> None:
    # (10 * (0.5 + 0.7) / 2 + 20 * (0.7 + 0.8) / 2) / 30
    assert area_under_curve([10, 20, 40], [0.5, 0.7, 0.8]) == pytest.approx(0.7)
    assert area_under_curve([40, 10, 20], [0.8, 0.5, 0.7]) == pytest.approx(0.7)


def test_the_area_of_a_single_budget_is_its_dice() -> None:
    assert area_under_curve([10], [0.5]) == 0.5
    assert area_under_curve([10, 10], [0.5, 0.7]) == pytest.approx(0.6)  # a pool this small


def test_area_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="as many labels as Dice"):
        area_under_curve([], [])


def test_a_curve_point_is_the_mean_over_seeds_in_its_unit() -> None:
    rows = [row(RANDOM, 0, 10, 0.5, hd95=4), row(RANDOM, 1, 10, 0.7, hd95=8), row(RANDOM, 0, 20, 0.8)]
    first, second = learning_curves(rows, resamples=QUICK)
    assert (first.budget, first.labels, first.unit) == (10, 10.0, "px")
    assert first.dice.mean == pytest.approx(0.6)
    assert first.hd is not None
    assert first.hd95 is not None
    assert (first.hd.mean, first.hd95.mean, first.hd95.n) == (12.0, 6.0, 2)
    assert second.dice.n == 1
    assert second.dice.low is None


# Intervals


@pytest.mark.parametrize("n", [5, 10])
def test_intervals_have_about_their_nominal_coverage(n: int) -> None:
    draw = np.random.default_rng(0)
    inside = 0
    for repeat in range(300):
        found = mean_interval({"": list(draw.normal(0.3, 1.0, n))}, seed=repeat, resamples=2000)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.3 <= found.high
    assert 0.90 <= inside / 300 <= 0.98  # plain percentiles of five: 0.83


def test_intervals_over_two_data_sets_resample_within_each_and_weight_them_equally() -> None:
    found = mean_interval({"a": [0.0] * 9, "b": [1.0] * 3}, resamples=QUICK)
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 12)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = {"": [0.1, 0.4, 0.2, 0.9, 0.3, 0.2]}
    assert mean_interval(values, seed=1, resamples=QUICK) == mean_interval(values, seed=1, resamples=QUICK)
    assert mean_interval(values, seed=1, resamples=QUICK) != mean_interval(values, seed=2, resamples=QUICK)


def test_one_repeat_has_no_interval_and_zero_repeats_no_mean() -> None:
    alone = mean_interval({"a": [0.5], "b": [0.1, 0.3]})
    assert (alone.mean, alone.low, alone.high, alone.n) == (pytest.approx(0.35), None, None, 3)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval({"a": []})


# Against random choice


def test_a_difference_is_arm_minus_random_for_dice_and_distances() -> None:
    rows = [
        row(RANDOM, 0, 10, 0.5, hd95=9),
        row(RANDOM, 0, 20, 0.7, hd95=8),
        row("default", 0, 10, 0.6, hd95=6),
        row("default", 0, 20, 0.9, hd95=4),
    ]
    (found,) = compare_with_random(rows, resamples=QUICK)
    assert found.area is not None
    assert found.area.mean == pytest.approx(0.15)
    assert {b: i.mean for b, i in found.dice.items()} == pytest.approx({10: 0.1, 20: 0.2})
    assert {b: i.mean for b, i in found.hd95.items()} == {10: -3.0, 20: -4.0}
    assert found.unit == "px"


def test_only_pairs_are_compared_and_an_incomplete_one_is_left_out_of_the_area() -> None:
    rows = pairs([0.1, 0.2, 0.3])
    rows = [r for r in rows if not (r.strategy == RANDOM and r.seed == 1)]  # no partner
    rows = [r for r in rows if not (r.strategy == "default" and r.seed == 2 and r.budget == 20)]
    (found,) = compare_with_random(rows, resamples=QUICK)
    assert found.by_pair == {Repeat("", 0): pytest.approx(0.1)}
    assert (found.left_out, found.over) == (1, {"": (10, 20)})
    assert {b: i.n for b, i in found.dice.items()} == {10: 2, 20: 1}
    assert found.dice[10].mean == pytest.approx(0.2)


def test_an_area_covers_only_the_budgets_of_both_arms() -> None:
    rows = [*pairs([0.1]), row("default", 0, 40, 1.0)]
    (found,) = compare_with_random(rows, resamples=QUICK)
    assert found.over == {"": (10, 20)}
    assert found.area is not None
    assert found.area.mean == pytest.approx(0.1)


def test_the_control_arm_is_random_choice_with_the_same_embedder() -> None:
    rows = [
        row(RANDOM, 0, 10, 0.5, embedder="a"),
        row(RANDOM, 0, 10, 0.6, embedder="b"),
        row("default", 0, 10, 0.7, embedder="b"),
        row("default", 0, 10, 0.9, embedder="c"),
    ]
    gains = {one.arm.embedder: one.area.mean for one in compare_with_random(rows) if one.area}
    assert gains == {"b": pytest.approx(0.1), "c": pytest.approx(0.4)}


def test_data_sets_count_equally_regardless_of_their_number_of_repeats() -> None:
    rows = pairs([0.1] * 6, data="a") + pairs([0.3] * 2, data="b")
    (found,) = compare_with_random(rows, resamples=QUICK)
    assert found.area is not None
    assert found.area.mean == pytest.approx(0.2)
    assert found.area.n == 8


def test_distances_in_two_units_are_not_averaged() -> None:
    rows = pairs([0.1])
    rows[0] = Row(**{**rows[0].__dict__, "unit": "mm"})
    (found,) = compare_with_random(rows, resamples=QUICK)
    assert (found.hd95, found.unit) == ({}, None)


def test_without_random_choice_nothing_is_compared() -> None:
    (found,) = compare_with_random([row("default", 0, 10, 0.5)])
    assert (found.area, found.p, found.p_holm) == (None, None, None)
    assert verdict(found).sentence == "cannot be compared: no repeat has both this strategy and random choice"


def test_comparisons_are_sorted_best_first() -> None:
    rows = pairs([0.1] * 2, strategy="good") + [r for r in pairs([-0.1] * 2, strategy="bad") if r.strategy == "bad"]
    rows.append(row("lonely", 7, 10, 0.5))
    assert [one.name for one in compare_with_random(rows, resamples=QUICK)] == ["good", "bad", "lonely"]


def test_signed_rank_is_exact_for_few_pairs() -> None:
    assert signed_rank([0.01, 0.02, 0.03, 0.04, 0.05]) == (pytest.approx(0.0625), 5)
    # 3 pairs: rank sums of at most 1 are {} and {1}, on either side: 4 / 8
    assert signed_rank([-0.1, 0.2, 0.3]) == (pytest.approx(0.5), 3)
    assert signed_rank([0.1, 0.1, 0.1, 0.0]) == (pytest.approx(0.25), 3)  # ties and a zero
    assert signed_rank([0.0, 0.0]) == (1.0, 0)
    assert signed_rank([]) == (None, 0)


def test_p_is_smallest_if_all_differences_have_one_sign() -> None:
    for n in range(1, 11):
        assert smallest_p(n) == pytest.approx(signed_rank([0.01 * k for k in range(1, n + 1)])[0])


def test_holm_multiplies_by_the_number_of_remaining_tests_and_never_decreases() -> None:
    corrected = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9})
    assert corrected == pytest.approx({"b": 0.04, "c": 0.09, "a": 0.09, "d": 0.9})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_p_is_corrected_for_the_number_of_strategies() -> None:
    gains = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    rows = pairs(gains, strategy="a") + [r for r in pairs(gains, strategy="b") if r.strategy == "b"]
    for one in compare_with_random(rows, resamples=QUICK):
        assert (one.p, one.p_holm) == (pytest.approx(2 / 64), pytest.approx(4 / 64))


# Verdicts


def one_verdict(gains: list[float]) -> tuple[str, str]:
    (found,) = compare_with_random(pairs(gains))
    said = verdict(found)
    return said.kind, said.sentence


def test_the_verdict_better_with_five_pairs_says_that_the_test_cannot_confirm_it() -> None:
    kind, sentence = one_verdict([0.010, 0.020, 0.020, 0.025, 0.030])
    assert kind == "better"
    assert sentence.startswith("better than random: +0.021 Dice on average (95 % interval +0.01")
    assert sentence.endswith(
        "over 5 paired repeats; a signed-rank test cannot confirm it: the smallest possible p with 5 pairs is 0.0625"
    )


def test_the_verdict_better_with_enough_pairs_has_no_reservation() -> None:
    kind, sentence = one_verdict([0.010, 0.020, 0.020, 0.025, 0.030, 0.015, 0.018])
    assert kind == "better"
    assert sentence.endswith(") over 7 paired repeats")


def test_the_verdict_worse_has_a_minus_sign() -> None:
    kind, sentence = one_verdict([-0.010, -0.020, -0.020, -0.025, -0.030, -0.015, -0.018])
    assert kind == "worse"
    assert sentence.startswith("worse than random: \N{MINUS SIGN}0.020 Dice on average")


def test_an_interval_that_includes_zero_is_never_called_equal() -> None:
    kind, sentence = one_verdict([-0.03, 0.02, -0.01, 0.03, 0.01])
    assert kind == "open"
    assert sentence.startswith(
        "no difference from random could be shown: +0.004 Dice on average (95 % interval \N{MINUS SIGN}0.0"
    )
    assert sentence.endswith(") over 5 paired repeats")


def test_fewer_than_five_pairs_give_no_verdict() -> None:
    kind, sentence = one_verdict([0.1, 0.2, 0.1, 0.1])
    assert kind == "too few"
    assert sentence == (
        "too few repeats to judge: +0.125 Dice on average (from +0.100 to +0.200) over 4 paired repeats; "
        "at least 5 are needed"
    )
    assert one_verdict([0.1]) == ("too few", "one paired repeat is too few to judge: +0.100 Dice; 5 are needed")


def test_a_data_set_with_a_single_repeat_gives_no_verdict() -> None:
    (found,) = compare_with_random(pairs([0.1] * 6, data="a") + pairs([0.3], data="b"), resamples=QUICK)
    said = verdict(found)
    assert said.kind == "too few"
    assert said.sentence.endswith("over 7 paired repeats; every data set needs at least two")


def test_a_lead_that_chance_explains_among_many_strategies_is_reported() -> None:
    gains = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    rows = pairs(gains, strategy="s0")
    for k in range(1, 4):
        rows += [r for r in pairs(gains, strategy=f"s{k}") if r.strategy != RANDOM]
    said = verdict(compare_with_random(rows)[0])
    assert said.kind == "better"
    assert said.sentence.endswith(
        "not confirmed by the signed-rank test after correction for all strategies (p = 0.12)"
    )


# Labels needed


def test_labels_to_reach_lie_on_the_line_between_two_budgets() -> None:
    assert labels_to_reach([10, 20, 40], [0.5, 0.7, 0.8], 0.75) == Needed(30.0)
    assert labels_to_reach([10, 20, 40], [0.5, 0.7, 0.8], 0.7) == Needed(20.0)
    assert labels_to_reach([10, 20, 40], [0.5, 0.7, 0.8], 0.5) == Needed(10.0, at_first=True)
    assert labels_to_reach([10, 20, 40], [0.5, 0.7, 0.8], 0.81) == Needed(None)
    assert labels_to_reach([10, 20, 40], [0.5, 0.8, 0.6], 0.65) == Needed(15.0)  # the first crossing counts


def reaching(strategy: str, seed: int, *dice: float) -> list[Row]:
    return [row(strategy, seed, budget, value) for budget, value in zip((10, 20, 40), dice, strict=True)]


def test_labels_needed_are_medians_relative_to_the_target_of_each_repeat() -> None:
    rows = [row(ALL_LABELS, seed, 100, full) for seed, full in enumerate((1.0, 0.8, 1.0))]
    rows += (
        reaching(RANDOM, 0, 0.5, 0.8, 1.0) + reaching(RANDOM, 1, 0.52, 0.62, 0.82) + reaching(RANDOM, 2, 0.1, 0.2, 0.3)
    )
    rows += (
        reaching("default", 0, 0.8, 1.0, 1.0)
        + reaching("default", 1, 0.72, 0.8, 0.8)
        + reaching("default", 2, 0.1, 0.2, 0.9)
    )
    random, default = labels_needed(rows, [0.9])
    # random: 0.9 after 30, 0.72 after 30, never; default: 15, 10 or fewer, 40
    assert [one.labels for one in random.each] == [pytest.approx(30), pytest.approx(30), None]
    assert (random.reached, random.repeats, random.saved) == (2, 3, None)
    assert random.median == pytest.approx(30)
    assert default.each == (Needed(pytest.approx(15)), Needed(10.0, at_first=True), Needed(pytest.approx(40)))
    assert (default.median, default.at_most) == (pytest.approx(15), False)
    # saved: 15, 20, and infinitely many: only default reached its target
    assert (default.saved, default.saved_pairs) == (pytest.approx(20), 3)


def test_a_median_among_repeats_that_never_reached_the_target_is_none() -> None:
    rows = [row(ALL_LABELS, 0, 100, 1.0), *reaching(RANDOM, 0, 0.9, 0.9, 0.9), *reaching("default", 0, 0.1, 0.2, 0.3)]
    random, default = labels_needed(rows, [0.9])
    assert (random.median, random.at_most) == (10.0, True)
    assert (default.median, default.reached, default.saved) == (None, 0, -math.inf)


def test_without_a_model_of_all_labels_there_is_no_target() -> None:
    assert labels_needed(pairs([0.1])) == []
    rows = [row(ALL_LABELS, 9, 100, 1.0), row("default", 0, 10, 0.5)]
    assert [(one.repeats, one.median) for one in labels_needed(rows, [0.9])] == [(0, None)]


def test_arms_keep_their_identity() -> None:
    assert compare_with_random(pairs([0.1]))[0].arm == Arm("default", "e")
