"""The quick model: what it finds after a few labels, and what it must not learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backend.formats.pixels import letterbox, restore
from backend.learning.quick_model import QuickModel, Terms, learn

GRID = 16
LEVELS = (120, 200)  # brightness of each label


def discs(n: int, *, seed: int = 0, shape: tuple[int, int] = (96, 128), shown: Sequence[int] = (1,)) -> list[Any]:
    """(image, mask): noisy images, each with a disc of every label in `shown`, brighter for the second label."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        mask = np.zeros(shape, np.uint8)
        down, across = np.mgrid[: shape[0], : shape[1]]
        for place, label in enumerate(shown):
            x = shape[1] * (0.25 + 0.5 * place) + random.uniform(-8, 8)
            y = shape[0] / 2 + random.uniform(-20, 20)
            mask[(down - y) ** 2 + (across - x) ** 2 <= 16**2] = label
        level = np.choose(mask, (40, *LEVELS))
        found.append((np.clip(random.normal(level, 8), 0, 255).astype(np.uint8), mask))
    return found


def features(image: np.ndarray) -> np.ndarray:
    """(GRID * GRID, 6) float16: brightness of each patch, its square, and noise that means nothing."""
    square = letterbox(image, 128).pixels
    side = 128 // GRID
    level = square.reshape(GRID, side, GRID, side).mean(axis=(1, 3)).reshape(-1, 1) / 255
    noise = np.random.default_rng(int(image.sum())).normal(size=(GRID * GRID, 4))
    return np.hstack([level, level**2, noise]).astype(np.float16)


def terms(scans: Sequence[Any], labels: int = 1, **more: Any) -> list[Terms]:
    return [Terms.of(features(image), mask, labels, **more) for image, mask in scans]


def drawn(model: QuickModel, image: np.ndarray) -> np.ndarray:
    return restore(model.probabilities(features(image), *image.shape), *image.shape)


def dice(model: QuickModel, scans: Sequence[Any], label: int = 1) -> float:
    each = []
    for image, mask in scans:
        got, want = drawn(model, image) == label, mask == label
        each.append(2 * (got & want).sum() / max(1, got.sum() + want.sum()))
    return float(np.mean(each))


@pytest.mark.parametrize("shape", [(96, 128), (150, 90), (64, 400)])
def test_three_labels_suffice_to_find_discs_at_their_place_in_scans_of_any_shape(shape: tuple[int, int]) -> None:
    model = learn(terms(discs(3, shape=shape)))
    unseen = discs(8, seed=9, shape=shape)
    assert dice(model, unseen) > 0.7
    got = drawn(model, unseen[0][0])
    assert got.shape == shape
    wanted, found = (np.argwhere(one).mean(axis=0) for one in (unseen[0][1], got))
    assert np.abs(wanted - found).max() < 4


def test_labels_are_told_apart_and_probabilities_sum_to_one() -> None:
    model, unseen = learn(terms(discs(6, shown=(1, 2)), labels=2)), discs(8, seed=9, shown=(2, 1))
    assert min(dice(model, unseen, label) for label in (1, 2)) > 0.65
    shares = model.probabilities(features(unseen[0][0]), *unseen[0][0].shape)
    assert shares.shape[0] == 3
    assert shares.sum(axis=0) == pytest.approx(1, abs=1e-5)


def test_what_an_annotator_could_not_draw_is_not_learnt_as_background() -> None:
    """Twelve older scans show the second label, which nobody could draw; three newer ones have it drawn."""
    older = [(image, np.where(mask == 2, 0, mask)) for image, mask in discs(12, shown=(1, 2))]
    newer, unseen = discs(3, seed=5, shown=(1, 2)), discs(8, seed=9, shown=(1, 2))
    as_unknown = learn([*terms(older, 2, unknown=(2,)), *terms(newer, 2)])
    as_background = learn([*terms(older, 2), *terms(newer, 2)])
    assert dice(as_unknown, unseen, 1) > 0.7
    assert dice(as_unknown, unseen, 2) > 0.7
    patches = features(unseen[0][0])
    ours, theirs = ((one.leads(patches) + one.thresholds)[..., 1].max() for one in (as_unknown, as_background))
    assert ours > 0.7 > 0.4 > theirs  # three of fifteen


def test_a_label_that_nobody_drew_is_never_drawn_and_has_no_expected_dice() -> None:
    model = learn(terms(discs(4), labels=2))
    assert not any((drawn(model, image) == 2).any() for image, _ in discs(5, seed=9, shown=(1, 2)))
    assert np.isnan(model.dice[1])
    nobody = learn(terms([(image, np.zeros_like(mask)) for image, mask in discs(3)]))
    assert (nobody.expected_dice, drawn(nobody, discs(1)[0][0]).any()) == (None, False)
    unknown_to_all = learn(terms(discs(3), labels=2, unknown=(2,)))
    assert np.isnan(unknown_to_all.dice[1])


def test_the_expected_dice_is_that_on_unseen_scans() -> None:
    good = learn(terms(discs(10)))
    assert good.expected_dice == pytest.approx(dice(good, discs(20, seed=9)), abs=0.12)
    random = np.random.default_rng(3)
    blind = [(random.permuted(image.ravel()).reshape(image.shape), mask) for image, mask in discs(10)]
    assert (learn(terms(blind)).expected_dice or 0) < 0.6
    assert learn(terms(discs(1))).expected_dice is None


def test_slices_of_one_volume_do_not_vouch_for_each_other() -> None:
    """Each volume has a look of its own: what is expected is the Dice on another volume."""
    volumes = [discs(4, seed=seed) for seed in range(4)]
    for number, scans in enumerate(volumes):
        inverted = number % 2
        volumes[number] = [(255 - image if inverted else image, mask) for image, mask in scans]
    apart = [one for number, scans in enumerate(volumes[:2]) for one in terms(scans, group=f"volume {number}")]
    alone = [replace(one, group="") for one in apart]
    assert (learn(apart).expected_dice or 0) < (learn(alone).expected_dice or 0) - 0.1


def test_a_finding_smaller_than_a_patch_counts() -> None:
    scans = discs(6)
    for image, mask in scans:
        mask[:] = 0
        mask[40:43, 60:63] = 1
        image[40:43, 60:63] = 255
    model = learn(terms(scans))
    assert model.thresholds[0] < 1
    assert np.isfinite(model.dice[0])


def test_the_same_scans_give_the_same_model_which_can_be_stored() -> None:
    scans = terms(discs(5))
    model = learn(scans)
    for other in (learn(scans), QuickModel.of_arrays(model.arrays())):
        assert all(
            np.array_equal(a, b, equal_nan=True)
            for a, b in zip(model.arrays().values(), other.arrays().values(), strict=True)
        )
    with pytest.raises(ValueError, match="at least one labelled scan"):
        learn([])


def ghosts(n: int, seed: int) -> list[Any]:
    """Scans without the label that show something like it, but darker."""
    return [(np.clip(image * 0.8, 0, 255).astype(np.uint8), np.zeros_like(mask)) for image, mask in discs(n, seed=seed)]


def test_false_alarms_count_in_the_thresholds_and_in_the_expected_dice() -> None:
    model = learn(terms([*discs(6), *ghosts(6, seed=3)]))
    unseen, without = discs(20, seed=4), ghosts(20, seed=5)
    alarms = sum(bool((drawn(model, image) == 1).any()) for image, _ in without)
    assert alarms <= 10
    assert model.expected_dice == pytest.approx(20 * dice(model, unseen) / (20 + alarms), abs=0.1)
