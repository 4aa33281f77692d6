"""Training: it learns, is reproducible, has no side effects on the process, and copes with unusual pools."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from backend.errors import BadSetting
from backend.formats.fitting import letterbox_mask
from backend.formats.pixels import IGNORE, Letterboxed, letterbox
from backend.learning.batches import Batches
from backend.learning.losses import marginal_loss
from backend.learning.randomness import OwnRandom
from backend.learning.segmenters import Segmenter, standardised
from backend.learning.training import Trained, pooled_dice, train
from backend.learning.training_settings import TrainingSettings

TINY = TrainingSettings.for_device(
    "cpu",
    encoder="mobilenet_v2",
    encoder_weights=None,
    image_size=64,
    batch_size=4,
    max_steps=6,
    decoder_channels=(16, 16, 16, 8, 8),
    validate_every=3,
)
Pool = tuple[list[Letterboxed], list[np.ndarray]]


def phantoms(n: int, seed: int = 0, *, shape: tuple[int, ...] = (60, 80), labels: int = 1, size: int = 64) -> Pool:
    """Bright ellipses on a dark, uneven, noisy background; label k is the k-th ellipse, brighter with k."""
    generator = np.random.default_rng(seed)
    height, width = shape[:2]
    y, x = np.ogrid[:height, :width]
    scans, masks = [], []
    for _ in range(n):
        image = 40 + 30 * (x / width) + generator.normal(0, 8, (height, width))
        mask = np.zeros((height, width), np.uint8)
        for label in range(1, labels + 1):
            cy, cx = (
                generator.uniform(0.3, 0.7) * height,
                (label - generator.uniform(0.4, 0.6)) * width / labels,
            )
            ry, rx = generator.uniform(0.15, 0.28) * height, generator.uniform(0.12, 0.22) * width
            inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
            mask[inside] = label
            image[inside] += 60 * label
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        if len(shape) == 3:
            pixels = np.dstack([pixels, pixels // 2, 255 - pixels])
        scans.append(letterbox(pixels, size))
        masks.append(letterbox_mask(mask, size))
    return scans, masks


NONE: Pool = ([], [])


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return trained.segmenter.network.state_dict()


def dice(segmenter: Segmenter, pool: Pool, label: int = 1) -> float:
    got = [p.argmax(axis=0) == label for p in segmenter.predict(pool[0])]
    want = [mask[scan.content] == label for scan, mask in zip(*pool, strict=True)]
    each = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(got, want, strict=True)]
    return float(np.mean(each))


def test_learns_a_handful_of_phantoms_and_finds_others() -> None:
    settings = replace(TINY, max_steps=150, validate_every=50)
    trained = train(*phantoms(6, labels=2), phantoms(2, 7, labels=2), ["dim", "bright"], settings)
    seen, unseen = phantoms(6, labels=2), phantoms(6, 99, labels=2)
    assert min(dice(trained.segmenter, seen, k) for k in (1, 2)) > 0.9
    assert min(dice(trained.segmenter, unseen, k) for k in (1, 2)) > 0.85
    losses = [float(entry["loss"] or 0) for entry in trained.history]
    assert losses[-1] < losses[0] / 2


# --- determinism and no side effects


def test_same_seed_gives_the_same_weights_bit_for_bit() -> None:
    first = train(*phantoms(5), phantoms(2, 1), ["a"], TINY)
    torch.manual_seed(123)
    torch.rand(7)
    again = train(*phantoms(5), phantoms(2, 1), ["a"], TINY)
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(again).values(), strict=True))
    assert [e["loss"] for e in first.history] == [e["loss"] for e in again.history]


def test_another_training_in_the_same_process_changes_nothing() -> None:
    """A second project loads and trains networks in another thread, and draws random numbers of its own."""
    alone = train(*phantoms(5), phantoms(2, 1), ["a"], TINY)
    over, busy = threading.Event(), threading.Event()
    errors: list[Exception] = []

    def other(folder: Path) -> None:
        try:
            while not over.is_set():
                trained = train(*phantoms(3, 9), NONE, ["b"], replace(TINY, seed=7, max_steps=2))
                trained.segmenter.save(folder)
                Segmenter.load(folder)
                torch.rand(3)
                torch.manual_seed(1)
                busy.set()
        except Exception as error:
            errors.append(error)

    before = torch.are_deterministic_algorithms_enabled()
    with tempfile.TemporaryDirectory() as folder:
        thread = threading.Thread(target=other, args=(Path(folder),))
        thread.start()
        busy.wait(60)
        beside = train(*phantoms(5), phantoms(2, 1), ["a"], TINY)
        over.set()
        thread.join()
    assert not errors
    assert all(torch.equal(a, b) for a, b in zip(weights(alone).values(), weights(beside).values(), strict=True))
    assert torch.are_deterministic_algorithms_enabled() == before


def test_initialisation_dropout_and_every_way_to_draw_random_numbers_depend_on_the_seed_alone() -> None:
    def numbers(seed: int) -> list[float]:
        with OwnRandom(seed):
            network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.5)).train()
            drawn = [
                torch.rand(3),
                torch.randn(3),
                torch.randperm(5),
                torch.randint(2, 90, (3,)),
                torch.randint(9, (3,)),
            ]
            drawn += [torch.randn_like(drawn[0]), torch.rand_like(drawn[0]), torch.empty(3).exponential_()]
            return torch.cat([network(torch.rand(2, 1, 6, 6)).flatten(), *drawn]).tolist()

    before = torch.get_rng_state()
    first = numbers(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(11)
    assert numbers(3) == first
    assert numbers(4) != first


def test_the_default_network_of_a_cpu_is_the_same_for_the_same_seed() -> None:
    """Its encoder's weights are read from a file, and their shapes from a network without numbers."""
    settings = TrainingSettings.for_device("cpu", image_size=32, max_steps=1, batch_size=2)
    first, again = (train(*phantoms(2, size=32), NONE, ["a"], settings) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(again).values(), strict=True))


