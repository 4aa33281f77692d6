"""Detects text burnt into the pixels: a simple search for lines of glyphs near the borders; a warning, not a proof.

Overlays of scanners and secondary captures are letters of one gray value, brighter or darker than their surroundings,
in lines along the edges. The detector searches the outer third of the picture for small connected components of
uniform gray with high contrast, four or more of similar height side by side on one line.

It misses handwriting and lead letters on films (single, blurred), text across the middle, text of low contrast, text
lower than about 7 pixels or higher than a twelfth of the picture, and scripts with connected letters. Occasional
false positives: scales, rulers, rows of markers, rows of small bright spots of bone or metal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

LETTERS = 4  # minimum number of letters side by side
LEAST, MOST = 6, 64  # height of a letter in pixels
BORDER = 0.33  # width of the searched border, as a share of the picture's height and width
CONTRAST = 70  # minimum difference of a letter from its surroundings, in gray values
EVEN = 26  # maximum difference of letters in one line, in gray values
SIDE = 1024  # larger pictures are scaled down to this many pixels first


@dataclass(frozen=True)
class Line:
    """A line of glyphs: its bounding box in pixels, and the number of glyphs."""

    left: int
    top: int
    right: int
    bottom: int
    glyphs: int

    def scaled(self, by: float) -> Line:
        """The same line in a picture `by` times as large."""
        left, top, right, bottom = (round(edge * by) for edge in (self.left, self.top, self.right, self.bottom))
        return Line(left, top, right, bottom, self.glyphs)


def has_text(picture: NDArray[np.uint8]) -> bool:
    """Whether text seems to be burnt into a picture (H, W) or (H, W, 3) RGB."""
    return bool(text_lines(picture))


def text_lines(picture: NDArray[np.uint8]) -> list[Line]:
    """The lines of text that seem to be burnt into a picture (H, W) or (H, W, 3) RGB, in its pixels."""
    gray = np.ascontiguousarray(picture if picture.ndim == 2 else picture.max(axis=2))
    height, width = gray.shape
    if min(height, width) < 4 * LEAST:
        return []
    scale = max(1.0, max(height, width) / SIDE)
    if scale > 1:
        gray = _as_gray(cv2.resize(gray, (round(width / scale), round(height / scale)), interpolation=cv2.INTER_AREA))
    found = _lines(gray) or _lines(_as_gray(cv2.bitwise_not(gray)))
    return [line.scaled(scale) for line in found]


def _as_gray(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(pixels, np.uint8)


def _lines(gray: NDArray[np.uint8]) -> list[Line]:
    height, width = gray.shape
    # keeps bright structures that are thinner than the kernel: the strokes of letters are a few pixels wide
    stroke = max(9, int(min(height, width) / 48) | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (stroke, stroke))
    hat = cv2.morphologyEx(gray, cv2.MORPH_TOPHAT, kernel)
    strokes = (hat >= CONTRAST).astype(np.uint8)
    inner = int(height * BORDER), int(width * BORDER)
    strokes[inner[0] : height - inner[0], inner[1] : width - inner[1]] = 0
    count, _, stats, _ = cv2.connectedComponentsWithStats(strokes, connectivity=8)
    if not 1 + LETTERS <= count <= 4000:
        return []  # a picture full of specks has no readable text
    tallest = min(MOST, height // 12)
    glyphs = []
    for left, top, wide, high, area in stats[1:].tolist():
        if not LEAST <= high <= tallest or wide > 1.6 * high or wide < 1 or area < 0.12 * wide * high or area < 5:
            continue
        if left == 0 or top == 0 or left + wide == width or top + high == height:
            continue
        inside = strokes[top : top + high, left : left + wide] > 0
        bright = gray[top : top + high, left : left + wide][inside]
        glyphs.append((left, top, wide, high, float(np.percentile(bright, 90))))
    return _rows(glyphs)


def _rows(glyphs: list[tuple[int, int, int, int, float]]) -> list[Line]:
    """Glyphs of similar height and gray, side by side on one line."""
    lines: list[list[tuple[int, int, int, int, float]]] = []
    for glyph in sorted(glyphs):
        left, top, _, high, level = glyph
        for line in reversed(lines):
            before = line[-1]
            gap = left - (before[0] + before[2])
            tall = max(high, before[3])
            feet = abs((top + high) - (before[1] + before[3]))
            if (
                -0.3 * tall <= gap <= 1.1 * tall
                and feet <= max(1.0, 0.2 * tall)
                and min(high, before[3]) >= 0.6 * tall
                and abs(level - before[4]) <= EVEN
            ):
                line.append(glyph)
                break
        else:
            lines.append([glyph])
    found = []
    for line in lines:
        if len(line) >= LETTERS and _letters(line):
            right = max(g[0] + g[2] for g in line)
            found.append(Line(line[0][0], min(g[1] for g in line), right, max(g[1] + g[3] for g in line), len(line)))
    return found


def _letters(line: list[tuple[int, int, int, int, float]]) -> bool:
    """Whether these are letters, which differ in width, and not the marks of a scale, which are equal bars."""
    widths = [g[2] for g in line]
    bars = sum(wide <= 0.25 * high for _, _, wide, high, _ in line)
    return bars <= len(line) / 2 and len(set(widths)) > 1
