"""Farthest-first picks and the cold-start order, compared with naive code."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sampling import Clustering, choose_clusters, cold_start_order, farthest_first
from sampling.farthest import farthest_after

few = settings(max_examples=40, deadline=None)
coordinates = st.integers(-4, 4).map(float)
points_in_space = st.tuples(st.integers(1, 12), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=coordinates)
)


def slow_farthest(points: np.ndarray, n: int, start: int) -> list[int]:
    picks = [start]
    while len(picks) < n:
        left = [i for i in range(len(points)) if i not in picks]
        gap = {i: min(float(((points[i] - points[j]) ** 2).sum()) for j in picks) for i in left}
        picks.append(max(left, key=lambda i: (gap[i], -i)))
    return picks


@st.composite
def clustered_maps(draw: st.DrawFn) -> tuple[np.ndarray, Clustering]:
    """Clusters with any numbering and any sizes, not only those that `choose_clusters` makes."""
    n = draw(st.integers(1, 30))
    xy = draw(arrays(np.float64, (n, 2), elements=coordinates))
    k = draw(st.integers(1, min(n, 5)))
    labels = np.array(
        draw(st.permutations([*range(k), *draw(st.lists(st.integers(0, k - 1), min_size=n - k, max_size=n - k))]))
    )
    medoids = np.array([draw(st.sampled_from(np.flatnonzero(labels == c).tolist())) for c in range(k)])
    return xy, Clustering(labels, medoids, {}, 0)


@few
@given(points_in_space, st.data())
def test_every_farthest_first_pick_is_the_farthest_with_the_lowest_row_among_ties(
    points: np.ndarray, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, len(points)))
    start = data.draw(st.integers(0, len(points) - 1))
    kept = points.copy()
    assert farthest_first(points, n, start).tolist() == slow_farthest(points, n, start)
    np.testing.assert_array_equal(points, kept)


plane = st.integers(2, 60).flatmap(
    lambda n: arrays(np.float64, (n, 2), elements=st.one_of(coordinates, st.floats(-1, 1), st.floats(-1e-160, 1e-160)))
)


@few
@given(plane, st.data())
def test_in_the_plane_a_local_search_gives_the_same_picks(points: np.ndarray, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(points)))
    start = data.draw(st.integers(0, len(points) - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sampling.farthest.FIRST_PICKS", 10**9)
        simple = farthest_first(points, n, start)
        patch.setattr("sampling.farthest.FIRST_PICKS", data.draw(st.integers(1, 3)))
        assert farthest_first(points, n, start).tolist() == simple.tolist()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("grid", [0.0, 0.5])
def test_in_many_dimensions_bounds_change_no_pick(grid: float, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are measured, in many batches; with a grid, with ties and copies."""
    monkeypatch.setattr("sampling.farthest.FEW", 5)
    monkeypatch.setattr("sampling.farthest.BATCH", 4)
    points = np.random.default_rng(3).normal(size=(150, 40 if not grid else 3))
    if grid:
        points = np.round(points / grid) * grid
    points = points.astype(kind)
    nearest = np.linalg.norm(points.astype(np.float64)[:, None] - points[[7, 90]], axis=2).min(axis=1)
    nearest[[7, 90]] = -1
    expected = []
    for _ in range(148):
        expected.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(points.astype(np.float64) - points[expected[-1]], axis=1))
        nearest[[7, 90, *expected]] = -1
    assert farthest_after(points, np.array([7, 90]), 148).tolist() == expected


