"""Scans, masks and differences as pictures. Pure.

The colours of differences suit colour-blind readers (Okabe & Ito 2008). Every outline has a halo, so that it stands out
on black and on white.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.formats.pixels import Letterboxed, classes_in

# differences: labelled by the first model only, by the second only, differently by both; outline of the agreement
ONLY_FIRST, ONLY_SECOND, OTHER_LABEL, BOTH = "#0072B2", "#E69F00", "#CC79A7", "#FFFFFF"
HALO, LIGHT_HALO = "#101010", "#F0F0F0"
DARK = 70  # luma, 0..255, of a colour that cannot be seen in a dark halo

Map = NDArray[np.uint8]  # a label map (H, W), or pixels (H, W) or (H, W, 3)


def thumbnail(box: Letterboxed, side: int) -> Map:
    """The scan without padding, its longer side `side` pixels: (h, w) or (h, w, 3) RGB."""
    scale = side / max(box.original_height, box.original_width)
    height, width = (max(1, round(n * scale)) for n in (box.original_height, box.original_width))
    inner = np.ascontiguousarray(box.pixels[box.content])
    shrinking = height * width < inner.shape[0] * inner.shape[1]
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(inner, (width, height), interpolation=method), dtype=np.uint8)


def shrink(labels: Map, height: int, width: int) -> Map:
    """A label map at another size (nearest neighbour); areas too small to be sampled are kept as well."""
    small = np.asarray(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)
    if height * width >= labels.size:
        return small
    for number in classes_in(labels):
        share = cv2.resize((labels == number).view(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
        count, pieces = cv2.connectedComponents((share > 0).view(np.uint8))
        lost = np.ones(count, np.bool_)
        lost[0] = False
        lost[pieces[small == number]] = False
        small[lost[pieces]] = number
    return small


def outlined(picture: Map, labels: Map, colours: Sequence[str]) -> Map:
    """(h, w, 3): the picture with class n outlined in colours[n - 1]. Halos come first, so that they hide no colour."""
    return _traced(_colour(picture), [(labels == n, colours[(n - 1) % len(colours)]) for n in classes_in(labels)])


def _traced(picture: Map, areas: Sequence[tuple[NDArray[np.bool_], str]]) -> Map:
    """Draw the outline of each area in its colour, with a halo of at least one pixel, into `picture`; returns it."""
    longest = max(picture.shape[:2])
    width = 1 + (longest >= 200) + (longest >= 600)
    lines = []
    for area, colour in areas:
        contours, _ = cv2.findContours(area.view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        line = cv2.drawContours(np.zeros(area.shape, np.uint8), contours, -1, 1)
        lines.append((_wider(line, width), colour))
    for line, colour in lines:
        picture[_wider(line, 2 * ((width + 1) // 2) + 1) > 0] = _rgb(_halo(colour))
    for line, colour in lines:
        picture[line > 0] = _rgb(colour)
    return picture


def _halo(colour: str) -> str:
    """Dark around a light colour, light around a dark one."""
    red, green, blue = _rgb(colour)
    return HALO if 0.299 * red + 0.587 * green + 0.114 * blue >= DARK else LIGHT_HALO


def _wider(line: Any, size: int) -> Any:
    return cv2.dilate(line, np.ones((size, size), np.uint8))


def difference_picture(picture: Map, one: Map, other: Map) -> Map:
    """(h, w, 3): two masks: differences filled, agreement outlined. They are compared at original size."""
    height, width = picture.shape[:2]
    kinds = np.zeros(one.shape, np.uint8)
    kinds[(one > 0) & (other == 0)] = 1
    kinds[(one == 0) & (other > 0)] = 2
    kinds[(one > 0) & (other > 0) & (one != other)] = 3
    kinds = shrink(kinds, height, width)
    agreement = shrink(np.where(one == other, one, 0).astype(np.uint8), height, width)
    agreement[kinds > 0] = 0
    grey = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    answer = _traced(_colour(np.asarray(grey, dtype=np.uint8)), [(agreement == n, BOTH) for n in classes_in(agreement)])
    for kind, colour in enumerate((ONLY_FIRST, ONLY_SECOND, OTHER_LABEL), start=1):
        answer[kinds == kind] = _rgb(colour)
    return answer


def _colour(picture: Map) -> Map:
    """A copy with three channels."""
    if picture.ndim == 3:
        return picture.copy()
    return np.repeat(picture[..., None], 3, axis=2)


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def encode_png(picture: Map) -> bytes:
    ordered = np.ascontiguousarray(picture[..., ::-1]) if picture.ndim == 3 else picture  # OpenCV writes BGR
    done, data = cv2.imencode(".png", ordered)
    if not done:
        raise ValueError(f"no PNG of {picture.shape}")
    return bytes(data)
