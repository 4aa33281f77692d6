"""The frames of a multi-frame DICOM file as the headers that single-frame files would have.

An enhanced file describes its frames in functional groups: macros that apply to all frames (shared) or to one. Both
places are always read, because the standard lets a writer choose the place of each macro. Source: DICOM PS3.3 C.7.6.16.
"""

from __future__ import annotations

from pydicom import Dataset
from pydicom.tag import Tag

_MACROS = (
    *("FrameContentSequence", "PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence"),
    *("FramePixelDataPropertiesSequence", "TemporalPositionSequence", "CardiacSynchronizationSequence"),
    *("RespiratorySynchronizationSequence", "MREchoSequence", "MRDiffusionSequence", "MRModifierSequence"),
    *("MRTimingAndRelatedParametersSequence", "MRArterialSpinLabelingSequence", "MRVelocityEncodingSequence"),
    *(
        "MRImageFrameTypeSequence",
        "CTImageFrameTypeSequence",
        "PETFrameTypeSequence",
        "XAXRFFrameCharacteristicsSequence",
    ),
    *("CTXRayDetailsSequence", "DiffusionGradientDirectionSequence"),
    *("UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence"),
)
_TAGS = tuple(map(Tag, _MACROS))
_SINGLE_FRAME_NAMES = {
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "EffectiveEchoTime": "EchoTime",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
    "FrameType": "ImageType",
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "FrameReferenceDateTime": "ContentTime",
    "InversionTimes": "InversionTime",
}
_OF_FILE = (
    *("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing"),
    *("NominalScannedPixelSpacing", "SliceThickness", "SpacingBetweenSlices", "SequenceOfUltrasoundRegions"),
    *("EstimatedRadiographicMagnificationFactor", "EchoTime", "DiffusionBValue", "AcquisitionNumber", "ImageType"),
)
_SPATIAL = {  # what a dimension index may count that says where a frame is, not when or how it was acquired
    Tag(keyword)
    for keyword in (
        *("StackID", "InStackPositionNumber", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation"),
        *("PlanePositionSequence", "PlaneOrientationSequence", "ImagePositionVolume", "ImageOrientationVolume"),
    )
}


def items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; [] if it is missing."""
    found = header.get(keyword)
    return list(found) if found else []


def first_item(header: Dataset, keyword: str) -> Dataset | None:
    found = items(header, keyword)
    return found[0] if found else None


def groups(header: Dataset, n: int) -> list[Dataset]:
    """The functional groups of frame n, its own before the shared one; [] if the file has none."""
    each = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared = first_item(header, "SharedFunctionalGroupsSequence")
    return [group for group in (each[n] if n < len(each) else None, shared) if group is not None]


def of_frame(header: Dataset, n: int) -> Dataset:
    """The geometry and the marks of frame n, from its groups before the file; the file's header if it has no groups."""
    own = groups(header, n)
    if not own:
        return header
    found = Dataset()
    for keyword in _OF_FILE:
        if keyword in header:
            found[keyword] = header[keyword]
    for group in reversed(own):
        for tag in _TAGS:
            if tag in group and (macros := group[tag].value):
                _take(found, macros[0])
    return found


def _take(found: Dataset, macro: Dataset) -> None:
    for element in macro:
        found[element.tag] = element
        if name := _SINGLE_FRAME_NAMES.get(element.keyword):
            setattr(found, name, element.value)
        if element.keyword in _MACROS and element.value:
            _take(found, element.value[0])


def other_dimensions(header: Dataset) -> list[int]:
    """The places in DimensionIndexValues that do not count positions: time, echo, b-value, ..."""
    pointers = [item.get("DimensionIndexPointer") for item in items(header, "DimensionIndexSequence")]
    return [n for n, pointer in enumerate(pointers) if pointer is not None and pointer not in _SPATIAL]
