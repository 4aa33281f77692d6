"""Brush regions of a draft: Label Studio saves strokes as points there, and as pixels only on Submit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.label_studio.raster import decode_bitmask, decode_brush, encode_brush

STROKES = 2_000  # of one region that are painted; a person draws fewer
PARTS = 16  # parts of a pixel in which OpenCV takes coordinates: 2 ** SHIFT
SHIFT = 4


def painted(region: Mapping[str, Any], height: int, width: int) -> Mapping[str, Any]:
    """The region with its strokes painted into its run lengths; as it is, if it has none.

    Adding and erasing strokes follow each other on the pixels that the region had when it was opened. Raises
    ValueError if those are damaged; strokes that cannot be read are left out.
    """
    value = region.get("value")
    if not isinstance(value, Mapping) or not (value.get("touches") or value.get("maskDataURL")):
        return region
    canvas = _opened(value, height, width).astype(np.uint8)
    strokes = value.get("touches")
    for stroke in strokes[:STROKES] if isinstance(strokes, list) else ():
        if isinstance(stroke, Mapping):
            _paint(canvas, stroke, height, width)
    kept = {key: one for key, one in value.items() if key not in ("touches", "maskDataURL")}
    return {**region, "value": {**kept, "format": "rle", "rle": encode_brush(canvas > 0)}}


def _opened(value: Mapping[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    if value.get("maskDataURL"):  # of the magic wand
        return decode_bitmask(str(value["maskDataURL"]), height, width)
    rle = value.get("rle")
    if not isinstance(rle, list):
        return np.zeros((height, width), bool)
    try:
        return decode_brush(bytes(rle), height, width)
    except TypeError:
        raise ValueError("run lengths that are no bytes") from None


def _paint(canvas: NDArray[np.uint8], stroke: Mapping[str, Any], height: int, width: int) -> None:
    """Paint a stroke: points in percent of the image, and a width in percent of its width, with round ends."""
    points, across = stroke.get("relativePoints"), stroke.get("relativeStrokeWidth")
    if not isinstance(points, list) or len(points) < 2 or not all(_sane(one) for one in [*points, across]):
        return
    path = np.array(points[: len(points) // 2 * 2], np.float64).reshape(-1, 2) * (width / 100, height / 100)
    places = np.rint((path - 0.5) * PARTS).astype(np.int32)
    thick = max(1, round(min(float(across or 0), 100.0) * width / 100))
    value = 0 if stroke.get("type") == "eraser" else 1
    cv2.polylines(canvas, [places], False, value, thick, cv2.LINE_8, SHIFT)


def _sane(number: Any) -> bool:
    """Whether it is a number that a place near the image can have."""
    return isinstance(number, int | float) and abs(number) <= 1000  # false for NaN
