"""Evaluation: Dice and surface distances, compared with brute force and values by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from backend.learning.evaluation import LabelScore, score

small_maps = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(
        arrays(np.uint8, shape, elements=st.integers(0, 2)),
        arrays(np.uint8, shape, elements=st.integers(0, 2)),
    )
)


def surface(mask: np.ndarray, spacing: tuple[float, float]) -> list[tuple[float, float]]:
    height, width = mask.shape
    points = []
    for y in range(height):
        for x in range(width):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inner = all(0 <= a < height and 0 <= b < width and mask[a, b] for a, b in around)
            if mask[y, x] and not inner:
                points.append((y * spacing[0], x * spacing[1]))
    return points


def by_hand(ours: np.ndarray, theirs: np.ndarray, spacing: tuple[float, float]) -> tuple[float, float]:
    here, there = surface(ours, spacing), surface(theirs, spacing)
    forth = [min(math.dist(a, b) for b in there) for a in here]
    back = [min(math.dist(a, b) for a in here) for b in there]
    return max(*forth, *back), max(np.percentile(forth, 95), np.percentile(back, 95))


@settings(max_examples=150, deadline=None)
@given(small_maps, st.sampled_from([None, (1.0, 1.0), (0.5, 2.0)]))
def test_scores_equal_brute_force(maps: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float] | None) -> None:
    predicted, truth = maps
    got = score(predicted, truth, 3, spacing=spacing)
    step = spacing or (1.0, 1.0)
    assert set(got.labels) == {1, 2}
    for number, one in got.labels.items():
        ours, theirs = predicted == number, truth == number
        assert (one.present, one.drawn, one.area) == (theirs.any(), ours.any(), ours.mean())
        if not theirs.any():
            assert (one.dice, one.hd, one.hd95) == (None, None, None)
            continue
        assert one.dice == pytest.approx(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
        diagonal = math.hypot(truth.shape[0] * step[0], truth.shape[1] * step[1])
        assert (one.hd, one.hd95) == pytest.approx(by_hand(ours, theirs, step) if ours.any() else (diagonal, diagonal))
    for name in ("dice", "hd", "hd95"):
        values = [getattr(one, name) for one in got.labels.values() if one.present]
        assert getattr(got, name) == (pytest.approx(np.mean(values)) if values else None)


def square(top: int, left: int, side: int = 10) -> np.ndarray:
    labels = np.zeros((40, 60), np.uint8)
    labels[top : top + side, left : left + side] = 1
    return labels


def test_identical_maps_score_perfectly() -> None:
    got = score(square(5, 5), square(5, 5), 2)
    assert (got.dice, got.hd, got.hd95, got.unit) == (1.0, 0.0, 0.0, "px")


def test_shift_by_three_pixels_is_a_distance_of_three() -> None:
    got = score(square(5, 5), square(5, 8), 2)
    assert got.dice == pytest.approx(0.7)
    assert (got.hd, got.hd95) == (3.0, 3.0)


def test_spacing_turns_pixels_into_millimetres_along_each_axis() -> None:
    assert score(square(5, 5), square(5, 8), 2, spacing=(9.0, 0.5)).hd == pytest.approx(1.5)
    got = score(square(5, 5), square(8, 5), 2, spacing=(9.0, 0.5))
    assert got.unit == "mm"
    assert got.hd95 <= got.hd
    assert score(square(5, 5), square(8, 5), 2, spacing=(0.5, 9.0)).hd == pytest.approx(1.5)


def test_two_empty_maps_have_nothing_to_compare_and_say_so() -> None:
    empty = np.zeros((40, 60), np.uint8)
    got = score(empty, empty, 2)
    assert (got.truth_empty, got.drawn_empty, got.dice, got.hd, got.hd95) == (True, True, None, None, None)


def test_a_missed_label_gives_zero_dice_and_the_diagonal_and_a_false_alarm_neither() -> None:
    empty = np.zeros((40, 60), np.uint8)
    got = score(empty, square(5, 5), 2, spacing=(2.0, 1.0))
    assert (got.dice, got.drawn_empty) == (0.0, True)
    assert got.hd == got.hd95 == pytest.approx(math.hypot(80, 60))
    got = score(square(5, 5), empty, 2, spacing=(2.0, 1.0))
    assert (got.dice, got.hd, got.hd95, got.drawn_empty) == (None, None, None, False)


def test_a_label_is_scored_only_where_the_truth_has_it() -> None:
    drawn = square(5, 5)
    drawn[30:32, 30:35] = 2
    got = score(drawn, square(5, 5), 4).labels
    assert got[1] == LabelScore(True, True, 100 / 2400, 1.0, 0.0, 0.0)
    assert got[2] == LabelScore(False, True, 10 / 2400)  # a false alarm: there is no Dice to average
    assert got[3] == LabelScore(False, False, 0.0)
    missed = score(square(5, 5), 2 * square(5, 5), 3).labels[2]
    assert (missed.present, missed.drawn, missed.dice, missed.hd95) == (True, False, 0.0, math.hypot(40, 60))


def test_an_unknown_class_is_neither_scored_nor_a_false_alarm_nor_a_hit() -> None:
    drawn = square(5, 5)
    drawn[5:10, 5:15] = 2  # half of the first label
    drawn[30:32, 30:35] = 2
    got = score(drawn, square(5, 5), 3, unknown=frozenset({2}))
    assert set(got.labels) == {1}
    assert got.labels[1].dice == got.dice == pytest.approx(2 * 50 / 150)
    alone = score(2 * square(5, 5), np.zeros((40, 60), np.uint8), 3, unknown=frozenset({2}))
    assert (alone.truth_empty, alone.drawn_empty) == (True, True)


def test_one_stray_pixel_moves_hd_but_not_hd95() -> None:
    stray = square(5, 5)
    stray[35, 55] = 1
    got = score(stray, square(5, 5), 2)
    assert got.hd > 40
    assert got.hd95 == 0.0


def test_512_square_scan_is_scored_in_well_under_50_milliseconds() -> None:
    y, x = np.ogrid[:512, :512]
    truth = ((y - 250) ** 2 + (x - 250) ** 2 < 200**2).astype(np.uint8)
    predicted = ((y - 260) ** 2 + (x - 245) ** 2 < 205**2).astype(np.uint8)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        score(predicted, truth, 2)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.05


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"two label maps of one shape \(H, W\), got \(2, 2\) and \(3, 3\)"):
        score(np.zeros((2, 2), np.uint8), np.zeros((3, 3), np.uint8), 2)


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_spacing_must_be_positive(spacing: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="two positive sizes in mm"):
        score(square(1, 1), square(1, 1), 2, spacing=spacing)
