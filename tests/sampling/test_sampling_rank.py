"""The ranking once a model exists, compared with a naive recomputation of S(i) at every pick."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sampling import rank

few = settings(max_examples=60, deadline=None)
coordinates = st.integers(-3, 3).map(float)


@st.composite
def pools(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int]]:
    n = draw(st.integers(1, 12))
    entropy = draw(arrays(np.float64, n, elements=st.integers(0, 8).map(lambda i: i / 8)))
    xy = draw(arrays(np.float64, (n, 2), elements=coordinates))
    chosen = draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n))
    entropy[chosen] = np.nan
    return entropy, xy, chosen


def naive_min_max(values: dict[int, float]) -> dict[int, float]:
    low, high = min(values.values()), max(values.values())
    return {i: 0.0 if low == high else (v - low) / (high - low) for i, v in values.items()}


def naive_terms(entropy, xy, labelled: list[int], picked: list[int]) -> tuple[dict, dict]:
    """H and D of every candidate, directly from the definition."""
    unlabelled = [i for i in range(len(xy)) if i not in labelled]
    h = naive_min_max({i: float(entropy[i]) for i in unlabelled})
    taken, left = labelled + picked, [i for i in unlabelled if i not in picked]
    if not taken:
        return h, dict.fromkeys(left, 0.0)
    return h, naive_min_max({i: min(math.dist(xy[i], xy[j]) for j in taken) for i in left})


@few
@given(pools(), st.integers(0, 12), st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]))
def test_every_pick_has_the_highest_current_score_and_the_lowest_row_among_ties(pool, count, alpha) -> None:
    entropy, xy, chosen = pool
    kept = entropy.copy(), xy.copy()
    found = rank(entropy, xy, chosen, alpha=alpha, count=count)
    assert len(found.rows) == min(count, len(xy) - len(chosen))
    for i, row in enumerate(found.rows.tolist()):
        h, d = naive_terms(entropy, xy, chosen, found.rows[:i].tolist())
        s = {j: alpha * h[j] + (1 - alpha) * d[j] for j in d}
        assert row in s
        best = max(s.values())
        assert s[row] == pytest.approx(best, abs=1e-12)
        assert row == min(j for j in s if s[j] >= best - 1e-12)
        assert found.entropy[i] == pytest.approx(h[row], abs=1e-12)
        assert found.diversity[i] == pytest.approx(d[row], abs=1e-12)
        assert found.score[i] == pytest.approx(s[row], abs=1e-12)
    np.testing.assert_array_equal(entropy, kept[0])
    np.testing.assert_array_equal(xy, kept[1])


@few
@given(pools(), st.integers(0, 12))
def test_a_tree_search_for_many_labelled_scans_gives_the_same_ranking(pool, count) -> None:
    entropy, xy, chosen = pool
    one_by_one = rank(entropy, xy, chosen, count=count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sampling.farthest.FEW_PLACES", 0)
        by_tree = rank(entropy, xy, chosen, count=count)
    np.testing.assert_array_equal(by_tree.rows, one_by_one.rows)
    np.testing.assert_allclose(by_tree.score, one_by_one.score, atol=1e-12)


@few
@given(pools(), st.integers(0, 6))
def test_a_shorter_ranking_is_a_prefix_of_a_longer_one(pool, count) -> None:
    entropy, xy, chosen = pool
    short, whole = (rank(entropy, xy, chosen, alpha=0.5, count=n) for n in (count, 99))
    np.testing.assert_array_equal(short.rows, whole.rows[:count])
    np.testing.assert_array_equal(short.score, whole.score[:count])


def test_with_nothing_labelled_the_first_pick_is_the_most_uncertain() -> None:
    xy = np.array([[0.0, 0], [50, 0], [1, 0]])
    found = rank(np.array([0.2, 0.1, 0.9]), xy, [], alpha=0.1, count=3)
    assert found.rows.tolist() == [2, 1, 0]
    assert found.diversity.tolist() == [0.0, 1.0, 0.0]


def test_with_alpha_one_the_ranking_is_by_decreasing_entropy() -> None:
    entropy = np.array([0.3, 0.9, 0.9, 0.1])
    found = rank(entropy, np.random.default_rng(0).normal(size=(4, 2)), [], alpha=1.0, count=4)
    assert found.rows.tolist() == [1, 2, 0, 3]


def test_with_alpha_zero_picks_spread_from_the_labelled_scan() -> None:
    line = np.column_stack([[0.0, 1, 2, 10], np.zeros(4)])
    assert rank(np.zeros(4), line, [0], alpha=0.0, count=3).rows.tolist() == [3, 2, 1]


def test_a_pick_lowers_the_rank_of_its_neighbours() -> None:
    xy = np.array([[0.0, 0], [10, 0], [9.9, 0], [5, 5]])
    found = rank(np.array([np.nan, 0.9, 0.89, 0.5]), xy, [0], count=3)
    assert found.rows.tolist() == [1, 3, 2]


def test_alpha_is_one_half_by_default() -> None:
    entropy, xy = np.array([0.1, 0.8, 0.4]), np.array([[0.0, 0], [1, 0], [7, 0]])
    np.testing.assert_array_equal(
        rank(entropy, xy, [0], count=2).score, rank(entropy, xy, [0], alpha=0.5, count=2).score
    )


def test_scores_that_differ_only_by_rounding_are_a_tie_won_by_the_lower_row() -> None:
    entropy = np.array([0.0, 0.0, 0.375, 0.875, 0.0])  # 0.7 * (0.375 / 0.875) and (1 - 0.7) * 1 are both 0.3
    xy = np.array([[0.0, 0], [0, 0], [0, 0], [0, 0], [0, 1]])
    assert rank(entropy, xy, [], alpha=0.7, count=2).rows.tolist() == [3, 2]


def test_constant_entropy_has_no_effect() -> None:
    found = rank(np.full(3, 0.7), np.array([[0.0, 0], [1, 0], [5, 0]]), [0], alpha=0.5, count=1)
    assert (found.rows.tolist(), found.entropy.tolist(), found.score.tolist()) == ([2], [0.0], [0.5])


def test_scans_that_all_coincide_are_ranked_by_entropy_then_row() -> None:
    assert rank(np.array([0.1, 0.5, 0.5, 0.9]), np.ones((4, 2)), [], count=4).rows.tolist() == [3, 1, 2, 0]


def test_with_all_scans_labelled_nothing_is_left_to_rank() -> None:
    found = rank(np.full(2, np.nan), np.zeros((2, 2)), [0, 1], count=5)
    assert [len(a) for a in (found.rows, found.score, found.entropy, found.diversity)] == [0, 0, 0, 0]


def test_a_row_labelled_twice_counts_once() -> None:
    xy = np.array([[0.0, 0], [1, 0], [5, 0]])
    assert rank(np.zeros(3), xy, [0, 0], count=9).rows.tolist() == [2, 1]


def test_nan_entropy_of_an_unlabelled_scan_is_refused_with_its_row_in_the_pool() -> None:
    entropy = np.array([np.nan, 0.5, 0.5, np.nan, 0.5])
    with pytest.raises(
        ValueError,
        match=re.escape(
            "entropy: row 3 contains NaN or infinity (1 such row(s)); every number must be finite. "
            "Recompute this row or leave the scan out"
        ),
    ):
        rank(entropy, np.zeros((5, 2)), [0], count=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": 1.5}, "alpha: got 1.5, wanted 0 (spread only) to 1 (uncertainty only)"),
        ({"alpha": math.nan}, "alpha: got nan, wanted 0 (spread only) to 1 (uncertainty only)"),
        ({"count": -1}, "count: got -1, wanted a whole number >= 0"),
        ({"chosen": [3]}, "chosen: got row 3, wanted 0 <= row < 3, the number of rows"),
        ({"chosen": [-1]}, "chosen: got row -1, wanted 0 <= row < 3, the number of rows"),
        (
            {"chosen": [True, False, True]},
            "chosen: got bool of shape (3,), wanted a list of whole row numbers",
        ),
        ({"entropy": np.zeros(2)}, "entropy: got shape (2,), wanted (3,), one number for each row of xy"),
        ({"xy": np.zeros((3, 3))}, "xy: got shape (3, 3), wanted (N, 2), one row per scan and N >= 1"),
    ],
)
def test_invalid_input_is_refused_with_what_was_expected(arguments: dict, words: str) -> None:
    given_ = {"entropy": np.zeros(3), "xy": np.zeros((3, 2)), "chosen": [], "count": 1} | arguments
    with pytest.raises(ValueError, match=re.escape(words)):
        rank(**given_)
