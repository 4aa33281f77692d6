"""Scans that look like given ones."""

from __future__ import annotations

import numpy as np
import pytest

from sampling import alike


def test_the_most_similar_come_first_and_those_nearer_to_another_scan_are_left_out() -> None:
    angles = np.radians([10, 80, 0, 44, 46, 10])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, 7)[:, None]  # lengths do not matter
    east, north = np.array([[2.0, 0]]), np.array([[0, 5.0]])
    assert alike(rows, east, north).tolist() == [2, 0, 5, 3]
    assert alike(rows, np.concatenate([east, north]), np.empty((0, 2))).tolist() == [2, 0, 1, 5, 3, 4]
    assert alike(rows, east, np.concatenate([east, north])).tolist() == [2, 0, 5, 3]  # a tie


@pytest.mark.parametrize("examples", [np.empty((0, 2)), np.ones((1, 3)), np.ones(2)])
def test_other_shapes_are_refused(examples: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^candidates, examples, others: got \(1, 2\)"):
        alike(np.ones((1, 2)), examples, np.empty((0, 2)))
