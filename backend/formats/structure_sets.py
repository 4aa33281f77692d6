"""Label volumes as DICOM RT Structure Sets, for planning systems and archives that do not read SEG.

Source: DICOM PS3.3 A.19.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from backend import __version__
from backend.errors import CannotExport
from backend.formats import dicom
from backend.formats.labels import check, write_atomically
from backend.formats.reading import read_geometry
from backend.formats.segmentation import short
from backend.formats.source import Source

_PATIENT = (  # type 2: present, perhaps empty
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName", "StudyInstanceUID"),
)


def write_rtstruct(
    path: Path,
    labels: NDArray[np.uint8],
    source: Source,
    *,
    names: Sequence[str],
    automatic: bool = False,
    series_description: str = "Segmentation",
    time: int | None = None,
) -> None:
    """Write a label volume as an RTSTRUCT that references the source's instances.

    Each label is a structure. Its outlines run half-way between the pixels inside and those outside; holes are outlines
    within outlines. A program that counts a pixel as inside if its centre is reads the same mask. Like a DICOM SEG, the
    file contains the patient and study of its source: protect it like the source.

    labels     (I, J, K) class numbers, 0 background; not modified
    names      names[n - 1] is the label of class n, which becomes structure n
    automatic  a model drew it

    Raises CannotExport if the source is not a DICOM series with one positioned slice per file, on another shape, or for
    a class without a name; UnreadableFile if the source cannot be read.
    """
    geometry = read_geometry(source, time=time)
    check(labels, geometry, names)
    single = source.kind == "dicom" and len(source.instances) == len(source.files) == geometry.shape[2]
    if not single or not geometry.orientation or not geometry.regular or not all(source.instances):
        raise CannotExport(
            "an RTSTRUCT references evenly spaced DICOM slices with a file each; export this scan as NIfTI or PNG"
        )
    first = dicom.load(source.files[0])
    kind = str(first.SOPClassUID)
    written = _header(first, series_description)
    written.ReferencedFrameOfReferenceSequence = [_referenced(first, kind, source.instances)]
    rois, contours, observations = [], [], []
    for number, name in enumerate(names, start=1):
        rois.append(
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=written.FrameOfReferenceUID,
                ROIName=short(name) or str(number),
                ROIGenerationAlgorithm="AUTOMATIC" if automatic else "MANUAL",
            )
        )
        drawn = [
            _contour(geometry.affine, k, points, kind, source.instances[k]) for k, points in _outlines(labels == number)
        ]
        contours.append(_item(ReferencedROINumber=number, ContourSequence=drawn))
        observations.append(
            _item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType="", ROIInterpreter="")
        )
    written.StructureSetROISequence = rois
    written.ROIContourSequence = contours
    written.RTROIObservationsSequence = observations
    buffer = io.BytesIO()
    written.save_as(buffer, enforce_file_format=True)
    write_atomically(path, buffer.getvalue())


def _header(first: Dataset, description: str) -> Dataset:
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in _PATIENT:
        setattr(found, keyword, first.get(keyword, ""))
    found.SpecificCharacterSet = "ISO_IR 192"
    found.SOPClassUID = RTStructureSetStorage
    found.SOPInstanceUID = generate_uid()
    found.SeriesInstanceUID = generate_uid()
    found.FrameOfReferenceUID = first.get("FrameOfReferenceUID") or generate_uid()
    found.Modality = "RTSTRUCT"
    found.SeriesNumber = found.InstanceNumber = 1
    found.SeriesDescription = short(description)
    found.Manufacturer = found.ManufacturerModelName = "scanqueue"
    found.SoftwareVersions = __version__
    found.OperatorsName = found.PositionReferenceIndicator = ""
    found.StructureSetLabel = "scanqueue"
    found.StructureSetDate = found.StructureSetTime = ""
    found.ApprovalStatus = "UNAPPROVED"
    return found


def _item(**values: object) -> Dataset:
    found = Dataset()
    for keyword, value in values.items():
        setattr(found, keyword, value)
    return found


def _referenced(first: Dataset, kind: str, instances: Sequence[str]) -> Dataset:
    images = [_item(ReferencedSOPClassUID=kind, ReferencedSOPInstanceUID=uid) for uid in instances]
    series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    study = _item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",  # Detached Study Management (retired, but required)
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=first.get("FrameOfReferenceUID", ""), RTReferencedStudySequence=[study])


def _outlines(mask: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Each slice's outlines, (n, 2) in voxels (i, j), half-way between the pixels (marching squares)."""
    import contourpy

    for k in np.flatnonzero(mask.any((0, 1))).tolist():
        padded = np.pad(mask[:, :, k].T, 1).astype(np.float64)
        for line in contourpy.contour_generator(z=padded).lines(0.5):
            yield k, np.asarray(line, np.float64)[:-1] - 1


def _contour(affine: NDArray[np.float64], k: int, points: NDArray[np.float64], kind: str, uid: str) -> Dataset:
    voxels = np.column_stack([points, np.full(len(points), k)])
    places = (voxels @ affine[:3, :3].T + affine[:3, 3]) * (-1, -1, 1)  # RAS to LPS
    return _item(
        ContourImageSequence=[_item(ReferencedSOPClassUID=kind, ReferencedSOPInstanceUID=uid)],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
        ContourData=[f"{value:.4f}" for value in places.ravel()],
    )
