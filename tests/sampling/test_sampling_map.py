"""The map: same seed, same map; later scans are placed well; tiny and degenerate pools work."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sampling import EmbeddingMap, fit_map
from sampling.projection import _nearest as nearest


def blobs(n: int, *, groups: int = 3, d: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    group = np.arange(n) % groups
    return random.normal(0, 3, (groups, d))[group] + random.normal(0, 0.5, (n, d)), group


@pytest.fixture(scope="module")
def fitted() -> tuple[np.ndarray, np.ndarray, EmbeddingMap]:
    embeddings, group = blobs(90)
    return embeddings, group, fit_map(embeddings, seed=7)


def nearest_groups(xy: np.ndarray, placed: np.ndarray, group: np.ndarray) -> np.ndarray:
    return group[np.linalg.norm(placed[:, None] - xy, axis=2).argmin(axis=1)]


def test_same_seed_gives_the_same_map_and_another_seed_another(fitted) -> None:
    embeddings, _, first = fitted
    np.testing.assert_array_equal(fit_map(embeddings, seed=7).xy, first.xy)
    assert not np.array_equal(fit_map(embeddings, seed=8).xy, first.xy)


def test_neighbours_on_the_map_come_from_the_same_group(fitted) -> None:
    _, group, found = fitted
    distances = np.linalg.norm(found.xy[:, None] - found.xy, axis=2)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(group[distances.argmin(axis=1)], group)


def test_the_length_of_an_embedding_does_not_matter_only_its_direction(fitted) -> None:
    embeddings, _, found = fitted
    powers_of_two = np.exp2(np.arange(90) % 7 - 3)[:, None]  # exact in floating point
    np.testing.assert_array_equal(fit_map(embeddings * powers_of_two, seed=7).xy, found.xy)


def test_later_scans_land_among_their_own_group_and_nothing_moves(fitted) -> None:
    _, group, found = fitted
    before = found.xy.copy()
    more, more_group = blobs(150)
    placed = found.place(more[90:])
    assert placed.shape == (60, 2)
    np.testing.assert_array_equal(nearest_groups(found.xy, placed, group), more_group[90:])
    np.testing.assert_array_equal(found.xy, before)


def test_a_copy_of_a_scan_lands_on_that_scan(fitted) -> None:
    embeddings, _, found = fitted
    np.testing.assert_allclose(found.place(embeddings), found.xy, atol=1e-9)


def test_the_place_of_a_scan_does_not_depend_on_the_others_placed_with_it(fitted) -> None:
    _, _, found = fitted
    later, _ = blobs(20, seed=3)
    alone = np.vstack([found.place(row[None]) for row in later])
    np.testing.assert_allclose(found.place(later), alone, atol=1e-9)


def test_placing_in_blocks_equals_placing_at_once(fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, found = fitted
    later, _ = blobs(20, seed=3)
    at_once = found.place(later)
    monkeypatch.setattr("sampling.projection.BLOCK", 200)
    # sums of other lengths may round differently
    np.testing.assert_allclose(found.place(later), at_once, rtol=1e-12)


def test_a_map_read_back_from_a_file_places_scans_exactly_as_the_original(fitted) -> None:
    _, _, found = fitted
    file = io.BytesIO()
    np.savez(file, **found.state())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        restored = EmbeddingMap.from_state(arrays)
    later, _ = blobs(25, seed=5)
    np.testing.assert_array_equal(restored.xy, found.xy)
    np.testing.assert_array_equal(restored.place(later), found.place(later))


def test_a_map_state_without_an_array_is_refused_with_its_name(fitted) -> None:
    state = fitted[2].state()
    del state["reduced"]
    with pytest.raises(ValueError, match=r"^map state: reduced missing, got \['components', 'mean', 'xy'\]"):
        EmbeddingMap.from_state(state)


def test_a_map_state_whose_arrays_do_not_fit_together_is_refused(fitted) -> None:
    state = fitted[2].state()
    state["xy"] = state["xy"][:-1]
    with pytest.raises(ValueError, match=r"^map state: got shapes xy \(89, 2\), mean \(40,\)"):
        EmbeddingMap.from_state(state)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_tiny_pools_get_a_finite_map_and_distinct_scans_stay_apart(n: int) -> None:
    embeddings, _ = blobs(n, groups=1)
    found = fit_map(embeddings, seed=0)
    assert found.xy.shape == (n, 2)
    assert np.isfinite(found.xy).all()
    assert len(np.unique(found.xy.round(9), axis=0)) == n
    np.testing.assert_array_equal(found.xy, fit_map(embeddings, seed=0).xy)
    np.testing.assert_allclose(found.place(embeddings), found.xy, atol=1e-6)
    restored = EmbeddingMap.from_state(found.state())
    np.testing.assert_array_equal(restored.place(embeddings[:1] + 1), found.place(embeddings[:1] + 1))


@pytest.mark.parametrize("n", [1, 2, 4, 5, 40])
def test_identical_scans_share_one_place(n: int) -> None:
    found = fit_map(np.ones((n, 8)), seed=0)
    np.testing.assert_array_equal(found.xy, np.zeros((n, 2)))
    np.testing.assert_array_equal(found.place(np.eye(8)), np.zeros((8, 2)))


def test_exact_copies_do_not_disturb_the_map_and_stay_together() -> None:
    embeddings, _ = blobs(20)
    found = fit_map(np.vstack([embeddings] * 3), seed=0)
    assert np.isfinite(found.xy).all()
    copies = np.stack([found.xy[:20], found.xy[20:40], found.xy[40:]])
    within = np.linalg.norm(copies - copies.mean(axis=0), axis=2).max()
    assert within < 0.2 * np.linalg.norm(found.xy - found.xy.mean(axis=0), axis=1).mean()


@pytest.mark.parametrize("d", [1, 2, 3])
def test_embeddings_with_few_numbers_are_mapped_too(d: int) -> None:
    found = fit_map(np.random.default_rng(0).normal(size=(30, d)), seed=0)
    assert found.xy.shape == (30, 2)
    assert np.isfinite(found.xy).all()


def test_an_all_zero_embedding_has_its_place() -> None:
    embeddings, _ = blobs(12)
    embeddings[4] = 0
    assert np.isfinite(fit_map(embeddings, seed=0).xy).all()


def test_huge_and_tiny_embeddings_are_mapped_without_overflow() -> None:
    embeddings, _ = blobs(12)
    scale = np.where(np.arange(12) % 2, 1e300, 1e-300)[:, None]
    np.testing.assert_allclose(fit_map(embeddings * scale, seed=0).reduced, fit_map(embeddings, seed=0).reduced)


def test_no_scans_to_place_gives_no_positions(fitted) -> None:
    assert fitted[2].place(np.empty((0, 40))).shape == (0, 2)


def test_embeddings_are_not_modified(fitted) -> None:
    embeddings, _ = blobs(8)
    kept = embeddings.copy()
    found = fit_map(embeddings, seed=0)
    found.place(embeddings)
    np.testing.assert_array_equal(embeddings, kept)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_with_its_row(value: float, fitted) -> None:
    embeddings, _ = blobs(9)
    embeddings[6, 3] = value
    words = (
        r"^embeddings: row 6 contains NaN or infinity \(1 such row\(s\)\); every number must be finite. "
        r"Recompute this row or leave the scan out$"
    )
    with pytest.raises(ValueError, match=words):
        fit_map(embeddings, seed=0)
    with pytest.raises(ValueError, match=words):
        fitted[2].place(embeddings)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 2, 2)])
def test_a_wrong_shape_is_refused_with_the_expected_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^embeddings: got shape \(.*\), wanted \(N, D\), one row per scan"):
        fit_map(np.zeros(shape), seed=0)


def test_placing_embeddings_of_another_length_is_refused(fitted) -> None:
    with pytest.raises(ValueError, match=r"^embeddings: got shape \(3, 41\), wanted \(N, 40\)"):
        fitted[2].place(np.ones((3, 41)))


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_a_seed_must_be_a_whole_number_from_zero(seed) -> None:
    with pytest.raises(ValueError, match=r"^seed: got .*, wanted a whole number"):
        fit_map(np.eye(3), seed=seed)


def test_approximate_neighbours_of_large_pools_give_a_reproducible_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sampling.projection.LARGEST_EXACT_NEIGHBOURS", 10)
    embeddings, group = blobs(120)
    first, second = (fit_map(embeddings, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.xy, second.xy)
    np.testing.assert_array_equal(
        nearest_groups(first.xy, first.place(blobs(150)[0][120:]), group), blobs(150)[1][120:]
    )


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray, EmbeddingMap]:
    """A pool of 200 scans, 80 of them laid out by t-SNE."""
    monkeypatch.setattr("sampling.projection.LARGEST_FIT", 80)
    embeddings, group = blobs(200)
    return embeddings, group, fit_map(embeddings, seed=7)


def test_a_large_pool_is_laid_out_in_part_and_the_other_scans_land_among_their_own(large) -> None:
    embeddings, group, found = large
    assert (found.xy.shape, found.reduced.shape, found.reduced.dtype) == ((200, 2), (80, 40), np.float32)
    assert found.fitted.tolist() == sorted(set(found.fitted.tolist()))
    others = np.setdiff1d(np.arange(200), found.fitted)
    np.testing.assert_array_equal(
        nearest_groups(found.xy[found.fitted], found.xy[others], group[found.fitted]), group[others]
    )
    np.testing.assert_array_equal(found.xy[others], found.place(embeddings[others]))


def test_same_seed_gives_the_same_large_map_and_another_seed_lays_out_others(large) -> None:
    embeddings, group, found = large
    there = found.xy[found.fitted]
    np.testing.assert_array_equal(nearest_groups(there, there, group[found.fitted]), group[found.fitted])
    np.testing.assert_array_equal(fit_map(embeddings, seed=7).xy, found.xy)
    assert fit_map(embeddings, seed=8).fitted.tolist() != found.fitted.tolist()


def test_a_copy_of_a_scan_that_was_laid_out_lands_on_that_scan_in_a_large_pool_too(large) -> None:
    embeddings, _, found = large
    np.testing.assert_allclose(found.place(embeddings[found.fitted]), found.xy[found.fitted], atol=1e-6)


def test_a_large_map_read_back_from_a_file_counts_all_scans_and_places_exactly(large) -> None:
    _, _, found = large
    file = io.BytesIO()
    np.savez(file, **found.state())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        assert len(arrays["xy"]) == 200
        restored = EmbeddingMap.from_state(arrays)
    later, _ = blobs(25, seed=5)
    np.testing.assert_array_equal(restored.xy, found.xy)
    np.testing.assert_array_equal(restored.place(later), found.place(later))


def test_a_state_whose_laid_out_rows_are_not_rows_of_the_map_is_refused(large) -> None:
    state = large[2].state()
    with pytest.raises(ValueError, match=r"^map state: got shapes xy \(200, 2\).* wanted .*\(79, P\)"):
        EmbeddingMap.from_state(state | {"fitted": state["fitted"][:-1]})
    with pytest.raises(ValueError, match=r"^map state: fitted: got row 200, wanted 0 <= row < 200"):
        EmbeddingMap.from_state(state | {"fitted": state["fitted"] + (200 - state["fitted"].max())})


def test_embeddings_of_single_precision_give_the_map_of_the_same_numbers_in_double(fitted) -> None:
    embeddings = fitted[0].astype(np.float32)
    found = fit_map(embeddings, seed=7)
    np.testing.assert_array_equal(found.xy, fit_map(embeddings.astype(np.float64), seed=7).xy)
    later = blobs(20, seed=3)[0].astype(np.float32)
    np.testing.assert_array_equal(found.place(later), found.place(later.astype(np.float64)))


def test_principal_axes_summed_in_blocks_are_those_of_all_rows_at_once(fitted, monkeypatch) -> None:
    embeddings, _, found = fitted
    monkeypatch.setattr("sampling.projection.BLOCK", 40 * 7)
    in_blocks = fit_map(embeddings, seed=7)
    np.testing.assert_allclose(in_blocks.mean, found.mean, atol=1e-12)
    np.testing.assert_allclose(in_blocks.components, found.components, atol=1e-9)
    np.testing.assert_allclose(in_blocks.reduced, found.reduced, atol=1e-9)


def test_nan_far_down_a_large_array_is_refused_with_its_row(monkeypatch) -> None:
    monkeypatch.setattr("sampling.arrays.BLOCK", 20)
    embeddings = np.ones((50, 8), dtype=np.float32)
    embeddings[[33, 47], 2] = np.nan
    with pytest.raises(ValueError, match=r"^embeddings: row 33 contains NaN or infinity \(2 such row"):
        fit_map(embeddings, seed=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 3), st.data())
def test_the_nearest_scans_are_those_of_a_full_search_ties_to_the_lower_row(
    n: int, p: int, data: st.DataObject
) -> None:
    numbers = st.integers(-3, 3).map(float)
    there = data.draw(arrays(np.float64, (n, p), elements=numbers))
    later = data.draw(arrays(np.float64, (7, p), elements=numbers))
    k = min(5, n)
    squared, rows = nearest(later, there, k)
    every = ((later[:, None] - there) ** 2).sum(axis=2)
    np.testing.assert_array_equal(squared, np.sort(every, axis=1)[:, :k])
    np.testing.assert_array_equal(squared, np.take_along_axis(every, rows, axis=1))
    if n <= 13:  # all are candidates: with more, ties far down may be missed
        np.testing.assert_array_equal(rows, np.argsort(every, axis=1, kind="stable")[:, :k])


def test_importing_sampling_loads_no_slow_library() -> None:
    slow = "{'torch', 'sklearn', 'scipy', 'openTSNE'} & set(sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys, sampling; print({slow})"], capture_output=True, text=True
    )
    assert found.stdout.strip() == "set()", found.stderr
