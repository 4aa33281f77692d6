"""Images and masks as arrays: decoding, letterboxing, polygons, label maps. NumPy, Pillow and OpenCV only.

H, W: size of a scan in Label Studio; S: side of a network's square input; C: number of classes, background first. A
*label map* contains class numbers: 0 background, 1.. the labels in order, and IGNORE for unknown pixels. Points are
(x, y) in percent of the image, as in Label Studio: (0, 0) is the outer corner of the first pixel, (100, 100) that of
the last.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

from backend.errors import UnreadableMask, UnreadableScan
from backend.formats.browser import foreign, turn

IGNORE = 255
"""Value in a label map for pixels that are neither background nor a label (padding)."""

# Other formats are never tried: EPS would start Ghostscript, and many decoders are old and rarely reviewed.
_FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "JPEG2000", "AVIF")
_SLOW = "bmp_rle"  # decoded by a loop in Python, seconds per megapixel
LARGE = 8_000_000  # pixels; larger images may need gigabytes, so only a few are decoded at a time
BAND = 256  # rows processed at a time
CROSSINGS = 5_000_000  # maximum crossings of a polygon's edges with rows; each needs about 60 bytes
FAR = 1e6  # percent of the image; more distant points are clipped
_LARGE_SLOTS = threading.BoundedSemaphore(2)
_Number = TypeVar("_Number", np.uint8, np.float32)
_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


def decode_image(data: bytes, *, max_pixels: int = 64_000_000) -> NDArray[np.uint8]:
    """Decode an image file into pixels, oriented as in a browser.

    Reads PNG, JPEG, TIFF, GIF, BMP, WebP, JPEG 2000 and AVIF only: 1, 8, 16 and 32 bits, float, palette, alpha, CMYK.
    Gray of more than 8 bits is windowed to the 0.5th..99.5th percentile of the finite values. Transparency is
    composited over black, the colour of our padding. Colour with three equal channels becomes gray. Only the first
    frame or page is read.

    Orientation is applied as in browsers (`browser.turn`): Label Studio's original_width/height and all masks refer to
    the rotated image.

    max_pixels  maximum size, checked in the header before anything is decoded

    Returns (H, W) gray or (H, W, 3) RGB. Raises UnreadableScan if the file is empty, truncated, too large, or not an
    image.
    """
    if not data:
        raise UnreadableScan("the file is empty (0 bytes); upload the scan again")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        count = re.search(r"\d+", str(error))
        size = f" ({int(count[0]):,} pixels)" if count else ""
        raise UnreadableScan(
            f"the image is too large{size}; at most {max_pixels:,} pixels are read. Upload a smaller version"
        ) from error
    except UnidentifiedImageError as error:
        raise UnreadableScan(
            foreign(data) or f"not an image: {len(data):,} bytes of an unknown type. Upload it as PNG or JPEG"
        ) from error
    except Exception as error:  # decoders raise any exception, and a file must not affect other scans
        raise _damaged(data, error) from error
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadableScan(
            f"the image is too large: {width} x {height} = {width * height:,} pixels, "
            f"at most {max_pixels:,} are read. Upload a smaller version"
        )
    if width < 1 or height < 1:
        raise UnreadableScan(f"the image has no pixels ({width} x {height}); upload the scan again")
    if any(tile[0] == _SLOW for tile in getattr(image, "tile", ())):
        raise UnreadableScan("the image is a run-length encoded BMP, which is not supported; save it as PNG")
    with _LARGE_SLOTS if width * height > LARGE else nullcontext():
        try:
            turned = turn(image)
            if getattr(image, "default_image", False):  # an animated PNG begins with its second picture
                image.seek(1)
            image.load()
            return _as_shown(image if turned is None else image.transpose(turned))
        except Exception as error:
            raise _damaged(data, error) from error


def _as_shown(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W) gray or (H, W, 3): windowed to 8 bits, on black, gray where the three channels are equal."""
    if image.mode in _DEEP_MODES:
        return _to_8_bit(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        pixels: NDArray[np.uint8] = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, BAND):  # in bands: the products need twice the bytes
            bottom = min(top + BAND, image.height)
            rgba = np.asarray(image.crop((0, top, image.width, bottom)).convert("RGBA")).astype(np.uint16)
            pixels[top:bottom] = (rgba[..., :3] * rgba[..., 3:] + 127) // 255
    else:
        pixels = np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    if pixels.ndim == 3 and (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    return pixels


def _damaged(data: bytes, error: Exception) -> UnreadableScan:
    return UnreadableScan(
        f"the image is truncated or damaged ({len(data):,} bytes, {type(error).__name__}); upload the scan again"
    )


def _to_8_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Window (H, W) numbers to their 0.5th..99.5th percentile, 0..255. Non-finite values and constants become 0."""
    numbers = values.astype(np.float32)
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.zeros(numbers.shape, np.uint8)
    known = numbers if finite.all() else numbers[finite]
    low, high = np.percentile(known, (0.5, 99.5))
    if high <= low:  # nearly constant: the window is the whole range
        low, high = known.min(), known.max()
    eight_bit = np.zeros(numbers.shape, np.uint8)
    if high <= low:
        return eight_bit
    for top in range(0, len(numbers), BAND):
        rows = slice(top, top + BAND)
        scaled = np.where(finite[rows], (numbers[rows] - low) * (255.0 / (high - low)), 0.0)
        eight_bit[rows] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return eight_bit


@dataclass(frozen=True)
class Letterboxed:
    """A scan fitted into a square: aspect ratio kept, centred, padded with black.

    pixels                           (S, S) or (S, S, 3) uint8
    top, left, height, width         the content box inside the square, in its pixels
    original_height, original_width  the size of the original scan
    """

    pixels: NDArray[np.uint8]
    top: int
    left: int
    height: int
    width: int
    original_height: int
    original_width: int

    @property
    def content(self) -> tuple[slice, slice]:
        """Rows and columns of the content box: `box.pixels[box.content]`."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def box_of(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Top, left, height, width of the content of an (height, width) picture in a square of `size`."""
    if height < 1 or width < 1 or size < 1:
        raise ValueError(f"cannot letterbox {height} x {width} into {size} x {size}: every side must be at least 1")
    scale = size / max(height, width)
    inner_height = min(size, max(1, round(height * scale)))
    inner_width = min(size, max(1, round(width * scale)))
    return (size - inner_height) // 2, (size - inner_width) // 2, inner_height, inner_width


def letterbox(image: NDArray[np.uint8], size: int) -> Letterboxed:
    """Fit a scan into a (size, size) square. Small scans are enlarged, large ones area-averaged.

    image  (H, W) or (H, W, 3) uint8; not modified
    size   side of the square, in pixels

    Raises ValueError on any other shape or type.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"letterbox expects (H, W) or (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    top, left, inner_height, inner_width = box_of(height, width, size)
    square = np.zeros((size, size, *image.shape[2:]), np.uint8)
    square[top : top + inner_height, left : left + inner_width] = resized(image, inner_height, inner_width)
    return Letterboxed(square, top, left, inner_height, inner_width, height, width)


def resized(image: NDArray[_Number], height: int, width: int) -> NDArray[_Number]:
    """The image at another size: bilinear, area-averaged when that has fewer pixels."""
    shrinking = height * width < image.shape[0] * image.shape[1]
    changed = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
    return changed.astype(image.dtype, copy=False)


def restore(probabilities: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """The most likely class of every pixel of the original scan.

    Resizes probabilities, not classes, to the original size (bilinear; area-averaged if that is smaller), so contours
    are smooth and do not follow the network's grid. In a tie, the lower class wins.

    probabilities  (C, h, w), C >= 2, already cropped to the content box; not modified
    height, width  size of the original scan

    Returns (height, width) uint8. Raises ValueError on a wrong shape.
    """
    if probabilities.ndim != 3 or not 2 <= probabilities.shape[0] <= IGNORE or 0 in probabilities.shape:
        raise ValueError(f"restore expects (C, h, w) with 2 <= C <= {IGNORE}, got {probabilities.shape}")
    planes = np.ascontiguousarray(probabilities, dtype=np.float32)
    if len(planes) == 2:  # one resize instead of two
        lead: NDArray[np.float32] = resized(planes[1] - planes[0], height, width)
        return (lead > 0).astype(np.uint8)
    best = np.zeros((height, width), np.uint8)
    most: NDArray[np.float32] = resized(planes[0], height, width)
    for number, plane in enumerate(planes[1:], start=1):
        share: NDArray[np.float32] = resized(plane, height, width)
        np.copyto(best, np.uint8(number), where=share > most)
        np.maximum(most, share, out=most)
    return best


def polygon_to_mask(points_percent: ArrayLike, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels whose centre is inside a polygon (non-zero winding, the fill rule of a browser's canvas).

    points_percent  (n, 2) x, y in percent of the image; closing point optional; may extend outside the image
    height, width   size of the mask, in pixels

    Returns (height, width). Raises UnreadableMask unless there are at least 3 pairs of finite numbers.
    """
    try:
        points = np.asarray(points_percent, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnreadableMask("a polygon's points must be [x, y] pairs of numbers. Redraw it") from error
    if points.size == 0 or (points.ndim == 2 and points.shape[1] == 2 and len(points) < 3):
        raise UnreadableMask(f"a polygon needs at least 3 points, got {len(points)}. Redraw or delete it")
    if points.ndim != 2 or points.shape[1] != 2:
        raise UnreadableMask(f"a polygon's points must be [x, y] pairs, got an array of {points.shape}. Redraw it")
    if not np.isfinite(points).all():
        raise UnreadableMask("a polygon's points must be finite numbers, got NaN or infinity. Redraw it")
    points = points.clip(-FAR, FAR)
    x, y = points[:, 0] * (width / 100), points[:, 1] * (height / 100)
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    # The rows whose centre line (row + 0.5) an edge crosses: low <= row + 0.5 < high.
    first = np.clip(np.ceil(np.minimum(y, next_y) - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y, next_y) - 0.5), 0, height).astype(np.int64)
    counts = last - first
    if counts.sum() > CROSSINGS:
        raise UnreadableMask(
            f"a polygon of {len(points):,} points crosses the {height} rows of the image {counts.sum():,} times; the "
            f"maximum is {CROSSINGS:,}. Redraw it with fewer points"
        )
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    # From the upper end: a bridge, which is followed in both directions, must cross each row in the same pixel twice.
    falls = y <= next_y
    (low_x, low_y), (high_x, high_y) = (
        (np.where(here, x, next_x), np.where(here, y, next_y)) for here in (falls, ~falls)
    )
    slope = (row + 0.5 - low_y[edge]) / (high_y - low_y)[edge]
    crossing = low_x[edge] + slope * (high_x - low_x)[edge]
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    mask = np.zeros((height, width), np.bool_)
    if len(row):
        top, bottom, left, right = row.min(), row.max() + 1, column.min(), column.max() + 1
        turns = np.zeros((bottom - top, right - left), np.int32)
        np.add.at(turns, (row - top, column - left), np.where(next_y[edge] > y[edge], 1, -1))
        mask[top:bottom, left:right] = (np.cumsum(turns, axis=1) != 0)[:, : width - left]
    return mask


def mask_to_polygons(mask: NDArray[np.bool_], *, tolerance: float = 1.0) -> list[NDArray[np.float64]]:
    """The outlines of a mask: one polygon per connected component (8-neighbourhood), largest first.

    A bridge of zero width connects a hole to its outer ring, because Label Studio has only single closed polygons.
    `polygon_to_mask` restores the mask: exactly with tolerance 0, otherwise within about `tolerance` pixels of the
    border.

    mask       (H, W) bool; not modified
    tolerance  maximum deviation of the simplified outline in pixels (Douglas & Peucker 1973); 0 keeps every corner

    Returns arrays of (n, 2), n >= 3, x, y in percent; an empty list for an empty mask. Raises ValueError on a
    wrong shape.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask_to_polygons expects (H, W), got {mask.shape}")
    height, width = mask.shape
    if not mask.any():
        return []
    # At double size a contour runs a quarter pixel inside the true border, between it and the pixel centres, so a pixel
    # is inside the contour exactly if it is in the mask.
    double = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings: list[tuple[float, NDArray[np.float64]]] = []
    for index, contour in enumerate(contours):
        if tree[0][index][3] >= 0:
            continue
        ring = _simplified(contour, tolerance)
        hole = tree[0][index][2]
        while hole >= 0:
            ring = _bridged(ring, _simplified(contours[hole], tolerance))
            hole = tree[0][hole][0]
        rings.append((cv2.contourArea(contour), ring))
    rings.sort(key=lambda item: -item[0])
    scale = np.array([100 / (2 * width), 100 / (2 * height)])
    return [(ring + 0.5) * scale for _, ring in rings]


def _simplified(contour: NDArray[Any], tolerance: float) -> NDArray[np.float64]:
    simple = cv2.approxPolyDP(contour, 2 * tolerance, closed=True) if tolerance > 0 else contour
    return (simple if len(simple) >= 3 else contour)[:, 0].astype(np.float64)


def _bridged(ring: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Follow the ring to the corner nearest to the hole, cross, go once around the hole, and return the same way.

    OpenCV winds holes opposite to their outer contour, so the winding number inside the hole is 0.
    """
    gaps = ((ring[:, None] - hole[None]) ** 2).sum(axis=2)
    at, start = divmod(int(gaps.argmin()), len(hole))
    around = np.roll(hole, -start, axis=0)
    return np.concatenate([ring[: at + 1], around, around[:1], ring[at:]])


def merge_labels(masks: Iterable[tuple[int, NDArray[np.bool_]]], height: int, width: int) -> NDArray[np.uint8]:
    """One label map from the masks of an annotation; where they overlap, the later one wins.

    masks          (class number 1..254, (height, width) bool) in drawing order, consumed one at a time; empty: all
                   background
    height, width  size of the scan

    Returns (height, width) uint8. Raises UnreadableMask if a mask has another size, ValueError on a class number out of
    range.
    """
    labelmap = np.zeros((height, width), np.uint8)
    for number, mask in masks:
        if not 1 <= number < IGNORE:
            raise ValueError(f"class numbers are 1..{IGNORE - 1} (0 is background), got {number}")
        if mask.shape != (height, width):
            raise UnreadableMask(
                f"a mask is {' x '.join(map(str, mask.shape[::-1]))} pixels "
                f"but its scan is {width} x {height}. "
                "Delete it and draw it again on this scan"
            )
        labelmap[mask.astype(bool)] = number
    return labelmap


def classes_in(labelmap: NDArray[np.uint8]) -> list[int]:
    """The class numbers in a label map, ascending, without background and IGNORE."""
    return [int(n) for n in np.flatnonzero(np.bincount(labelmap.ravel(), minlength=256)) if 0 < n < IGNORE]


def translate(mask: NDArray[np.uint8], has: Sequence[str], wanted: Sequence[str]) -> NDArray[np.uint8]:
    """A label map with the classes `has`, mapped to the classes `wanted`; other classes become background."""
    if list(has) == list(wanted):
        return mask
    table = np.zeros(256, np.uint8)
    for i, label in enumerate(has, start=1):
        if label in wanted:
            table[i] = list(wanted).index(label) + 1
    return np.asarray(table[mask])
