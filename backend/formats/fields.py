"""Values of DICOM header fields as text and numbers, and the few values derived from several fields."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

_CENTIMETRES = 3  # PhysicalUnitsXDirection, PS3.3 C.8.5.5.1.15
_COVERS = 0.98  # the share of each side of a picture that a region must cover
_tag = cache(Tag)
_ASCII = ("UI", "CS", "DS", "TM")  # ASCII in every character set; not IS: pydicom rejects fractions in it


def _value(header: Dataset, keyword: str) -> Any:
    """The value of a field, or None. Like `header.get(keyword)`, but many times faster.

    Numbers that are stored as text may be returned as text.
    """
    tag = _tag(keyword)
    try:
        raw = header.get_item(tag)
    except KeyError:
        return None
    plain = _plain(raw) if isinstance(raw, RawDataElement) else None
    return header[tag].value if plain is None else plain


def _plain(raw: RawDataElement) -> Any:
    """The value of a raw element if it is easy to decode; None leaves it to pydicom."""
    value = raw.value
    if not value:
        return None
    if raw.VR == "US" and len(value) == 2:
        return int.from_bytes(value, "little" if raw.is_little_endian else "big")
    if raw.VR in _ASCII and value.isascii():
        if b"\\" not in value:
            return value.decode("ascii").strip("\0 ")
        if raw.VR == "DS":
            return value.decode("ascii").strip("\0 ").split("\\")
    return None


def text(header: Dataset, keyword: str) -> str:
    """The value as text; several values joined by a backslash; "" if missing or unreadable."""
    try:
        value = _value(header, keyword)
    except Exception:
        return ""
    if value is None:
        return ""
    if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
        return "\\".join(str(part) for part in value)
    return str(value).strip("\0 ")


def numbers(header: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """Exactly `count` finite numbers, or ()."""
    try:
        value = _value(header, keyword)
        if value is None or value == "":
            return ()
        parts = value if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [value]
        found = tuple(float(part) for part in parts)
    except Exception:
        return ()
    return found if len(found) == count and all(map(math.isfinite, found)) else ()


def number(header: Dataset, keyword: str, default: float = 0.0) -> float:
    """The first finite number of the value, or `default`."""
    try:
        value = _value(header, keyword)
        if value is None:
            return default
        if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
            value = value[0]
        found = float(value)
    except Exception:
        return default
    return found if math.isfinite(found) else default


def whole(header: Dataset, keyword: str) -> int:
    return int(number(header, keyword))


def little_endian(header: Dataset) -> bool:
    return getattr(header, "original_encoding", (None, True))[1] is not False


def yes_or_no(header: Dataset) -> str:
    found = text(header, "BurnedInAnnotation").upper()
    return found if found in ("YES", "NO") else ""


def directions(header: Dataset) -> tuple[float, ...]:
    """ImageOrientationPatient if its two vectors have length 1 and are perpendicular, else ()."""
    found = numbers(header, "ImageOrientationPatient", 6)
    if not found:
        return ()
    along_row, along_column = found[:3], found[3:]
    lengths = math.hypot(*along_row), math.hypot(*along_column)
    skew = abs(sum(a * b for a, b in zip(along_row, along_column, strict=True)))
    return found if all(abs(length - 1) < 0.01 for length in lengths) and skew < 0.01 else ()


def normal(orientation: tuple[float, ...]) -> tuple[float, float, float]:
    """The normal of a slice, which points to later slices; LPS."""
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
    return b * f - c * e, c * d - a * f, a * e - b * d


def spacing(header: Dataset) -> tuple[float, ...]:
    """mm between rows, between columns; () if unknown.

    PixelSpacing; without it, for radiographs the spacing on the detector, divided by the magnification if known, for
    scanned films the spacing on the film, and for ultrasound the calibration of a region that covers the picture.
    """
    found = numbers(header, "PixelSpacing", 2)
    if not found and (found := numbers(header, "ImagerPixelSpacing", 2)):
        larger = number(header, "EstimatedRadiographicMagnificationFactor")
        found = tuple(size / larger for size in found) if larger > 0 else found
    found = found or numbers(header, "NominalScannedPixelSpacing", 2) or _ultrasound(header)
    return found if found and min(found) > 0 else ()


def _ultrasound(header: Dataset) -> tuple[float, ...]:
    """mm between rows, between columns, if one calibrated region covers the picture and no other contradicts it."""
    size = whole(header, "Columns"), whole(header, "Rows")
    sizes: list[tuple[float, ...]] = []
    covered = False
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        left, top, right, bottom = (
            number(region, f"RegionLocation{end}") for end in ("MinX0", "MinY0", "MaxX1", "MaxY1")
        )
        units = {whole(region, "PhysicalUnitsXDirection"), whole(region, "PhysicalUnitsYDirection")}
        across, down = (10 * abs(number(region, f"PhysicalDelta{axis}")) for axis in "XY")  # cm per pixel
        sizes.append((down, across) if units == {_CENTIMETRES} else ())
        reach = (right - left + 1) / size[0], (bottom - top + 1) / size[1]
        covered = covered or (units == {_CENTIMETRES} and min(reach) >= _COVERS)
    return sizes[0] if covered and len(set(sizes)) == 1 else ()


def thickness(header: Dataset) -> float:
    """mm between slices according to the header, else the slice thickness, else 0.0."""
    between = abs(number(header, "SpacingBetweenSlices"))
    return between or max(0.0, number(header, "SliceThickness"))