@pytest.mark.parametrize("grid", [0.0, 0.02, 0.3])
def test_hundreds_of_scans_get_the_same_picks_with_both_searches(grid: float, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    points = np.concatenate([random.normal(0, 0.2, (300, 2)), random.normal(5, 2, (300, 2))])
    if grid:
        points = np.round(points / grid) * grid  # many ties and copies
    quick = farthest_first(points, 600, start=17)
    monkeypatch.setattr("sampling.farthest.FIRST_PICKS", 600)
    np.testing.assert_array_equal(quick, farthest_first(points, 600, start=17))


def test_positions_whose_squares_overflow_are_each_picked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sampling.farthest.FIRST_PICKS", 1)
    with np.errstate(over="ignore"):
        assert farthest_first(np.array([[0.0, 0], [1e200, 0], [3e200, 0]]), 3, start=0).tolist() == [0, 1, 2]


def test_farthest_first_picks_the_two_ends_of_a_line() -> None:
    assert farthest_first(np.array([[3.0], [0.0], [4.0], [10.0]]), 3, start=1).tolist() == [1, 3, 2]


def test_farthest_first_takes_copies_last_each_once() -> None:
    assert farthest_first(np.array([[1.0], [1.0], [1.0], [5.0]]), 4, start=1).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("n", "start", "words"),
    [
        (0, 0, "n: got 0, wanted a whole number in 1..4"),
        (5, 0, "n: got 5, wanted a whole number in 1..4"),
        (1, 4, "start: got 4, wanted a whole number in 0..3"),
        (1, -1, "start: got -1, wanted a whole number in 0..3"),
    ],
)
def test_farthest_first_refuses_more_picks_than_rows_and_starts_outside(n: int, start: int, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        farthest_first(np.eye(4), n, start)


def test_farthest_first_refuses_nan_with_its_row() -> None:
    with pytest.raises(ValueError, match=r"^points: row 2 contains NaN or infinity"):
        farthest_first(np.array([[0.0], [1.0], [np.nan]]), 1, 0)


@few
@given(clustered_maps())
def test_a_cold_start_lists_every_scan_once_with_its_cluster_medoids_first(case) -> None:
    xy, clustering = case
    kept = xy.copy()
    order = cold_start_order(xy, clustering)
    assert sorted(order.rows) == list(range(len(xy)))
    np.testing.assert_array_equal(order.cluster, clustering.labels[order.rows])
    assert order.reasons == ("medoid",) * clustering.k + ("farthest",) * (len(xy) - clustering.k)
    assert set(order.rows[: clustering.k]) == set(clustering.medoids)
    sizes = np.bincount(clustering.labels)[order.cluster[: clustering.k]]
    assert list(sizes) == sorted(sizes, reverse=True)
    np.testing.assert_array_equal(xy, kept)


@few
@given(clustered_maps())
def test_every_prefix_of_a_cold_start_has_the_webster_share_of_each_cluster(case) -> None:
    xy, clustering = case
    k = clustering.k
    sizes = [int((clustering.labels == c).sum()) for c in range(k)]
    order = cold_start_order(xy, clustering)
    for end in range(k, len(xy) + 1):
        # From the start for each prefix: one seat each, the rest by exact highest quotients.
        seats = [1] * k
        for _ in range(end - k):
            seats[max(range(k), key=lambda c: (Fraction(sizes[c], 2 * seats[c] + 1), sizes[c], -c))] += 1
        assert [int((order.cluster[:end] == c).sum()) for c in range(k)] == seats


@few
@given(clustered_maps())
def test_each_pick_is_the_farthest_from_the_earlier_picks_of_its_cluster(case) -> None:
    xy, clustering = case
    order = cold_start_order(xy, clustering)
    for cluster in range(clustering.k):
        members = np.flatnonzero(clustering.labels == cluster)
        start = members.tolist().index(clustering.medoids[cluster])
        expected = members[slow_farthest(xy[members], len(members), start)]
        assert order.rows[order.cluster == cluster].tolist() == expected.tolist()


def test_a_long_prefix_is_within_one_scan_of_proportional() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    xy = np.random.default_rng(0).normal(size=(100, 2))
    order = cold_start_order(xy, Clustering(labels, np.array([0, 60, 90]), {}, 0))
    for end in range(10, 101):
        taken = np.bincount(order.cluster[:end], minlength=3)
        assert (np.abs(taken - end * np.array([0.6, 0.3, 0.1])) <= 1).all()


@pytest.mark.parametrize("xy", [[[0.0, 0]], [[0.0, 0], [1, 1]], [[0.0, 0], [1, 1], [9, 9]], [[2.0, 2]] * 7])
def test_tiny_and_identical_pools_have_a_cold_start(xy: list) -> None:
    positions = np.array(xy)
    order = cold_start_order(positions, choose_clusters(positions, seed=0))
    assert sorted(order.rows) == list(range(len(xy)))


def test_a_clustering_of_another_map_is_refused() -> None:
    three = choose_clusters(np.eye(3)[:, :2], seed=0)
    with pytest.raises(
        ValueError, match=re.escape("clustering: made for 3 rows, but xy has 4. Cluster this map again")
    ):
        cold_start_order(np.zeros((4, 2)), three)


def test_a_medoid_outside_its_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^clustering: every cluster needs its own medoid"):
        cold_start_order(np.zeros((3, 2)), Clustering(np.array([0, 0, 1]), np.array([2, 1]), {}, 0))
