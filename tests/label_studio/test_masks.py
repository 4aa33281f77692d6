"""Label Studio's regions to label maps and back."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk.converter import brush

from backend.errors import UnknownLabels, UnreadableMask
from backend.label_config import LabelConfig, Renames, Tag
from backend.label_studio.drawing import draw_mask
from backend.label_studio.masks import read_mask
from backend.label_studio.raster import encode_brush

ODD = 'Lung "left" <b>&amp;</b> 肺'
BRUSH = Tag("brush tag", "brush", "img", ("Lung", ODD))
POLYGON = Tag("pol", "polygon", "img", ("Heart",))
CONFIG = LabelConfig("image", (BRUSH, POLYGON))
H, W = 60, 80


def disc(y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:H, :W]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def labelmap() -> np.ndarray:
    mask = np.zeros((H, W), np.uint8)
    mask[disc(20, 20, 12)] = 1
    mask[disc(30, 60, 10)] = 2
    mask[disc(48, 25, 9)] = 3
    return mask


def region(**changes: Any) -> dict[str, Any]:
    value = {"format": "rle", "rle": encode_brush(disc(20, 20, 12)), "brushlabels": ["Lung"]}
    base = {"type": "brushlabels", "original_width": W, "original_height": H, "value": value}
    return base | changes


def test_brush_labels_are_read_back_exactly_and_polygons_nearly() -> None:
    mask = labelmap()
    result = draw_mask(mask, CONFIG.labels, CONFIG, "scanqueue-r3")
    assert [r["type"] for r in result] == ["brushlabels", "brushlabels", "polygonlabels"]
    assert [r["from_name"] for r in result] == ["brush tag", "brush tag", "pol"]
    assert result[1]["value"]["brushlabels"] == [ODD]
    back, remarks = read_mask(result, CONFIG, H, W)
    assert remarks == []
    assert np.array_equal(back == 1, mask == 1)
    assert np.array_equal(back == 2, mask == 2)
    union = ((back == 3) | (mask == 3)).sum()
    assert ((back == 3) & (mask == 3)).sum() / union > 0.9


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_brush_mask_of_any_size_decodes_to_itself(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    decoded = np.reshape(brush.decode_rle(encode_brush(mask)), (height, width, 4))[:, :, 3]
    assert np.array_equal(decoded, mask * 255)


def test_the_same_mask_gets_the_same_region_ids() -> None:
    first, second = (draw_mask(labelmap(), CONFIG.labels, CONFIG, "scanqueue-r3") for _ in range(2))
    assert first == second


def test_region_ids_are_unique_and_name_what_drew_them() -> None:
    """Nobody else may draw a region with the id of a predicted one."""
    mask = labelmap()
    first, other = ([r["id"] for r in draw_mask(mask, CONFIG.labels, CONFIG, origin)] for origin in ("r1:a", "r1:b"))
    assert len({UUID(found) for found in [*first, *other]}) == 2 * len(first) == 6


def test_labels_removed_from_the_config_are_not_written() -> None:
    config = LabelConfig("image", (Tag("brush tag", "brush", "img", ("Lung",)),))
    assert [r["value"]["brushlabels"] for r in draw_mask(labelmap(), CONFIG.labels, config, "v")] == [["Lung"]]


def test_an_annotation_without_regions_is_all_background() -> None:
    mask, remarks = read_mask([], CONFIG, H, W)
    assert mask.shape == (H, W)
    assert not mask.any()
    assert remarks == []


def test_a_region_with_a_removed_label_makes_the_annotation_a_problem() -> None:
    gone = region(value={"format": "rle", "rle": encode_brush(disc(30, 60, 9)), "brushlabels": ["Spleen"]})
    with pytest.raises(
        UnknownLabels, match="region 2 has the label 'Spleen', which the label config does not have"
    ) as error:
        read_mask([region(), gone], CONFIG, H, W)
    assert error.value.labels == ("Spleen",)


def test_a_renamed_label_counts_and_one_no_longer_used_is_left_out_with_a_remark() -> None:
    old = region(value={"format": "rle", "rle": encode_brush(disc(30, 60, 9)), "brushlabels": ["Left lung"]})
    renames = Renames(("Left lung",), {"Left lung": "L", "L": "Lung"})
    mask, remarks = read_mask([old], CONFIG, H, W, renames)
    assert np.array_equal(mask == 1, disc(30, 60, 9))
    assert remarks == []
    mask, remarks = read_mask([old], CONFIG, H, W, Renames(("Left lung",), {"Left lung": ""}))
    assert not mask.any()
    assert remarks == ["region 1 was left out: the label 'Left lung' is no longer used."]


@pytest.mark.parametrize(
    "changes",
    [
        {"original_width": 999, "original_height": 7},
        {"original_width": str(W)},
        {"original_width": None},
    ],
)
def test_a_region_drawn_at_another_size_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnreadableMask, match=r"region 1 \('Lung'\) was drawn on .* but the image has 80 x 60"):
        read_mask([region(**changes)], CONFIG, H, W)


GOOD = encode_brush(disc(20, 20, 12))


@pytest.mark.parametrize(
    "rle",
    [
        None,
        "abc",
        [],
        [0, 0, 0, 8, 11, 0, 0, 0, 0],
        [255, 255, 255, 255, *GOOD[4:]],  # claims four billion values
        GOOD[: len(GOOD) // 2],
        [-1, *GOOD[1:]],
        [1.5, *GOOD[1:]],
        encode_brush(np.ones((H, W + 1), bool)),
    ],
    ids=["none", "text", "empty", "tiny", "bomb", "cut", "negative", "float", "other size"],
)
def test_run_lengths_that_do_not_fit_are_refused_with_advice(rle: Any) -> None:
    value = {"format": "rle", "rle": rle, "brushlabels": ["Lung"]}
    with pytest.raises(UnreadableMask) as error:
        read_mask([region(value=value)], CONFIG, H, W)
    assert str(error.value) == (
        "region 1 ('Lung') has a brush mask that does not fit its 80 x 60 pixels. Restore it from where it was "
        "imported or exported; if it was damaged in Label Studio, draw it again."
    )


def test_a_polygon_with_two_points_is_refused() -> None:
    value = {"points": [[1, 1], [5, 5]], "closed": True, "polygonlabels": ["Heart"]}
    with pytest.raises(UnreadableMask, match=r"region 2 \('Heart'\): .*"):
        read_mask([region(), region(type="polygonlabels", value=value)], CONFIG, H, W)


def test_where_regions_overlap_the_later_one_wins() -> None:
    over = region(value={"format": "rle", "rle": encode_brush(disc(20, 24, 12)), "brushlabels": [ODD]})
    mask, _ = read_mask([region(), over], CONFIG, H, W)
    assert np.array_equal(mask == 2, disc(20, 24, 12))
    assert np.array_equal(mask == 1, disc(20, 20, 12) & ~disc(20, 24, 12))
