"""Label maps fitted into a network's square, without losing findings that are smaller than its pixels.

A *finding* is a connected component (8-neighbourhood) of a label.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.formats.pixels import IGNORE, box_of, classes_in, resized


def letterbox_mask(labelmap: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Fit a label map into a square exactly as `letterbox` fits its scan; padding becomes IGNORE.

    Every pixel gets the class that covers most of its area; in a tie, the lower number. A finding that would vanish
    keeps the pixel that contains most of it, unless that is the only pixel of another label's finding.

    labelmap  (H, W) uint8; not modified
    Returns (size, size) uint8. Raises ValueError on any other shape or type.
    """
    best = _mostly(labelmap, size)
    only = _single(best)
    for number, pixels in _vanished(labelmap, best):
        free = pixels[~only.flat[pixels]]
        best.flat[free] = number
        only.flat[free] = True
    top, left, height, width = box_of(labelmap.shape[0], labelmap.shape[1], size)
    square = np.full((size, size), IGNORE, np.uint8)
    square[top : top + height, left : left + width] = best
    return square


def smaller_than_a_pixel(labelmap: NDArray[np.uint8], size: int) -> int:
    """The number of findings that do not cover most of any pixel in a square of this size."""
    if max(labelmap.shape) <= size:
        return 0
    return sum(len(pixels) for _, pixels in _vanished(labelmap, _mostly(labelmap, size)))


def finding_sizes(labelmap: NDArray[np.uint8]) -> dict[int, float]:
    """For each label drawn, its largest finding: the side of a square of its area / the longest side of the picture.

    The largest, because a stroke of a brush often leaves specks beside the intended area.
    """
    found = {}
    for number in classes_in(labelmap):
        _, _, rows, _ = cv2.connectedComponentsWithStats((labelmap == number).view(np.uint8), connectivity=8)
        found[number] = math.sqrt(rows[1:, cv2.CC_STAT_AREA].max()) / max(labelmap.shape)
    return found


def _mostly(labelmap: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The class that covers most of each pixel of the content box."""
    if labelmap.dtype != np.uint8 or labelmap.ndim != 2:
        raise ValueError(f"letterbox_mask expects (H, W) uint8, got {labelmap.shape} {labelmap.dtype}")
    _, _, height, width = box_of(labelmap.shape[0], labelmap.shape[1], size)
    present = np.flatnonzero(np.bincount(labelmap.ravel(), minlength=256))
    best = np.full((height, width), present[0], np.uint8)
    if len(present) > 1:
        most = resized((labelmap == present[0]).astype(np.float32), height, width)
        for value in present[1:]:
            share = resized((labelmap == value).astype(np.float32), height, width)
            best[share > most] = value
            most = np.maximum(most, share)
    return best


def _vanished(labelmap: NDArray[np.uint8], best: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """(label, for each of its vanished findings the flat index into `best` of the pixel that most of it lies in)."""
    if best.shape[0] >= labelmap.shape[0] and best.shape[1] >= labelmap.shape[1]:
        return
    down, across = (
        ((np.arange(there) + 0.5) * here / there).astype(np.intp)
        for here, there in zip(best.shape, labelmap.shape, strict=True)
    )
    kept = best[down][:, across] == labelmap
    for number in classes_in(labelmap):
        drawn = labelmap == number
        n, findings = cv2.connectedComponents(drawn.view(np.uint8), connectivity=8)
        lost = np.ones(n, bool)
        lost[0] = False
        lost[findings[kept & drawn]] = False
        rows, columns = np.nonzero(lost[findings])
        if not len(rows):
            continue
        of, pixels = findings[rows, columns], down[rows] * best.shape[1] + across[columns]
        pairs, counts = np.unique(of.astype(np.intp) * best.size + pixels, return_counts=True)
        finding, pixel = np.divmod(pairs, best.size)
        order = np.lexsort((counts, finding))
        most = order[np.flatnonzero(np.diff(finding[order], append=-1))]  # of each finding, the pixel with most of it
        yield number, pixel[most]


def _single(labelmap: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The pixels that are a whole finding."""
    found = np.zeros(labelmap.shape, bool)
    for number in classes_in(labelmap):
        _, findings, rows, _ = cv2.connectedComponentsWithStats((labelmap == number).view(np.uint8), connectivity=8)
        found |= (rows[:, cv2.CC_STAT_AREA] == 1)[findings] & (findings > 0)
    return found