def test_another_seed_gives_other_weights() -> None:
    first = train(*phantoms(5), NONE, ["a"], TINY)
    other = train(*phantoms(5), NONE, ["a"], replace(TINY, seed=1))
    assert not all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(other).values(), strict=True))


def test_global_random_state_and_settings_are_restored_even_after_an_abort() -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    def state() -> tuple[object, ...]:
        return (
            torch.get_rng_state().numpy().tobytes(),
            np.random.get_state()[1].tobytes(),  # type: ignore[union-attr,index]
            random.getstate(),
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
            torch.get_num_threads(),
            torch.is_grad_enabled(),
        )

    before = state()
    train(*phantoms(3), phantoms(1, 1), ["a"], replace(TINY, max_steps=2))
    assert state() == before
    with pytest.raises(Stop):
        train(*phantoms(3), NONE, ["a"], TINY, on_step=stop)
    assert state() == before


def test_random_numbers_drawn_while_on_step_runs_change_nothing() -> None:
    quiet = train(*phantoms(3), NONE, ["a"], replace(TINY, max_steps=3))
    noisy = train(*phantoms(3), NONE, ["a"], replace(TINY, max_steps=3), on_step=lambda *_: torch.rand(5))  # type: ignore[arg-type,return-value]
    assert all(torch.equal(a, b) for a, b in zip(weights(quiet).values(), weights(noisy).values(), strict=True))


def test_scans_and_masks_are_not_modified() -> None:
    scans, masks = phantoms(3)
    before = [scan.pixels.tobytes() for scan in scans], [mask.tobytes() for mask in masks]
    train(scans, masks, (scans, masks), ["a"], TINY)
    assert ([scan.pixels.tobytes() for scan in scans], [mask.tobytes() for mask in masks]) == before


# --- padding


def test_loss_ignores_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 16, 16, generator=generator)
    target = torch.randint(0, 3, (2, 16, 16), generator=generator)
    target[:, :5] = IGNORE
    other = logits.clone()
    other[:, :, :5] = 50 * torch.randn(2, 3, 5, 16, generator=generator)
    known = torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(marginal_loss(logits, target, known), marginal_loss(other, target, known))
    content = marginal_loss(logits[:, :, 5:], target[:, 5:], known)
    assert torch.isclose(marginal_loss(logits, target, known), content, atol=1e-6)


def test_loss_of_nothing_but_padding_is_zero() -> None:
    target = torch.full((1, 8, 8), IGNORE)
    assert marginal_loss(torch.randn(1, 2, 8, 8), target, torch.zeros(1, 2, dtype=torch.bool)) == 0


# --- the loss


def planes(*classes: int) -> torch.Tensor:
    """(1, 4, 1, n) logits of a network that is sure of these classes."""
    logits = torch.full((1, 4, 1, len(classes)), -20.0)
    for at, number in enumerate(classes):
        logits[0, number, 0, at] = 20.0
    return logits


