"""Our brush mask encoder, compared with that of label_studio_sdk, number by number."""

from __future__ import annotations

import numpy as np
import pytest
from label_studio_sdk.converter import brush
from numpy.typing import NDArray

from backend.demo.phantoms import phantom
from backend.label_studio.raster import encode_brush


def check(mask: NDArray[np.bool_]) -> None:
    assert encode_brush(mask) == brush.mask2rle(mask.astype(np.uint8) * 255)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.5, 0.9, 1])
def test_the_output_equals_that_of_the_sdk(share: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = rng.integers(1, 70, 2)
        check(rng.random((height, width)) < share)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 63, 64, 65, 16383, 16384, 16385, 32768, 32769, 49152])
def test_runs_at_the_limits_of_each_encoding(length: int) -> None:
    """A pixel has four values; the limits are 8, 16, 256 and 65,536 values."""
    check(np.ones((1, length), bool))
    check(np.pad(np.ones((1, length), bool), ((0, 0), (7, 50))))


def test_a_radiograph_and_a_view_that_is_not_contiguous() -> None:
    mask = phantom(3, (300, 260))[1]["Lung"]
    check(mask)
    check(mask[::-1, ::2])
