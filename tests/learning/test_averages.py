"""Averages: each label over the scans that have it; scans without it are never part of a mean, whatever is drawn."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from backend.learning.averages import MANY, Recorded, as_row, of_model, of_row, of_shown, summarise
from backend.learning.evaluation import LabelScore, Scores, score

NONE = np.zeros((40, 60), np.uint8)
maps = arrays(np.uint8, (4, 5), elements=st.integers(0, 2)) | st.just(np.zeros((4, 5), np.uint8))
pairs = st.lists(st.tuples(maps, maps), max_size=6)
MEANS = ("dice", "hd95", "hd", "sensitivity")
RATES = ("false_alarm_rate", "false_alarm_area")


def square(left: int, number: int = 1) -> np.ndarray:
    labels = NONE.copy()
    labels[5:15, left : left + 10] = number
    return labels


HALF = score(square(5), square(8), 2)  # Dice 0.7, HD95 3 px
MISSED = score(NONE, square(5), 2)
ALARM = score(square(5), NONE, 2)
QUIET = score(NONE, NONE, 2)


def summary(scores: list[Scores], names: tuple[str, ...] = ("Lung", "Lesion")) -> dict[str, Any]:
    return summarise([Recorded.of(one, names) for one in scores])


@settings(max_examples=40, deadline=None)
@given(pairs, st.integers(1, 30))
def test_scans_with_nothing_on_them_and_nothing_drawn_change_no_mean(
    given: list[tuple[np.ndarray, np.ndarray]], quiet: int
) -> None:
    scores = [score(drawn, truth, 3) for drawn, truth in given]
    nothing = [score(np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8), 3)] * quiet
    before, after = summary(scores), summary([*scores, *nothing])
    names = (*MEANS, "dice_low", "dice_high", "hd95_low", "hd95_high", "n")
    assert [after[name] for name in names] == [before[name] for name in names]
    for label, one in before["per_label"].items():
        assert [after["per_label"][label][name] for name in (*MEANS, "n")] == [one[name] for name in (*MEANS, "n")]


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_figures_of_each_label_equal_counting_by_hand(given: list[tuple[np.ndarray, np.ndarray]]) -> None:
    got = summary([score(drawn, truth, 3) for drawn, truth in given])
    wanted: dict[str, list[float]] = {name: [] for name in ("dice", "sensitivity", *RATES)}
    for number, label in ((1, "Lung"), (2, "Lesion")):
        there = [(d == number, t == number) for d, t in given if (t == number).any()]
        without = [d == number for d, t in given if not (t == number).any()]
        one = got["per_label"].get(label, {"n": 0, "n_without": 0})
        assert (one["n"], one["n_without"]) == (len(there), len(without))
        by_hand = {
            "dice": [2 * (d & t).sum() / (d.sum() + t.sum()) for d, t in there],
            "sensitivity": [d.any() for d, _ in there],
            "false_alarm_rate": [d.any() for d in without],
            "false_alarm_area": [d.mean() for d in without],
        }
        for name, values in by_hand.items():
            if values:
                assert one[name] == pytest.approx(np.mean(values))
                wanted[name].append(float(np.mean(values)))
    assert got["n"] == sum(bool(t.any()) for _, t in given)
    assert got["n_empty"] == len(given) - got["n"]
    for name, values in wanted.items():
        assert got[name] == (pytest.approx(np.mean(values)) if values else None)


def test_a_rare_label_weighs_as_much_as_a_frequent_one() -> None:
    scores = [score(square(5), square(5), 3)] * 9 + [score(NONE, square(5, 2), 3)]
    got = summary(scores)
    assert (got["dice"], got["sensitivity"], got["miss_rate"], got["n"]) == (0.5, 0.5, 0.5, 10)
    lung, lesion = got["per_label"].values()
    assert (lung["dice"], lung["n"], lung["n_without"]) == (1.0, 9, 1)
    assert (lesion["dice"], lesion["sensitivity"], lesion["n"], lesion["n_without"]) == (0.0, 0.0, 1, 9)


def test_false_alarms_are_counted_and_measured_beside_the_mean() -> None:
    got = summary([HALF, ALARM, QUIET], ("Lung",))
    assert (got["dice"], got["hd95"], got["n"]) == (pytest.approx(0.7), 3.0, 1)
    assert (got["n_empty"], got["false_alarm_rate"]) == (2, 0.5)
    assert got["false_alarm_area"] == pytest.approx(100 / 2400 / 2)


def test_without_any_scan_with_a_label_the_mean_is_not_known() -> None:
    got = summary([QUIET, QUIET, ALARM, QUIET])
    assert [got[name] for name in (*MEANS, "unit", "miss_rate", "dice_low")] == [None] * 7
    assert (got["n"], got["n_empty"], got["false_alarm_rate"]) == (0, 4, 0.25)


def test_a_label_that_the_annotator_could_not_draw_is_in_no_figure() -> None:
    both, older = score(square(5), square(5), 3), score(square(5, 2), square(5), 3, unknown=frozenset({2}))
    lung, lesion = summary([both, older])["per_label"].values()
    assert (lung["n"], lung["dice"], lung["sensitivity"]) == (2, 0.5, 0.5)
    assert (lesion["n"], lesion["n_without"], lesion["false_alarm_rate"]) == (0, 1, 0.0)
    got = summary([score(NONE, NONE, 2, unknown=frozenset({1}))])
    assert (got["n"], got["n_empty"]) == (0, 0)  # nothing is known of this scan


def test_the_interval_of_one_label_covers_its_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        dices = random.beta(4, 1, size=25)
        got = summarise([Recorded({"Lung": LabelScore(True, True, 0.1, float(d), 1.0, 1.0)}, "px") for d in dices])
        inside += got["dice_low"] <= 0.8 <= got["dice_high"]
    assert 0.88 <= inside / 300 <= 0.99


@pytest.mark.parametrize("n", [MANY, MANY + 1])
def test_the_interval_of_many_scans_needs_no_samples(n: int) -> None:
    random = np.random.default_rng(1)
    there = {name: random.random(n) < share for name, share in (("Lung", 1.0), ("Lesion", 0.3))}
    dices = {name: random.beta(4, 1, size=n) for name in there}
    scans = [
        Recorded(
            {name: LabelScore(True, True, 0.1, float(dices[name][i]), 1.0, 1.0) for name in there if there[name][i]},
            "px",
        )
        for i in range(n)
    ]
    got = summarise(scans)
    variance = sum(np.var(dices[name][there[name]]) / there[name].sum() for name in there) / 4
    assert got["dice_high"] - got["dice_low"] == pytest.approx(2 * 1.96 * variance**0.5, rel=0.1)


def test_a_label_on_a_single_scan_has_no_interval_and_takes_it_from_the_mean() -> None:
    got = summary([score(square(5), square(7), 3), HALF, score(square(5, 2), square(7, 2), 3)])
    assert got["per_label"]["Lung"]["dice_low"] is not None
    assert (got["per_label"]["Lesion"]["dice_low"], got["dice_low"]) == (None, None)


def test_a_summary_fits_json_and_never_averages_pixels_with_millimetres() -> None:
    mixed = [HALF, score(square(5), square(8), 2, spacing=(1.0, 1.0)), score(NONE, NONE, 2, spacing=(1.0, 1.0))]
    got = json.loads(json.dumps(summary(mixed)))
    assert (got["dice"], got["hd95"], got["hd"], got["unit"], got["n"]) == (pytest.approx(0.7), None, None, "mixed", 2)
    assert got["per_label"]["Lung"]["hd95"] is None
    assert summary([HALF, mixed[2]])["unit"] == "px"  # a scan that no mean includes does not mix units


def test_summary_of_nothing_has_no_means_and_no_rates() -> None:
    got = summarise([])
    assert (got.pop("n"), got.pop("n_empty"), got.pop("per_label")) == (0, 0, {})
    assert set(got.values()) == {None}


# -- what is recorded, and what older versions recorded ------------------------------------------------


@given(maps, maps)
def test_a_recorded_scan_is_read_back(drawn: np.ndarray, truth: np.ndarray) -> None:
    found = score(drawn, truth, 3)
    row = json.loads(json.dumps(as_row(found, ("Lung", "Lesion"))))
    again, labels = of_row(row, ()), Recorded.of(found, ("Lung", "Lesion")).labels
    for name, one in again.labels.items():
        assert asdict(one) == pytest.approx(asdict(labels[name]), abs=1e-6)
    assert set(row["classes"]) == {name for number, name in ((1, "Lung"), (2, "Lesion")) if (truth == number).any()}


def shown(dice: float, label_empty: int = -1, shown_empty: int = -1) -> dict[str, Any]:
    row = {"dice": dice, "hd": 2.0, "hd95": 1.0, "unit": "px"}
    return row | {"label_empty": label_empty, "shown_empty": shown_empty}


@pytest.mark.parametrize("names", [("Lung",), ("Lung", "Lesion")])
def test_an_older_comparison_that_may_be_of_two_empty_masks_is_in_no_mean(names: tuple[str, ...]) -> None:
    got = summarise([of_shown(row, names) for row in (shown(0.5), shown(1.0), shown(0.0))])
    assert (got["dice"], got["n"], got["n_empty"]) == (0.25, 2, 0)
    assert (got["miss_rate"], got["false_alarm_rate"]) == (None, None)  # who knows
    assert set(got["per_label"]) == ({"Lung"} if len(names) == 1 else set())  # whole masks tell nothing of two labels


@pytest.mark.parametrize(("empty", "n", "n_empty"), [(0, 1, 0), (1, 0, 1)])
def test_a_dice_of_1_tells_that_both_masks_are_empty_or_neither(empty: int, n: int, n_empty: int) -> None:
    for row in (shown(1.0, label_empty=empty), shown(1.0, shown_empty=empty)):
        got = summarise([of_shown(row, ("Lung",))])
        assert (got["n"], got["n_empty"]) == (n, n_empty)


def older(
    dice: float, classes: dict[str, float], *, truth: bool | None = None, drawn: bool | None = None
) -> dict[str, Any]:
    """A held-out scan as an older version recorded it, which told at most whether the whole masks are empty."""
    row: dict[str, Any] = {"task": 1, "dice": dice, "hd95": 3.0, "unit": "px", "classes": classes}
    return row if truth is None else row | {"hd": 4.0, "truth_empty": truth, "drawn_empty": drawn}


def test_an_older_model_is_judged_again_by_what_is_recorded_of_its_scans() -> None:
    scans = [older(0.7, {"Lung": 0.7}), older(1.0, {}), older(1.0, {})]
    validation = {"dice": 0.9, "hd95": 1.0, "hd": 1.0, "unit": "px", "n": 3}
    got = of_model({"validation": validation, "labels": ["Lung"], "details": {"held_out": scans}})
    assert (got["dice"], got["n"], got["n_empty"], got["hd95"]) == (0.7, 1, 2, 3.0)
    assert got["hd"] is None  # the mean over other scans
    assert got["per_label"]["Lung"]["n_without"] == 2


def test_the_scans_of_an_older_model_tell_each_label_as_far_as_it_was_recorded() -> None:
    scans = [
        older(0.4, {"Lung": 0.8, "Lesion": 0.0}, truth=False, drawn=False),  # a missed lesion, or a false alarm
        older(0.0, {"Lung": 0.0, "Lesion": 0.0}, truth=True, drawn=False),  # two false alarms
    ]
    validation = {"dice": 0.4, "hd95": 5.0, "hd": 6.0, "unit": "px", "n": 1, "n_empty": 1, "false_alarm_rate": 1.0}
    got = of_model({"validation": validation, "labels": ["Lung", "Lesion"], "details": {"held_out": scans}})
    assert (got["dice"], got["n"], got["n_empty"], got["hd95"], got["hd"]) == (0.4, 1, 1, 5.0, 6.0)
    assert (got["sensitivity"], got["false_alarm_rate"], got["false_alarm_area"]) == (None, None, None)
    lung, lesion = got["per_label"].values()
    assert (lung["dice"], lung["n"], lesion["dice"], lesion["n"]) == (0.8, 1, 0.0, 1)
    only = of_model(
        {
            "validation": validation,
            "labels": ["Lung"],
            "details": {
                "held_out": [
                    older(0.0, {"Lung": 0.0}, truth=False, drawn=True),
                    older(0.0, {"Lung": 0.0}, truth=True, drawn=False),
                ]
            },
        }
    )
    assert (only["sensitivity"], only["false_alarm_rate"], only["false_alarm_area"]) == (0.0, 1.0, None)


def test_an_older_model_without_a_record_of_its_scans_never_shows_a_dice_of_1() -> None:
    model = {"validation": {"dice": 1.0, "hd95": 0.0, "hd": 0.0, "unit": "px", "n": 4}, "labels": [], "details": {}}
    assert (of_model(model)["dice"], of_model(model)["n"]) == (None, 0)
    model["validation"] = {"dice": 0.8, "hd95": 2.0, "hd": 3.0, "unit": "px", "n": 4}
    assert (of_model(model)["dice"], of_model(model)["n"], of_model(model)["n_empty"]) == (0.8, 4, 0)


def test_a_model_of_today_keeps_its_summary() -> None:
    found = summary([HALF, QUIET, ALARM, MISSED])
    assert of_model({"validation": found, "labels": ["Lung"], "details": {"held_out": []}}) == found
