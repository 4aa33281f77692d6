"""DICOM files: which of them are images, and the facts in their headers. Headers only, no pixels.

pydicom's warnings and log lines quote header values, so they are silenced. Errors in a file are reported as
UnreadableFile, without header values.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom import Dataset, config
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from backend.errors import UnreadableFile
from backend.formats.source import FileFacts, Header

MAX_BYTES = 2**34  # maximum size of a file
MAX_INFLATED = 2**30  # maximum size of a deflated file after decompression

REPLACED = "is not an image any more: it was replaced during the import. Import it again"

logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|gdcm|openjpeg)(\.|$)")
config.settings.reading_validation_mode = config.IGNORE  # invalid values are common in fields that we do not use

_MARKS = (  # fields that distinguish images at one position, the most specific first
    "TemporalPositionIdentifier",
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "TriggerTime",
    "AcquisitionNumber",
    "ImageType",
    "ContentTime",
)
_CENTIMETRES = 3  # PhysicalUnitsXDirection, PS3.3 C.8.5.5.1.15
_COVERS = 0.98  # the share of each side of a picture that a region must cover
_SNIFFED_TAGS: list[BaseTag | int] = [
    Tag(keyword)
    for keyword in (
        *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "InstanceNumber"),
        *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
        *("ImageOrientationPatient", "ImagePositionPatient", "FrameOfReferenceUID", "BurnedInAnnotation"),
        *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "SliceThickness"),
        *("SpacingBetweenSlices", "EstimatedRadiographicMagnificationFactor", "SequenceOfUltrasoundRegions"),
        *("Manufacturer", *_MARKS),
    )
]
_GRID_SLICES = Tag(0x0065, 0x1050)  # private to United Imaging: how many slices one picture holds
_HEADER_TAGS: list[BaseTag | int] = [
    Tag(keyword)
    for keyword in (
        *("SpecificCharacterSet", "Modality", "PatientID", "InstitutionName", "StudyInstanceUID"),
        "BurnedInAnnotation",
    )
]
# These have pixels but are not images of a patient: segmentations and doses are results.
_NOT_IMAGES = {
    "1.2.840.10008.1.3.10",  # Media Storage Directory
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.66.8",  # Height Map Segmentation
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose
}
_WHOLE_SLIDES = {
    "1.2.840.10008.5.1.4.1.1.77.1.6",  # VL Whole Slide Microscopy
    "1.2.840.10008.5.1.4.1.1.77.1.9",  # Confocal Microscopy Tiled Pyramidal
}
_NEVER_STACKED = {
    *("CR", "DX", "MG", "US", "XA", "RF", "SC", "OT", "ES", "XC", "IO", "PX", "OP", "GM", "SM", "IVUS", "RG"),
    *("RTIMAGE", "DG", "TG", "HD", "ECG", "OPT", "OCT"),
}


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn all errors of pydicom and its decoders into UnreadableFile, without their text, which may quote names."""
    try:
        yield
    except UnreadableFile:
        raise
    except MemoryError as error:
        raise UnreadableFile(path, "does not fit into memory; exclude it or use a larger machine") from error
    except OSError as error:
        raise UnreadableFile(path, f"cannot be read: {error.strerror or type(error).__name__}") from error
    except Exception as error:
        raise UnreadableFile(
            path, f"is a damaged or truncated DICOM file ({type(error).__name__}); export it again"
        ) from error


def load(path: Path, *, pixels: bool = False) -> Dataset:
    """The header of one file, or the whole file. Raises UnreadableFile."""
    with reported(path), path.open("rb") as file:
        _refuse_bombs(path, file)
        return pydicom.dcmread(file, force=True, stop_before_pixels=not pixels)


def _load_tags(path: Path, tags: list[BaseTag | int]) -> Dataset:
    """The header with these elements only. Raises UnreadableFile."""
    before = int(max(tags)).__lt__  # called for every element, and much faster than BaseTag's
    with reported(path), path.open("rb") as file:
        _refuse_bombs(path, file)
        # Vendors put hundreds of private elements between our last one and the pixels.
        return read_partial(file, lambda tag, vr, length: before(tag), force=True, specific_tags=tags)


def _refuse_bombs(path: Path, file: BinaryIO) -> None:
    start = file.read(1024)
    if file.seek(0, 2) > MAX_BYTES:
        raise UnreadableFile(path, f"is larger than {MAX_BYTES >> 30} GiB, the maximum; split it")
    if DeflatedExplicitVRLittleEndian.encode() in start:
        # The meta header is not deflated; its group length (0002,0000) gives its end.
        known = start[132:136] == b"\x02\x00\x00\x00"
        file.seek(144 + (int.from_bytes(start[140:144], "little") if known else 0))
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while piece := file.read(1 << 16):
            while piece:
                size += len(inflater.decompress(piece, 1 << 24))
                piece = inflater.unconsumed_tail
                if size > MAX_INFLATED:
                    raise UnreadableFile(
                        path, f"inflates to more than {MAX_INFLATED >> 20} MiB, the maximum; save it uncompressed"
                    )
    file.seek(0)


