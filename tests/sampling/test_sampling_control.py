"""The controls of an order: their number and places, and that they are drawn purely at random."""

from __future__ import annotations

import numpy as np
import pytest

from sampling import control_places, with_controls


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5])
def test_every_prefix_has_its_share_and_gaps_are_even(share: float) -> None:
    control = control_places(400, share)
    assert np.abs(np.cumsum(control) - share * np.arange(1, 401)).max() <= 0.5 + 1e-9
    gaps = np.diff(np.flatnonzero(control))
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_a_continued_order_has_its_controls_where_the_whole_one_has_them() -> None:
    whole = control_places(100, 0.15)
    for start in range(100):
        assert np.array_equal(control_places(100 - start, 0.15, start=start), whole[start:])


def test_both_orders_continue_where_they_stopped_and_every_row_occurs_once() -> None:
    random = np.random.default_rng(3)
    for share in (0.0, 0.1, 0.5):
        ours, drawn = random.permutation(60), random.permutation(60)
        before = ours.copy(), drawn.copy()
        rows, control = with_controls(ours, drawn, share)
        assert sorted(rows) == list(range(60))
        for queue, part in ((ours, rows[~control]), (drawn, rows[control])):
            places = [list(queue).index(row) for row in part]
            assert places == sorted(places)
        assert np.array_equal(ours, before[0])
        assert np.array_equal(drawn, before[1])
    assert np.array_equal(with_controls(ours, drawn, 0.0)[0], ours)


def test_no_rows_and_one_row() -> None:
    nothing = np.empty(0, np.intp)
    assert [len(part) for part in with_controls(nothing, nothing, 0.3)] == [0, 0]
    assert with_controls(np.array([0]), np.array([0]), 0.5)[0].tolist() == [0]


def test_controls_are_drawn_uniformly_from_the_rows_left_by_the_strategy() -> None:
    """The strategy always begins with rows 0, 1, 2, ...; a control may be any of the remaining rows."""
    random, counts = np.random.default_rng(1), np.zeros(12)
    for _ in range(3000):
        rows, control = with_controls(np.arange(12), random.permutation(12), 0.25)
        counts[rows[np.flatnonzero(control)[0]]] += 1  # at the second place, after row 0
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - 3000 / 11) < 70)


def test_invalid_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^share: got 0\.6, wanted 0 \(none\) to 0\.5"):
        control_places(3, 0.6)
    for drawn in ([0, 1], [0, 1, 1], [0, 1, 3]):
        with pytest.raises(ValueError, match=r"^drawn: wanted a permutation of the rows of ours"):
            with_controls(np.arange(3), np.array(drawn), 0.2)
