"""Simulated people who correct masks with clicks, for training and for measurements."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Point = tuple[float, float]  # (row, column) in pixels

NETWORK, SCRIBBLES, PATHS = "network", "scribbleprompt", "geodesic"
SAM, SAM2, MEDSAM, MOBILESAM = "sam", "sam2", "medsam", "mobilesam"
SAMS = (SAM2, SAM, MEDSAM, MOBILESAM)
SAM_SIDE = 1024  # pixels of the square that they were trained on
PUBLISHED = (SCRIBBLES, *SAMS)  # networks that a lab may have
TOOLS = (NETWORK, *PUBLISHED, PATHS)  # what draws masks from clicks; of equally good ones, the first is used
UNCOMPARED = (SCRIBBLES, SAM2, SAM, PATHS)  # those that may answer before they were compared on held-out scans


def best_tool(compared: Mapping[str, Any], tools: Collection[str] = TOOLS) -> str:
    """Which of these tools draws the best masks from blank, by their mean Dice on held-out scans."""
    return max((name for name in TOOLS if name in compared and name in tools), key=lambda name: float(compared[name]))


def next_click(mask: Mask, truth: Mask) -> tuple[bool, Point] | None:
    """Whether the next click is inside the finding, and where: in the middle of the largest error; None without one.

    The largest is the one with the widest inscribed circle (Sofiiuk et al. 2022).
    """
    places = []
    for inside, error in ((True, truth & ~mask), (False, mask & ~truth)):
        far = cv2.distanceTransform(np.pad(error.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        row, column = np.unravel_index(int(far.argmax()), far.shape)
        places.append((float(far.max()), inside, (row + 0.5, column + 0.5)))
    widest, inside, at = max(places)
    return (inside, at) if widest > 0 else None


def dice(one: Mask, other: Mask) -> float:
    """Dice of two masks, 0..1; 0 if both are empty."""
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))