def test_an_unknown_class_may_be_drawn_where_the_truth_is_background_but_not_over_a_label() -> None:
    truth = torch.tensor([[[0, 0, 1, 1]]])
    known, heart_unknown = torch.zeros(1, 4, dtype=torch.bool), torch.tensor([[False, False, True, False]])
    assert marginal_loss(planes(0, 2, 1, 1), truth, known) > 5  # a false alarm
    assert marginal_loss(planes(0, 2, 1, 1), truth, heart_unknown) < 1e-6
    assert marginal_loss(planes(0, 3, 1, 1), truth, heart_unknown) > 5  # class 3 was known
    assert marginal_loss(planes(0, 2, 1, 2), truth, heart_unknown) > 5  # class 1 is missed


def test_classes_that_do_not_occur_do_not_weigh_in_the_loss() -> None:
    truth = torch.tensor([[[0, 0, 1, 1]]])
    half = torch.zeros(1, 2, 1, 4, requires_grad=True)
    wide = torch.cat([half, torch.full((1, 50, 1, 4), -30.0)], dim=1)
    narrow_loss = marginal_loss(half, truth, torch.zeros(1, 2, dtype=torch.bool))
    wide_loss = marginal_loss(wide, truth, torch.zeros(1, 52, dtype=torch.bool))
    assert torch.isclose(narrow_loss, wide_loss, atol=1e-6)


# --- the batches


def test_a_third_of_each_batch_shows_a_label_and_rare_labels_get_as_many_places_as_common_ones() -> None:
    masks = [np.zeros((8, 8), np.uint8) for _ in range(60)]
    for mask in masks[:20]:
        mask[0, 0] = 1
    masks[59][4, 4] = 2
    batches = Batches(masks, 6, seed=3)
    drawn = [next(batches) for _ in range(200)]
    assert all(sum(number > 0 for _, number in batch) == 2 for batch in drawn)
    assert all(number == 0 or (masks[row] == number).any() for batch in drawn for row, number in batch)
    plain = [row for batch in drawn for row, number in batch if not number]
    assert np.ptp(np.bincount(plain, minlength=60)) <= 1  # every scan equally often
    rare = sum(number == 2 for batch in drawn for _, number in batch)
    assert rare > 350  # 20 of 21 parts of 400
    again = Batches(masks, 6, seed=3)
    assert drawn == [next(again) for _ in range(200)]


def test_without_any_label_batches_are_plain() -> None:
    assert sorted(next(Batches([np.zeros((4, 4), np.uint8)] * 3, 3, seed=0))) == [(0, 0), (1, 0), (2, 0)]


def test_a_window_shows_the_class_asked_for_and_never_only_padding() -> None:
    mask = np.full((96, 96), IGNORE, np.uint8)
    mask[40:46] = 0
    mask[42, 90] = 1
    batches = Batches([mask], 2, seed=0)
    for _ in range(50):
        assert (mask[batches.window(mask, 1, 32)] == 1).any()
        part = mask[batches.window(mask, 0, 32)]
        assert part.shape == (32, 32)
        assert (part == 0).any()


def test_training_does_not_depend_on_pixels_in_the_padding_of_validation_scans() -> None:
    watched, truths = phantoms(2, 1)
    noise = np.random.default_rng(3)
    dirty = []
    for scan in watched:
        pixels = noise.integers(0, 256, scan.pixels.shape, dtype=np.uint8)
        pixels[scan.content] = scan.pixels[scan.content]
        dirty.append(replace(scan, pixels=pixels))
    clean = train(*phantoms(3), (watched, truths), ["a"], TINY)
    same = train(*phantoms(3), (dirty, truths), ["a"], TINY)
    assert [e["dice"] for e in clean.history] == [e["dice"] for e in same.history]


