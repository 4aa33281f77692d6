"""Outlines of masks, as programs for radiotherapy find them."""

from __future__ import annotations

import contourpy
import cv2
import numpy as np
from numpy.typing import NDArray


def corner_outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Outlines through the centres of the outermost pixels, holes too, as OpenCV (and so rt-utils) finds them."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [points[:, 0].astype(np.float64) for points in found]


def half_way_outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Outlines half-way between pixels, as 3D Slicer and others draw them (marching squares)."""
    padded = np.pad(mask, 1).astype(np.float64)
    return [line - 1 for line in contourpy.contour_generator(z=padded).lines(0.5)]