def looks_like(start: bytes) -> bool:
    """Whether a file with these first bytes may be DICOM, with or without preamble."""
    if start[128:132] == b"DICM":
        return True
    little = start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\0"
    return len(start) >= 8 and (little or start[:3] == b"\0\x08\0")


def sniff(path: Path, *, certain: bool) -> FileFacts | None:
    """Facts of one DICOM file; None if it is not an image.

    certain  the file declares that it is DICOM; otherwise only its first bytes suggest it, and errors return None
    """
    try:
        header = _load_tags(path, _SNIFFED_TAGS)
        _refuse_grids(path, header)
        return facts(path, header)
    except UnreadableFile:
        if certain:
            raise
        return None


def _refuse_grids(path: Path, header: Dataset) -> None:
    """Refuse pictures that are not slices: several slices side by side, and the tiles of a slide."""
    if text(header, "SOPClassUID") in _WHOLE_SLIDES:
        raise UnreadableFile(
            path, "is a tiled whole-slide image, which is not supported; export the region to label as PNG or TIFF"
        )
    grid = "Siemens MOSAIC" if "MOSAIC" in text(header, "ImageType").upper().split("\\") else ""
    if re.search(r"\bUIH\b|united imaging", text(header, "Manufacturer"), re.IGNORECASE):
        private = _load_tags(path, [_GRID_SLICES]).get(_GRID_SLICES)
        with contextlib.suppress(TypeError, ValueError):
            value = private.value if private is not None else 0
            value = value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else value
            grid = "United Imaging grid" if float(value) > 1 else grid
    if grid:
        raise UnreadableFile(
            path,
            f"is a {grid}: all slices of a volume side by side in one picture, which is not supported; convert it with "
            "dcm2niix and import the NIfTI file",
        )


def facts(path: Path, header: Dataset, *, placed_only: bool = False) -> FileFacts | None:
    """The facts in `header`; None if the file is not an image. Raises UnreadableFile on invalid sizes.

    placed_only  only size and geometry, for a file whose other facts are known
    """
    kind = text(header, "SOPClassUID") or text(getattr(header, "file_meta", Dataset()), "MediaStorageSOPClassUID")
    if kind in _NOT_IMAGES:
        return None
    rows, columns = whole(header, "Rows"), whole(header, "Columns")
    if not all(keyword in header for keyword in ("Rows", "Columns", "BitsAllocated")):
        if not kind or "Image Storage" in UID(kind).name:
            raise UnreadableFile(path, "is a truncated or damaged DICOM file: it has no image size; export it again")
        return None
    if rows < 1 or columns < 1:
        raise UnreadableFile(path, f"declares {rows} rows and {columns} columns; export it again")
    orientation, position = directions(header), numbers(header, "ImagePositionPatient", 3)
    geometry = FileFacts(
        path,
        "dicom",
        frames=max(1, whole(header, "NumberOfFrames")),
        rows=rows,
        columns=columns,
        colour=whole(header, "SamplesPerPixel") > 1 or text(header, "PhotometricInterpretation") == "PALETTE COLOR",
        orientation=orientation,
        position=position,
        spacing=spacing(header),
        thickness=thickness(header),
    )
    if placed_only:
        return geometry
    placed = bool(orientation and position)
    modality = text(header, "Modality").upper()
    stackable = placed or (modality not in _NEVER_STACKED and modality != "")
    number = whole(header, "InstanceNumber")
    return replace(
        geometry,
        series=text(header, "SeriesInstanceUID"),
        instance=text(header, "SOPInstanceUID"),
        place=float(np.dot(normal(orientation), position)) if placed else float(number),
        placed=placed,
        stackable=stackable,
        frame=text(header, "FrameOfReferenceUID"),
        number=number,
        marks=tuple(text(header, keyword) for keyword in _MARKS),
        burnt_in=yes_or_no(header),
        size=path.stat().st_size,
    )


def read_header(path: Path) -> Header:
    """Patient, institution and study, as far as an import needs them. Private."""
    header = _load_tags(path, _HEADER_TAGS)
    with reported(path):
        return Header(
            modality=text(header, "Modality"),
            patient_id=text(header, "PatientID"),
            institution=text(header, "InstitutionName"),
            study=text(header, "StudyInstanceUID"),
            burnt_in=yes_or_no(header),
        )


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
