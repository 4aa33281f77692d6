"""The pixels within the outlines of one structure on one slice, as planning systems draw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.errors import UnreadableFile, UnreadableMask
from backend.formats.pixels import CROSSINGS, polygon_to_mask

_ON_EDGE = 1e-3  # pixels
_MAX_WORK = 10**10  # pixels that are compared to find holes: half a minute
_TOO_LONG = "has an outline that crosses the picture millions of times; save it as DICOM SEG or NIfTI"

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]  # (n, 2): columns and rows from the corner of the picture


def filled(path: Path, outlines: Sequence[Points], rows: int, columns: int) -> Mask:
    """The pixels whose centre is inside or on the outlines; those within others are holes, and so on.

    Raises UnreadableFile if the outlines are too complicated.
    """
    found = np.zeros((rows, columns), np.bool_)
    drawn: list[Mask] = []
    boxes = np.zeros((len(outlines), 4), np.int64)  # of `drawn`: top, left, bottom, right
    work = 0
    for points in sorted(outlines, key=lambda points: -_area(points)):
        left, top = np.clip(np.floor(points.min(0)) - 1, 0, (columns, rows)).astype(int)
        right, bottom = np.clip(np.ceil(points.max(0)) + 1, 0, (columns, rows)).astype(int)
        if right <= left or bottom <= top:
            continue
        inside, edge = _inside(path, points - (left, top), bottom - top, right - left)
        here = inside | edge
        if not here.any():
            continue
        known = boxes[: len(drawn)]
        around = (known[:, :2] <= (top, left)).all(1) & (known[:, 2:] >= (bottom, right)).all(1)
        work += int(around.sum()) * here.size
        if work > _MAX_WORK:
            raise UnreadableFile(
                path, "has too many outlines within others on one slice; save it as DICOM SEG or NIfTI"
            )
        depth = 0
        for n in np.flatnonzero(around):
            y, x = boxes[n, :2]
            depth += not (here & ~drawn[n][top - y : bottom - y, left - x : right - x]).any()
        view = found[top:bottom, left:right]
        if depth % 2:
            view &= ~(inside & ~edge)
        else:
            view |= here
        boxes[len(drawn)] = top, left, bottom, right
        drawn.append(here)
    return found


def _inside(path: Path, points: Points, rows: int, columns: int) -> tuple[Mask, Mask]:
    """The pixels whose centre is within one outline, and those whose centre is on it."""
    inside: Mask = np.zeros((rows, columns), np.bool_)
    if len(points) > 2:
        try:
            inside = polygon_to_mask(points * (100 / columns, 100 / rows), rows, columns)
        except UnreadableMask as error:
            raise UnreadableFile(path, _TOO_LONG) from error
    return inside, _on_edge(path, points, rows, columns)


def _area(points: Points) -> float:
    x, y = points.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


def _on_edge(path: Path, points: Points, rows: int, columns: int) -> Mask:
    """The pixels whose centre is on an outline: the places where its edges cross the middle of a row or column."""
    found = np.zeros((rows, columns), np.bool_)
    for flat in (False, True):
        start = points[:, ::-1] if flat else points  # (x, y), or exchanged for edges that are more flat than steep
        along = np.roll(start, -1, axis=0) - start
        chosen = np.abs(along[:, 0]) < np.abs(along[:, 1]) if flat else np.abs(along[:, 0]) <= np.abs(along[:, 1])
        start, along = start[chosen], along[chosen]
        ends = np.stack([start[:, 1], start[:, 1] + along[:, 1]])
        size = columns if flat else rows
        first = np.clip(np.ceil(ends.min(0) - 0.5 - _ON_EDGE), 0, size).astype(np.int64)
        last = np.clip(np.floor(ends.max(0) - 0.5 + _ON_EDGE) + 1, 0, size).astype(np.int64)
        counts = np.maximum(last - first, 0)
        if counts.sum() > CROSSINGS:
            raise UnreadableFile(path, _TOO_LONG)
        edge = np.repeat(np.arange(len(start)), counts)
        line = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        steep = along[edge, 1]
        share = np.divide(line + 0.5 - start[edge, 1], steep, out=np.zeros(len(edge)), where=steep != 0)
        across = start[edge, 0] + np.clip(share, 0, 1) * along[edge, 0] - 0.5
        other = np.rint(across)
        near = (np.abs(across - other) <= _ON_EDGE) & (other >= 0) & (other < (rows if flat else columns))
        line, other = line[near], other[near].astype(np.int64)
        if flat:
            found[other, line] = True
        else:
            found[line, other] = True
    return found
