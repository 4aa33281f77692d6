"""DICOM files: which of them are images, and the facts in their headers. Headers only, no pixels.

pydicom's warnings and log lines quote header values, so they are silenced. Errors in a file are reported as
UnreadableFile, without header values.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import warnings
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom import Dataset, config
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from backend.errors import UnreadableFile
from backend.formats import failures, packed
from backend.formats.fields import directions, normal, numbers, spacing, text, thickness, whole, yes_or_no
from backend.formats.functional_groups import of_frame, other_dimensions
from backend.formats.source import UNNAMED, FileFacts, Header

_PIXEL_DATA, _ITEM = b"\xe0\x7f\x10\0", b"\xfe\xff\0\xe0"
_END_OF_SEQUENCE = b"\xfe\xff\xdd\xe0\0\0\0\0"
_ITEM_TAGS = 0xFFFE0000
MAX_BYTES = 2**34  # maximum size of a file
MAX_INFLATED = 2**30  # maximum size of a deflated file after decompression

REPLACED = "is no longer an image: it was replaced during the import. Import it again"

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
    "InversionTime",
    "FlipAngle",
    "DiffusionGradientOrientation",
    "ComplexImageComponent",
    "NominalPercentageOfCardiacPhase",
    "NominalPercentageOfRespiratoryPhase",
    "NominalRespiratoryTriggerDelayTime",
    "TemporalPositionTimeOffset",
    "ASLContext",
    "VelocityEncodingDirection",
    "KVP",
)
_ENHANCED = re.compile("Enhanced|Legacy Converted|3D|Tomosynthesis|Tomography|Multi-frame")
OVERLAP_MARKS = tuple(  # those of whole acquisitions, which may overlap
    _MARKS.index(keyword)
    for keyword in (
        *("TemporalPositionIdentifier", "EchoNumbers", "EchoTime", "DiffusionBValue", "AcquisitionNumber", "ImageType"),
        "KVP",
    )
)
_SNIFFED_TAGS: list[BaseTag | int] = [
    Tag(keyword)
    for keyword in (
        *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "InstanceNumber"),
        *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
        *("ImageOrientationPatient", "ImagePositionPatient", "FrameOfReferenceUID", "BurnedInAnnotation"),
        *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "SliceThickness"),
        *("SpacingBetweenSlices", "EstimatedRadiographicMagnificationFactor", "SequenceOfUltrasoundRegions"),
        *("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "SeriesNumber", "Manufacturer"),
        *("ConcatenationUID", "InConcatenationNumber", *_MARKS),
    )
]
_GRID_SLICES = Tag(0x0065, 0x1050)  # private to United Imaging: how many slices one picture holds
_HEADER_TAGS: list[BaseTag | int] = [
    Tag(keyword)
    for keyword in (
        *("SpecificCharacterSet", "Modality", "PatientID", "PatientName", "InstitutionName", "StudyInstanceUID"),
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


def reported(path: Path) -> AbstractContextManager[None]:
    """Turn all errors of pydicom and its decoders into UnreadableFile."""
    return failures.reported(path, "is a damaged or truncated DICOM file ({error}); export it again")


def load(path: Path, *, pixels: bool = False) -> Dataset:
    """The header of one file, or the whole file. Raises UnreadableFile."""
    with reported(path), packed.opened(path) as file:
        _refuse_bombs(path, file)
        found = pydicom.dcmread(file, force=True, stop_before_pixels=not pixels)
        if pixels and "Rows" not in found and (closed := _closed(file)):
            found = pydicom.dcmread(io.BytesIO(closed), force=True)
        return found


def _closed(file: BinaryIO) -> bytes:
    """The file with the delimiter that its compressed pixels lack; b"" if it lacks more: a fragment is incomplete.

    pydicom reads nothing at all of such a file, GDCM reads it.
    """
    file.seek(0)
    pydicom.dcmread(file, force=True, stop_before_pixels=True)
    at = file.tell()
    file.seek(0)
    content = file.read()
    if content[at : at + 4] != _PIXEL_DATA or content[at + 8 : at + 12] != b"\xff\xff\xff\xff":
        return b""
    at += 12
    while content[at : at + 4] == _ITEM and at + 8 <= len(content):
        at += 8 + int.from_bytes(content[at + 4 : at + 8], "little")
    complete = at <= len(content) and not content[at:].strip(b"\0")
    return content[:at] + _END_OF_SEQUENCE if complete else b""


def _load_tags(path: Path, tags: list[BaseTag | int]) -> Dataset:
    """The header with these elements only. Raises UnreadableFile."""
    before = int(max(tags)).__lt__  # called for every element, and much faster than BaseTag's
    with reported(path), packed.opened(path) as file:
        _refuse_bombs(path, file)
        # Vendors put hundreds of private elements between our last one and the pixels.
        # An item tag may stray among the elements of a header.
        return read_partial(
            file, lambda tag, vr, length: before(tag) and tag < _ITEM_TAGS, force=True, specific_tags=tags
        )


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
        if "NumberOfFrames" in header or _ENHANCED.search(UID(text(header, "SOPClassUID")).name):
            header = load(path)  # its geometry is in functional groups, which come last
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
    with reported(path):
        frame = of_frame(header, 0)
    orientation, position = directions(frame), numbers(frame, "ImagePositionPatient", 3)
    geometry = FileFacts(
        path,
        "dicom",
        frames=max(1, whole(header, "NumberOfFrames")),
        rows=rows,
        columns=columns,
        colour=whole(header, "SamplesPerPixel") > 1 or text(header, "PhotometricInterpretation") == "PALETTE COLOR",
        orientation=orientation,
        position=position,
        spacing=spacing(frame),
        thickness=thickness(frame),
    )
    if placed_only:
        return geometry
    placed = bool(orientation and position)
    modality = text(header, "Modality").upper()
    stackable = placed or (modality not in _NEVER_STACKED and modality != "")
    number = whole(header, "InConcatenationNumber") or whole(header, "InstanceNumber")
    return replace(
        geometry,
        series=text(header, "SeriesInstanceUID") or _unnamed(header),
        instance=text(header, "SOPInstanceUID"),
        place=float(np.dot(normal(orientation), position)) if placed else float(number),
        placed=placed,
        stackable=stackable,
        frame=text(header, "FrameOfReferenceUID"),
        number=number,
        marks=marks(frame, other_dimensions(header)),
        stack=text(frame, "StackID"),
        whole=text(header, "ConcatenationUID"),
        owner=_owner(header),
        burnt_in=yes_or_no(header),
        size=packed.size(path),
    )


def marks(frame: Dataset, dimensions: Sequence[int]) -> tuple[str, ...]:
    """The fields that distinguish images at one position: _MARKS, and the indexes of these dimensions."""
    values = text(frame, "DimensionIndexValues").split("\\") if dimensions else []
    indexes = "\\".join(values[n] for n in dimensions if n < len(values))
    return (*(text(frame, keyword) for keyword in _MARKS), indexes)


def _owner(header: Dataset) -> str:
    """A digest of the patient and the study: scans of two patients stay apart, whatever else they share."""
    patient = text(header, "PatientID") or text(header, "PatientName") + text(header, "PatientBirthDate")
    study = text(header, "StudyInstanceUID")
    return hashlib.sha256(repr((patient, study)).encode()).hexdigest()[:12] if patient or study else ""


def _unnamed(header: Dataset) -> str:
    """The `series` of a file without SeriesInstanceUID."""
    facts = [text(header, keyword) for keyword in ("SeriesNumber", "Modality", "FrameOfReferenceUID")]
    return UNNAMED + hashlib.sha256(repr((_owner(header), *facts)).encode()).hexdigest()[:12]


def read_header(path: Path) -> Header:
    """Patient, institution and study, as far as an import needs them. Private."""
    header = _load_tags(path, _HEADER_TAGS)
    with reported(path):
        return Header(
            modality=text(header, "Modality"),
            patient_id=text(header, "PatientID"),
            patient_name=text(header, "PatientName"),
            institution=text(header, "InstitutionName"),
            study=text(header, "StudyInstanceUID"),
            burnt_in=yes_or_no(header),
        )
