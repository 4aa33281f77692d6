"""Uncertainty of an image: bounds, values computed by hand, and refused input."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sampling import AGGREGATIONS, entropies, image_entropy, image_least_confidence, image_margin, image_top_entropy

few = settings(max_examples=30, deadline=None)
measures = pytest.mark.parametrize("measure", [image_entropy, image_top_entropy, image_least_confidence, image_margin])


@st.composite
def predictions(draw: st.DrawFn) -> np.ndarray:
    shape = [draw(st.integers(low, 4)) for low in (1, 2, 1, 1)]
    weights = draw(arrays(np.float64, shape, elements=st.floats(0, 1)))
    weights[:, 0] += 1e-3
    return weights / weights.sum(axis=1, keepdims=True)


def slow_entropy(p: np.ndarray) -> float:
    c, h, w = p.shape
    total = 0.0
    for y in range(h):
        for x in range(w):
            total += sum(-q * math.log(q) for q in p[:, y, x].tolist() if q > 0)
    return total / (h * w) / math.log(c)


@few
@given(predictions())
def test_image_entropy_is_the_mean_pixel_entropy_over_log_c(p: np.ndarray) -> None:
    kept = p.copy()
    assert image_entropy(p) == pytest.approx([slow_entropy(image) for image in p], abs=1e-12)
    np.testing.assert_array_equal(p, kept)


@measures
@few
@given(p=predictions())
def test_every_measure_is_between_zero_and_one_and_the_same_for_an_image_alone(measure, p: np.ndarray) -> None:
    several = measure(p)
    assert several.shape == (len(p),)
    assert ((several >= 0) & (several <= 1)).all()
    assert measure(p[0]).shape == ()
    np.testing.assert_array_equal(measure(p[0]), several[0])


@measures
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_certainty_is_zero_and_ignorance_is_one(measure, classes: int) -> None:
    certain = np.zeros((classes, 3, 5))
    certain[1] = 1
    assert float(measure(certain)) == 0.0
    assert float(measure(np.full((classes, 3, 5), 1 / classes))) == pytest.approx(1.0, abs=1e-12)


def test_values_computed_by_hand() -> None:
    p = np.zeros((2, 1, 2))
    p[:, 0, 0] = 0.25, 0.75  # entropy 0.811278 bits
    p[:, 0, 1] = 1.0, 0.0
    assert float(image_entropy(p)) == pytest.approx(0.8112781244591328 / 2)
    assert float(image_top_entropy(p)) == pytest.approx(0.8112781244591328)
    assert float(image_least_confidence(p)) == pytest.approx(0.25)
    assert float(image_margin(p)) == pytest.approx(0.25)


@measures
def test_padding_does_not_count(measure) -> None:
    p = np.full((2, 4, 4), 0.5)
    p[0, :2], p[1, :2] = 1, 0
    inside = np.zeros((4, 4), dtype=bool)
    inside[:2] = True
    assert float(measure(p, inside)) == 0.0
    assert float(measure(p, ~inside)) == 1.0
    assert measure(np.stack([p, p]), np.stack([inside, ~inside])).tolist() == [0.0, 1.0]
    assert measure(np.stack([p, p]), inside).tolist() == [0.0, 0.0]


def test_half_precision_softmax_is_accepted() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5, 8, 8)) * 4
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert image_entropy(p.astype(np.float16)) == pytest.approx(image_entropy(p), abs=1e-3)


def test_no_images_have_no_entropies() -> None:
    assert image_entropy(np.empty((0, 2, 4, 4))).shape == (0,)


@measures
def test_nan_is_refused_with_the_row_of_the_image(measure) -> None:
    p = np.full((3, 2, 2, 2), 0.5)
    p[1, 0, 1, 1] = np.nan
    words = "probabilities: row 1 contains NaN or infinity. Predict that image again"
    with pytest.raises(ValueError, match=re.escape(words)):
        measure(p)


def test_nan_in_the_padding_does_not_matter() -> None:
    p = np.full((2, 2, 2), 0.5)
    p[:, 1] = np.nan
    assert float(image_entropy(p, np.array([[True, True], [False, False]]))) == 1.0


@pytest.mark.parametrize("factor", [-1.0, 2.0, 0.9])
def test_invalid_probabilities_are_refused_with_the_row_of_the_image(factor: float) -> None:
    p = np.full((3, 2, 2, 2), 0.5)
    p[2] *= factor
    with pytest.raises(ValueError, match=r"^probabilities: row 2 is in .*wanted 0..1 and sums of 1. Apply softmax"):
        image_entropy(p)


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 4), (2, 1, 4, 4), (2, 0, 4)])
def test_a_wrong_shape_is_refused_and_one_sigmoid_output_is_explained(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^probabilities: got shape \(.*For one sigmoid output p, stack 1 - p and p"):
        image_entropy(np.full(shape, 0.5))


def test_an_image_that_is_all_padding_is_refused_with_its_row() -> None:
    inside = np.ones((2, 3, 3), dtype=bool)
    inside[1] = False
    with pytest.raises(ValueError, match=r"^inside: row 1 has no True pixel"):
        image_entropy(np.full((2, 2, 3, 3), 0.5), inside)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^inside: got bool of shape \(2, 2\), wanted bool of shape \(3, 3\)"):
        image_entropy(np.full((2, 3, 3), 0.5), np.ones((2, 2), dtype=bool))


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 12, 9), (5, 40, 40)])
@pytest.mark.parametrize("sharp", [1.0, 30.0])
def test_all_measures_at_once_are_each_of_them(shape: tuple[int, ...], sharp: float) -> None:
    for seed in range(5):
        logits = sharp * np.random.default_rng(seed).normal(size=shape)
        p = np.exp(logits - logits.max(axis=0))
        p = (p / p.sum(axis=0)).astype(np.float32)
        assert entropies(p) == pytest.approx({name: float(of(p)) for name, of in AGGREGATIONS.items()}, abs=1e-12)


def test_all_measures_are_of_one_image() -> None:
    with pytest.raises(ValueError, match=r"wanted \(C, H, W\), those of one image"):
        entropies(np.full((1, 2, 3, 3), 0.5))
