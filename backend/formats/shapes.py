"""Rectangles and ellipses as masks, and masks as rectangles and ellipses, in percent of the image as in Label Studio.

Angles are in degrees, clockwise on the screen. A rectangle turns about its corner (x, y), an ellipse about its centre;
both turn in pixels, not in percent, so that right angles stay right on an image that is not square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableMask
from backend.formats.pixels import polygon_to_mask

Mask = NDArray[np.bool_]


def rectangle_to_mask(value: Mapping[str, Any], height: int, width: int) -> Mask:
    """The pixels (height, width) whose centre is inside {x, y, width, height, rotation}; (x, y) is a corner.

    Raises UnreadableMask on values that are not finite numbers.
    """
    x, y, wide, high, turn = _numbers(value, "rectangle", "x", "y", "width", "height")
    across = wide * width / 100 * np.array([math.cos(turn), math.sin(turn)])
    down = high * height / 100 * np.array([-math.sin(turn), math.cos(turn)])
    corner = np.array([x * width / 100, y * height / 100])
    corners = np.array([corner, corner + across, corner + across + down, corner + down])
    return polygon_to_mask(corners * (100 / width, 100 / height), height, width)


def ellipse_to_mask(value: Mapping[str, Any], height: int, width: int) -> Mask:
    """The pixels (height, width) whose centre is inside {x, y, radiusX, radiusY, rotation}; (x, y) is the centre.

    Raises UnreadableMask on values that are not finite numbers.
    """
    x, y, across, down, turn = _numbers(value, "ellipse", "x", "y", "radiusX", "radiusY")
    columns = np.arange(width) + 0.5 - x * width / 100
    rows = (np.arange(height) + 0.5 - y * height / 100)[:, None]
    along = (columns * math.cos(turn) + rows * math.sin(turn)) * (down * height / 100)
    beside = (rows * math.cos(turn) - columns * math.sin(turn)) * (across * width / 100)
    limit = (across * width / 100) * (down * height / 100)
    return np.asarray((along**2 + beside**2 <= limit**2) & (limit != 0))


def full_area(kind: str, value: Mapping[str, Any], height: int, width: int) -> float:
    """The area in pixels of a readable "rectangle", "ellipse" or "polygon", including what is outside the image.

    For a polygon whose outline crosses itself, it may be less.
    """
    if kind == "polygon":
        x, y = np.clip(np.asarray(value["points"], np.float64), -1e6, 1e6).T
        percent = abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2
    else:
        sides = ("radiusX", "radiusY") if kind == "ellipse" else ("width", "height")
        across, down, _ = _numbers(value, kind, *sides)
        percent = abs(across * down) * (math.pi if kind == "ellipse" else 1)
    return percent * height * width / 10**4


def _numbers(value: Mapping[str, Any], what: str, *names: str) -> tuple[float, ...]:
    """The values of these names, and the rotation in radians."""
    found = [value.get(name) for name in names] + [value.get("rotation") or 0]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < math.inf for n in found):
        raise UnreadableMask(f"{what} needs finite numbers for {', '.join(names)} and rotation, got {str(found)[:120]}")
    *rest, turn = (float(min(max(n, -1e6), 1e6)) for n in found if n is not None)
    return (*rest, math.radians(turn))


def mask_to_rectangles(mask: Mask) -> list[dict[str, float]]:
    """The upright bounding box of each connected component (8-neighbourhood), largest component first."""
    height, width = mask.shape
    return [
        {
            "x": left * 100 / width,
            "y": top * 100 / height,
            "width": wide * 100 / width,
            "height": high * 100 / height,
            "rotation": 0,
        }
        for left, top, wide, high in (part[1] for part in _components(mask))
    ]


def mask_to_ellipses(mask: Mask) -> list[dict[str, float]]:
    """The ellipse with the same area, centre and second moments as each connected component, largest first."""
    height, width = mask.shape
    found = []
    for inside, (left, top, _, _) in _components(mask):
        rows, columns = np.nonzero(inside)
        x, y = columns.mean() + left + 0.5, rows.mean() + top + 0.5
        spread = np.cov(np.stack([columns, rows]), bias=True) + np.eye(2) / 12  # a pixel is a square, not a point
        sizes, axes = np.linalg.eigh(spread)
        long, short = 2 * np.sqrt(sizes[::-1])
        scale = math.sqrt(len(rows) / (math.pi * long * short))
        turn = math.degrees(math.atan2(axes[1, 1], axes[0, 1])) % 180
        radii = {"radiusX": long * scale * 100 / width, "radiusY": short * scale * 100 / height}
        found.append({"x": x * 100 / width, "y": y * 100 / height, **radii, "rotation": turn})
    return [{k: float(v) for k, v in one.items()} for one in found]


def _components(mask: Mask) -> list[tuple[Mask, tuple[int, int, int, int]]]:
    """Each connected component in its bounding box (left, top, width, height), largest first."""
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    parts = sorted(range(1, count), key=lambda n: -stats[n, cv2.CC_STAT_AREA])
    boxes = [(n, [int(v) for v in stats[n, :4]]) for n in parts]
    return [(numbers[t : t + h, x : x + w] == n, (x, t, w, h)) for n, (x, t, w, h) in boxes]
