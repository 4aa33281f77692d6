"""Images and masks as arrays: decoding, letterboxing, polygons, label maps. NumPy, Pillow and OpenCV only.

Legend: H, W the size of a scan as Label Studio shows it; S the side of the square a network sees;
C classes, background first. A *label map* holds class numbers: 0 background, 1.. the labels in
order, and IGNORE where nothing is known. Points are (x, y) in percent of the image, as Label Studio
writes them: (0, 0) is the outer corner of the first pixel, (100, 100) that of the last.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from backend.errors import UnreadableMask, UnreadableScan

IGNORE = 255
"""Value in a label map of pixels that count neither as background nor as a label (padding)."""

# Others are never tried: EPS would start Ghostscript, and many decoders are old and little read.
_FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "JPEG2000", "AVIF")
_SLOW = "bmp_rle"  # decoded by a loop in Python, seconds per megapixel
LARGE = 8_000_000  # pixels from which on an image is one of few at a time: it may need gigabytes
BAND = 256  # rows
CROSSINGS = 5_000_000  # of the edges of one polygon with rows; each needs some 60 bytes
FAR = 1e6  # percent of the image; points beyond it are moved there
_FEW = threading.BoundedSemaphore(2)
_Number = TypeVar("_Number", np.uint8, np.float32)
_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


def decode_image(data: bytes, *, max_pixels: int = 64_000_000) -> NDArray[np.uint8]:
    """Turn the bytes of an image file into pixels, oriented as a browser shows them.

    PNG, JPEG, TIFF, GIF, BMP, WebP, JPEG 2000 and AVIF, no other format:
    1, 8, 16 and 32 bit, float, palette, alpha, CMYK. More than 8 bits of gray are
    windowed to the 0.5th..99.5th percentile of the finite values. Transparency is laid over black, the
    colour of our padding. A colour picture whose three channels are equal becomes gray. Of several
    frames or pages the first is taken.

    EXIF orientation is applied: browsers show such a picture turned, so Label Studio's
    original_width/height and every mask drawn on it are those of the turned picture.

    max_pixels  refuse more pixels than this; read from the header, before anything is decoded

    Returns (H, W) gray or (H, W, 3) RGB. Raises UnreadableScan when the file is empty, truncated, not an
    image, or too large.
    """
    if not data:
        raise UnreadableScan("the file is empty (0 bytes); upload the scan again")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableScan(
            f"the image is too large ({error}); at most {max_pixels:,} pixels are read. Upload a smaller version"
        ) from error
    except UnidentifiedImageError as error:
        raise UnreadableScan(
            f"not an image: {len(data):,} bytes starting with {data[:8]!r}. "
            "Upload PNG, JPEG, TIFF or another format a browser can show"
        ) from error
    except Exception as error:  # decoders raise whatever they like, and no file may stop more than its scan
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
        raise UnreadableScan("a BMP with run lengths is not read; save it as PNG and upload that")
    with _FEW if width * height > LARGE else nullcontext():
        try:
            image.load()
            return _as_shown(_upright(image))
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
        f"the image is truncated or damaged ({len(data):,} bytes: {str(error) or type(error).__name__}); "
        "upload the scan again"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken metadata: a browser shows the picture as it is stored
        return image


def _to_8_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Window (H, W) numbers to their 0.5th..99.5th percentile, 0..255. Not finite: 0. Constant: all 0."""
    numbers = values.astype(np.float32)
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.zeros(numbers.shape, np.uint8)
    known = numbers if finite.all() else numbers[finite]
    low, high = np.percentile(known, (0.5, 99.5))
    if high <= low:  # nearly all pixels alike: the window is the whole range
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
    """A scan fitted into a square, aspect ratio kept, centred, black around it.

    pixels                           (S, S) or (S, S, 3) uint8
    top, left, height, width         the content box inside the square, in its pixels
    original_height, original_width  the size of the scan it came from
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


def _box(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Top, left, height, width of the content of an (height, width) picture in a square of `size`."""
    if height < 1 or width < 1 or size < 1:
        raise ValueError(f"cannot letterbox {height} x {width} into {size} x {size}: every side must be 1 or more")
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
        raise ValueError(f"letterbox wants (H, W) or (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    top, left, inner_height, inner_width = _box(height, width, size)
    square = np.zeros((size, size, *image.shape[2:]), np.uint8)
    square[top : top + inner_height, left : left + inner_width] = _resize(image, inner_height, inner_width)
    return Letterboxed(square, top, left, inner_height, inner_width, height, width)


def letterbox_mask(labelmap: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Fit a label map into a square exactly as `letterbox` fits its scan; padding becomes IGNORE.

    Every pixel takes the class that covers most of its area (ties: the lower number).

    labelmap  (H, W) uint8; not modified
    Returns (size, size) uint8. Raises ValueError on any other shape or type.
    """
    if labelmap.dtype != np.uint8 or labelmap.ndim != 2:
        raise ValueError(f"letterbox_mask wants (H, W) uint8, got {labelmap.shape} {labelmap.dtype}")
    top, left, inner_height, inner_width = _box(labelmap.shape[0], labelmap.shape[1], size)
    present = np.unique(labelmap)
    best = np.full((inner_height, inner_width), present[0], np.uint8)
    if len(present) > 1:
        most = _resize((labelmap == present[0]).astype(np.float32), inner_height, inner_width)
        for value in present[1:]:
            share = _resize((labelmap == value).astype(np.float32), inner_height, inner_width)
            wins = share > most
            best[wins] = value
            most = np.maximum(most, share)
    square = np.full((size, size), IGNORE, np.uint8)
    square[top : top + inner_height, left : left + inner_width] = best
    return square


def _resize(image: NDArray[_Number], height: int, width: int) -> NDArray[_Number]:
    shrinking = height * width < image.shape[0] * image.shape[1]
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
    return resized.astype(image.dtype, copy=False)


def restore(probabilities: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint8]:
    """The most likely class of every pixel of the original scan.

    Probabilities, not classes, are brought to the original size (bilinear; area-averaged when that is
    smaller), so contours are smooth rather than steps of the network's grid. Ties go to the lower class.

    probabilities  (C, h, w), C >= 2, already cropped to the content box; not modified
    height, width  size of the original scan

    Returns (height, width) uint8. Raises ValueError on a wrong shape.
    """
    if probabilities.ndim != 3 or not 2 <= probabilities.shape[0] <= IGNORE or 0 in probabilities.shape:
        raise ValueError(f"restore wants (C, h, w) with 2 <= C <= {IGNORE}, got {probabilities.shape}")
    planes = np.ascontiguousarray(probabilities, dtype=np.float32)
    if len(planes) == 2:  # one resize instead of two
        lead: NDArray[np.float32] = _resize(planes[1] - planes[0], height, width)
        return (lead > 0).astype(np.uint8)
    best = np.zeros((height, width), np.uint8)
    most: NDArray[np.float32] = _resize(planes[0], height, width)
    for number, plane in enumerate(planes[1:], start=1):
        share: NDArray[np.float32] = _resize(plane, height, width)
        np.copyto(best, np.uint8(number), where=share > most)
        np.maximum(most, share, out=most)
    return best


def polygon_to_mask(points_percent: ArrayLike, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels whose centre lies inside a polygon (non-zero winding, the rule a browser's canvas fills by).

    points_percent  (n, 2) x, y in percent of the image; closing point optional; may reach outside the image
    height, width   size of the mask, in pixels

    Returns (height, width). Raises UnreadableMask on fewer than 3 points, or on what is not pairs of finite
    numbers.
    """
    try:
        points = np.asarray(points_percent, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        said = str(error)[:100]
        raise UnreadableMask(f"a polygon's points must be [x, y] pairs of numbers: {said}. Redraw it") from error
    if points.size == 0 or (points.ndim == 2 and points.shape[1] == 2 and len(points) < 3):
        raise UnreadableMask(f"a polygon needs at least 3 points, got {len(points)}. Redraw or delete it")
    if points.ndim != 2 or points.shape[1] != 2:
        raise UnreadableMask(f"a polygon's points must be [x, y] pairs, got an array of {points.shape}. Redraw it")
    if not np.isfinite(points).all():
        raise UnreadableMask("a polygon's points must be finite numbers, got NaN or infinity. Redraw it")
    points = points.clip(-FAR, FAR)
    x, y = points[:, 0] * (width / 100), points[:, 1] * (height / 100)
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    # Rows whose centre line (row + 0.5) each edge crosses: low <= row + 0.5 < high.
    first = np.clip(np.ceil(np.minimum(y, next_y) - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y, next_y) - 0.5), 0, height).astype(np.int64)
    counts = last - first
    if counts.sum() > CROSSINGS:
        raise UnreadableMask(
            f"a polygon of {len(points):,} points crosses the {height} rows of the image {counts.sum():,} times, "
            f"at most {CROSSINGS:,} can be drawn. Redraw it with fewer points"
        )
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (row + 0.5 - y[edge]) / (next_y[edge] - y[edge])
    crossing = x[edge] + slope * (next_x[edge] - x[edge])
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

    A hole is cut into its outer ring by a bridge of no width, so that one closed polygon, all that Label
    Studio has, still says exactly what is inside. `polygon_to_mask` gives the mask back: exactly with
    tolerance 0, otherwise within about `tolerance` pixels of the border.

    mask       (H, W) bool; not modified
    tolerance  how far, in pixels, the simplified outline may stray (Douglas & Peucker 1973); 0 keeps every
               corner

    Returns arrays of (n, 2), n >= 3, x, y in percent; an empty list for an empty mask. Raises ValueError on a
    wrong shape.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask_to_polygons wants (H, W), got {mask.shape}")
    height, width = mask.shape
    if not mask.any():
        return []
    # At double size a contour runs a quarter pixel inside the true border, between it and the pixel centres:
    # a pixel is
    # inside the contour exactly when it is in the mask.
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
    """Go along the ring to the corner nearest the hole, across, once around the hole, and back the same way.

    OpenCV winds holes against their outer contour, so inside the hole the two turns cancel.
    """
    gaps = ((ring[:, None] - hole[None]) ** 2).sum(axis=2)
    at, start = divmod(int(gaps.argmin()), len(hole))
    around = np.roll(hole, -start, axis=0)
    return np.concatenate([ring[: at + 1], around, around[:1], ring[at:]])


def merge_labels(masks: Iterable[tuple[int, NDArray[np.bool_]]], height: int, width: int) -> NDArray[np.uint8]:
    """One label map from the masks of an annotation; where they overlap, the later one wins.

    masks          (class number 1..254, (height, width) bool), in the order they were drawn, each asked for
                   when the one before it was taken; empty: all background
    height, width  size of the scan

    Returns (height, width) uint8. Raises UnreadableMask when a mask has another size, ValueError on a class
    number out of range.
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


def translate(mask: NDArray[np.uint8], has: Sequence[str], wanted: Sequence[str]) -> NDArray[np.uint8]:
    """A label map whose classes are `has`, in the classes `wanted`; what is not wanted becomes background."""
    if list(has) == list(wanted):
        return mask
    table = np.zeros(256, np.uint8)
    for i, label in enumerate(has, start=1):
        if label in wanted:
            table[i] = list(wanted).index(label) + 1
    return np.asarray(table[mask])
