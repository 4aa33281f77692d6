"""What is known before pixels are read: facts of one file, the source that several files form, and its header."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path


@dataclass(frozen=True)
class FileFacts:
    """The facts in the header of one file, enough to assemble the files of a series. Picklable.

    kind         "dicom", "nifti" or "image"
    series       SeriesInstanceUID, or ""
    instance     SOPInstanceUID, or ""
    place        mm along the normal of the slice; without a position, the InstanceNumber
    frames       number of frames (DICOM), pages (TIFF) or volumes (NIfTI); else 1
    placed       whether `place` is a position
    stackable    whether files of one series may form a stack: slices of CT, MR, ... Never radiographs
    rows, columns  size of a slice
    colour       whether the pixels are coloured
    orientation  ImageOrientationPatient, or ()
    position     ImagePositionPatient, or ()
    spacing      mm between rows, between columns, or ()
    thickness    mm, or 0.0
    frame        FrameOfReferenceUID, or ""
    number       InstanceNumber, or 0
    marks        fields that may distinguish images at one position: time, echo, b-value, ..., as text
    burnt_in     BurnedInAnnotation: "YES", "NO" or ""
    size         file size in bytes
    remark       what a person should know although the file is read, a sentence without header values, or ""
    """

    path: Path
    kind: str
    series: str = ""
    instance: str = ""
    place: float = 0.0
    frames: int = 1
    placed: bool = False
    stackable: bool = False
    rows: int = 0
    columns: int = 0
    colour: bool = False
    orientation: tuple[float, ...] = ()
    position: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    thickness: float = 0.0
    frame: str = ""
    number: int = 0
    marks: tuple[str, ...] = ()
    burnt_in: str = ""
    size: int = 0
    remark: str = ""


@dataclass(frozen=True)
class Source:
    """One volume or one picture, which becomes one scan. Picklable.

    kind       "dicom", "nifti" or "image"
    files      DICOM: the slices in order of position, or one multi-frame file; else one file
    uid        identifies the source whatever its file names and folders. DICOM: the series and one stack of it; else
               "": use a digest of the content
    instances  SOPInstanceUID of each file (DICOM), else ()
    burnt_in   BurnedInAnnotation: "YES" if any file has it, "NO" if all have it, else ""
    volumes    number of volumes over time according to the sniffed header (NIfTI); 1: nothing to choose
    remarks    what a person should know although the source is read, sentences without header values; not stored
    """

    kind: str
    files: tuple[Path, ...]
    uid: str
    instances: tuple[str, ...] = ()
    burnt_in: str = ""
    volumes: int = 1
    remarks: tuple[str, ...] = field(default=(), compare=False)

    def to_json(self) -> str:
        facts = {each.name: getattr(self, each.name) for each in fields(self) if each.compare}
        return json.dumps({**facts, "files": [str(path) for path in self.files]})

    @classmethod
    def from_json(cls, text: str) -> Source:
        facts = json.loads(text)
        return cls(
            facts["kind"],
            tuple(Path(path) for path in facts["files"]),
            facts["uid"],
            tuple(facts["instances"]),
            facts["burnt_in"],
            int(facts["volumes"]),
        )


@dataclass(frozen=True)
class Header:
    """The header fields of a source that an import needs. PRIVATE: never logged, never sent anywhere.

    For a series, the header of its first file. "" if a field is missing, as in NIfTI and plain pictures.

    modality  "CT", "MR", ...
    study     StudyInstanceUID
    burnt_in  BurnedInAnnotation: "YES", "NO" or ""
    """

    modality: str = ""
    patient_id: str = ""
    institution: str = ""
    study: str = ""
    burnt_in: str = ""
