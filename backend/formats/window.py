"""Modality values to 8-bit pixels: window and level as defined by DICOM (PS3.3 C.11.2)."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import BadWindow

_NATIVE = "<" if sys.byteorder == "little" else ">"


@dataclass(frozen=True)
class VoiTable:
    """A VOI LUT from a header.

    first   the modality value of `values[0]`; the first entry applies below it, the last one above the table
    values  entries, 0..2**bits - 1
    """

    first: int
    bits: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """The range of modality values shown from black to white.

    center, width  in modality units (HU, ...)
    function       "LINEAR" (black at center - width / 2, except for the standard's half unit), "LINEAR_EXACT",
                   "SIGMOID"
    lut            the header's VOI LUT, if it has one; `center` and `width` then span its entries
    """

    center: float
    width: float
    function: str = "LINEAR"
    lut: VoiTable | None = None


def to_uint8(picture: NDArray[Any], window: Window, *, inverted: bool) -> NDArray[np.uint8]:
    """Modality values as pixels: 0 black, 255 white, rounded to nearest.

    picture   (H, W) numbers, or (H, W, 3) uint8 RGB, which is returned as it is; not modified
    inverted  low values are white (MONOCHROME1)

    NaN is black. Raises BadWindow if the width is not positive (LINEAR: less than 1) or the function is unknown,
    ValueError on another shape or type. Source: DICOM PS3.3 C.11.2.1.2, C.11.2.1.3.
    """
    if picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8:
        return picture
    if picture.ndim != 2 or picture.dtype.kind not in "biuf":
        raise ValueError(f"to_uint8 expects (H, W) numbers or (H, W, 3) uint8, got {picture.shape} {picture.dtype}")
    _check(window)
    if picture.dtype.kind == "b":
        picture = picture.view(np.uint8)
    if picture.dtype.kind in "iu":
        if picture.dtype.itemsize <= 2:
            bits = 8 * picture.dtype.itemsize
            if picture.dtype.byteorder not in ("=", "|", _NATIVE):
                picture = picture.astype(picture.dtype.newbyteorder("="))
            table = _table(window, bits, picture.dtype.kind == "i", inverted)
            return np.take(table, picture.view(f"u{bits // 8}"), mode="wrap")  # nothing wraps: skips bounds checks
        low, high = (int(picture.min()), int(picture.max())) if picture.size else (0, 0)
        if high - low < 65536:
            values = np.arange(low, high + 1, dtype=np.float64)
            return np.asarray(_eight_bit(_curve(values, window), inverted)[picture - picture.dtype.type(low)])
    wide = picture.dtype.kind in "iu" or picture.dtype.itemsize > 4
    numbers = picture.astype(np.float64 if wide else np.float32)
    unknown = np.isnan(numbers)
    missing = bool(unknown.any())
    if missing:
        numbers[unknown] = 0
    shown = _eight_bit(_curve(numbers, window), inverted)
    if missing:
        shown[unknown] = 0
    return shown


def _check(window: Window) -> None:
    if window.lut is not None:
        return
    if window.function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise BadWindow(f"a window's function is LINEAR, LINEAR_EXACT or SIGMOID, not {window.function!r}")
    least = "at least 1" if window.function == "LINEAR" else "more than 0"
    enough = window.width >= 1 if window.function == "LINEAR" else window.width > 0
    if not (enough and math.isfinite(window.width) and math.isfinite(window.center)):
        raise BadWindow(
            f"a {window.function} window needs a finite center and a width of {least}, "
            f"got {window.center:g} and {window.width:g}"
        )


@lru_cache(maxsize=64)
def _table(window: Window, bits: int, signed: bool, inverted: bool) -> NDArray[np.uint8]:
    """The pixel value for each bit pattern of an 8- or 16-bit integer."""
    patterns = np.arange(2**bits, dtype=f"u{bits // 8}")
    values = patterns.view(f"i{bits // 8}") if signed else patterns
    table = _eight_bit(_curve(values.astype(np.float64), window), inverted)
    table.setflags(write=False)
    return table


def _curve(values: NDArray[Any], window: Window) -> NDArray[Any]:
    """0 black .. 1 white, before clipping. Overwrites `values`, which are floats."""
    center, width = window.center, window.width
    if window.lut is not None:
        entries = np.asarray(window.lut.values, values.dtype) / (2**window.lut.bits - 1)
        places = np.clip(np.rint(values - window.lut.first), 0, len(entries) - 1)
        return np.asarray(entries[places.astype(np.intp)])
    if window.function == "SIGMOID":
        values -= center
        values *= -4 / width
        np.clip(values, -80, 80, out=values)  # far beyond what 8 bits can show
        np.exp(values, out=values)
        values += 1
        return np.asarray(np.reciprocal(values, out=values))
    if window.function == "LINEAR":
        center, width = center - 0.5, width - 1
        if width == 0:
            return (values > center).astype(values.dtype)
    values -= center
    values /= width
    values += 0.5
    return values


def _eight_bit(curve: NDArray[Any], inverted: bool) -> NDArray[np.uint8]:
    np.clip(curve, 0, 1, out=curve)
    if inverted:
        np.subtract(1, curve, out=curve)
    curve *= 255
    np.rint(curve, out=curve)
    return curve.astype(np.uint8)
