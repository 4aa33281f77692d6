"""Averages: scans without foreground are never part of a mean, whatever is drawn on them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from backend.learning.averages import of_held_out, of_model, of_shown, overall, summarise
from backend.learning.evaluation import Scores, score

NONE = np.zeros((40, 60), np.uint8)
maps = arrays(np.uint8, (4, 5), elements=st.integers(0, 2)) | st.just(np.zeros((4, 5), np.uint8))


def square(left: int) -> np.ndarray:
    labels = NONE.copy()
    labels[5:15, left : left + 10] = 1
    return labels


HALF = score(square(5), square(8), 2)  # Dice 0.7, HD95 3 px
MISSED = score(NONE, square(5), 2)
ALARM = score(square(5), NONE, 2)
QUIET = score(NONE, NONE, 2)


def test_empty_masks_shown_and_submitted_are_not_a_dice_of_1() -> None:
    got = summarise([HALF, QUIET, QUIET])
    assert (got["dice"], got["hd95"], got["n"]) == (pytest.approx(0.7), 3.0, 1)
    assert (got["n_empty"], got["false_alarm_rate"], got["miss_rate"]) == (2, 0.0, 0.0)


def test_without_any_scan_with_foreground_the_mean_is_not_known() -> None:
    got = summarise([QUIET, QUIET, ALARM, QUIET])
    assert [got[name] for name in ("dice", "hd95", "hd", "unit", "miss_rate")] == [None] * 5
    assert (got["n"], got["n_empty"], got["false_alarm_rate"]) == (0, 4, 0.25)


def test_a_false_alarm_counts_as_one_and_not_in_the_mean() -> None:
    got = summarise([HALF, ALARM])
    assert (got["dice"], got["hd95"], got["n"]) == (pytest.approx(0.7), 3.0, 1)
    assert (got["n_empty"], got["false_alarm_rate"]) == (1, 1.0)


def test_a_scan_where_nothing_is_drawn_is_a_miss_and_counts_in_the_mean() -> None:
    got = summarise([HALF, MISSED])
    assert (got["dice"], got["n"], got["miss_rate"]) == (pytest.approx(0.35), 2, 0.5)
    assert (got["n_empty"], got["false_alarm_rate"]) == (0, None)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(maps, maps), max_size=6))
def test_means_and_rates_equal_counting_by_hand(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    got = summarise([score(drawn, truth, 3) for drawn, truth in pairs])
    dices, missed, alarms = [], [], []
    for drawn, truth in pairs:
        if truth.any():
            each = [
                2 * ((drawn == c) & (truth == c)).sum() / n
                for c in (1, 2)
                if (n := (drawn == c).sum() + (truth == c).sum())
            ]
            dices.append(np.mean(each))
            missed.append(not drawn.any())
        else:
            alarms.append(bool(drawn.any()))
    assert (got["n"], got["n_empty"]) == (len(dices), len(alarms))
    for name, values in (("dice", dices), ("miss_rate", missed), ("false_alarm_rate", alarms)):
        assert got[name] == (pytest.approx(np.mean(values)) if values else None)


def test_a_summary_fits_json_and_never_averages_pixels_with_millimetres() -> None:
    mixed = [HALF, score(square(5), square(8), 2, spacing=(1.0, 1.0)), score(NONE, NONE, 2, spacing=(1.0, 1.0))]
    got = json.loads(json.dumps(summarise(mixed)))
    assert (got["dice"], got["hd95"], got["hd"], got["unit"], got["n"]) == (pytest.approx(0.7), None, None, "mixed", 2)
    assert summarise([HALF, mixed[2]])["unit"] == "px"  # a scan that no mean includes does not mix units


def test_summary_of_nothing_has_no_means_and_no_rates() -> None:
    got = summarise([])
    assert (got.pop("n"), got.pop("n_empty")) == (0, 0)
    assert set(got.values()) == {None}


def test_models_are_ranked_by_false_alarms_too() -> None:
    careful, eager = summarise([HALF, QUIET]), summarise([HALF, ALARM])
    assert careful["dice"] == eager["dice"]
    assert overall(careful) == pytest.approx(0.85)
    assert overall(eager) == pytest.approx(0.35)
    assert overall(summarise([])) is None


# -- what older versions recorded ------------------------------------------------------------------


def shown(dice: float, label_empty: int = -1, shown_empty: int = -1) -> dict[str, Any]:
    row = {"dice": dice, "hd": 2.0, "hd95": 1.0, "unit": "px"}
    return row | {"label_empty": label_empty, "shown_empty": shown_empty}


def test_an_older_comparison_that_may_be_of_two_empty_masks_is_in_no_mean() -> None:
    got = summarise([of_shown(row) for row in (shown(0.5), shown(1.0), shown(0.0))])
    assert (got["dice"], got["n"]) == (0.25, 2)
    assert (got["miss_rate"], got["false_alarm_rate"]) == (None, None)  # who knows


@pytest.mark.parametrize(("empty", "n", "n_empty"), [(0, 1, 0), (1, 0, 1)])
def test_a_dice_of_1_tells_that_both_masks_are_empty_or_neither(empty: int, n: int, n_empty: int) -> None:
    for row in (shown(1.0, label_empty=empty), shown(1.0, shown_empty=empty)):
        got = summarise([of_shown(row)])
        assert (got["n"], got["n_empty"]) == (n, n_empty)


def held_out(scores: Scores, *, old: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"task": 1, "dice": scores.dice, "hd95": scores.hd95, "unit": scores.unit}
    row["classes"] = {f"label {number}": dice for number, dice in scores.per_class.items()}
    return row if old else row | {"truth_empty": scores.truth_empty, "drawn_empty": scores.drawn_empty}


def test_an_older_model_is_judged_again_by_what_is_recorded_of_its_scans() -> None:
    scans = [held_out(one, old=True) for one in (HALF, QUIET, QUIET)]
    validation = {"dice": 0.9, "hd95": 1.0, "hd": 1.0, "unit": "px", "n": 3}
    got = of_model({"validation": validation, "details": {"held_out": scans}})
    assert (got["dice"], got["n"], got["n_empty"]) == (pytest.approx(0.7), 1, 2)
    assert got["hd"] is None  # the mean over other scans


def test_an_older_model_without_a_record_of_its_scans_never_shows_a_dice_of_1() -> None:
    model = {"validation": {"dice": 1.0, "hd95": 0.0, "hd": 0.0, "unit": "px", "n": 4}, "details": {}}
    assert (of_model(model)["dice"], of_model(model)["n"]) == (None, 0)
    model["validation"] = {"dice": 0.8, "hd95": 2.0, "hd": 3.0, "unit": "px", "n": 4}
    assert (of_model(model)["dice"], of_model(model)["n"], of_model(model)["n_empty"]) == (0.8, 4, 0)


def test_a_model_of_today_keeps_its_summary() -> None:
    scores = [HALF, QUIET, ALARM, MISSED]
    details = {"held_out": [held_out(one, old=False) for one in scores]}
    assert of_model({"validation": summarise(scores), "details": details}) == summarise(scores)
    again = [of_held_out(row) for row in details["held_out"]]
    assert summarise(again)["false_alarm_rate"] == 0.5
