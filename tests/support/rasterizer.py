"""A slow, obvious way from an annotation to a label map: every pixel is asked whether each region contains it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from label_studio_sdk.converter import brush
from numpy.typing import NDArray
from PIL import Image

Pixel = tuple[int, int]


def pixels_of(kind: str, value: Mapping[str, Any], height: int, width: int) -> set[Pixel]:
    """The pixels (row, column) of one region."""
    if kind == "brush":
        alpha = np.reshape(brush.decode_rle(value["rle"]), (height, width, 4))[:, :, 3]
        return {(r, c) for r in range(height) for c in range(width) if alpha[r, c]}
    if kind == "bitmask":
        image = Image.open(io.BytesIO(base64.b64decode(value["imageDataURL"].split(",")[1]))).convert("RGBA")
        return {(r, c) for r in range(height) for c in range(width) if image.getpixel((c, r))[3]}  # type: ignore[index]
    inside = {"polygon": _in_polygon, "rectangle": _in_rectangle, "ellipse": _in_ellipse}[kind]
    return {(r, c) for r in range(height) for c in range(width) if inside(value, c + 0.5, r + 0.5, height, width)}


def _in_polygon(value: Mapping[str, Any], x: float, y: float, height: int, width: int) -> bool:
    """Walk around the outline and add up the angles: a full turn or more means inside."""
    corners = [(px * width / 100 - x, py * height / 100 - y) for px, py in value["points"]]
    turned = 0.0
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        turned += math.atan2(ax * by - ay * bx, ax * bx + ay * by)
    return abs(turned) > math.pi


def _turned_back(value: Mapping[str, Any], x: float, y: float, height: int, width: int) -> tuple[float, float]:
    """The point as seen from the shape's own place, before it was rotated."""
    angle = -math.radians(value["rotation"])
    dx, dy = x - value["x"] * width / 100, y - value["y"] * height / 100
    return dx * math.cos(angle) - dy * math.sin(angle), dx * math.sin(angle) + dy * math.cos(angle)


def _in_rectangle(value: Mapping[str, Any], x: float, y: float, height: int, width: int) -> bool:
    right, down = _turned_back(value, x, y, height, width)
    return 0 <= right <= value["width"] * width / 100 and 0 <= down <= value["height"] * height / 100


def _in_ellipse(value: Mapping[str, Any], x: float, y: float, height: int, width: int) -> bool:
    right, down = _turned_back(value, x, y, height, width)
    return (right / (value["radiusX"] * width / 100)) ** 2 + (down / (value["radiusY"] * height / 100)) ** 2 <= 1


def painted(
    regions: Sequence[tuple[str, set[Pixel]]], labels: Sequence[str], height: int, width: int
) -> NDArray[np.uint8]:
    """The label map of (label, pixels) in the order in which they were drawn."""
    canvas: dict[Pixel, int] = {}
    for number, (_, pixels) in enumerate(regions):
        canvas.update(dict.fromkeys(pixels, number))

    def hidden(number: int) -> set[Pixel]:
        label, pixels = regions[number]
        return {p for p in pixels if regions[canvas[p]][0] != label}

    buried = []
    for number, (_, pixels) in enumerate(regions):
        over = hidden(number)
        if pixels and len(over) >= 0.95 * len(pixels) and max(len(regions[canvas[p]][1]) for p in over) > len(pixels):
            buried.append(number)
    for number in sorted(buried, key=lambda n: -len(regions[n][1])):
        canvas.update(dict.fromkeys(regions[number][1], number))
    result = np.zeros((height, width), np.uint8)
    for (row, column), number in canvas.items():
        result[row, column] = labels.index(regions[number][0]) + 1
    return result
