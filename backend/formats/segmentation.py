"""Label volumes as DICOM Segmentation objects that reference their source."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from backend import __version__
from backend.errors import CannotExport
from backend.formats import dicom, fields, frames
from backend.formats.functional_groups import groups
from backend.formats.labels import check, write_atomically
from backend.formats.reading import read_geometry
from backend.formats.source import Source, is_content

SCHEME = "99SCANQUEUE"  # private coding scheme: a lab's labels have no standard codes
SAME = 1e-3  # tolerance for equal directions, and mm for equal pixel spacings
_SINGLE_FRAME = "1.2.840.10008.5.1.4.1.1.4"  # MR Image Storage
_STAND_IN = "2.25.1."  # begins the SOPInstanceUID that stands for a frame while highdicom works
LONGEST = 64  # maximum characters in a DICOM label
_EXPECTED = (  # must exist but may be empty (PS3.3 type 2); de-identified files often lack them
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)


def write_dicom_seg(
    path: Path,
    labels: NDArray[np.uint8],
    source: Source,
    *,
    names: Sequence[str],
    model: Mapping[str, str] | None = None,
    series_description: str = "Segmentation",
    manufacturer: str = "scanqueue",
    time: int | None = None,
) -> None:
    """Write a label volume as a binary DICOM SEG that references the source's instances, for a hospital's archive.

    The file intentionally contains the patient (with name), study and frame of reference of its source, by which an
    archive files it: protect it like the source. Empty frames are omitted; if all are empty, those of the first slice
    are kept, since a DICOM image has at least one frame (for a multi-frame file, all are kept). Every slice of the
    source is referenced. Every file is a separate instance and series.

    labels   (I, J, K) class numbers, 0 background; not modified
    names    names[n - 1] is the label of class n, which becomes segment n
    model    {"name": ..., "version": ...} of the model (algorithm type AUTOMATIC); None: drawn by a person (MANUAL)

    Raises CannotExport if the source is not DICOM or has no slice positions, on another shape, or for a class without
    a name; UnreadableFile if the source cannot be read.
    """
    if source.kind != "dicom":
        raise CannotExport("a DICOM SEG references the DICOM files it was drawn on; export this scan as NIfTI or PNG")
    if not names:
        raise CannotExport("a DICOM SEG needs at least one class with a name")
    geometry = read_geometry(source, time=time)
    check(labels, geometry, names)
    headers = [dicom.load(file) for file in source.files]
    placed = _placed(source, headers, time)
    _check_source(source, headers, placed)
    slices = [_slice(headers[frame.file], frame, n) for n, frame in enumerate(placed)]
    pixels = np.ascontiguousarray(labels.transpose(2, 1, 0))
    try:
        written = _segmentation(slices, pixels, names, model, series_description, manufacturer)
        _refer_to_source(written, headers, placed)
    except Exception as error:
        raise CannotExport(
            f"a DICOM SEG cannot be written for this series ({type(error).__name__}): its header lacks the fields that "
            "a SEG must reference. Export it as NIfTI or PNG"
        ) from error
    buffer = io.BytesIO()
    written.save_as(buffer)
    write_atomically(path, buffer.getvalue())


def _placed(source: Source, headers: list[Dataset], time: int | None) -> list[frames.Frame]:
    """Where each slice is stored, in order of k."""
    if any(fields.whole(header, "NumberOfFrames") > 1 for header in headers):
        return frames.layout(source, headers, time)
    return [replace(frames.of_header(header, 1)[0], file=n) for n, header in enumerate(headers)]


def _check_source(source: Source, headers: list[Dataset], placed: list[frames.Frame]) -> None:
    """Raise CannotExport unless the slices are distinct instances with one pixel spacing and orientation."""
    uids = {fields.text(header, "SOPInstanceUID") for header in headers}
    if "" in uids or len(uids) < len(headers) or any(map(is_content, source.instances)):
        raise CannotExport(
            "its files do not have a SOPInstanceUID of their own, by which a DICOM SEG references them. Export it as "
            "NIfTI or PNG"
        )
    for what, values in (
        ("pixel spacings", [frame.spacing for frame in placed]),
        ("orientations", [frame.orientation for frame in placed]),
    ):
        if any(len(one) != len(values[0]) for one in values) or not np.allclose(values, values[0], rtol=0, atol=SAME):
            raise CannotExport(
                f"its slices have different {what}, but a DICOM SEG has one for all. Import it again, which divides "
                "it, or export it as PNG"
            )
    if len(placed) > 1 and not all(frame.position for frame in placed):
        raise CannotExport(
            "its frames have no position in the patient, by which a DICOM SEG places them. Export it as PNG"
        )
    if len({frame.position for frame in placed}) < len(placed):
        raise CannotExport(
            "several of its frames are at one position, which a DICOM SEG cannot tell apart. Export it as PNG"
        )


def _slice(header: Dataset, frame: frames.Frame, n: int) -> Dataset:
    """A header that highdicom takes for slice n: a single-frame image, with the fields of the frame at its top."""
    found = Dataset()
    for element in header:
        if element.tag.group < 0x5200:
            found.add(copy.copy(element))
    for keyword in _EXPECTED:
        if keyword not in found:
            setattr(found, keyword, "")
    if not groups(header, 0) and fields.whole(header, "NumberOfFrames") <= 1:
        if frame.thickness and not fields.number(found, "SliceThickness"):
            found.SliceThickness = frame.thickness
        return found
    found.pop("NumberOfFrames", None)
    found.SOPClassUID = _SINGLE_FRAME
    found.SOPInstanceUID = f"{_STAND_IN}{n}"
    if frame.position and frame.orientation:
        found.ImagePositionPatient = [round(part, 6) for part in frame.position]
        found.ImageOrientationPatient = list(frame.orientation)
    if frame.spacing:
        found.PixelSpacing = list(frame.spacing)
        found.SliceThickness = frame.thickness or 1.0
        found.pop("SpacingBetweenSlices", None)
    return found


def _refer_to_source(written: Dataset, headers: list[Dataset], placed: list[frames.Frame]) -> None:
    """Replace the references to the stand-ins of `_slice` by references to the frames of the source."""
    for item in _items(written):
        if not fields.text(item, "ReferencedSOPInstanceUID").startswith(_STAND_IN):
            continue
        frame = placed[int(item.ReferencedSOPInstanceUID.removeprefix(_STAND_IN))]
        header = headers[frame.file]
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        if fields.whole(header, "NumberOfFrames") > 1:
            item.ReferencedFrameNumber = frame.number + 1
    for series in written.get("ReferencedSeriesSequence") or ():
        whole = {item.ReferencedSOPInstanceUID: item for item in series.ReferencedInstanceSequence}
        for item in whole.values():
            item.pop("ReferencedFrameNumber", None)
        series.ReferencedInstanceSequence = list(whole.values())


def _items(header: Dataset) -> Iterator[Dataset]:
    """All items of all sequences in a header, nested ones too."""
    for element in header:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _items(item)


def _segmentation(
    headers: list[Dataset],
    pixels: NDArray[np.uint8],
    names: Sequence[str],
    model: Mapping[str, str] | None,
    series_description: str,
    manufacturer: str,
) -> Any:
    import highdicom  # takes most of a second to load, and only exports need it
    from pydicom.sr.codedict import codes

    algorithm = None
    if model is not None:
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=short(model.get("name", "")) or "model",
            family=codes.DCM.ArtificialIntelligence,
            version=short(model.get("version", "")) or "unknown",
        )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=n,
            segment_label=short(name) or str(n),
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,  # a label may be an organ or a lesion
            segmented_property_type=highdicom.sr.CodedConcept(
                hashlib.sha256(name.encode()).hexdigest()[:16].upper(), SCHEME, short(name) or str(n)
            ),
            algorithm_type="MANUAL" if algorithm is None else "AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for n, name in enumerate(names, start=1)
    ]
    rest: dict[str, Any] = {}
    if len(headers) > 1 and not pixels.any():  # highdicom would store every frame
        rest["further_source_images"] = headers[1:]
        headers, pixels = headers[:1], pixels[:1]
    written = highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=pixels,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=1,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=short(manufacturer),
        manufacturer_model_name="scanqueue",
        software_versions=__version__,
        device_serial_number="0",
        series_description=short(series_description),
        omit_empty_frames=bool(pixels.any()),
        **rest,
    )
    written.SpecificCharacterSet = "ISO_IR 192"  # labels may be in any script
    return written


def short(text: str) -> str:
    """A valid DICOM label: at most 64 characters, printable, no backslash."""
    return "".join(c if c.isprintable() and c != "\\" else " " for c in text).strip()[:LONGEST]