def test_augmentation_moves_the_mask_with_its_scan() -> None:
    """The network must learn where the mask really is: a mask left behind by rotation is a wrong lesson."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def spy(logits: torch.Tensor, target: torch.Tensor, unknown: torch.Tensor, foreground: float) -> torch.Tensor:
        images = np.stack([one.numpy()[0, 0] for one in inputs_seen[-len(target) :]])
        seen.append((images, target.numpy()))
        return marginal_loss(logits, target, unknown, foreground)

    inputs_seen: list[torch.Tensor] = []

    def spied(pixels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        inputs_seen.append(standardised(pixels, valid))
        return inputs_seen[-1]

    scans, masks = phantoms(4)
    scans = [
        replace(scan, pixels=np.where(mask == 1, 250, np.where(mask == IGNORE, 0, 30)).astype(np.uint8))
        for scan, mask in zip(scans, masks, strict=True)
    ]
    settings = replace(TINY, max_steps=5, noise=0.0, rotate=30.0, shift=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backend.learning.training.marginal_loss", spy)
        patch.setattr("backend.learning.training.standardised", spied)
        train(scans, masks, NONE, ["a"], settings)
    moved = 0
    for inputs, targets in seen:
        for image, target in zip(inputs, targets, strict=True):
            bright = image > (image.max() + image.min()) / 2
            assert 2 * (bright & (target == 1)).sum() / (bright.sum() + (target == 1).sum()) > 0.9
            moved += not any(np.array_equal(target, mask) for mask in masks)
    assert moved > 10


# --- unusual pools


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_any_number_of_scans_trains(n: int) -> None:
    trained = train(*phantoms(n), NONE, ["a"], replace(TINY, max_steps=3))
    assert all(torch.isfinite(value).all() for value in weights(trained).values())


def test_smallest_image_size_trains() -> None:
    settings = replace(TINY, image_size=32, batch_size=2, max_steps=2)
    train(*phantoms(1, size=32), NONE, ["a"], settings)


def test_all_background_masks_train_to_background() -> None:
    scans, masks = phantoms(3)
    empty = [np.where(mask == IGNORE, IGNORE, 0).astype(np.uint8) for mask in masks]
    trained = train(scans, empty, (scans, empty), ["a"], replace(TINY, max_steps=80, validate_every=20))
    assert all((p[1] > 0.5).mean() < 0.05 for p in trained.segmenter.predict(scans))


def test_a_label_without_annotations_does_not_prevent_training() -> None:
    trained = train(*phantoms(3, labels=2), NONE, ["a", "b", "never drawn"], TINY)
    assert trained.segmenter.spec.classes == 4
    assert np.isfinite([entry["loss"] for entry in trained.history]).all()  # type: ignore[arg-type]


def test_one_colour_scan_makes_a_colour_network() -> None:
    gray, colour = phantoms(2), phantoms(1, shape=(60, 80, 3))
    assert train(*gray, NONE, ["a"], replace(TINY, max_steps=1)).segmenter.spec.channels == 1
    mixed = train(gray[0] + colour[0], gray[1] + colour[1], NONE, ["a"], replace(TINY, max_steps=2))
    assert mixed.segmenter.spec.channels == 3


def test_without_validation_scans_all_steps_see_all_scans_and_nothing_is_judged() -> None:
    trained = train(*phantoms(3), NONE, ["a"], TINY)
    assert (trained.judged, trained.judged_step) == (None, 6)
    assert [entry["dice"] for entry in trained.history] == [None, None]


def inverted(pool: Pool) -> Pool:
    scans = []
    for scan in pool[0]:
        pixels = scan.pixels.copy()
        pixels[scan.content] = 255 - pixels[scan.content]
        scans.append(replace(scan, pixels=pixels))
    return scans, pool[1]


def test_judged_weights_have_never_seen_the_validation_scans_but_the_model_has() -> None:
    settings = replace(TINY, max_steps=100, judged_share=0.5, validate_every=50)
    watched = inverted(phantoms(3, 5))
    other = phantoms(3, 6)[0], watched[1]
    first, second = (train(*phantoms(4), pool, ["a"], settings) for pool in (watched, other))
    assert first.judged is not None
    assert second.judged is not None
    ours, theirs = first.judged.network.state_dict(), second.judged.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert first.judged_step == 50
    judged, after = (entry["dice"] for entry in first.history)
    assert judged == pytest.approx(pooled_dice(first.judged, *watched, [frozenset()] * 3), abs=1e-6)
    assert after is None  # it would be measured on what has been learnt
    unseen = inverted(phantoms(4, 99))
    assert dice(first.judged, unseen) < 0.5
    assert dice(first.segmenter, unseen) > 0.8


def test_validation_scans_without_any_label_have_no_dice() -> None:
    scans, masks = phantoms(2)
    empty = [np.where(mask == IGNORE, IGNORE, 0).astype(np.uint8) for mask in masks]
    trained = train(scans, masks, (scans, empty), ["a"], TINY)
    assert {entry["dice"] for entry in trained.history} == {None}


class Drawn:
    """A segmenter that draws these label maps."""

    def __init__(self, maps: list[np.ndarray], classes: int) -> None:
        self.maps, self.spec = iter(maps), SimpleNamespace(classes=classes)

    def predict(self, scans: list[Letterboxed]) -> list[np.ndarray]:
        return [np.eye(self.spec.classes)[next(self.maps)][s.content].transpose(2, 0, 1) for s in scans]


def test_weights_are_judged_by_the_dice_of_each_label_over_the_pixels_of_all_scans() -> None:
    """Nine scans without foreground must neither hide that the lesion is missed, nor that something is drawn there."""
    scans, _ = phantoms(10, shape=(64, 64))
    truths = [np.zeros((64, 64), np.uint8) for _ in scans]
    truths[0][:8, :8] = 1
    nothing = [np.zeros((64, 64), np.uint8) for _ in scans]
    known = [frozenset[int]()] * 10
    alarms = [mask.copy() for mask in truths]
    alarms[5][:8, :8] = 1
    found = [
        pooled_dice(Drawn(maps, 3), s, t, known)
        for maps, s, t in [(nothing, scans, truths), (truths, scans, truths), (alarms, scans, truths)]
    ]
    assert found == [0, 1, pytest.approx(2 / 3)]
    assert pooled_dice(Drawn(nothing, 3), scans, nothing, known) is None
    assert pooled_dice(Drawn(alarms, 3), scans, truths, [*known[:5], frozenset({1}), *known[6:]]) == 1


# --- reporting


def test_on_step_is_called_at_the_start_for_every_step_and_every_validation_batch() -> None:
    heard: list[tuple[int, int]] = []
    train(*phantoms(3), phantoms(9, 1), ["a"], TINY, on_step=lambda done, total: heard.append((done, total)))
    assert heard[0] == (0, 6)
    assert [done for done, _ in heard] == [0, 1, 2, 3, 3, 3, 4, 5, 6]
    assert {total for _, total in heard} == {6}


def test_default_on_a_cpu_reports_every_couple_of_seconds() -> None:
    times = [time.monotonic()]
    settings = TrainingSettings.for_device("cpu", max_steps=2)
    size = settings.image_size
    train(
        *phantoms(2, size=size),
        phantoms(8, size=size),
        ["a"],
        settings,
        on_step=lambda *_: times.append(time.monotonic()),
    )
    assert max(np.diff(times)) < 5  # on a busy machine; at most 2 s on an idle one


# --- refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 1}, "batch_size must be 2 or more, got 1"),
        ({"max_steps": 0}, "max_steps must be 1 or more, got 0"),
        ({"image_size": 65}, "image_size must be a multiple of 32, got 65; use 64 or 96"),
        ({"encoder": "nope"}, "unknown encoder 'nope'"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"epochs": 3}, "unknown training setting epochs; choose from encoder, image_size"),
    ],
)
def test_unusable_training_settings_are_refused_with_the_reason(change: dict[str, object], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        TrainingSettings.for_device("cpu", **change)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_it_learns_the_same_and_the_model_runs_on_a_cpu(tmp_path: Path) -> None:
    settings = replace(TINY, device="cuda", mixed_precision=True, max_steps=150, validate_every=50)
    trained = train(*phantoms(6, labels=2), phantoms(2, 7, labels=2), ["dim", "bright"], settings)
    unseen = phantoms(6, 99, labels=2)
    assert min(dice(trained.segmenter, unseen, k) for k in (1, 2)) > 0.85
    trained.segmenter.save(tmp_path)
    on_cpu = Segmenter.load(tmp_path, "cpu")
    for ours, theirs in zip(trained.segmenter.predict(unseen[0]), on_cpu.predict(unseen[0]), strict=True):
        assert np.abs(ours - theirs).mean() < 0.01
    before = torch.cuda.get_rng_state()
    train(*phantoms(2), NONE, ["a"], replace(settings, max_steps=2))
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_graphics_card_has_its_own_defaults() -> None:
    card = TrainingSettings.for_device("cuda:1")
    assert (card.device, card.mixed_precision) == ("cuda:1", True)
    assert card.image_size > TrainingSettings.for_device("cpu").image_size


def test_scans_and_masks_that_do_not_fit_are_refused() -> None:
    scans, masks = phantoms(2)
    with pytest.raises(ValueError, match="training: 2 scans but 1 masks"):
        train(scans, masks[:1], NONE, ["a"], TINY)
    with pytest.raises(ValueError, match="at least one labelled scan"):
        train([], [], NONE, ["a"], TINY)
    with pytest.raises(ValueError, match=r"validation scan 1: .* must both be 64 x 64"):
        train(scans, masks, (scans, [masks[0], masks[1][:32]]), ["a"], TINY)
    with pytest.raises(ValueError, match="its mask has class 2, but there are 1 labels"):
        train(scans, [masks[0], np.full_like(masks[1], 2)], NONE, ["a"], TINY)
