"""Small DICOM files for tests: slices of a series, radiographs, enhanced multi-frame files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from backend.formats import Source, group, sniff

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
CR = "1.2.840.10008.5.1.4.1.1.1"
US = "1.2.840.10008.5.1.4.1.1.6.1"
US_FRAMES = "1.2.840.10008.5.1.4.1.1.3.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def dataset(pixels: np.ndarray[Any, Any], **header: Any) -> Dataset:
    """An image with the pixels (rows, columns[, 3]) and a header with what a reader needs, overridden by `header`.

    A value of None leaves the element out.
    """
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    colour = pixels.ndim >= 3 and pixels.shape[-1] == 3
    facts: dict[str, Any] = {
        "SOPClassUID": CT,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "Modality": "CT",
        "PatientName": "Test^Patient",
        "PatientID": "4711",
        "PatientBirthDate": "19500101",
        "PatientSex": "O",
        "StudyDate": "20200101",
        "StudyTime": "120000",
        "AccessionNumber": "A1",
        "StudyID": "1",
        "ReferringPhysicianName": "",
        "InstanceNumber": 1,
        "Rows": pixels.shape[-3 if colour else -2],
        "Columns": pixels.shape[-2 if colour else -1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "HighBit": 8 * pixels.dtype.itemsize - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
    }
    if colour:
        facts["PlanarConfiguration"] = 0
    for keyword, value in (facts | header).items():
        if value is not None:
            setattr(found, keyword, value)
    found["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
    return found


def save(path: Path, found: Dataset, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, found, enforce_file_format=True, **options)
    return path


def series(
    folder: Path,
    volume: np.ndarray[Any, Any],
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float] = (0.5, 0.75),
    places: Sequence[float] | None = None,
    **header: Any,
) -> list[Path]:
    """Files of `volume` (K, rows, columns), slice k at `places[k]` mm along the normal (2.5 mm apart by default)."""
    normal = np.cross(orientation[:3], orientation[3:])
    shared = {
        "SeriesInstanceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "PixelSpacing": list(spacing),
        "SliceThickness": 2.5,
        "ImageOrientationPatient": list(orientation),
        "PositionReferenceIndicator": "",
    }
    paths = []
    for k, pixels in enumerate(volume):
        place = 2.5 * k if places is None else places[k]
        position = [round(float(part), 6) for part in np.array([10.0, 20.0, 30.0]) + place * normal]
        own = {"ImagePositionPatient": position, "InstanceNumber": k + 1}
        paths.append(save(folder / f"{k:04}.dcm", dataset(pixels, **(shared | own | header))))
    return paths


def sources(*paths: Path) -> list[Source]:
    """The scans in these files."""
    return group(fact for fact in map(sniff, paths) if fact)


def item(**elements: Any) -> list[Dataset]:
    """A sequence with one item."""
    found = Dataset()
    for keyword, value in elements.items():
        setattr(found, keyword, value)
    return [found]


def enhanced(
    path: Path,
    frames: np.ndarray[Any, Any],
    positions: Sequence[Sequence[float]],
    *,
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float] = (0.5, 0.75),
    rescale: Sequence[tuple[float, float]] | None = None,
    window: tuple[float, float] | None = None,
    **header: Any,
) -> Path:
    """An enhanced multi-frame file of `frames` (N, rows, columns) at `positions`."""
    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=list(spacing), SliceThickness=2.0, SpacingBetweenSlices=3.0)
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=list(orientation))
    if window is not None:
        shared.FrameVOILUTSequence = item(WindowCenter=window[0], WindowWidth=window[1])
    each = []
    for n, position in enumerate(positions):
        own = Dataset()
        own.PlanePositionSequence = item(ImagePositionPatient=list(position))
        own.FrameContentSequence = item(StackID="1", InStackPositionNumber=n + 1)
        if rescale is not None:
            own.PixelValueTransformationSequence = item(
                RescaleSlope=rescale[n][0], RescaleIntercept=rescale[n][1], RescaleType="US"
            )
        each.append(own)
    facts = {
        "SOPClassUID": ENHANCED_CT,
        "FrameOfReferenceUID": generate_uid(),
        "PositionReferenceIndicator": "",
        "NumberOfFrames": len(frames),
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": each,
    }
    return save(path, dataset(frames, **(facts | header)))
