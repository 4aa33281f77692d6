"""The head on frozen features: it finds what is drawn and learns from exactly the scans that it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backend.learning.ridge_head import PatchPool

GRID = 16


def discs(n: int, labels: int = 1, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Noisy images, each with a bright disc of one label; the labels differ in brightness."""
    random = np.random.default_rng(seed)
    images, masks = [], []
    for i in range(n):
        y, x, label = *random.uniform(30, 98, 2), i % labels
        down, across = np.mgrid[:128, :128]
        mask = ((down - y) ** 2 + (across - x) ** 2 <= 20**2).astype(np.uint8) * (label + 1)
        level = np.where(mask > 0, 120 + 100 * label, 40)
        images.append(np.clip(random.normal(level, 8), 0, 255).astype(np.uint8))
        masks.append(mask)
    return images, masks


def extract(images: object) -> np.ndarray:
    """(N, GRID * GRID, 6): brightness of each patch, its square, and noise that means nothing."""
    found = []
    for image in images:  # type: ignore[attr-defined]
        side = image.shape[0] // GRID
        level = image.reshape(GRID, side, GRID, side).mean(axis=(1, 3)).reshape(-1, 1) / 255
        noise = np.random.default_rng(int(image.sum())).normal(size=(GRID * GRID, 4))
        found.append(np.hstack([level, level**2, noise]))
    return np.array(found, np.float16)


def pool_of(n: int, labels: int = 1) -> PatchPool:
    images, masks = discs(n, labels)
    return PatchPool.build(extract, images, masks, labels)


def test_three_scans_suffice_to_find_bright_discs_in_others() -> None:
    pool = pool_of(40)
    dice = pool.dice([pool.fit([0, 1, 2])], range(3, 40))
    assert dice.shape == (1, 37, 1)
    assert np.nanmean(dice) > 0.8


def test_several_labels_are_told_apart_and_the_absent_one_counts_nothing() -> None:
    pool = pool_of(40, labels=2)
    dice = pool.dice([pool.fit(range(12))], range(12, 40))[0]
    assert np.nanmean(dice, axis=0).min() > 0.75
    assert np.isnan(dice).sum() == 28  # each scan shows one of the two labels


def test_a_label_that_no_labelled_scan_shows_is_never_drawn() -> None:
    pool = pool_of(20, labels=2)
    head = pool.fit([0, 2, 4])  # only the first label
    dice = pool.dice([head], range(6, 20))[0]
    assert np.nanmax(dice[:, 1]) == 0.0
    assert np.nanmean(dice[:, 0]) > 0.75  # the other one is found all the same
    assert np.isfinite(pool.entropy(head, range(20))).all()


@pytest.mark.parametrize("rows", [[3], [0, 1, 2, 3, 4, 5, 6]])
def test_a_head_depends_on_its_scans_alone(rows: list[int]) -> None:
    """Not on the other scans, beyond the basis that all share, nor on how often it is asked for."""
    pool = pool_of(12)
    fewer = PatchPool(**{name: getattr(pool, name)[:8] for name in PatchPool.ARRAYS})
    first, again, part = pool.fit(rows), pool.fit(rows), fewer.fit(rows)
    for other in (again, part):
        assert np.array_equal(first.weights, other.weights)
        assert np.array_equal(first.thresholds, other.thresholds)


def test_the_scans_that_a_head_is_least_certain_of_are_those_unlike_its_own() -> None:
    images, masks = discs(20)
    faint = [np.clip(image.astype(int) * 0 + 80, 0, 255).astype(np.uint8) for image in images[:5]]  # between the two
    pool = PatchPool.build(extract, images + faint, masks + masks[:5], 1)
    entropy = pool.entropy(pool.fit(range(6)), range(25))
    assert entropy[20:].min() > entropy[6:20].max()
    assert entropy.min() >= 0
    assert entropy.max() <= 1


def test_a_stored_pool_gives_the_same_heads(tmp_path: Path) -> None:
    pool = pool_of(10)
    pool.save(tmp_path)
    assert np.array_equal(PatchPool.load(tmp_path).fit([1, 2, 3]).weights, pool.fit([1, 2, 3]).weights)


def test_padding_of_elongated_scans_teaches_nothing() -> None:
    """A disc on a wide scan: the black bars above and below are no background."""
    images, masks = discs(12)
    wide = [np.hstack([image, image]) for image in images], [np.hstack([mask, mask * 0]) for mask in masks]

    def squared(given: object) -> np.ndarray:
        padded = [np.pad(image, ((64, 64), (0, 0))) for image in given]  # type: ignore[attr-defined]
        return extract(padded)

    pool = PatchPool.build(squared, *wide, 1)
    counted = pool.products[:, -1, -1]  # the constant's square: patches that count
    assert np.allclose(counted, GRID * GRID / 2)
