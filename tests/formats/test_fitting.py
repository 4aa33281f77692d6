"""Label maps in a network's square: no finding vanishes, however small."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.formats.fitting import finding_sizes, letterbox_mask, smaller_than_a_pixel
from backend.formats.pixels import IGNORE


def with_disc(height: int, width: int, cy: int, cx: int, diameter: float) -> np.ndarray:
    y, x = np.ogrid[:height, :width]
    return ((y - cy) ** 2 + (x - cx) ** 2 <= (diameter / 2) ** 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("mask", "size", "at"),
    [
        (with_disc(2048, 2048, 1000, 700, 10), 160, (78, 54)),
        (with_disc(4000, 300, 1000, 200, 20), 160, (40, 82)),
        (with_disc(300, 4000, 200, 1000, 20), 160, (82, 40)),
    ],
)
def test_a_finding_smaller_than_a_pixel_keeps_the_pixel_that_most_of_it_lies_in(
    mask: np.ndarray, size: int, at: tuple[int, int]
) -> None:
    fitted = letterbox_mask(mask, size)
    assert np.argwhere(fitted == 1).tolist() == [list(at)]
    assert smaller_than_a_pixel(mask, size) == 1
    assert smaller_than_a_pixel(mask, 4 * size) == 0


def test_a_speck_inside_another_label_is_kept_and_the_other_label_too() -> None:
    mask = np.zeros((640, 640), np.uint8)
    mask[100:500, 100:500] = 2
    mask[300, 300] = 1
    fitted = letterbox_mask(mask, 64)
    assert (fitted == 1).sum() == 1
    assert (fitted == 2).sum() == 40 * 40 - 1
    assert smaller_than_a_pixel(mask, 64) == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([32, 64]), st.integers(1, 30))
def test_every_finding_of_one_label_keeps_a_pixel(seed: int, size: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = generator.integers(40, 500, 2)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(n):
        y, x, h, w = *generator.integers(0, (height, width)), *generator.integers(1, 9, 2)
        mask[y : y + h, x : x + w] = 7
    fitted = letterbox_mask(mask, size)
    content = fitted[fitted.min(axis=1) < IGNORE][:, fitted.min(axis=0) < IGNORE]
    rows = np.minimum((np.arange(height) + 0.5) * content.shape[0] / height, content.shape[0] - 1).astype(int)
    columns = np.minimum((np.arange(width) + 0.5) * content.shape[1] / width, content.shape[1] - 1).astype(int)
    there = content[rows][:, columns] == 7
    found, numbers = cv2.connectedComponents(mask, connectivity=8)
    assert set(np.unique(numbers[there & (mask == 7)]).tolist()) == set(range(1, found))


def test_thousands_of_findings_take_no_more_than_seconds() -> None:
    generator = np.random.default_rng(0)
    mask = np.zeros((2048, 2048), np.uint8)
    for y, x in generator.integers(3, 2044, (3000, 2)):
        mask[y : y + 3, x : x + 3] = generator.integers(1, 3)
    started = time.process_time()
    fitted = letterbox_mask(mask, 160)
    assert time.process_time() - started < 2
    assert (fitted == 1).sum() > 1000


def test_the_size_of_a_finding_is_that_of_the_largest_of_its_label() -> None:
    mask = np.zeros((100, 200), np.uint8)
    mask[10:20, 10:50] = 3  # 400 pixels
    mask[60:62, 60:62] = 3  # a speck
    mask[80, 80] = 1
    mask[90:] = IGNORE
    assert finding_sizes(mask) == {3: pytest.approx(20 / 200), 1: pytest.approx(1 / 200)}
    assert finding_sizes(np.zeros((5, 5), np.uint8)) == {}
