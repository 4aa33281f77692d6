"""What a training achieves: rare findings, labels added later, unused labels, findings smaller than a pixel.

Short trainings of a tiny network on drawn scans; each of these failed before losses, batches, the choice of the weights
and the working size took the labels into account.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.formats.fitting import letterbox_mask
from backend.formats.pixels import Letterboxed, letterbox
from backend.learning.averages import Recorded, summarise
from backend.learning.cases import Case
from backend.learning.evaluation import score
from backend.learning.learner import Learner
from backend.learning.segmenters import Segmenter
from backend.learning.training import pooled_dice, train
from backend.learning.training_settings import TrainingSettings
from backend.settings import Settings

SIDE = 64
QUICK = TrainingSettings.for_device(
    "cpu",
    encoder="tu-test_resnet",
    encoder_weights=None,
    image_size=SIDE,
    batch_size=4,
    max_steps=70,
    decoder_channels=(16, 16, 8, 8, 8),
    learning_rate=5e-3,
    validate_every=10,
)
Pool = tuple[list[Letterboxed], list[np.ndarray]]


def scan(seed: int, *radii: float, height: int = SIDE, width: int = SIDE, contrast: int = 70) -> Pool:
    """A noisy picture with one bright disc for each radius, and its label map; disc k is label k, and brighter."""
    generator = np.random.default_rng(seed)
    pixels = generator.normal(60, 8, (height, width)).astype(np.float32)
    mask = np.zeros((height, width), np.uint8)
    y, x = np.ogrid[:height, :width]
    for label, radius in enumerate(radii, start=1):
        left, right = (label - 1) * width / len(radii), label * width / len(radii)
        cy, cx = generator.uniform(radius, height - radius), generator.uniform(left + radius, right - radius)
        inside = (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        mask[inside], pixels[inside] = label, pixels[inside] + contrast * label
    return [letterbox(pixels.clip(0, 255).astype(np.uint8), SIDE)], [mask]


def pool(*parts: Pool) -> Pool:
    return [s for scans, _ in parts for s in scans], [m for _, masks in parts for m in masks]


def dice(segmenter: Segmenter, there: Pool, label: int = 1) -> float:
    """The Dice of one label over the pixels of all scans."""
    others = frozenset(range(1, segmenter.spec.classes)) - {label}
    found = pooled_dice(segmenter, *there, [others] * len(there[0]))
    assert found is not None
    return found


def test_a_rare_finding_is_learnt_as_well_as_from_positive_scans_alone() -> None:
    """A tenth of the scans show a lesion, of 1 % of the pixels; so do a tenth of those that choose the weights."""
    positive = pool(*(scan(seed, 3.6) for seed in range(3)))
    negative = pool(*(scan(100 + seed) for seed in range(27)))
    watched = pool(*(scan(200 + seed, *[3.6] * (seed < 2)) for seed in range(20)))
    unseen = pool(*(scan(300 + seed, 3.6) for seed in range(10)))
    alone = train(*positive, ([], []), ["Lesion"], QUICK)
    rare = train(*pool(positive, negative), watched, ["Lesion"], QUICK)
    best = dice(alone.segmenter, unseen)
    assert best > 0.6
    assert dice(rare.segmenter, unseen) >= 0.9 * best


def test_a_label_added_later_is_learnt_as_well_as_without_the_older_annotations() -> None:
    newer = pool(*(scan(seed, 10, 8) for seed in range(5)))
    older = pool(*(scan(50 + seed, 10, 8) for seed in range(20)))
    older = older[0], [np.where(mask == 2, 0, mask).astype(np.uint8) for mask in older[1]]
    unseen = pool(*(scan(300 + seed, 10, 8) for seed in range(8)))
    unknown = [frozenset[int]()] * 5 + [frozenset({2})] * 20
    alone = train(*newer, ([], []), ["Lung", "Heart"], QUICK)
    both = train(*pool(newer, older), ([], []), ["Lung", "Heart"], QUICK, unknown=(unknown, []))
    best = dice(alone.segmenter, unseen, 2)
    assert best > 0.7
    assert dice(both.segmenter, unseen, 2) >= 0.95 * best


def test_labels_that_nobody_has_drawn_cost_nothing() -> None:
    labelled = pool(*(scan(seed, 10) for seed in range(6)))
    unseen = pool(*(scan(300 + seed, 10) for seed in range(8)))
    unused = [f"unused {n}" for n in range(50)]
    quick = replace(QUICK, max_steps=45)
    few = train(*labelled, ([], []), ["Heart"], quick)
    many = train(*labelled, ([], []), ["Heart", *unused], quick)
    best = dice(few.segmenter, unseen)
    assert best > 0.8
    assert dice(many.segmenter, unseen) >= best - 0.02


def test_small_findings_are_visible_at_the_size_that_is_chosen_for_them(tmp_path: Path) -> None:
    """Discs of 10 pixels on 2048 x 2048, and of 20 pixels on 4000 x 300."""
    learner = Learner(Settings(data_dir=tmp_path, device="cpu", encoder="tu-test_resnet"))
    masks = [np.zeros((2048, 2048), np.uint8), np.zeros((4000, 300), np.uint8)]
    for mask, radius in zip(masks, (5, 10), strict=True):
        y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
        mask[(y - 150) ** 2 + (x - 100) ** 2 <= radius**2] = 1
    size = learner.working_size(masks, 2)
    assert size == 640
    assert [(letterbox_mask(mask, learner.image_size) == 1).sum() for mask in masks] == [1, 1]
    assert min((letterbox_mask(mask, size) == 1).sum() for mask in masks) >= 7
    large = np.zeros((512, 512), np.uint8)
    large[100:200, 100:200] = 1
    assert learner.working_size([large] * 20, 2) == learner.image_size == 160
    assert learner.working_size(masks, 254) == 160  # the memory for so many probability maps


def test_findings_smaller_than_a_pixel_are_found(tmp_path: Path) -> None:
    """Discs of 10 pixels on 2048 x 2048, and of 20 pixels on 4000 x 300."""
    learner = Learner(Settings(data_dir=tmp_path, device="cpu", encoder="tu-test_resnet"))
    small = {"decoder_channels": QUICK.decoder_channels, "learning_rate": 5e-3, "max_steps": 120}
    learner.__dict__["training"] = replace(learner.training, **small)  # the network of these tests, not the lab's

    def cases(first: int, n: int, size: int) -> list[Case]:
        found = []
        for seed in range(first, first + n):
            square = {"height": 2048, "width": 2048} if seed % 2 else {"height": 4000, "width": 300}
            generator = np.random.default_rng(seed)
            height, width, radius = square["height"], square["width"], 5 if seed % 2 else 10
            pixels = generator.integers(40, 80, (height, width), dtype=np.uint8)
            y, x = np.ogrid[:height, :width]
            cy, cx = generator.integers(2 * radius, (height - 2 * radius, width - 2 * radius))
            mask = ((y - cy) ** 2 + (x - cx) ** 2 <= radius**2).astype(np.uint8)
            pixels[mask > 0] = 200
            found.append(Case(letterbox(pixels, size), mask))
        return found

    size = learner.working_size([case.mask for case in cases(0, 8, 32)], 2)
    assert size == 640
    save, _ = learner.train(cases(0, 8, size), [], ["Nodule"], seed=0, on_step=lambda done, total: None)
    (tmp_path / "model").mkdir()
    save(tmp_path / "model")
    unseen = cases(20, 4, size)
    for case, drawn in zip(unseen, learner.masks(tmp_path / "model", [case.scan for case in unseen]), strict=True):
        assert drawn[case.mask == 1].any(), case.mask.shape
        assert drawn.sum() < 10 * case.mask.sum(), case.mask.shape


def test_scans_on_which_nothing_is_to_be_found_do_not_move_dice() -> None:
    there, nothing = np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8)
    there[:4, :4] = 1
    half = there.copy()
    half[:2] = 0
    found = [Recorded.of(score(half, there, 2), ["Lesion"])]
    empty = [Recorded.of(score(nothing, nothing, 2), ["Lesion"])] * 50
    assert summarise(found)["dice"] == pytest.approx(2 / 3)
    assert summarise([*found, *empty])["dice"] == summarise(found)["dice"]
