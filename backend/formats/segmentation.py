"""Label volumes as DICOM Segmentation objects that reference their source."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from backend import __version__
from backend.errors import CannotExport
from backend.formats import dicom, frames
from backend.formats.labels import check, write_atomically
from backend.formats.reading import read_geometry
from backend.formats.source import Source

SCHEME = "99SCANQUEUE"  # private coding scheme: a lab's labels have no standard codes
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
    pixels = np.ascontiguousarray(labels.transpose(2, 1, 0))
    count = max(1, dicom.whole(headers[0], "NumberOfFrames"))
    if len(headers) == 1 and count > 1:
        order, _ = frames.layout(source.files[0], headers[0], count, time)
        stored = np.zeros((count, *pixels.shape[1:]), np.uint8)
        stored[order] = pixels
        pixels = stored
    for header in headers:
        for keyword in _EXPECTED:
            if keyword not in header:
                setattr(header, keyword, "")
    try:
        written = _segmentation(headers, pixels, names, model, series_description, manufacturer)
    except Exception as error:
        raise CannotExport(
            f"a DICOM SEG cannot be written for this series ({type(error).__name__}): its header lacks the fields that "
            "a SEG must reference. Export it as NIfTI or PNG"
        ) from error
    buffer = io.BytesIO()
    written.save_as(buffer)
    write_atomically(path, buffer.getvalue())


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
            name=_short(model.get("name", "")) or "model",
            family=codes.DCM.ArtificialIntelligence,
            version=_short(model.get("version", "")) or "unknown",
        )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=n,
            segment_label=_short(name) or str(n),
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,  # a label may be an organ or a lesion
            segmented_property_type=highdicom.sr.CodedConcept(
                hashlib.sha256(name.encode()).hexdigest()[:16].upper(), SCHEME, _short(name) or str(n)
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
        manufacturer=_short(manufacturer),
        manufacturer_model_name="scanqueue",
        software_versions=__version__,
        device_serial_number="0",
        series_description=_short(series_description),
        omit_empty_frames=bool(pixels.any()),
        **rest,
    )
    written.SpecificCharacterSet = "ISO_IR 192"  # labels may be in any script
    return written


def _short(text: str) -> str:
    """A valid DICOM label: at most 64 characters, printable, no backslash."""
    return "".join(c if c.isprintable() and c != "\\" else " " for c in text).strip()[:LONGEST]
