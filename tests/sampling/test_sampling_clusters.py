"""Clusters and their medoids, compared with naive code and scikit-learn's silhouette."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from sampling import choose_clusters
from sampling.clustering import mean_silhouettes, medoid

few = settings(max_examples=25, deadline=None)
coordinates = st.integers(-4, 4).map(float)  # small integers: many ties and copies
maps = st.integers(1, 14).flatmap(lambda n: arrays(np.float64, (n, 2), elements=coordinates))


def slow_medoid(points: np.ndarray) -> int:
    sums = [sum(float(np.hypot(*(p - q))) for q in points) for p in points]
    return next(i for i, total in enumerate(sums) if total <= min(sums) * (1 + 1e-12))


def three_blobs(n: int = 60) -> np.ndarray:
    centres = np.array([[0.0, 0], [20, 0], [0, 30]])
    return centres[np.arange(n) % 3] + np.random.default_rng(1).normal(size=(n, 2))


@few
@given(maps)
def test_a_medoid_has_the_least_summed_distance_and_the_lowest_row_among_ties(points: np.ndarray) -> None:
    assert medoid(points) == slow_medoid(points)


@few
@given(st.one_of(maps, st.integers(1, 40).flatmap(lambda n: arrays(np.float64, (n, 2), elements=st.floats(-9, 9)))))
def test_the_medoid_of_a_large_cluster_is_exact_although_few_sums_are_computed(points: np.ndarray) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sampling.clustering.FEW", 0)
        patch.setattr("sampling.clustering.STRIPS", 3)
        assert medoid(points) == slow_medoid(points)


@pytest.mark.parametrize("shape", ["blob", "two blobs", "ring", "line", "copies"])
def test_thousands_of_members_of_any_shape_have_their_exact_medoid(shape: str, monkeypatch) -> None:
    random = np.random.default_rng(5)
    angle = random.uniform(0, 2 * np.pi, 3000)
    points = {
        "blob": random.normal(size=(3000, 2)) * [3, 1] + 50,
        "two blobs": random.normal(size=(3000, 2)) + np.where(np.arange(3000) % 2, 40, 0)[:, None],
        "ring": np.column_stack([np.cos(angle), np.sin(angle)]),
        "line": np.column_stack([random.permutation(3000.0 * np.arange(3000)), np.zeros(3000)]),
        "copies": random.integers(0, 9, (3000, 2)).astype(float),
    }[shape]
    quick = medoid(points)
    monkeypatch.setattr("sampling.clustering.FEW", 3000)
    assert quick == medoid(points)


@few
@given(maps)
def test_every_row_is_in_one_cluster_whose_medoid_is_a_member(points: np.ndarray) -> None:
    kept = points.copy()
    found = choose_clusters(points, seed=0)
    assert len(found.labels) == len(points)
    assert set(found.labels) == set(range(found.k))
    for cluster in range(found.k):
        members = np.flatnonzero(found.labels == cluster)
        assert found.medoids[cluster] == members[slow_medoid(points[members])]
    sizes = np.bincount(found.labels)
    assert list(sizes) == sorted(sizes, reverse=True)
    np.testing.assert_array_equal(points, kept)


@few
@given(maps, st.integers(0, 2**31))
def test_same_seed_same_clusters(points: np.ndarray, seed: int) -> None:
    first, second = choose_clusters(points, seed=seed), choose_clusters(points, seed=seed)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.medoids, second.medoids)
    assert first.silhouette == second.silhouette


@few
@given(maps, st.data())
def test_mean_silhouettes_match_scikit_learn(points: np.ndarray, data: st.DataObject) -> None:
    numbers = arrays(np.intp, len(points), elements=st.integers(0, 3))
    labelings = [data.draw(numbers) for _ in range(3)]
    for labels, mean in zip(labelings, mean_silhouettes(points, labelings), strict=True):
        if 2 <= len(np.unique(labels)) < len(points):
            assert mean == pytest.approx(silhouette_score(points, labels), abs=1e-9)


def test_the_chosen_k_has_the_best_silhouette_of_all_k_by_scikit_learn() -> None:
    xy = three_blobs()
    found = choose_clusters(xy, k_min=2, k_max=8, seed=3)
    assert list(found.silhouette) == [2, 3, 4, 5, 6, 7, 8]
    expected = {k: silhouette_score(xy, KMeans(k, n_init=10, random_state=0).fit_predict(xy)) for k in found.silhouette}
    assert found.k == max(expected, key=expected.__getitem__) == 3
    assert found.silhouette[3] == pytest.approx(expected[3])
    assert found.silhouette_rows == 60
    assert not found.silhouette_sampled


def test_k_is_at_most_twenty_by_default_and_at_most_n_minus_one() -> None:
    random = np.random.default_rng(0)
    assert max(choose_clusters(random.normal(size=(40, 2)), seed=0).silhouette) == 20
    assert max(choose_clusters(random.normal(size=(9, 2)), seed=0).silhouette) == 8


def test_bounds_on_k_are_kept() -> None:
    found = choose_clusters(three_blobs(), k_min=4, k_max=5, seed=0)
    assert list(found.silhouette) == [4, 5]
    assert found.k in (4, 5)


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_scans_are_one_cluster(n: int) -> None:
    found = choose_clusters(np.arange(2.0 * n).reshape(n, 2), seed=0)
    assert (found.k, found.medoids.tolist(), found.silhouette, found.silhouette_rows) == (1, [0], {}, 0)
    assert found.labels.tolist() == [0] * n


def test_three_scans_with_two_close_ones_are_two_clusters() -> None:
    found = choose_clusters(np.array([[9.0, 9], [0, 0], [0, 1]]), seed=0)
    assert found.labels.tolist() == [1, 0, 0]
    assert found.medoids.tolist() == [1, 0]


@pytest.mark.parametrize("n", [3, 50])
def test_scans_that_all_coincide_are_one_cluster(n: int) -> None:
    found = choose_clusters(np.full((n, 2), 3.3), seed=0)
    assert (found.k, found.medoids.tolist()) == (1, [0])


def test_copies_never_make_more_clusters_than_distinct_places() -> None:
    found = choose_clusters(np.repeat([[0.0, 0], [5, 5]], 10, axis=0), seed=0)
    assert found.k == 2
    assert list(found.silhouette) == [2]
    assert found.silhouette[2] == 1.0


def test_nearly_identical_places_do_not_break_k_means() -> None:
    found = choose_clusters(np.array([[0.0, 0], [1e-200, 0], [2e-200, 0], [3e-200, 0]]), seed=0)
    assert sorted(set(found.labels.tolist())) == list(range(found.k))


def test_a_large_map_uses_silhouettes_of_a_sample_and_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sampling.clustering.SILHOUETTE_ROWS", 200)
    xy = three_blobs(600)
    found = choose_clusters(xy, k_max=5, seed=0)
    assert (found.k, found.silhouette_rows, found.silhouette_sampled) == (3, 200, True)
    assert [len(set(found.labels[blob::3])) for blob in range(3)] == [1, 1, 1]
    for cluster, row in enumerate(found.medoids):
        members = np.flatnonzero(found.labels == cluster)
        assert row == members[slow_medoid(xy[members])]
    assert found.silhouette == choose_clusters(xy, k_max=5, seed=0).silhouette


@pytest.mark.parametrize("places", [1, 2, 9])
def test_a_large_map_of_copies_has_no_more_clusters_than_places(places: int, monkeypatch) -> None:
    monkeypatch.setattr("sampling.clustering.SILHOUETTE_ROWS", 50)
    found = choose_clusters(np.arange(600.0)[:, None] % places * [1.0, 0.5], seed=0)
    assert found.k <= places
    assert set(found.labels) == set(range(found.k))
    assert found.silhouette_rows == (50 if places > 1 else 0)


def test_distances_in_blocks_give_the_same_medoids_and_silhouettes(monkeypatch: pytest.MonkeyPatch) -> None:
    xy = three_blobs(50)
    at_once = choose_clusters(xy, k_max=4, seed=0)
    monkeypatch.setattr("sampling.clustering.BLOCK", 120)
    in_blocks = choose_clusters(xy, k_max=4, seed=0)
    np.testing.assert_array_equal(in_blocks.medoids, at_once.medoids)
    assert in_blocks.silhouette == pytest.approx(at_once.silhouette)


def test_a_position_that_is_nan_is_refused_with_its_row() -> None:
    xy = three_blobs()
    xy[[12, 40], 1] = np.nan
    with pytest.raises(ValueError, match=r"^xy: row 12 contains NaN or infinity \(2 such row\(s\)\)"):
        choose_clusters(xy, seed=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k_min": 1}, "k_min: got 1, wanted a whole number >= 2"),
        ({"k_min": 5, "k_max": 4}, "k_max: got 4, wanted a whole number >= 5"),
        ({"k_max": 2.5}, "k_max: got 2.5, wanted a whole number"),
    ],
)
def test_impossible_bounds_on_k_are_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        choose_clusters(three_blobs(), **arguments, seed=0)


def test_a_map_with_three_columns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^xy: got shape \(4, 3\), wanted \(N, 2\)"):
        choose_clusters(np.zeros((4, 3)), seed=0)
